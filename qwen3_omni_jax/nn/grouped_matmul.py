"""Grouped matmul for GPU: rows sorted by expert, each row times the matrix of its own expert. A Pallas kernel, by way of Triton.

Expert matrices are read where they lie, in the stack of all layers too, in whatever dtype they are kept: no layer is sliced out
and nothing is widened in memory. Work is shared out by tiles of one expert's rows, so that a crowded expert holds up nobody and
an expert without rows is not read.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from ..shapes import Array, Float, Int
from ..sharding import platform


@dataclasses.dataclass(frozen=True)
class Tile:
  """What one program computes: rows x columns of the result, `step` of what is summed over at a time."""

  rows: int
  columns: int
  step: int
  warps: int
  stages: int


def product_tile(mean: float) -> Tile:
  """For rows times matrices. mean: rows of an expert. Few rows: narrow tiles, since it is the matrices that take the time."""
  if mean <= 16:
    return Tile(16, 64, 128, 4, 4)
  if mean <= 32:
    return Tile(32, 64, 128, 4, 4)
  return Tile(64, 128, 64, 4, 4) if mean <= 64 else Tile(128, 128, 64, 8, 4)


GRADIENT_TILE = Tile(128, 128, 64, 8, 4)  # of a matrix; the step is over an expert's rows


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def grouped_matmul(
  x: Float[Array, 'M K'],
  w: Float[Array, '*L E K N'],
  ends: Int[Array, ' E'],
  layer: Int[Array, ''] | None,
  expected: int,
) -> Float[Array, 'M N']:
  """Row i of x times w[e], in x's dtype and added up in float32, where e is the first expert with i < ends[e].

  ends: where each expert's rows end; rows past the last hold nothing: their results, and their gradients, may be anything.
  layer: which of a stack. expected: about how many rows have an expert; it decides nothing but speed.
  """
  return _product(x, w, ends, layer, product_tile(expected / len(ends)), transposed=False)


def _forward(x, w, ends, layer, expected):
  return grouped_matmul(x, w, ends, layer, expected), (x, w, ends, layer)


def _backward(expected, inputs, dy):
  x, w, ends, layer = inputs
  dx = _product(dy, w, ends, layer, product_tile(expected / len(ends)), transposed=True)
  dw = _matrix_gradient(x, dy, ends, w.dtype, GRADIENT_TILE)
  if layer is not None:
    dw = jax.lax.dynamic_update_index_in_dim(jnp.zeros_like(w), dw, layer, 0)
  nothing = lambda a: np.zeros(a.shape, jax.dtypes.float0)
  return dx, dw, nothing(ends), None if layer is None else nothing(layer)


grouped_matmul.defvjp(_forward, _backward)


def _starts(ends: Int[Array, ' E']) -> Int[Array, ' E']:
  return jnp.concatenate([jnp.zeros(1, ends.dtype), ends[:-1]])


def _tiles(ends: Int[Array, ' E'], rows: int, M: int) -> tuple[Array, Array, Array]:
  """(expert, first row, end) of every tile; those that are not needed come last and have no rows.

  All rows fill at most M / rows whole tiles, and each expert adds at most one more.
  """
  number, starts = len(ends), _starts(ends)
  count = -(-(ends - starts) // rows)
  last = jnp.where(jnp.tri(number, dtype=bool), count, 0).sum(axis=1, dtype=jnp.int32)
  tile = jnp.arange(-(-M // rows) + min(number, M), dtype=jnp.int32)
  expert = jnp.searchsorted(last, tile, side='right', method='compare_all').astype(jnp.int32)
  used, expert = expert < number, jnp.minimum(expert, number - 1)
  start = starts[expert] + (tile - (last - count)[expert]) * rows
  return expert, start, jnp.where(used, ends[expert], start)


def _product(x, w, ends, layer, tile: Tile, *, transposed: bool):
  """x times each expert's matrix, or with `transposed` its transpose."""
  (M, K), N = x.shape, w.shape[-2 if transposed else -1]
  tile = _within(tile, N, K)
  if layer is None:
    w, layer = w[None], jnp.int32(0)
  lists = _tiles(ends, tile.rows, M)
  kernel = functools.partial(_product_kernel, tile=tile, transposed=transposed)
  shape = jax.ShapeDtypeStruct((M, N), x.dtype)
  return _call(kernel, shape, len(lists[0]) * pl.cdiv(N, tile.columns), tile)(layer.reshape(1), *lists, x, w)


