"""The converted checkpoint: a folder with an Orbax checkpoint of our parameter tree and the published small files.

    DIR/config.json, generation_config.json, tokenizer and processor files
    DIR/params/        the Orbax checkpoint; `orbax.checkpoint.v1.load(DIR/params)` restores it onto any mesh
    DIR/manifest.json  what is in it, and that it is complete

Arrays are written one published tensor at a time, each its own chunk of the stacked array with a checksum, so that
memory never holds a stack, a host later reads only the layers and experts it needs, and damage is noticed.
"""

import dataclasses
import json
import math
import os
import pathlib
import shutil
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorstore as ts

from ..shapes import Params
from .names import report
from .table import copy_into

PARAMS = 'params'
MANIFEST = 'manifest.json'
FORMAT, VERSION = 'qwen3_omni_jax', 1
CHUNK_BYTES = 32 * 2**20  # larger tensors are cut along their first axis, so that hosts can read parts
COMMIT_BYTES = 64 * 2**20  # written to disk at once: a commit for each small tensor would cost more than its data
_DAMAGED = (ValueError, KeyError, OSError, RuntimeError, NotImplementedError)  # what tensorstore raises


@dataclasses.dataclass(frozen=True)
class Slot:
  """An array to be written. stacked: how many leading axes count published tensors."""

  shape: tuple[int, ...]
  stacked: int
  dtype: np.dtype

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize

  @property
  def chunk(self) -> tuple[int, ...]:
    inner = self.shape[self.stacked :]
    row_bytes = math.prod(inner[1:]) * self.dtype.itemsize
    rows = max(1, min(inner[0], CHUNK_BYTES // max(row_bytes, 1)))
    return (*(1,) * self.stacked, rows, *inner[1:])


def is_converted(folder: pathlib.Path) -> bool:
  return (folder / PARAMS).is_dir()


class Writer:
  """Writes a converted folder. The work is in `TARGET.partial` until `finish` gives it its name.

  Raises ValueError if the target is not empty, something else is called `TARGET.partial`, or the disk is too full.
  """

  def __init__(self, target: pathlib.Path, slots: dict[str, Slot]):
    """slots: by path in the parameter tree ('thinker/layers/attn/q')."""
    self.target, self.slots = target, slots
    self.folder = target.with_name(target.name + '.partial')
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
      raise ValueError(f'{target}: not empty; give a new folder')
    if self.folder.exists() and not _is_ours(self.folder):
      raise ValueError(f'{self.folder}: in the way, and not an unfinished conversion; move it or give another target')
    if self.folder.exists():
      shutil.rmtree(self.folder)
    self.folder.mkdir(parents=True)
    needed = round(1.02 * sum(slot.nbytes for slot in slots.values()))
    free = shutil.disk_usage(self.folder).free
    if free < needed:
      self.folder.rmdir()
      raise ValueError(f'{target}: the checkpoint needs {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free')
    self._write_manifest(complete=False)
    self._arrays = _create(self.folder, slots)
    self._batch, self._batched = ts.Transaction(), 0

  def write(self, path: str, index: tuple[int, ...], value: np.ndarray) -> None:
    """One tensor, at `index` of the stacked axes. Copied piece by piece: `value` may be a transposed view."""
    slot = self.slots[path]
    chunk_rows = slot.chunk[slot.stacked]
    chunk_bytes = math.prod(slot.chunk) * slot.dtype.itemsize
    rows = chunk_rows * max(1, CHUNK_BYTES // max(chunk_bytes, 1))  # whole chunks only
    for start in range(0, len(value), rows):
      part = value[start : start + rows]
      piece = np.empty(part.shape, slot.dtype)
      copy_into(piece, part)
      array = self._arrays[path].with_transaction(self._batch)
      array[index][start : start + len(piece)].write(piece).result()
      self._batched += piece.nbytes
      if self._batched >= COMMIT_BYTES:
        self._commit()

  def _commit(self) -> None:
    self._batch.commit_sync()
    self._batch, self._batched = ts.Transaction(), 0

  def finish(self) -> None:
    """Commits what is pending and gives the folder its name."""
    self._commit()
    self._write_manifest(complete=True)
    if self.target.exists():
      self.target.rmdir()
    os.replace(self.folder, self.target)

  def _write_manifest(self, complete: bool) -> None:
    arrays = {path: {'shape': list(slot.shape), 'dtype': slot.dtype.name} for path, slot in self.slots.items()}
    data = {'format': FORMAT, 'version': VERSION, 'complete': complete, 'arrays': arrays}
    draft = self.folder / f'{MANIFEST}.draft'
    draft.write_text(json.dumps(data, indent=1) + '\n', encoding='utf-8')
    os.replace(draft, self.folder / MANIFEST)


def _is_ours(partial: pathlib.Path) -> bool:
  """Whether this is what an earlier conversion left behind, and may be removed."""
  if not partial.is_dir():
    return False
  try:
    return json.loads((partial / MANIFEST).read_bytes())['format'] == FORMAT
  except FileNotFoundError:
    return not any(partial.iterdir())
  except (ValueError, KeyError, TypeError):
    return False


def _create(folder: pathlib.Path, slots: dict[str, Slot]) -> dict[str, ts.TensorStore]:
  """Empty arrays in a new Orbax checkpoint at folder/params.

  Orbax writes its own metadata for one-element placeholders; each is then replaced by an array of the real shape.
  tests/weights/test_store.py restores through Orbax, so that a change of Orbax's layout is noticed.
  """
  from orbax.checkpoint import v1 as ocp

  root = (folder / PARAMS).absolute()
  tree: Params = {}
  for path, slot in slots.items():
    *parents, name = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = np.zeros((1,) * len(slot.shape), slot.dtype)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # Orbax warns that it runs outside a distributed job
    ocp.save(root, tree)
  base = _kvstore(root)
  context = ts.Context()  # one for all: arrays that share it are committed together
  metadata = ts.KvStore.open(base, context=context).result()
  arrays = {}
  for path, slot in slots.items():
    key = path.replace('/', '.') + '/'
    meta = json.loads(metadata.read(f'{key}zarr.json').result().value)
    meta['shape'] = list(slot.shape)
    meta['chunk_grid']['configuration']['chunk_shape'] = list(slot.chunk)
    # Not compressed: bf16 weights hardly shrink.
    meta['codecs'] = [{'name': 'bytes', 'configuration': {'endian': 'little'}}, {'name': 'crc32c'}]
    spec = {
      'driver': 'zarr3', 'kvstore': {**base, 'path': key}, 'metadata': meta,
      'store_data_equal_to_fill_value': True,  # so that an absent chunk is a lost one, never just zeros
    }  # fmt: skip
    arrays[path] = ts.open(spec, create=True, delete_existing=True, context=context).result()
  return arrays


class Arrays:
  """The arrays of a converted folder, opened but not read.

  Raises ValueError if the folder is unfinished or damaged, or (strict) does not hold exactly the arrays of `shapes`;
  otherwise those that can be opened are there, and everything that is wrong is in `problems`, by kind.
  """

  def __init__(self, folder: pathlib.Path, shapes: dict[str, tuple[int, ...]], *, strict: bool = True):
    self.folder = folder
    found = _read_manifest(folder / MANIFEST)
    self.parts = tuple(dict.fromkeys(path.split('/')[0] for path in found))
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
    base, context = _kvstore((folder / PARAMS).absolute()), ts.Context()
    self._arrays: dict[str, ts.TensorStore] = {}
    damaged = []
    for path, shape in found.items():
      spec = {
        'driver': 'zarr3', 'kvstore': {**base, 'path': path.replace('/', '.') + '/'}, 'fill_missing_data_reads': False,
      }  # fmt: skip
      try:
        array = ts.open(spec, open=True, read=True, context=context).result()
      except _DAMAGED as error:
        damaged.append(f'{path}: {_first_line(error)}')
        continue
      if tuple(array.shape) != shape:
        damaged.append(f'{path}: {list(array.shape)} in {PARAMS}, {list(shape)} in {MANIFEST}')
      else:
        self._arrays[path] = array
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

  def read(self, path: str, index: tuple[slice | int, ...], dtype: np.dtype | None = None) -> np.ndarray:
    """A part of an array, by indices and slices of its full shape; converted to dtype on the way."""
    array = self._arrays[path]
    try:
      return (array if dtype is None else ts.cast(array, dtype))[index].read().result()
    except _DAMAGED as error:
      raise ValueError(f'{self.folder}: {path} is damaged ({_first_line(error)}); convert again') from error

  def pieces(self, path: str, index: tuple[int, ...]) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, rows) of each chunk of what lies at `index` of the stacked axes, in order."""
    layout: Any = self._arrays[path].chunk_layout
    rows, step = self.shape(path)[len(index)], layout.read_chunk.shape[len(index)]
    for start in range(0, rows, step):
      yield start, self.read(path, (*index, slice(start, min(start + step, rows))))


def _read_manifest(file: pathlib.Path) -> dict[str, tuple[int, ...]]:
  """{path: shape} of a complete converted folder."""
  if not file.is_file():
    raise ValueError(f'{file}: no such file; this is not a complete converted folder: convert again')
  try:
    data: Any = json.loads(file.read_text(encoding='utf-8'))
    kind = (data['format'], data['version'])
    complete = data['complete']
    arrays = {str(path): tuple(int(n) for n in entry['shape']) for path, entry in data['arrays'].items()}
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise ValueError(f'{file}: not a manifest of a converted folder ({type(error).__name__}: {error})') from error
  if kind != (FORMAT, VERSION):
    raise ValueError(f'{file}: format {kind[0]} version {kind[1]}; expected {FORMAT} version {VERSION}: convert again')
  if complete is not True:
    raise ValueError(f'{file.parent}: the conversion did not finish; convert again')
  return arrays


def _first_line(error: BaseException) -> str:
  return (str(error) or type(error).__name__).splitlines()[0][:300]


def _kvstore(root: pathlib.Path) -> dict:
  return {'driver': 'ocdbt', 'base': f'file://{root}/state'}
