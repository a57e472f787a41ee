"""Shared by the Triton kernels: masked tiles of arrays, products of tiles, the call.

Tile sizes are powers of two from 16, the smallest that tensor cores accept; the part of a tile outside its array is masked.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from ..sharding import platform


def run_programs(kernel, out_shape, programs: int, warps: int, stages: int):
  """kernel(refs of whole arrays…) run `programs` times; interpreted on CPU, which is for tests."""
  params = triton.CompilerParams(num_warps=warps, num_stages=stages)
  return pl.pallas_call(kernel, out_shape=out_shape, grid=(programs,), compiler_params=params, interpret=platform() == 'cpu')


def fit(size: int, length: int) -> int:
  """The tile size, or less where the array is that short."""
  return max(16, min(size, pl.next_power_of_2(length)))


def span(i, size: int, end: int):
  """The i-th `size` places, and which of them are before `end`."""
  return pl.ds(i * size, size), inside(i * size, size, end)


def inside(start, size: int, end):
  """Which of `size` places from `start` are before `end`; None where it is known that all are."""
  if isinstance(end, int) and end % size == 0:
    return None
  return start + jnp.arange(size, dtype=jnp.int32) < end


def outer(rows, columns):
  if rows is None or columns is None:
    return rows[:, None] if rows is not None else None if columns is None else columns[None]
  return rows[:, None] & columns[None]


def load(ref, place, rows, columns):
  """A matrix of ref[place]; zeros outside. rows, columns: (places, which of them are inside)."""
  at, mask = ref.at[(*place, rows[0], columns[0])], outer(rows[1], columns[1])
  return triton.load(at) if mask is None else triton.load(at, mask=mask, other=0)


def dot(a, b, **transposed):
  """float32 is multiplied as such, not in TF32."""
  return triton.dot(a, b, precision=jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None, **transposed)


def store(ref, place, rows, columns, value) -> None:
  """value into the same, in the array's dtype."""
  triton.store(ref.at[(*place, rows[0], columns[0])], value.astype(ref.dtype), mask=outer(rows[1], columns[1]))
