"""A checkpoint folder of either kind, seen as published tensors: each is read alone, in the published layout."""

import dataclasses
import math
import pathlib
import sys

import numpy as np

from ..config import OmniConfig
from ..config_json import load_config
from ..models.omni import omni_spec
from ..nn.int8 import dequantize
from . import originals, plain_orbax, store
from .names import Problems, report
from .quantized import INT8, int8_axes, pair_of, stored_shapes
from .remote import is_url, local_folder, source_folder
from .safetensors import Memory, Shards, as_bytes
from .source import Published, print_notes, survey, views_of
from .table import Tensor, copy_into, published
from .view import View
from .work import refuse_unfinished


@dataclasses.dataclass(frozen=True)
class Piece:
  """A published tensor inside a converted folder: one index of a stacked array."""

  arrays: store.Arrays
  tensor: Tensor
  dtype: np.dtype  # as it was published: a stack of several dtypes is stored in one that holds them all exactly

  @property
  def shape(self) -> tuple[int, ...]:
    return self.tensor.shape

  @property
  def stored(self) -> tuple[str, int]:
    """Name of the dtype, and bytes."""
    dtype = self.arrays.dtype(self.tensor.row.ours)
    return dtype.name, math.prod(self.shape) * dtype.itemsize

  def read(self, check: bool = False, memory: Memory | None = None) -> np.ndarray:
    """The values; only this tensor's chunks are read, one after the other, so that a large one is not held twice.

    check: raises ValueError if they are not those that the manifest has the checksum of.
    """
    size = math.prod(self.shape) * self.dtype.itemsize
    out = (memory or _new)(size).view(self.dtype).reshape(self.shape)
    digest = store.checksum()
    ours = self.tensor.to_ours(out)
    assert np.shares_memory(ours, out) or not out.size, f'{self.tensor.row.layout} must be a view'
    for start, piece in self.arrays.pieces(self.tensor.row.ours, self.tensor.index):
      if check:
        digest.update(as_bytes(piece))
      copy_into(ours[start : start + len(piece)], piece)
    if check:
      self._require(digest.hexdigest())
    return out

  def _require(self, found: str) -> None:
    name = self.tensor.name
    if found != self.arrays.manifest.checksums.get(name):
      raise ValueError(f'{self.arrays.folder}: {name} is damaged (not the checksum in {store.MANIFEST}); convert again')


class Int8Piece(Piece):
  """One that is kept as int8; it is read as what the values and scales stand for."""

  @property
  def stored(self) -> tuple[str, int]:
    arrays = ((self.arrays.shape(path), self.arrays.dtype(path)) for path in pair_of(self.tensor.row.ours))
    return INT8, sum(math.prod(shape[len(self.tensor.index) :]) * dtype.itemsize for shape, dtype in arrays)

  def read(self, check: bool = False, memory: Memory | None = None) -> np.ndarray:
    found, digests = [], []
    for path in pair_of(self.tensor.row.ours):
      array = np.concatenate([piece for _, piece in self.arrays.pieces(path, self.tensor.index)])
      found.append(array)
      if check:
        digests.append(store.checksum())
        digests[-1].update(as_bytes(array))
    if check:
      self._require(' '.join(digest.hexdigest() for digest in digests))
    out = (memory or _new)(math.prod(self.shape) * self.dtype.itemsize).view(self.dtype).reshape(self.shape)
    values, scales = found
    copy_into(self.tensor.to_ours(out), dequantize(values, scales, self.dtype))
    return out


def _new(size: int) -> np.ndarray:
  return np.empty(size, np.uint8)


@dataclasses.dataclass(frozen=True)
class Opened:
  """What a folder holds. kind: 'published', 'converted', or 'orbax' (written by Orbax alone, as training leaves it)."""

  folder: pathlib.Path
  kind: str
  cfg: OmniConfig
  tensors: dict[str, View | Piece]  # by published name, in the table's order
  unknown: dict[str, View]  # what the config does not ask for
  missing: tuple[str, ...]  # published names of the parts it should hold
  parts: tuple[str, ...]  # top-level parts of the parameter tree: all, or those it was converted with
  problems: Problems  # {kind: names}, as names.report takes them; empty where the folder matches its config
  notes: Problems = dataclasses.field(default_factory=dict)  # the same, of what does no harm: weights/folder.py
  published: Published | None = None  # if it is of that kind

  def names(self) -> tuple[str, ...]:
    return tuple(self.tensors)

  def shape(self, name: str) -> tuple[int, ...]:
    return self.tensors[name].shape

  def dtype(self, name: str) -> np.dtype:
    return self.tensors[name].dtype

  def read(self, name: str, memory: Memory | None = None) -> np.ndarray:
    """The tensor in the published layout; nothing else is read. Raises ValueError if it is damaged, or not the one that
    was converted."""
    tensor = self.tensors[name]
    return tensor.read(self.kind == 'converted', memory) if isinstance(tensor, Piece) else tensor.read(memory=memory)

  def small_files(self) -> dict[str, pathlib.Path]:
    """{published name: file} of what is to be copied beside the weights."""
    if self.kind != 'orbax':
      return originals.small_files(self.folder)
    home = plain_orbax.config_folder(self.folder)
    found = originals.small_files(home) if home else {}
    return {name: path for name, path in found.items() if not plain_orbax.is_orbax_file(name)}

  def original(self) -> Shards | None:
    """The published files that the folder consists of, or was made from, if it tells."""
    if self.published is not None:
      return self.published.original()
    return originals.read_original(self.folder)


