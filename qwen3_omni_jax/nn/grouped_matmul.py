"""Grouped matmul for GPU: rows sorted by expert, each row times the matrix of its own expert. A Pallas kernel, by way of Triton.

Expert matrices are read in place, also in the stack of all layers and as int8 with scales: no layer is sliced out and nothing
is widened in memory. Work is divided by tiles of one expert's rows, so that a busy expert does not delay others and an expert
without rows is not read.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from ..shapes import Array, Float, Int
from .int8 import Int8
from .layers import silu_gate
from .remat import EXPERTS, named
from .tiles import dot, fit, inside, load, run_programs, span, store


@dataclasses.dataclass(frozen=True)
class Tile:
  """What one program computes: rows x columns of the result, `step` of what is summed over at a time."""

  rows: int
  columns: int
  step: int
  warps: int
  stages: int


# Mean rows of an expert up to which they serve; for rows times matrices; for the two products of a gated layer, taken together.
# Few rows: narrow tiles, since it is the matrices that take the time. Measured on an H200.
TILES = (
  (1, Tile(16, 64, 128, 4, 4), Tile(16, 64, 64, 4, 5)),
  (8, Tile(16, 128, 128, 4, 3), Tile(16, 64, 128, 8, 3)),
  (24, Tile(32, 64, 128, 4, 4), Tile(32, 64, 64, 4, 4)),
  (64, Tile(64, 128, 64, 4, 4), Tile(64, 64, 64, 4, 4)),
  (math.inf, Tile(128, 128, 64, 8, 3), Tile(128, 128, 64, 8, 3)),
)
GRADIENT_TILE = Tile(128, 128, 32, 4, 4)  # of a matrix; the step is over an expert's rows


@dataclasses.dataclass(frozen=True)
class Groups:
  """Which rows belong to which expert: ends[e] is the row after its last; rows past all experts' hold nothing, and what is said
  of them, results and gradients, may be anything. layer: of a stack of matrices. expected: about how many rows have an expert,
  which decides nothing but speed."""

  ends: Int[Array, ' E']
  layer: Int[Array, ''] | None
  expected: int

  @property
  def tiles(self) -> tuple[Tile, Tile]:
    """For a product, and for the two of a gated layer."""
    return next((product, gated) for most, product, gated in TILES if self.expected <= most * len(self.ends))


jax.tree_util.register_dataclass(Groups, ['ends', 'layer'], ['expected'])


@jax.custom_vjp
def grouped_matmul(x: Float[Array, 'M K'], w: Float[Array, '*L E K N'], groups: Groups) -> Float[Array, 'M N']:
  """Each row of x times the matrix of its expert, in x's dtype, added up in float32."""
  return _product(x, w, groups, groups.tiles[0])


def _matmul_forward(x, w, groups):
  return grouped_matmul(x, w, groups), (x, w, groups)


def _matmul_backward(inputs, dy):
  x, w, groups = inputs
  return *_gradients(x, w, groups, dy), _nothing(groups)


grouped_matmul.defvjp(_matmul_forward, _matmul_backward)


@jax.custom_vjp
def grouped_gate(
  x: Float[Array, 'M K'], gate: Float[Array, '*L E K N'], up: Float[Array, '*L E K N'], groups: Groups
) -> Float[Array, 'M N']:
  """silu(x gate) * (x up), each row by its expert, in one kernel; for the gradients' sake the products are kept apart instead."""
  return _gated(x, gate, up, groups, groups.tiles[1])


def _gate_forward(x, gate, up, groups):
  g, u = (named(_product(x, w, groups, groups.tiles[0]), EXPERTS) for w in (gate, up))
  return silu_gate(g, u), (x, gate, up, g, u, groups)


def _gate_backward(inputs, dh):
  x, gate, up, g, u, groups = inputs
  dg, du = jax.vjp(silu_gate, g, u)[1](dh)
  by_gate, dgate = _gradients(x, gate, groups, dg)
  by_up, dup = _gradients(x, up, groups, du)
  return by_gate + by_up, dgate, dup, _nothing(groups)


grouped_gate.defvjp(_gate_forward, _gate_backward)


def _gradients(x, w, groups: Groups, dy):
  dx = _product(dy, w, groups, groups.tiles[0], transposed=True)
  dw = _matrix_gradient(x, dy, groups.ends, w.dtype, GRADIENT_TILE)
  if groups.layer is not None:
    dw = jax.lax.dynamic_update_index_in_dim(jnp.zeros_like(w), dw, groups.layer, 0)
  return dx, dw


def _nothing(groups: Groups):
  return jax.tree.map(lambda a: np.zeros(a.shape, jax.dtypes.float0), groups)


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


def _product(x, w, groups: Groups, tile: Tile, *, transposed: bool = False):
  """x times each expert's matrix, or with `transposed` its transpose. w: an array, or Int8."""
  N = w.shape[-2 if transposed else -1]
  kernel = functools.partial(_product_kernel, transposed=transposed)
  return _by_tiles(kernel, x, (w,), groups, _within(tile, N, x.shape[1]), N)


