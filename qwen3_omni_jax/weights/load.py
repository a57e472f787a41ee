"""Parameters into memory, from a published or a converted folder: the same arrays bit for bit."""

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
from .source import open_published, stored_dtypes
from .table import copy_into, published

DTYPES = {'bfloat16': np.dtype(ml_dtypes.bfloat16), 'float16': np.dtype(np.float16), 'float32': np.dtype(np.float32)}

Index = tuple[slice, ...]
Reader = Callable[[str, Index], np.ndarray]  # (path, slices of the full shape) -> that part of the array


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
  ('thinker', 'audio'). shardings: a tree of jax shardings like the parameters (of those parts at least); each host then
  reads only its shards, and the leaves are jax arrays. Without it they are numpy arrays.
  Raises ValueError listing every tensor that is missing, unknown, mis-shaped or damaged.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise ValueError(f'{folder}: no such folder; expected a checkpoint')
  cfg = cfg or load_config(folder)
  spec = omni_spec(cfg)
  for part in parts or ():
    if part not in spec:
      raise ValueError(f'{folder}: this checkpoint has no {part}; it has {", ".join(spec)}')
  read = (_converted if store.is_converted(folder) else _published)(folder, cfg, as_dtype(dtype))
  tree: Params = {}
  for path, param in leaves(spec):
    if parts is not None and path.split('/')[0] not in parts:
      continue
    if shardings is None:
      array = read(path, tuple(slice(0, n) for n in param.shape))
    else:
      array = _sharded(read, path, param.shape, _lookup(shardings, path))
    *parents, name = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = array
  return tree


def as_dtype(name: str | None) -> np.dtype | None:
  """The dtype of that name; None stays None."""
  if name is not None and name not in DTYPES:
    raise ValueError(f'dtype {name!r}: expected one of {", ".join(DTYPES)}')
  return None if name is None else DTYPES[name]


def _sharded(read: Reader, path: str, shape: tuple[int, ...], sharding) -> jax.Array:
  """The array on its devices; a shard that several devices hold is read once."""
  shards: dict[tuple, np.ndarray] = {}

  def shard(index) -> np.ndarray:
    bounds = tuple(s.indices(n) for s, n in zip(index, shape, strict=True))
    if bounds not in shards:
      shards[bounds] = read(path, tuple(slice(start, stop) for start, stop, _ in bounds))
    return shards[bounds]

  return jax.make_array_from_callback(shape, sharding, shard)


def _lookup(tree: Params, path: str):
  for key in path.split('/'):
    tree = tree[key]
  return tree


def _published(folder: pathlib.Path, cfg: OmniConfig, dtype: np.dtype | None) -> Reader:
  views = open_published(folder, cfg)
  dtypes = stored_dtypes(views, cfg)
  members: dict[str, dict[tuple[int, ...], str]] = {}
  tensors = published(cfg)
  for name, tensor in tensors.items():
    members.setdefault(tensor.row.ours, {})[tensor.index] = name

  def read(path: str, index: Index) -> np.ndarray:
    names = members[path]
    stacked = len(next(iter(names)))
    ranges = [range(s.start, s.stop) for s in index]
    out = np.empty([len(r) for r in ranges], dtype or dtypes[path])
    for where in np.ndindex(*out.shape[:stacked]):
      name = names[tuple(r[i] for r, i in zip(ranges, where, strict=False))]
      value = tensors[name].to_ours(views[name].read())  # beside `out`, one published tensor is in memory
      copy_into(out[where], value[index[stacked:]])
    return out

  return read


def _converted(folder: pathlib.Path, cfg: OmniConfig, dtype: np.dtype | None) -> Reader:
  arrays = store.Arrays(folder, {path: param.shape for path, param in leaves(omni_spec(cfg))})
  return lambda path, index: arrays.read(path, index, dtype)
