"""Puts batches on the mesh, ahead of need: each process gives the rows that its devices hold."""

import dataclasses
import math
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from qwen3_omni_jax.sharding import BATCH_AXES, batch_axes, length_axis

from .batch import TrainBatch
from .config import DataConfig
from .step import batch_specs


def check_shared_out(data: DataConfig, mesh, name: str = 'data') -> None:
  """Raises ValueError where devices would repeat one another's work, with the factor.

  That is: where not all batch axes divide the rows, or `context` does not divide the length. Also for lanes that the devices do
  not divide, whose media and speech they would share. name: of these data in the configuration.
  """
  rows, length, lanes = data.rows, data.length, data.lanes
  sizes = {axis: mesh.shape[axis] for axis in (*BATCH_AXES, 'context') if mesh.shape[axis] > 1}
  used = (*batch_axes(rows, mesh), *filter(None, [length_axis(length, mesh)]))
  idle = math.prod(size for axis, size in sizes.items() if axis not in used)
  shape = ' '.join(f'{axis}={size}' for axis, size in sizes.items())
  devices = math.prod(size for axis, size in sizes.items() if axis != 'context')
  cut = f', {name}.length a multiple of {sizes["context"]}' if 'context' in sizes else ''
  if idle > 1:
    raise ValueError(
      f'{name}: {rows} rows of {length} tokens on a mesh of {shape}: each is computed by {idle} devices, all the same. '
      f'Make {name}.rows a multiple of {devices}{cut}, or choose another mesh'
    )
  if (data.audio_s or data.visual_patches or data.speech_rows) and lanes % devices:
    raise ValueError(
      f'{name}: {lanes} lanes on a mesh of {shape}: devices would share them; make {name}.lanes a multiple of {devices}'
    )


def process_shard(rows: int, mesh) -> tuple[int, int]:
  """(index, count): which shard of the rows of every batch this process's devices hold.

  Raises ValueError if the rows of a process are not one contiguous range, or not as many as of the others.
  """
  places = NamedSharding(mesh, PartitionSpec(batch_axes(rows, mesh) or None)).devices_indices_map((rows,))
  mine = sorted({s.indices(rows)[:2] for d, (s,) in places.items() if d.process_index == jax.process_index()})
  start, stop = mine[0][0], mine[-1][1]
  whole = all(a[1] == b[0] for a, b in zip(mine, mine[1:], strict=False))
  if not whole or rows % (stop - start) or start % (stop - start):
    raise ValueError(f'{rows} rows on this mesh: process {jax.process_index()} holds {mine}; choose rows that all devices share')
  return start // (stop - start), rows // (stop - start)


def stack(batches: Sequence[TrainBatch]) -> TrainBatch:
  """Microbatches as one batch: more than one get an axis in front."""
  return jax.tree.map(lambda *x: np.stack(x), *batches) if len(batches) > 1 else batches[0]


def global_shapes(batches: Sequence[TrainBatch], shards: int) -> TrainBatch:
  """Shapes of the batch of all shards, of which these are the microbatches of one."""
  local, lead = stack(batches), int(len(batches) > 1)
  along = jax.tree.map(lambda x: lead, local)
  along = along.replace(tokens=along.tokens.replace(positions=lead + 1))
  if along.speech is not None:
    along = along.replace(speech=along.speech.replace(positions=lead + 1))
  whole = lambda x, axis: jax.ShapeDtypeStruct((*x.shape[:axis], x.shape[axis] * shards, *x.shape[axis + 1 :]), x.dtype)
  return _with_lanes(jax.tree.map(whole, local, along), local.media.lanes * shards)


def _with_lanes(batch: TrainBatch, lanes: int) -> TrainBatch:
  return batch.replace(media=batch.media.replace(lanes=lanes))


def put(batches: Sequence[TrainBatch], mesh, shards: int) -> TrainBatch:
  """Local microbatches as one global batch; more than one are stacked. shards: how many processes' rows make the batch.

  Raises ValueError naming the arrays whose rows cannot be divided like those of tokens.
  """
  shapes = global_shapes(batches, shards)
  local = _with_lanes(stack(batches), shapes.media.lanes)
  specs = batch_specs(shapes, mesh, len(batches) > 1)

  def place(x, shape, spec):
    sharding = NamedSharding(mesh, spec)
    if jax.process_count() == 1:
      return jax.device_put(x, sharding)
    try:
      return jax.make_array_from_process_local_data(sharding, x, shape.shape)
    except ValueError as error:
      raise ValueError(f'{shape.shape} over {shards} shards of rows: choose sizes that all devices share ({error})') from error

  return jax.tree.map(place, local, shapes, specs)


@dataclasses.dataclass(frozen=True)
class Fed:
  """A step's batch on the mesh. stats: of the loader, for each microbatch; `flops`, in the first: of the step over all shards
  (taken to be like this one). data_state: of the loader after this batch."""

  batch: TrainBatch
  stats: list[dict[str, Any]]
  data_state: dict[str, Any]


class Feed:
  """Batches of steps from a loader of microbatches. count: FLOPs of this process's part of a step; None: not counted."""

  def __init__(self, loader, accumulate: int, mesh, shards: int, count: Callable[[Sequence[TrainBatch]], float] | None = None):
    self.loader, self.accumulate, self.mesh, self.shards, self.count = loader, accumulate, mesh, shards, count

  def __iter__(self) -> Iterator[Fed]:
    return self

  def __next__(self) -> Fed:
    found = [next(self.loader) for _ in range(self.accumulate)]
    batches, stats = [batch for batch, _ in found], [stats for _, stats in found]
    if self.count is not None:
      stats[0]['flops'] = self.count(batches) * self.shards
    return Fed(put(batches, self.mesh, self.shards), stats, self.loader.get_state())


class Prefetch:
  """The items of an iterator, each made before it is asked for, by a thread.

  depth: how many wait, the one that is being made included. An error of the iterator is raised in its turn, as is its end. Leave
  the context (or `close`) to end the thread; what waits then is dropped.
  """

  def __init__(self, items: Iterator[Any], depth: int = 2):
    self._items, self._queue = items, queue.Queue(maxsize=depth - 1)
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._run, daemon=True, name='prefetch')
    self._thread.start()

  def _run(self) -> None:
    while not self._closed.is_set():
      try:
        item, error = next(self._items), None
      except BaseException as e:
        item, error = None, e
      while not self._closed.is_set():
        try:
          self._queue.put((item, error), timeout=0.1)
          break
        except queue.Full:
          pass
      if error is not None:
        return

  def __iter__(self) -> 'Prefetch':
    return self

  def __next__(self) -> Any:
    if self._closed.is_set():
      raise StopIteration
    item, error = self._queue.get()
    if error is not None:
      self.close()
      raise error
    return item

  def close(self) -> None:
    self._closed.set()
    self._thread.join()

  def __enter__(self) -> 'Prefetch':
    return self

  def __exit__(self, *_) -> None:
    self.close()
