"""The experts of a layer, and several forms of one computation: SwiGLU of many rows, each by its own expert.

nn/kernels.py chooses. Rows come sorted by expert; what has no expert here (number `experts.number`)
comes last, and its result means nothing.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from ..shapes import Array, Float, Int
from ..sharding import platform
from .expert_loop import looped
from .expert_weights import Experts, add, read
from .grouped_matmul import Groups, grouped_gate, grouped_matmul
from .int8 import Int8
from .kernels import experts_kernel, require_tokamax
from .layers import swiglu
from .lora import weight_map
from .permute import move_rows, take_rows


def experts_form(tokens: int, active: int, experts: Experts) -> str:
  """The form to use. Few tokens touch few experts: read only those. Many: sort by expert, then the platform's kernel."""
  kernel = experts_kernel(*experts.gate.shape[-2:])
  few = {'triton': 0, 'looped': 2 * active}.get(kernel, max(2 * active, experts.number // 2))
  return 'gathered' if tokens * active <= few else kernel


def run_experts(
  rows: Float[Array, 'M D'], expert: Int[Array, ' M'], experts: Experts, form: str | None = None, expected: int | None = None
) -> Float[Array, 'M D']:
  """Each row through its expert. expert: in ascending order. form: of GROUPED; None: the platform's.

  expected: about how many rows have an expert here; None for all of them. It decides nothing but speed.
  """
  form = form or experts_kernel(*experts.gate.shape[-2:])
  return GROUPED[form](rows, expert, experts, len(rows) if expected is None else expected)


def matmuls(dot, rows, expert, experts: Experts, expected: int):
  """Three grouped matmuls. dot(rows, 'E D F' weights, rows of each expert): what it gives past the last expert's rows, and as
  their gradients, may be anything, unwritten memory included; it is kept from everything else."""
  del expected
  here = (expert < experts.number)[:, None]
  sizes = jnp.bincount(expert, length=experts.number).astype(jnp.int32)
  p = weight_map(lambda w: w.astype(rows.dtype), experts.all())
  clean = lambda y: jnp.where(here, y, 0)
  matmul = lambda x, w: clean(dot(clean(x), w, sizes))
  return matmul(jax.nn.silu(matmul(rows, p['gate'])) * matmul(rows, p['up']), p['down'])


def _megablox(rows, weights: Float[Array, 'E D F'], sizes: Int[Array, ' E']):
  from jax.experimental.pallas.ops.tpu.megablox import gmm

  (M, D), F = rows.shape, weights.shape[-1]
  tile = MEGABLOX_TILE if M >= MEGABLOX_TILE else 128
  rows = jnp.pad(rows, ((0, -M % tile), (0, 0)))
  tiles = (tile, min(1024, D), min(1024, F))
  return gmm(rows, weights, sizes, rows.dtype, tiles, interpret=platform() == 'cpu')[:M]


def _triton(rows, expert, experts: Experts, expected: int):
  """Plain weights and int8 are read where they lie; of any other kind the layer's matrices are made first."""
  p, layer = {'gate': experts.gate, 'up': experts.up, 'down': experts.down}, experts.layer
  if not all(isinstance(w, jax.Array | Int8) for w in p.values()):
    p, layer = weight_map(lambda w: w.astype(rows.dtype), experts.all()), None
  ends = jnp.searchsorted(expert, jnp.arange(experts.number), side='right', method='compare_all').astype(jnp.int32)
  groups = Groups(ends, layer, expected)
  x = jnp.where((expert < experts.number)[:, None], rows, 0)  # so that the gradients of the other rows are zeros too
  return grouped_matmul(grouped_gate(x, p['gate'], p['up'], groups), p['down'], groups)


MEGABLOX_TILE = 512  # rows; with 1024 of each width it fits the on-chip memory of v5e and later in bfloat16


def _tokamax(rows, weights: Float[Array, 'E D F'], sizes: Int[Array, ' E']):
  require_tokamax()
  import tokamax
  from absl import flags  # a dependency of tokamax, which would read our own command's arguments as its flags

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  implementation = {'tpu': ('mosaic', 'xla'), 'gpu': ('mosaic', 'triton', 'xla')}.get(platform(), 'xla')
  return tokamax.ragged_dot(rows, weights, sizes, implementation=implementation)


def _blocked(rows, expert, experts: Experts, expected: int):
  """The first rows of every expert in one batched matmul, the rest in blocks of one expert each.

  A batched matmul is twice as fast as the same rows block by block, but how many rows each expert has in it is static.
  """
  M, number = len(rows), experts.number
  sizes = jnp.bincount(expert, length=number).astype(jnp.int32)
  first = jnp.concatenate([jnp.cumsum(sizes) - sizes, jnp.array([M], jnp.int32)])
  slot = jnp.arange(M) - first[expert]  # of a row among its expert's; negative where there is no expert
  together = _rows_together(expected, number)
  y = _in_blocks(rows, expert, slot - together, jnp.maximum(sizes - together, 0), experts, expected)
  if together:
    y = jnp.where((slot < together)[:, None], _together(rows, expert, slot, together, experts), y)
  return y


def _rows_together(rows: int, number: int) -> int:
  """Rows of every expert in the batched matmul: half above the mean, or none where many experts would idle."""
  mean = rows / number
  return 8 * math.ceil(1.5 * mean / 8) if mean >= 4 else 0


def _together(rows, expert, slot, together: int, experts: Experts):
  """Results of the rows whose slot is below `together`; those of the others mean nothing."""
  total = experts.number * together
  place = jnp.where((slot >= 0) & (slot < together), expert * together + slot, total)
  source = _inverse(place, total)
  y = jax.vmap(swiglu)(move_rows(rows, source, place).reshape(experts.number, together, -1), experts.all())
  return move_rows(y.reshape(total, -1), place, source)


def _inverse(place: Int[Array, ' M'], total: int) -> Int[Array, ' X']:
  """The row that goes to each of `total` places; M where none does."""
  M = len(place)
  return jnp.full(total, M, jnp.int32).at[place].set(jnp.arange(M, dtype=jnp.int32), mode='drop')


def _in_blocks(rows, expert, slot, sizes: Int[Array, ' E'], experts: Experts, expected: int):
  """Results of the rows whose slot is not negative; those of the others mean nothing. sizes: how many each expert has.

  Each expert's rows are padded to whole blocks. The number of places is static: all rows fill at most M/block whole
  ones, and each expert adds at most one more.
  """
  M, number = len(rows), experts.number
  block = min(LARGEST_BLOCK.get(platform(), 32), max(8, 1 << (expected // number).bit_length()))
  at_once = min(AT_ONCE.get(platform(), 1), -(-M // block) + min(number, M))
  blocks = -(-(-(-M // block) + min(number, M)) // at_once) * at_once
  blocks_of = -(-sizes // block)
  last = jnp.cumsum(blocks_of)
  start = jnp.concatenate([last - blocks_of, jnp.zeros(1, last.dtype)])[expert]
  place = jnp.where((slot >= 0) & (expert < number), start * block + slot, blocks * block)
  source = _inverse(place, blocks * block).reshape(-1, at_once, block)
  expert_of_block = jnp.searchsorted(last, jnp.arange(blocks), side='right').reshape(-1, at_once)
  return _run_blocks(rows, experts, source, place, expert_of_block, -(-last[-1] // at_once))


LARGEST_BLOCK = {'gpu': 128}  # rows
AT_ONCE = {'gpu': 16}  # blocks computed together, each with a copy of its expert's weights: many small matmuls idle a GPU


@jax.custom_vjp
def _run_blocks(rows, experts: Experts, source, place, expert_of_block, used):
  """SwiGLU of the first `used` groups of blocks. source 'groups at_once block': row of each place; place: its inverse."""

  def one_group(i, y):
    out = jax.vmap(swiglu)(take_rows(rows, source[i]), experts.chosen(expert_of_block[i]))
    return jax.lax.dynamic_update_index_in_dim(y, out, i, 0)

  y = jax.lax.fori_loop(0, used, one_group, jnp.zeros((*source.shape, rows.shape[-1]), rows.dtype))
  return take_rows(y.reshape(-1, rows.shape[-1]), place)


def _run_blocks_forward(*inputs):
  return _run_blocks(*inputs), inputs


def _run_blocks_backward(inputs, dy):
  """Each group is computed again, and what it says of its experts' weights is added where they lie: differentiating the loop
  would add an array of the size of all experts for every group."""
  rows, experts, source, place, expert_of_block, used = inputs
  leaves, structure = jax.tree.flatten(experts)
  trained = [i for i, w in enumerate(leaves) if jnp.issubdtype(w.dtype, jnp.inexact)]

  def one_group(i, carry):
    dx, grads = carry
    here = experts.place(expert_of_block[i])
    local = [w if w is experts.layer else read(w, here) for w in leaves]

    def compute(x, values):
      for t, value in zip(trained, values, strict=True):
        local[t] = value
      return jax.vmap(swiglu)(x, jax.tree.unflatten(structure, local).replace(layer=None).all())

    _, pull = jax.vjp(compute, take_rows(rows, source[i]), [local[t] for t in trained])
    dx_group, changes = pull(take_rows(dy, source[i]))
    grads = [add(g, here, change) for g, change in zip(grads, changes, strict=True)]
    return jax.lax.dynamic_update_index_in_dim(dx, dx_group, i, 0), grads

  start = jnp.zeros((*source.shape, rows.shape[-1]), rows.dtype), [jnp.zeros_like(leaves[i]) for i in trained]
  dx, grads = jax.lax.fori_loop(0, used, one_group, start)
  nothing = lambda a: np.zeros(a.shape, jax.dtypes.float0)
  cotangents = [nothing(w) for w in leaves]
  for i, g in zip(trained, grads, strict=True):
    cotangents[i] = g
  dx = take_rows(dx.reshape(-1, rows.shape[-1]), place)
  return dx, jax.tree.unflatten(structure, cotangents), *(nothing(a) for a in (source, place, expert_of_block, used))


_run_blocks.defvjp(_run_blocks_forward, _run_blocks_backward)


GROUPED = {
  'looped': looped,
  'blocked': _blocked,
  'ragged': functools.partial(matmuls, jax.lax.ragged_dot),
  'megablox': functools.partial(matmuls, _megablox),
  'tokamax': functools.partial(matmuls, _tokamax),
  'triton': _triton,
}
