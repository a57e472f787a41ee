"""The experts of a layer in several forms of one computation: SwiGLU of many rows, each by its own expert.

nn/kernels.py chooses the form. Rows are sorted by expert; rows without a local expert (number `experts.number`) come last, and
their results are undefined.
"""

import functools

import jax
import jax.numpy as jnp

from ..shapes import Array, Float, Int
from ..sharding import platform
from .expert_loop import looped
from .expert_weights import Experts
from .grouped_matmul import Groups, grouped_gate, grouped_matmul
from .int8 import Int8
from .kernels import experts_kernel, require_tokamax
from .layers import silu_gate
from .lora import weight_map
from .remat import EXPERTS, named


def experts_form(tokens: int, active: int, experts: Experts) -> str:
  """The form to use. Few tokens touch few experts: read only those. Many: sort by expert, then the platform's kernel."""
  kernel = experts_kernel(*experts.gate.shape[-2:])
  few_pairs = {'triton': 0, 'looped': 2 * active}.get(kernel, max(2 * active, experts.number // 2))
  return 'gathered' if tokens * active <= few_pairs else kernel


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
  gate, up = (named(matmul(rows, p[name]), EXPERTS) for name in ('gate', 'up'))
  return matmul(silu_gate(gate, up), p['down'])


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


GROUPED = {
  'looped': looped,
  'ragged': functools.partial(matmuls, jax.lax.ragged_dot),
  'megablox': functools.partial(matmuls, _megablox),
  'tokamax': functools.partial(matmuls, _tokamax),
  'triton': _triton,
}
