"""Dropless mixture of experts: route each token to its top experts, multiply, combine. No token is ever dropped.

One routing function; several forms of the same expert computation, chosen in `experts_form` alone. All agree with `dense_form`.
"""

import math

import flax.struct
import jax
import jax.numpy as jnp

from ..shapes import Array, Float, Int, Params
from .int8 import leaf_map
from .layers import swiglu, swiglu_spec
from .params import Param, Spec


@flax.struct.dataclass
class Experts:
  """The experts of one layer, possibly as a window into the stack of all layers.

  Decoding reads a few experts of each layer; slicing the layer out of its stack first would copy all of them. So the stacks
  stay whole, flattened to X = layers * E, and `first` says where this layer's experts begin.
  """

  gate: Float[Array, 'X D F']
  up: Float[Array, 'X D F']
  down: Float[Array, 'X F D']
  first: Int[Array, '']
  number: int = flax.struct.field(pytree_node=False)

  @classmethod
  def of_layer(cls, p: Params) -> 'Experts':
    """From the parameters of one layer ('E D F' arrays)."""
    return cls(p['gate'], p['up'], p['down'], jnp.int32(0), p['gate'].shape[0])

  @classmethod
  def in_stack(cls, p: Params, layer: Int[Array, '']) -> 'Experts':
    """From the stacked parameters of all layers ('L E D F' arrays)."""
    number = p['gate'].shape[1]
    flat = jax.tree.map(lambda w: w.reshape(-1, *w.shape[2:]), p)
    return cls(flat['gate'], flat['up'], flat['down'], layer * number, number)

  def one(self, expert: Int[Array, '']) -> Params:
    """The SwiGLU parameters of one expert."""
    return self._each(lambda w: jax.lax.dynamic_index_in_dim(w, self.first + expert, keepdims=False))

  def all(self) -> Params:
    """The parameters of every expert of the layer ('E D F' arrays)."""
    return self._each(lambda w: jax.lax.dynamic_slice_in_dim(w, self.first, self.number))

  def _each(self, pick) -> Params:
    return jax.tree.map(pick, {'gate': self.gate, 'up': self.up, 'down': self.down})


def moe_spec(width: int, ffn: int, experts: int, shared_ffn: int = 0) -> Spec:
  spec: Spec = {
    'router': Param((width, experts), ('embed', 'expert_logits'), fan_in=width),
    'experts': {
      'gate': Param((experts, width, ffn), ('expert', 'embed', 'expert_mlp'), fan_in=width),
      'up': Param((experts, width, ffn), ('expert', 'embed', 'expert_mlp'), fan_in=width),
      'down': Param((experts, ffn, width), ('expert', 'expert_mlp', 'embed'), fan_in=ffn),
    },
  }
  if shared_ffn:
    spec['shared'] = swiglu_spec(width, shared_ffn)
    spec['shared_gate'] = Param((width,), ('embed',), fan_in=width)
  return spec


@flax.struct.dataclass
class Routing:
  """Where each token goes. weights are in the activation dtype; probs (float32, over all experts) feed the balance loss."""

  experts: Int[Array, 'T A']
  weights: Float[Array, 'T A']
  probs: Float[Array, 'T E']


def route(x: Float[Array, 'T D'], router: Float[Array, 'D E'], active: int, normalise: bool) -> Routing:
  """The `active` most probable experts of each token. Softmax over *all* experts in float32, then top-k, then (optionally)
  renormalised: the reference's order."""
  logits = jnp.einsum('TD,DE->TE', x, router.astype(x.dtype))
  probs = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
  weights, experts = jax.lax.top_k(probs, active)
  if normalise:
    weights = weights / weights.sum(axis=-1, keepdims=True)
  return Routing(experts, weights.astype(x.dtype), probs)