def open_checkpoint(
  folder: str | pathlib.Path, *, cfg: OmniConfig | None = None, strict: bool = True, dtype: np.dtype | None = None
) -> Opened:
  """Opens a folder of any kind. No weights are read.

  folder: with cfg also the gs:// URL of a checkpoint of training. cfg: of an Orbax checkpoint without its own config.json.
  dtype: of published fp8 weights when they are read; None for what config.json says. strict: prints the notes, and raises
  ValueError with every mismatch between the weights and config.json; otherwise they are in `problems` and what can be opened is.
  A folder without a valid config.json, or without any weights, is an error in both.
  """
  folder = local_folder(folder) if cfg is None else source_folder(folder)
  if cfg is not None and is_url(folder):
    if (database := plain_orbax.find_database(folder)) is None:
      raise ValueError(f'{folder}: no checkpoint of training is there; other folders must be on a local disk')
    return _checked(_orbax(folder, database, cfg), strict)
  if not folder.is_dir():
    raise ValueError(f'{folder}: no such folder; expected a checkpoint')
  refuse_unfinished(folder)
  database = None if originals.is_kept_in(folder) else plain_orbax.find_database(folder)
  if database is not None:
    home = plain_orbax.config_folder(folder)
    opened = _orbax(folder, database, load_config(home or folder) if home or cfg is None else cfg)
  else:
    cfg = load_config(folder)
    opened = _converted(folder, cfg) if store.is_converted(folder) else _published(folder, cfg, dtype)
  return _checked(opened, strict)


def _checked(opened: Opened, strict: bool) -> Opened:
  if strict:
    report(f'{opened.folder}: the weights do not match config.json', **opened.problems)
    print_notes(opened.folder, opened.notes)
  return opened


def _published(folder: pathlib.Path, cfg: OmniConfig, dtype: np.dtype | None) -> Opened:
  found = survey(folder, cfg, dtype)
  wanted = published(cfg)
  unknown = {name: view for name, view in found.views.items() if name not in wanted}
  missing = tuple(name for name in wanted if name not in found.views)
  tensors: dict[str, View | Piece] = {**found.tensors}
  return Opened(folder, 'published', cfg, tensors, unknown, missing, tuple(omni_spec(cfg)), found.problems, found.notes, found)


def _converted(folder: pathlib.Path, cfg: OmniConfig) -> Opened:
  dtype = store.read_manifest(folder).dtype
  arrays = store.Arrays(folder, stored_shapes(omni_spec(cfg), dtype), strict=False)
  original = originals.read_original(folder) if dtype in (None, INT8) else None
  views = views_of({name: h for h in original.headers.values() for name in h.names()})[0] if original else {}
  dtypes = {name: view.dtype for name, view in views.items()}
  return _stacked(folder, 'converted', cfg, arrays, dtypes, dtype)


def _orbax(folder: pathlib.Path, database: pathlib.Path, cfg: OmniConfig) -> Opened:
  shapes = stored_shapes(omni_spec(cfg), None)
  arrays = plain_orbax.PlainArrays(folder, database, shapes, plain_orbax.find_averages(folder))
  if largest := plain_orbax.largest_bias(folder):
    print(
      f'WARNING {folder}: in training its experts are selected with a bias (of up to {largest:.2g}), which no published layout '
      'can hold: the weights alone are another model. At the end of the run (loss.bias_until) there is no bias left',
      file=sys.stderr,
    )
  return _stacked(folder, 'orbax', cfg, arrays, {})


def _stacked(
  folder: pathlib.Path, kind: str, cfg: OmniConfig, arrays: store.Arrays, dtypes: dict[str, np.dtype], dtype: str | None = None
) -> Opened:
  """Our arrays as published tensors. dtypes: of tensors that were published in another than they are stored in. dtype:
  that everything was converted to."""
  spec = omni_spec(cfg)
  shapes, axes = stored_shapes(spec, dtype), int8_axes(spec, dtype)
  wanted = {name: tensor for name, tensor in published(cfg).items() if store.part_of(tensor.row.ours) in arrays.parts}
  usable = {path for path in arrays.paths() if path in shapes and arrays.shape(path) == shapes[path]}
  tensors: dict[str, View | Piece] = {}
  for name, tensor in wanted.items():
    path = tensor.row.ours
    if path in axes and usable.issuperset(pair_of(path)):
      tensors[name] = Int8Piece(arrays, tensor, dtypes.get(name, np.dtype(np.float32)))
    elif path in usable:
      tensors[name] = Piece(arrays, tensor, dtypes.get(name, arrays.dtype(path)))
  missing = tuple(name for name in wanted if name not in tensors)
  return Opened(folder, kind, cfg, tensors, {}, missing, arrays.parts, arrays.problems)
