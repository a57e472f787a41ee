"""Parameters into memory, from a published or a converted folder: the same arrays bit for bit."""

import math
import pathlib
from collections.abc import Callable

import jax
import ml_dtypes
import numpy as np

from ..config import OmniConfig, load_config
from ..models.omni import omni_spec
from ..nn.params import leaves
from ..shapes import Params
from . import store
from .source import open_published
from .table import published

Index = tuple[slice, ...]
Reader = Callable[[Index], np.ndarray]  # part of one array, by slices of its full shape


def load_params(
  folder: str | pathlib.Path,
  cfg: OmniConfig | None = None,
  *,
  dtype: str | None = None,
  parts: tuple[str, ...] | None = None,
  shardings: Params | None = None,
) -> Params:
  """The parameter tree of a checkpoint folder of either kind.

  dtype: convert to this ('bfloat16', 'float32'); None keeps what is stored. parts: only these top-level parts, e.g.
  ('thinker', 'audio'). shardings: a tree of jax shardings like the parameters; each host then reads only its shards, and the
  leaves are jax arrays. Without it they are numpy arrays.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise ValueError(f'{folder}: no such folder; expected a checkpoint')
  cfg = cfg or load_config(folder)
  to = None if dtype is None else np.dtype(ml_dtypes.bfloat16 if dtype == 'bfloat16' else dtype)
  spec = omni_spec(cfg)
  for part in parts or ():
    if part not in spec:
      raise ValueError(f'{folder}: this checkpoint has no {part}; it has {", ".join(spec)}')
  readers = _converted_readers(folder, cfg) if store.is_converted(folder) else _published_readers(folder, cfg)
  tree: Params = {}
  for path, param in leaves(spec):
    *parents, name = path.split('/')
    if parts is not None and parents[:1] and parents[0] not in parts:
      continue
    read = readers[path]
    if shardings is None:
      array = _cast(read(tuple(slice(0, n) for n in param.shape)), to)
    else:
      array = jax.make_array_from_callback(
        param.shape, _lookup(shardings, path), lambda index, read=read: _cast(read(index), to)
      )
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = array
  return tree


def _cast(array: np.ndarray, dtype: np.dtype | None) -> np.ndarray:
  return array if dtype is None else array.astype(dtype, copy=False)


def _lookup(tree: Params, path: str):
  for key in path.split('/'):
    tree = tree[key]
  return tree


def _published_readers(folder: pathlib.Path, cfg: OmniConfig) -> dict[str, Reader]:
  views = open_published(folder, cfg)
  members: dict[str, dict[tuple[int, ...], str]] = {}
  tensors = published(cfg)
  for name, tensor in tensors.items():
    members.setdefault(tensor.row.ours, {})[tensor.index] = name
  shapes = {path: param.shape for path, param in leaves(omni_spec(cfg))}

  def reader(path: str) -> Reader:
    def read(index: Index) -> np.ndarray:
      some = next(iter(members[path]))
      stacked = len(some)
      ranges = [range(*s.indices(n)) for s, n in zip(index, shapes[path], strict=True)]
      out = None
      for where in np.ndindex(*(len(r) for r in ranges[:stacked])):
        name = members[path][tuple(r[i] for r, i in zip(ranges, where, strict=False))]
        part = tensors[name].to_ours(views[name].read())[index[stacked:]]
        if out is None:
          out = np.empty(tuple(len(r) for r in ranges), part.dtype)
        out[where] = part
      return np.empty(tuple(len(r) for r in ranges), np.float32) if out is None else out

    return read

  return {path: reader(path) for path in shapes}


def _converted_readers(folder: pathlib.Path, cfg: OmniConfig) -> dict[str, Reader]:
  shapes = {path: param.shape for path, param in leaves(omni_spec(cfg))}
  arrays = store.open_arrays(folder, list(shapes))
  wrong = [
    f'{path}: found {list(array.shape)}, expected {list(shapes[path])}'
    for path, array in arrays.items()
    if tuple(array.shape) != shapes[path]
  ]
  if wrong:
    raise ValueError(f'{folder}: the weights do not match config.json\n  ' + '\n  '.join(wrong))
  return {path: lambda index, array=array: array[index].read().result() for path, array in arrays.items()}


def total_bytes(cfg: OmniConfig, itemsize: int) -> int:
  """Size of all parameters at this many bytes each."""
  return sum(math.prod(param.shape) for _, param in leaves(omni_spec(cfg))) * itemsize
