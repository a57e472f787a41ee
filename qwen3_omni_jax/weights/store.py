"""The converted checkpoint: a folder with an Orbax checkpoint of our parameter tree and the published small files.

    DIR/config.json, tokenizer, ...  every small file of the published folder
    DIR/params/        the Orbax checkpoint; `orbax.checkpoint.v1.load(DIR/params)` restores it onto any mesh
    DIR/published/     headers and index of the published shards (weights/originals.py)
    DIR/manifest.json  what it holds, with a checksum per tensor; written last

writer.py makes it, this module reads it.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorstore as ts
import xxhash

from .names import report
from .work import refuse_unfinished

PARAMS = 'params'
MANIFEST = 'manifest.json'
FORMAT, VERSION = 'qwen3_omni_jax', 2
_TREE_CACHE = 'cache_pool#tree'  # of what finds the chunks: else it is read again for every chunk
DAMAGED = (ValueError, KeyError, OSError, RuntimeError, NotImplementedError)  # what tensorstore raises


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What a complete converted folder holds."""

  parts: tuple[str, ...]  # top-level parts of the parameter tree
  dtype: str | None  # everything was converted to this; None: values are as they were published
  arrays: dict[str, tuple[tuple[int, ...], str]]  # path: shape and dtype
  checksums: dict[str, str]  # of every published tensor: `checksum` of its bytes as stored


def is_converted(folder: pathlib.Path) -> bool:
  return (folder / PARAMS).is_dir()


class Arrays:
  """The arrays of a converted folder, opened but not read.

  Raises ValueError if the folder is unfinished or damaged, or (strict) does not hold exactly the arrays of `shapes`;
  otherwise those that can be opened are there, and everything that is wrong is in `problems`, by kind.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    shapes: dict[str, tuple[int, ...]],
    *,
    params: pathlib.Path | str | None = None,
    strict: bool = True,
  ):
    """params: the Orbax checkpoint, if it is not in the folder: its URL."""
    self.folder = folder
    self.manifest = read_manifest(folder)
    found = {path: shape for path, (shape, _) in self.manifest.arrays.items()}
    self.parts = self.manifest.parts
    shapes = {path: shape for path, shape in shapes.items() if part_of(path) in self.parts}
    mismatches = {
      'missing': [path for path in shapes if path not in found],
      'unknown': [path for path in found if path not in shapes],
      'of_another_shape': [
        f'{path}: found {list(found[path])}, expected {list(shape)}'
        for path, shape in shapes.items()
        if path in found and found[path] != shape
      ],
    }
    if strict:
      report(f'{folder}: the weights do not match config.json', **mismatches)
    base, context = kvstore(params or folder / PARAMS), ts.Context({_TREE_CACHE: {'total_bytes_limit': 64 * 2**20}})
    base['cache_pool'] = _TREE_CACHE
    self._arrays: dict[str, ts.TensorStore] = {}
    damaged = []
    for path, shape in found.items():
      spec = {
        'driver': 'zarr3',
        'kvstore': {**base, 'path': path.replace('/', '.') + '/'},
        'fill_missing_data_reads': False,
      }
      try:
        array = ts.open(spec, open=True, read=True, context=context).result()
      except DAMAGED as error:
        damaged.append(f'{path}: {first_line(error)}')
        continue
      dtype = self.manifest.arrays[path][1]
      if (tuple(array.shape), array.dtype.name) != (shape, dtype):
        damaged.append(f'{path}: {list(array.shape)} {array.dtype.name} in {PARAMS}, {list(shape)} {dtype} in {MANIFEST}')
      else:
        self._arrays[path] = array
    if damaged and not self._arrays:
      raise ValueError(f'{folder / PARAMS}: nothing there can be read ({damaged[0]}); convert again')
    if strict:
      report(f'{folder / PARAMS}: not the checkpoint that {MANIFEST} describes; convert again', damaged=damaged)
    self.problems = {**mismatches, 'damaged': damaged}

  def paths(self) -> tuple[str, ...]:
    """Of the arrays that could be opened."""
    return tuple(self._arrays)

  def shape(self, path: str) -> tuple[int, ...]:
    return tuple(self._arrays[path].shape)

  def dtype(self, path: str) -> np.dtype:
    return np.dtype(self._arrays[path].dtype.numpy_dtype)

  def read(self, path: str, index: tuple[slice | int, ...]) -> np.ndarray:
    """A part of an array, by indices and slices of its full shape; only the chunks that it touches are read."""
    try:
      return self._arrays[path][index].read().result()
    except DAMAGED as error:
      raise ValueError(f'{self.folder}: {path} is damaged ({first_line(error)}); convert again') from error

  def pieces(self, path: str, index: tuple[int, ...]) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, rows) of each chunk of what lies at `index` of the stacked axes, in order."""
    layout: Any = self._arrays[path].chunk_layout
    rows, step = self.shape(path)[len(index)], layout.read_chunk.shape[len(index)]
    for start in range(0, rows, step):
      yield start, self.read(path, (*index, slice(start, min(start + step, rows))))


def read_manifest(folder: pathlib.Path) -> Manifest:
  """Of a complete converted folder; anything else is a ValueError."""
  file = folder / MANIFEST
  if not file.is_file():
    refuse_unfinished(folder)
    raise ValueError(f'{file}: no such file; this is not a complete converted folder: convert again')
  try:
    data: Any = json.loads(file.read_text(encoding='utf-8'))
    kind = (data['format'], data['version'])
    if kind != (FORMAT, VERSION):
      expected = f'expected {FORMAT} version {VERSION}'
      raise ValueError(f'{file}: format {kind[0]} version {kind[1]}; {expected}: convert again')
    return Manifest(
      parts=tuple(map(str, data['parts'])),
      dtype=data['dtype'],
      arrays={str(p): (tuple(map(int, e['shape'])), str(e['dtype'])) for p, e in data['arrays'].items()},
      checksums={str(name): str(checksum) for name, checksum in data['tensors'].items()},
    )
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    if str(error).startswith(str(file)):
      raise
    raise ValueError(f'{file}: not a manifest of a converted folder ({type(error).__name__}: {error})') from error


def write_manifest(folder: pathlib.Path, manifest: Manifest) -> None:
  arrays = {path: {'shape': list(shape), 'dtype': dtype} for path, (shape, dtype) in manifest.arrays.items()}
  data = {
    'format': FORMAT,
    'version': VERSION,
    'parts': manifest.parts,
    'dtype': manifest.dtype,
    'arrays': arrays,
    'tensors': manifest.checksums,
  }
  (folder / MANIFEST).write_text(json.dumps(data, indent=1) + '\n', encoding='utf-8')


def checksum():
  """Of a tensor's bytes as they are stored: our layout and dtype, C order."""
  return xxhash.xxh3_128()  # eight times as fast as SHA-256; it is there to notice accidents


def part_of(path: str) -> str:
  """The top-level part of the parameter tree that an array belongs to."""
  return path.split('/')[0]


def first_line(error: BaseException) -> str:
  return (str(error) or type(error).__name__).splitlines()[0][:300]


def kvstore(root: pathlib.Path | str) -> dict[str, Any]:
  """Where Orbax keeps the arrays of a checkpoint. A local path is not put into a URL, where %, # and ? mean something."""
  local = isinstance(root, pathlib.Path)
  return {'driver': 'ocdbt', 'base': {'driver': 'file', 'path': f'{root.absolute()}/state/'} if local else f'{root}/state/'}
