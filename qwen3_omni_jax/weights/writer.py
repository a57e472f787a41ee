"""Writes the arrays of a converted folder: in little memory, from several threads, never undoing what is on disk.

Each published tensor is its own chunk of a stacked array (a large one several), so that memory never holds a stack, a
host later reads only the layers and experts it needs, and damage is noticed.
"""

import dataclasses
import json
import math
import pathlib
import warnings

import numpy as np
import tensorstore as ts

from ..shapes import Params
from .safetensors import as_bytes
from .store import DAMAGED, PARAMS, checksum, first_line, kvstore
from .table import copy_into

CHUNK_BYTES = 32 * 2**20  # larger tensors are cut along their first axis, so that hosts can read parts
COMMIT_BYTES = 64 * 2**20  # written to disk at once: a commit for each small tensor would cost more than its data


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


class Writer:
  """Fills the arrays that `create` has made. Any number of threads may each have a batch."""

  def __init__(self, folder: pathlib.Path, slots: dict[str, Slot]):
    self.folder, self.slots = folder, slots
    base, context = kvstore(folder / PARAMS), ts.Context()  # what shares a context is committed together
    self._arrays: dict[str, ts.TensorStore] = {}
    for path in slots:
      spec = {
        'driver': 'zarr3',
        'kvstore': {**base, 'path': path.replace('/', '.') + '/'},
        'store_data_equal_to_fill_value': True,  # so that an absent chunk is a lost one, never just zeros
      }
      self._arrays[path] = ts.open(spec, open=True, context=context).result()

  def batch(self) -> 'Batch':
    return Batch(self)


class Batch:
  """Tensors that are put on disk together, by `commit`; a large one in several steps, of which commit is the last."""

  def __init__(self, writer: Writer):
    self._writer = writer
    self._transaction, self._size = ts.Transaction(), 0

  def write(self, path: str, index: tuple[int, ...], value: np.ndarray) -> str:
    """One tensor, at `index` of the stacked axes; returns its checksum. `value` may be a transposed view;
    it is copied."""
    slot, digest = self._writer.slots[path], checksum()
    chunk_rows = slot.chunk[slot.stacked]
    chunk_bytes = math.prod(slot.chunk) * slot.dtype.itemsize
    rows = chunk_rows * max(1, CHUNK_BYTES // max(chunk_bytes, 1))  # whole chunks only
    for start in range(0, len(value), rows):
      part = value[start : start + rows]
      piece = np.empty(part.shape, slot.dtype)
      copy_into(piece, part)
      digest.update(as_bytes(piece))
      try:
        array = self._writer._arrays[path].with_transaction(self._transaction)[index][start : start + len(piece)]
        array.write(piece, can_reference_source_data_indefinitely=True).result()
      except DAMAGED as error:
        raise self._failure(error) from error
      self._size += piece.nbytes
      if self._size >= COMMIT_BYTES and start + rows < len(value):
        self.commit()
    return digest.hexdigest()

  def commit(self) -> None:
    """Returns when all that was written is on disk (tensorstore syncs its files before it refers to them)."""
    try:
      self._transaction.commit_sync()
    except DAMAGED as error:
      raise self._failure(error) from error
    self._transaction, self._size = ts.Transaction(), 0

  def _failure(self, error: BaseException) -> OSError:
    return OSError(f'{self._writer.folder}: cannot be written ({first_line(error)})')


def create(folder: pathlib.Path, slots: dict[str, Slot]) -> None:
  """Empty arrays in a new Orbax checkpoint at folder/params.

  Orbax writes its own metadata for one-element placeholders; each then gets its real shape.
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
  keys = ts.KvStore.open(kvstore(root)).result()
  with ts.Transaction() as together:
    changed = keys.with_transaction(together)
    for path, slot in slots.items():
      key = path.replace('/', '.') + '/'
      metadata = json.loads(keys.read(f'{key}zarr.json').result().value)
      metadata['shape'] = list(slot.shape)
      metadata['chunk_grid']['configuration']['chunk_shape'] = list(slot.chunk)
      # Not compressed: bf16 weights hardly shrink.
      metadata['codecs'] = [{'name': 'bytes', 'configuration': {'endian': 'little'}}, {'name': 'crc32c'}]
      changed.delete_range(ts.KvStore.KeyRange(f'{key}c/', f'{key}c0')).result()  # the placeholder's element
      changed.write(f'{key}zarr.json', json.dumps(metadata)).result()
