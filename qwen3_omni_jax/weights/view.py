"""A published tensor where it lies: a tensor of a shard, or a part of a fused one."""

import dataclasses
import math

import ml_dtypes
import numpy as np

from .safetensors import Header, Memory, Shard

FLOATS = (np.dtype(np.float64), np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


@dataclasses.dataclass(frozen=True)
class View:
  """A published tensor: a tensor of a file, or a part of a fused one."""

  shard: Header  # a Shard wherever values are read
  name: str
  part: tuple[int | slice, ...] = ()

  @property
  def shape(self) -> tuple[int, ...]:
    shape = self.shard.shape(self.name)
    cut = [len(range(*p.indices(n))) for p, n in zip(self.part, shape, strict=False) if isinstance(p, slice)]
    return (*cut, *shape[len(self.part) :])

  @property
  def dtype(self) -> np.dtype:
    return self.shard.dtype(self.name)

  @property
  def stored(self) -> tuple[str, int]:
    """Name of the dtype, and bytes."""
    return self.dtype.name, math.prod(self.shape) * self.dtype.itemsize

  def read(self, rows: slice | None = None, memory: Memory | None = None) -> np.ndarray:
    """The values, or some rows of the first axis; only their bytes are read, into `memory` if given."""
    shard = self.shard
    assert isinstance(shard, Shard)
    if rows is None:
      return shard.read(self.name, self.part, memory)
    *outer, last = self.part or (None,)
    if isinstance(last, slice):
      return shard.read(self.name, (*outer, slice(last.start + rows.start, last.start + rows.stop)), memory)
    return shard.read(self.name, (*self.part, rows), memory)
