"""Batches onto the mesh: each process gives the rows that its devices hold."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from qwen3_omni_jax.sharding import batch_axes

from .batch import TrainBatch
from .step import batch_specs


def share_of_process(rows: int, mesh) -> tuple[int, int]:
  """(number, of how many): which share of the rows of every batch this process's devices hold.

  Raises ValueError if the mesh deals rows to processes in shares that are not equal or not in one piece.
  """
  places = NamedSharding(mesh, PartitionSpec(batch_axes(rows, mesh) or None)).devices_indices_map((rows,))
  mine = sorted({s.indices(rows)[:2] for d, (s,) in places.items() if d.process_index == jax.process_index()})
  start, stop = mine[0][0], mine[-1][1]
  whole = all(a[1] == b[0] for a, b in zip(mine, mine[1:], strict=False))
  if not whole or rows % (stop - start) or start % (stop - start):
    raise ValueError(f'{rows} rows on this mesh: process {jax.process_index()} holds {mine}; choose rows that all devices share')
  return start // (stop - start), rows // (stop - start)


def put(batches: Sequence[TrainBatch], mesh, shares: int) -> TrainBatch:
  """Local microbatches as one global batch; more than one are stacked. shares: of how many parts these are one.

  Raises ValueError naming the arrays whose rows cannot be shared out like those of tokens.
  """
  stacked = len(batches) > 1
  local = jax.tree.map(lambda *x: np.stack(x), *batches) if stacked else batches[0]
  lead = int(stacked)
  along = jax.tree.map(lambda x: lead, local)
  along = along.replace(tokens=along.tokens.replace(positions=lead + 1))
  whole = lambda x, axis: jax.ShapeDtypeStruct((*x.shape[:axis], x.shape[axis] * shares, *x.shape[axis + 1 :]), x.dtype)
  shapes = jax.tree.map(whole, local, along)
  specs = batch_specs(shapes, mesh, stacked)

  def place(x, shape, spec):
    sharding = NamedSharding(mesh, spec)
    if jax.process_count() == 1:
      return jax.device_put(x, sharding)
    try:
      return jax.make_array_from_process_local_data(sharding, x, shape.shape)
    except ValueError as error:
      raise ValueError(f'{shape.shape} over {shares} shares of rows: choose sizes that all devices share ({error})') from error

  return jax.tree.map(place, local, shapes, specs)


class Feed:
  """Steps' batches from a loader of microbatches, with what the loader told of them and, if count is given, `flops` of the whole
  step over all shares (taken to be like this one)."""

  def __init__(self, loader, accumulate: int, mesh, shares: int, count: Callable[[Sequence[TrainBatch]], float] | None = None):
    self.loader, self.accumulate, self.mesh, self.shares, self.count = loader, accumulate, mesh, shares, count

  def __iter__(self) -> Iterator[tuple[TrainBatch, list[dict[str, Any]]]]:
    return self

  def __next__(self) -> tuple[TrainBatch, list[dict[str, Any]]]:
    found = [next(self.loader) for _ in range(self.accumulate)]
    batches, stats = [batch for batch, _ in found], [stats for _, stats in found]
    if self.count is not None:
      stats[0]['flops'] = self.count(batches) * self.shares
    return put(batches, self.mesh, self.shares), stats