def _product_kernel(layer_ref, expert_ref, start_ref, end_ref, x_ref, w_ref, y_ref, *, tile: Tile, transposed: bool):
  K, N = x_ref.shape[1], y_ref.shape[1]
  across = pl.cdiv(N, tile.columns)
  at, column = pl.program_id(0) // across, pl.program_id(0) % across
  start, end = start_ref[at], end_ref[at]

  @pl.when(start < end)
  def _():
    layer, expert = layer_ref[0], expert_ref[at]
    rows, columns = pl.ds(start, tile.rows), pl.ds(column * tile.columns, tile.columns)
    live, wide = _inside(start, tile.rows, end), _inside(column * tile.columns, tile.columns, N)

    def add(i, total):
      span = pl.ds(i * tile.step, tile.step)
      deep = _inside(i * tile.step, tile.step, K)
      a = triton.load(x_ref.at[rows, span], mask=_outer(live, deep), other=0)
      if transposed:
        b = _load(w_ref.at[layer, expert, columns, span], wide, deep)
      else:
        b = _load(w_ref.at[layer, expert, span, columns], deep, wide)
      return total + _dot(a, b.astype(a.dtype), trans_b=transposed)

    total = jax.lax.fori_loop(0, pl.cdiv(K, tile.step), add, jnp.zeros((tile.rows, tile.columns), jnp.float32))
    triton.store(y_ref.at[rows, columns], total.astype(y_ref.dtype), mask=_outer(live, wide))


def _matrix_gradient(x: Float[Array, 'M K'], dy: Float[Array, 'M N'], ends, dtype, tile: Tile) -> Float[Array, 'E K N']:
  """Of each expert the sum over its rows of x' dy."""
  (M, K), N = x.shape, dy.shape[1]
  tile = dataclasses.replace(tile, rows=_within(tile, K, M).columns, columns=_within(tile, N, M).columns)
  shape = jax.ShapeDtypeStruct((len(ends), K, N), dtype)
  programs = len(ends) * pl.cdiv(K, tile.rows) * pl.cdiv(N, tile.columns)
  return _call(functools.partial(_gradient_kernel, tile=tile), shape, programs, tile)(_starts(ends), ends, x, dy)


def _gradient_kernel(start_ref, end_ref, x_ref, dy_ref, dw_ref, *, tile: Tile):
  _, K, N = dw_ref.shape
  across, down = pl.cdiv(N, tile.columns), pl.cdiv(K, tile.rows)
  column, row = pl.program_id(0) % across, pl.program_id(0) // across % down
  expert = pl.program_id(0) // (across * down)
  start, end = start_ref[expert], end_ref[expert]
  rows, columns = pl.ds(row * tile.rows, tile.rows), pl.ds(column * tile.columns, tile.columns)
  high, wide = _inside(row * tile.rows, tile.rows, K), _inside(column * tile.columns, tile.columns, N)

  def add(i, total):
    first = start + i * tile.step
    span, live = pl.ds(first, tile.step), _inside(first, tile.step, end)
    a = triton.load(x_ref.at[span, rows], mask=_outer(live, high), other=0)
    b = triton.load(dy_ref.at[span, columns], mask=_outer(live, wide), other=0)
    return total + _dot(a, b, trans_a=True)

  total = jax.lax.fori_loop(0, pl.cdiv(end - start, tile.step), add, jnp.zeros((tile.rows, tile.columns), jnp.float32))
  triton.store(dw_ref.at[expert, rows, columns], total.astype(dw_ref.dtype), mask=_outer(high, wide))


def _call(kernel, shape, programs: int, tile: Tile):
  params = triton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages)
  return pl.pallas_call(kernel, out_shape=shape, grid=(programs,), compiler_params=params, interpret=platform() == 'cpu')


def _within(tile: Tile, N: int, K: int) -> Tile:
  """No larger than the arrays: sizes are powers of two from 16, the least that tensor cores take."""
  fit = lambda size, n: max(16, min(size, pl.next_power_of_2(n)))
  return dataclasses.replace(tile, columns=fit(tile.columns, N), step=fit(tile.step, K))


def _inside(start, size: int, end):
  """Which of `size` places from `start` are before `end`; None where it is known that all are."""
  if isinstance(end, int) and end % size == 0:
    return None
  return start + jnp.arange(size, dtype=jnp.int32) < end


def _outer(rows, columns):
  if rows is None or columns is None:
    return rows[:, None] if rows is not None else None if columns is None else columns[None]
  return rows[:, None] & columns[None]


def _load(ref, rows, columns):
  mask = _outer(rows, columns)
  return triton.load(ref) if mask is None else triton.load(ref, mask=mask, other=0)


def _dot(a, b, **transposed):
  """float32 is multiplied as such, not in TF32."""
  return triton.dot(a, b, precision=jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None, **transposed)
