"""Parameters into memory, from a published or a converted folder: the same arrays bit for bit.

A host reads what its own devices need, once: for every array it makes the pieces that they will hold, then goes through
the published tensors (in a converted folder: their chunks) of which some piece needs a part.
"""

import functools
import itertools
import pathlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import ml_dtypes
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ..config_json import load_config
from ..nn.int8 import Int8, summed_axes
from ..nn.params import Param, leaves
from ..shapes import Params
from . import store
from .quantized import matrix_of, pair_of, stored_shapes
from .remote import Place, located
from .source import open_published, stored_dtypes
from .table import Config, copy_into, published, spec_of
from .work import refuse_unfinished

DTYPES = {'bfloat16': np.dtype(ml_dtypes.bfloat16), 'float16': np.dtype(np.float16), 'float32': np.dtype(np.float32)}
WORKERS = 4  # tensors read at once, so that waiting for the disk and copying overlap

Index = tuple[int, ...]  # of one published tensor, in the stacked axes of our array
Box = tuple[tuple[int, int], ...]  # (start, stop) along every axis
Pieces = dict[Box, np.ndarray]
Reader = Callable[[str, Index, tuple[slice, ...]], np.ndarray]  # (path, index, slices of the other axes) -> that part


def load_params(
  folder: str | pathlib.Path,
  cfg: Config | None = None,
  *,
  dtype: str | None = None,
  parts: tuple[str, ...] | None = None,
  shardings: Params | None = None,
) -> Params:
  """The parameter tree of a checkpoint: a folder of either kind, a hub id, or a converted folder at a gs:// or s3:// URL.

  dtype: convert to this ('bfloat16', 'float32'); None keeps what is stored (fp8 is widened: weights/fp8.py).
  Matrices of a folder converted to int8 are nn.int8.Int8 whatever the dtype. parts: only these top-level parts, e.g.
  ('thinker', 'audio'). shardings: a tree of jax shardings like the parameters (of those parts at least); each host then
  reads only its shards, and the leaves are jax arrays. Without it they are numpy arrays.
  Raises ValueError listing every tensor that is missing, unknown, mis-shaped or damaged.
  """
  with located(folder) as place:
    return _load(place, cfg, dtype, parts, shardings)


def _load(place: Place, cfg: Config | None, dtype: str | None, parts: tuple[str, ...] | None, shardings: Params | None) -> Params:
  folder = place.folder
  if not folder.is_dir():
    raise ValueError(f'{folder}: no such folder; expected a checkpoint')
  refuse_unfinished(folder)
  cfg = cfg or load_config(folder)
  spec = spec_of(cfg)
  for part in parts or ():
    if part not in spec:
      raise ValueError(f'{folder}: this checkpoint has no {part}; it has {", ".join(spec)}')
  wanted = as_dtype(dtype)
  read, dtypes = _converted(place, cfg) if place.converted else _published(place, cfg, wanted)
  held = {store.part_of(path) for path in dtypes}
  if lacking := [part for part in parts or spec if part not in held]:
    there = ', '.join(part for part in spec if part in held)
    raise ValueError(f'{folder}: holds {there} alone, not {", ".join(lacking)}; ask for these parts, or convert the rest')
  stacked = {tensor.row.ours: len(tensor.index) for tensor in published(cfg).values()}
  tree: Params = {}
  with ThreadPoolExecutor(WORKERS) as pool:
    for path, param in leaves(spec):
      if parts is not None and store.part_of(path) not in parts:
        continue
      sharding = None if shardings is None else _lookup(shardings, path)
      fill = lambda path: functools.partial(_fill, stacked[matrix_of(path)], functools.partial(read, path), pool)
      if path in dtypes:
        array = _array(param.shape, wanted or dtypes[path], sharding, fill(path))
      else:
        array = _int8(path, param, sharding, fill)
      *parents, name = path.split('/')
      node = tree
      for parent in parents:
        node = node.setdefault(parent, {})
      node[name] = array
  return tree


