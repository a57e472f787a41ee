"""SwiGLU of rows sorted by expert, one expert after another: the form for CPU.

XLA on CPU copies a slice of an array before it multiplies with it. Here the weights of one expert are copied at a time, once, and
are in cache when they are needed; a copy of all experts of a layer would cross the memory three times. Experts without rows are
skipped. The rows of an expert are contiguous: a first tile takes as many as most experts have, smaller ones the rest.

XLA may sum the products of a row in another order if a matmul has another number of rows; the place of the row in it does not
matter. So without gradients all tiles have one size: a row gives the same bits whatever other rows its expert has.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from ..shapes import Array, Bool, Float, Int
from .expert_weights import Experts, read, write
from .layers import silu_gate
from .remat import EXPERTS, named

LARGEST_TILE = 512  # rows


def looped(rows: Float[Array, 'M D'], expert: Int[Array, ' M'], experts: Experts, expected: int) -> Float[Array, 'M D']:
  """As nn.experts.run_experts."""
  sizes = jnp.bincount(expert, length=experts.number).astype(jnp.int32)
  return _loop(tile_sizes(len(rows), expected / experts.number), rows, experts, sizes)


def tile_sizes(rows: int, mean: float) -> tuple[int, int]:
  """Rows of an expert's first tile and of its further ones. rows: of all experts. mean: of one."""
  first = 8 * math.ceil(1.25 * mean / 8) if mean > 2 else 2 ** math.ceil(math.log2(max(1, 4 * mean)))
  first = min(first, LARGEST_TILE, rows)
  return first, min(first, max(8, first // 32 * 8))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loop(tiles: tuple[int, int], rows: Float[Array, 'M D'], experts: Experts, sizes: Int[Array, ' E']):
  size = max(min(tiles[0], 8), tiles[0] // 16 * 8)
  return _forward((size, size), rows, experts, sizes, 1)[0]


def _loop_forward(tiles, rows, experts, sizes):
  y, gate, up = named(_forward(tiles, rows, experts, sizes, 3), EXPERTS)
  return y, (rows, gate, up, experts, sizes)


def _forward(tiles, rows, experts, sizes, results: int) -> list[Array]:
  """The first `results` of: the result, and what the matmuls with gate and up gave."""

  def one_expert(out, expert, start, end):
    p = {name: w.astype(rows.dtype) for name, w in experts.one(expert).items()}

    def tile(size, done, out):
      at, in_tile = _place(size, done, end, len(rows))
      x = _cut(rows, at, size)
      gate, up = x @ p['gate'], x @ p['up']
      return [_put(old, at, in_tile, new) for old, new in zip(out, (silu_gate(gate, up) @ p['down'], gate, up), strict=False)]

    out = tile(tiles[0], start, out)
    return _further_tiles(tiles, start, end, tile, out)

  widths = [rows.shape[1], experts.gate.shape[-1], experts.gate.shape[-1]][:results]
  return _each_expert(sizes, one_expert, [jnp.zeros((len(rows), width), rows.dtype) for width in widths])


def _loop_backward(tiles, residuals, dy):
  """The gradient of an expert's weights is summed in an array of its own and written to its place once."""
  rows, gate, up, experts, sizes = residuals
  leaves, structure = jax.tree.flatten(experts)
  trained = [i for i, w in enumerate(leaves) if jnp.issubdtype(w.dtype, jnp.inexact)]

  def one_expert(carry, expert, start, end):
    dx, grads = carry
    place = experts.place(expert)
    local = [w if w is experts.layer else read(w, place) for w in leaves]

    def merged(values):
      for t, value in zip(trained, values, strict=True):
        local[t] = value
      one = jax.tree.unflatten(structure, local).replace(layer=None).all()
      return {name: w.astype(rows.dtype) for name, w in one.items()}

    p, pull = jax.vjp(merged, [local[t] for t in trained])

    def tile(size, done, dx):
      first, in_tile = _place(size, done, end, len(rows))
      x, dout = _cut(rows, first, size), jnp.where(in_tile[:, None], _cut(dy, first, size), 0)
      hidden, pull_act = jax.vjp(silu_gate, _cut(gate, first, size), _cut(up, first, size))
      dgate, dup = pull_act(dout @ p['down'].T)
      dx = _put(dx, first, in_tile, dgate @ p['gate'].T + dup @ p['up'].T)
      total = functools.partial(jnp.einsum, 'MI,MO->IO', preferred_element_type=jnp.float32)
      return dx, {'gate': total(x, dgate), 'up': total(x, dup), 'down': total(hidden, dout)}

    def further(size, done, carry):
      dx, sums = carry
      dx, more = tile(size, done, dx)
      return dx, jax.tree.map(jnp.add, sums, more)

    dx, sums = _further_tiles(tiles, start, end, further, tile(tiles[0], start, dx))
    (changes,) = pull({name: s.astype(rows.dtype) for name, s in sums.items()})
    return dx, [write(g, place, change) for g, change in zip(grads, changes, strict=True)]

  dx, grads = _each_expert(sizes, one_expert, (jnp.zeros_like(rows), [jnp.zeros_like(leaves[i]) for i in trained]))
  nothing = lambda a: np.zeros(a.shape, jax.dtypes.float0)
  cotangents = [nothing(w) for w in leaves]
  for i, g in zip(trained, grads, strict=True):
    cotangents[i] = g
  return dx, jax.tree.unflatten(structure, cotangents), nothing(sizes)


_loop.defvjp(_loop_forward, _loop_backward)


def _each_expert(sizes: Int[Array, ' E'], one_expert, carry):
  """one_expert(carry, expert, its first row, the row after its last one), for those that have rows."""
  end = jnp.cumsum(sizes)
  busy = jnp.argsort(sizes == 0, stable=True)

  def visit(i, carry):
    expert = busy[i]
    return one_expert(carry, expert, end[expert] - sizes[expert], end[expert])

  return jax.lax.fori_loop(0, (sizes > 0).sum(), visit, carry)


def _further_tiles(tiles: tuple[int, int], start, end, tile, carry):
  """carry = tile(size, first row, carry) over an expert's rows after its first tile."""
  first, size = tiles
  number = (jnp.maximum(end - start - first, 0) + size - 1) // size
  return jax.lax.fori_loop(0, number, lambda i, carry: tile(size, start + first + i * size, carry), carry)


def _place(size: int, done, end, rows: int) -> tuple[Int[Array, ''], Bool[Array, ' size']]:
  """Where a tile for the rows from `done` on begins, and which of its rows are among them and before `end`."""
  at = jnp.minimum(done, rows - size)
  row = at + jnp.arange(size)
  return at, (row >= done) & (row < end)


def _cut(x: Float[Array, 'M X'], at, size: int) -> Float[Array, 'size X']:
  return jax.lax.dynamic_slice_in_dim(x, at, size)


def _put(x: Float[Array, 'M X'], at, in_tile: Bool[Array, ' size'], new: Float[Array, 'size X']) -> Float[Array, 'M X']:
  """x with the rows `in_tile` of a tile replaced by those of `new`."""
  new = jnp.where(in_tile[:, None], new, _cut(x, at, len(in_tile)))
  return jax.lax.dynamic_update_slice_in_dim(x, new, at, 0)