def moe(
  x: Float[Array, '*b D'], p: Params, experts: Experts, active: int, normalise: bool, form: str | None = None
) -> tuple[Float[Array, '*b D'], Routing]:
  """Sum of the active experts' outputs, weighted; plus the gated shared expert where there is one.

  p: router and, for the Talker, shared and shared_gate. form: see `experts_form`.
  """
  flat = x.reshape(-1, x.shape[-1])
  routing = route(flat, p['router'], active, normalise)
  compute = FORMS[form or experts_form(*routing.experts.shape, experts.number)]
  y = compute(flat, routing, experts)
  if 'shared' in p:
    gate = jax.nn.sigmoid(jnp.einsum('TD,D->T', flat, p['shared_gate'].astype(x.dtype)))
    y = y + gate[:, None] * swiglu(flat, p['shared'])
  return y.reshape(x.shape), routing


def experts_form(tokens: int, active: int, number: int) -> str:
  """The form to use: the one place that decides.

  Few tokens touch few experts: read only those. Many tokens: sort by expert, then a grouped matmul from the platform's
  library on TPU and GPU, blocks of one expert each on CPU (XLA's CPU grouped matmul is 10 to 20 times slower).
  """
  if tokens * active <= max(2 * active, number // 2):
    return 'gathered'
  return 'blocked' if jax.default_backend() == 'cpu' else 'ragged'


def dense_form(x: Float[Array, 'T D'], routing: Routing, experts: Experts) -> Float[Array, 'T D']:
  """Every expert on every token, weighted by zero where not chosen: the definition, kept as the reference for the others."""
  T = x.shape[0]
  combine = jnp.zeros((T, experts.number), x.dtype)
  combine = combine.at[jnp.arange(T)[:, None], routing.experts].add(routing.weights)
  every = jax.vmap(swiglu, in_axes=(None, 0))(x, experts.all())
  return jnp.einsum('ETD,TE->TD', every, combine)


def gathered_form(x: Float[Array, 'T D'], routing: Routing, experts: Experts) -> Float[Array, 'T D']:
  """One (token, expert) pair after another, reading just that expert's weights: for small decode batches."""
  T, A = routing.experts.shape

  def one_pair(out, pair):
    token, expert, weight = pair
    y = swiglu(x[token][None], experts.one(expert))[0]
    return out.at[token].add(weight * y), None

  pairs = (jnp.repeat(jnp.arange(T), A), routing.experts.reshape(-1), routing.weights.reshape(-1))
  return jax.lax.scan(one_pair, jnp.zeros_like(x), pairs)[0]


@flax.struct.dataclass
class _Sorted:
  """(token, expert) pairs in order of expert: `order` lists flat pair numbers, `sizes` counts pairs per expert."""

  order: Int[Array, ' TA']
  expert: Int[Array, ' TA']
  sizes: Int[Array, ' E']


def _sort(routing: Routing, number: int) -> _Sorted:
  expert = routing.experts.reshape(-1)
  order = jnp.argsort(expert)
  return _Sorted(order, expert[order], jnp.bincount(expert, length=number).astype(jnp.int32))


def _combine(y: Float[Array, 'TA D'], pairs: _Sorted, routing: Routing) -> Float[Array, 'T D']:
  """Sorted pair outputs back in token order, weighted and summed."""
  T, A = routing.experts.shape
  unsorted = y[jnp.argsort(pairs.order)].reshape(T, A, -1)
  return jnp.einsum('TAD,TA->TD', unsorted, routing.weights)


def ragged_form(x: Float[Array, 'T D'], routing: Routing, experts: Experts) -> Float[Array, 'T D']:
  """Sorted by expert, then three grouped matmuls."""
  pairs = _sort(routing, experts.number)
  rows = x[pairs.order // routing.experts.shape[1]]
  p = leaf_map(lambda w: w.astype(x.dtype), experts.all())
  hidden = jax.nn.silu(jax.lax.ragged_dot(rows, p['gate'], pairs.sizes)) * jax.lax.ragged_dot(rows, p['up'], pairs.sizes)
  return _combine(jax.lax.ragged_dot(hidden, p['down'], pairs.sizes), pairs, routing)


def blocked_form(x: Float[Array, 'T D'], routing: Routing, experts: Experts) -> Float[Array, 'T D']:
  """Sorted by expert: the first rows of every expert in one batched matmul, the rest in blocks of one expert each.

  A batched matmul is twice as fast as the same rows block by block, but how many rows each expert has in it is static.
  """
  T, A = routing.experts.shape
  pairs = _sort(routing, experts.number)
  tokens = (pairs.order // A).astype(jnp.int32)
  slot = jnp.arange(T * A) - (jnp.cumsum(pairs.sizes) - pairs.sizes)[pairs.expert]  # of a pair among its expert's
  rows = _rows_together(T, A, experts.number)
  x = jnp.concatenate([x, jnp.zeros_like(x[:1])])  # row T is what padding reads
  y = _in_blocks(x, pairs, tokens, slot - rows, experts)
  if rows:
    y = jnp.where((slot < rows)[:, None], _together(x, pairs, tokens, slot, rows, experts), y)
  return _combine(y, pairs, routing)


def _rows_together(tokens: int, active: int, number: int) -> int:
  """Rows of every expert in the batched matmul: half above the mean, or none where many experts would idle."""
  mean = tokens * active / number
  return min(tokens, 8 * math.ceil(1.5 * mean / 8)) if mean >= 4 else 0


def _together(x, pairs: _Sorted, tokens, slot, rows: int, experts: Experts) -> Float[Array, 'TA D']:
  """Outputs of the pairs whose slot is below `rows`; those of the others mean nothing."""
  total = experts.number * rows
  row = jnp.where(slot < rows, pairs.expert * rows + slot, total)
  token_of_row = jnp.full(total, len(x) - 1, jnp.int32).at[row].set(tokens, mode='drop')
  y = jax.vmap(swiglu)(x[token_of_row].reshape(experts.number, rows, -1), experts.all())
  return y.reshape(total, -1)[jnp.minimum(row, total - 1)]


def _in_blocks(x, pairs: _Sorted, tokens, slot, experts: Experts) -> Float[Array, 'TA D']:
  """Outputs of the pairs whose slot is not negative; those of the others mean nothing.

  Each expert's rows are padded to whole blocks. The number of blocks is static: the pairs fill at most TA/block whole
  ones, and each expert adds at most one more.
  """
  T, TA, number = len(x) - 1, len(tokens), experts.number
  block = min(32, max(8, 1 << (TA // number).bit_length()))
  sizes = jnp.zeros(number, jnp.int32).at[pairs.expert].max(slot.astype(jnp.int32) + 1)
  blocks_of = -(-sizes // block)
  last = jnp.cumsum(blocks_of)
  blocks = -(-TA // block) + min(number, TA)
  row = jnp.where(slot >= 0, (last - blocks_of)[pairs.expert] * block + slot, blocks * block)
  token_of_row = jnp.full(blocks * block, T, jnp.int32).at[row].set(tokens, mode='drop')
  expert_of_block = jnp.searchsorted(last, jnp.arange(blocks), side='right')

  def one_block(_, inputs):
    tokens, expert = inputs
    nothing = lambda: jnp.zeros((block, x.shape[-1]), x.dtype)  # blocks past the last are skipped
    return None, jax.lax.cond(expert < number, lambda: swiglu(x[tokens], experts.one(expert)), nothing)

  _, y = jax.lax.scan(one_block, None, (token_of_row.reshape(blocks, block), expert_of_block))
  return y.reshape(blocks * block, -1)[jnp.minimum(row, blocks * block - 1)]


FORMS = {'dense': dense_form, 'gathered': gathered_form, 'ragged': ragged_form, 'blocked': blocked_form}