def _int8(path: str, param: Param, sharding, fill: Callable[[str], Callable[[Pieces], None]]) -> Int8:
  """A matrix kept as int8. Its scales lie with the outputs they are of."""
  axes, (values, scale) = summed_axes(path, param), pair_of(path)
  shape = tuple(1 if axis in axes else size for axis, size in enumerate(param.shape))
  of_scale = sharding
  if isinstance(sharding, NamedSharding):
    cut = (*sharding.spec, *(None,) * (len(shape) - len(sharding.spec)))
    of_scale = NamedSharding(sharding.mesh, PartitionSpec(*(None if i in axes else axis for i, axis in enumerate(cut))))
  return Int8(
    _array(param.shape, np.dtype(np.int8), sharding, fill(values)), _array(shape, np.dtype(np.float32), of_scale, fill(scale))
  )


def as_dtype(name: str | None) -> np.dtype | None:
  """The dtype of that name; None stays None."""
  if name is not None and name not in DTYPES:
    raise ValueError(f'dtype {name!r}: expected one of {", ".join(DTYPES)}')
  return None if name is None else DTYPES[name]


def _array(shape: tuple[int, ...], dtype: np.dtype, sharding, fill: Callable[[Pieces], None]):
  """Whole in numpy, or on the devices of a sharding; a piece that several of them hold is made once."""
  whole = (slice(None),) * len(shape)
  held = [whole] if sharding is None else sharding.addressable_devices_indices_map(shape).values()
  pieces = {box: np.empty([stop - start for start, stop in box], dtype) for box in {_box(index, shape) for index in held}}
  fill(pieces)
  piece = lambda index: pieces[_box(index, shape)]
  return piece(whole) if sharding is None else jax.make_array_from_callback(shape, sharding, piece)


def _box(index: tuple[slice, ...], shape: tuple[int, ...]) -> Box:
  bounds = (s.indices(n) for s, n in zip(index, shape, strict=True))
  return tuple((start, stop) for start, stop, _ in bounds)


def _fill(stacked: int, read: Callable[[Index, tuple[slice, ...]], np.ndarray], pool: ThreadPoolExecutor, pieces: Pieces) -> None:
  """Fills pieces of one array, reading of each published tensor the range that they span, once."""
  wanted: dict[Index, list[Box]] = {}
  for box in pieces:
    for index in itertools.product(*(range(*bounds) for bounds in box[:stacked])):
      wanted.setdefault(index, []).append(box)

  def fill(index: Index) -> None:
    boxes = wanted[index]
    spans = [(min(a for a, _ in axis), max(b for _, b in axis)) for axis in zip(*(b[stacked:] for b in boxes), strict=True)]
    value = read(index, tuple(slice(*span) for span in spans))
    for box in boxes:
      at = tuple(i - start for i, (start, _) in zip(index, box, strict=False))
      inner = tuple(slice(a - low, b - low) for (a, b), (low, _) in zip(box[stacked:], spans, strict=True))
      copy_into(pieces[box][at], value[inner])

  for _ in pool.map(fill, wanted):
    pass


def _lookup(tree: Params, path: str):
  for key in path.split('/'):
    tree = tree[key]
  return tree


def _published(place: Place, cfg: Config, dtype: np.dtype | None) -> tuple[Reader, dict[str, np.dtype]]:
  views = open_published(place.folder, cfg, dtype).views
  tensors = {(tensor.row.ours, tensor.index): tensor for tensor in published(cfg).values()}

  def read(path: str, index: Index, inner: tuple[slice, ...]) -> np.ndarray:
    tensor = tensors[path, index]
    rows, part, rest = tensor.part(inner)
    return part.to_ours(views[tensor.name].read(rows))[rest]

  return read, stored_dtypes(views, cfg)


def _converted(place: Place, cfg: Config) -> tuple[Reader, dict[str, np.dtype]]:
  dtype = store.read_manifest(place.folder).dtype
  arrays = store.Arrays(place.folder, stored_shapes(spec_of(cfg), dtype), params=place.params)
  return lambda path, index, inner: arrays.read(path, (*index, *inner)), {path: arrays.dtype(path) for path in arrays.paths()}