def _gated(x, gate, up, groups: Groups, tile: Tile):
  N = gate.shape[-1]
  return _by_tiles(_gated_kernel, x, (gate, up), groups, _within(tile, N, x.shape[1]), N)


def _by_tiles(kernel, x, matrices, groups: Groups, tile: Tile, N: int):
  M, layer = len(x), groups.layer
  if layer is None:
    matrices, layer = jax.tree.map(lambda w: w[None], matrices), jnp.int32(0)
  lists = _tiles(groups.ends, tile.rows, M)
  programs = len(lists[0]) * pl.cdiv(N, tile.columns)
  body = functools.partial(_tile_kernel, kernel, tile)
  run = run_programs(body, jax.ShapeDtypeStruct((M, N), x.dtype), programs, tile.warps, tile.stages)
  return run(layer.reshape(1), *lists, x, matrices)


def _tile_kernel(kernel, tile: Tile, layer_ref, expert_ref, start_ref, end_ref, x_ref, matrices, y_ref):
  """One tile of the result: where it lies, and kernel(tile, layer, expert, rows and columns with their masks, refs) for it."""
  N = y_ref.shape[1]
  across = pl.cdiv(N, tile.columns)
  at, column = pl.program_id(0) // across, pl.program_id(0) % across
  start, end = start_ref[at], end_ref[at]

  @pl.when(start < end)
  def _():
    rows = pl.ds(start, tile.rows), inside(start, tile.rows, end)
    columns = span(column, tile.columns, N)
    y = kernel(tile, (layer_ref[0], expert_ref[at]), rows, columns, x_ref, *matrices)
    store(y_ref, (), rows, columns, y)


def _product_kernel(tile: Tile, place, rows, columns, x_ref, w, *, transposed: bool):
  def add(i, total):
    depth = span(i, tile.step, x_ref.shape[1])
    return total + _times(load(x_ref, (), rows, depth), w, place, depth, columns, transposed)

  total = jax.lax.fori_loop(0, pl.cdiv(x_ref.shape[1], tile.step), add, jnp.zeros((tile.rows, tile.columns), jnp.float32))
  return _scaled(total, w, place, columns)


def _gated_kernel(tile: Tile, place, rows, columns, x_ref, gate, up):
  def add(i, totals):
    depth = span(i, tile.step, x_ref.shape[1])
    x = load(x_ref, (), rows, depth)
    return [total + _times(x, w, place, depth, columns) for total, w in zip(totals, (gate, up), strict=True)]

  start = [jnp.zeros((tile.rows, tile.columns), jnp.float32) for _ in range(2)]
  totals = jax.lax.fori_loop(0, pl.cdiv(x_ref.shape[1], tile.step), add, start)
  return silu_gate(*(_scaled(total, w, place, columns).astype(x_ref.dtype) for total, w in zip(totals, (gate, up), strict=True)))


def _times(x, w, place, depth, columns, transposed: bool = False):
  """x times a tile of w[place]. Bytes are widened as they are; see _scaled."""
  ref = w.values if isinstance(w, Int8) else w
  tile = load(ref, place, columns, depth) if transposed else load(ref, place, depth, columns)
  return dot(x, tile.astype(x.dtype), trans_b=transposed)


def _scaled(total, w, place, columns):
  return total * load(w.scale, place, (pl.ds(0, 1), None), columns) if isinstance(w, Int8) else total


def _matrix_gradient(x: Float[Array, 'M K'], dy: Float[Array, 'M N'], ends, dtype, tile: Tile) -> Float[Array, 'E K N']:
  """Of each expert the sum over its rows of x' dy."""
  (M, K), N = x.shape, dy.shape[1]
  tile = dataclasses.replace(tile, rows=_within(tile, K, M).columns, columns=_within(tile, N, M).columns)
  shape = jax.ShapeDtypeStruct((len(ends), K, N), dtype)
  programs = len(ends) * pl.cdiv(K, tile.rows) * pl.cdiv(N, tile.columns)
  run = run_programs(functools.partial(_gradient_kernel, tile=tile), shape, programs, tile.warps, tile.stages)
  return run(_starts(ends), ends, x, dy)


def _gradient_kernel(start_ref, end_ref, x_ref, dy_ref, dw_ref, *, tile: Tile):
  _, K, N = dw_ref.shape
  across, down = pl.cdiv(N, tile.columns), pl.cdiv(K, tile.rows)
  at = pl.program_id(0)
  expert, rows, columns = at // (across * down), span(at // across % down, tile.rows, K), span(at % across, tile.columns, N)
  start, end = start_ref[expert], end_ref[expert]

  def add(i, total):
    first = start + i * tile.step
    some = pl.ds(first, tile.step), inside(first, tile.step, end)
    return total + dot(load(x_ref, (), some, rows), load(dy_ref, (), some, columns), trans_a=True)

  total = jax.lax.fori_loop(0, pl.cdiv(end - start, tile.step), add, jnp.zeros((tile.rows, tile.columns), jnp.float32))
  store(dw_ref, (expert,), rows, columns, total)


def _within(tile: Tile, N: int, K: int) -> Tile:
  """No larger than the arrays."""
  return dataclasses.replace(tile, columns=fit(tile.columns, N), step=fit(tile.step, K))
