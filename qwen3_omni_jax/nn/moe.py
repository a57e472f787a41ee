"""Mixture of experts without dropped tokens: routes each token to its top experts, multiplies and combines.

There is one routing function and several forms of the same expert computation (nn/experts.py), which agree with the dense form.
On a mesh, nn/expert_parallel.py sends tokens to their experts.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..shapes import Array, Bool, Float, Int, Params
from ..sharding import current_mesh
from .expert_parallel import LOSSLESS, Dispatch, expert_parallel
from .expert_weights import Experts
from .experts import GROUPED, experts_form, run_experts
from .layers import add, swiglu, swiglu_spec
from .params import Param, Spec
from .permute import move_rows, sorting, weighted_sum


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


class Routing(flax.struct.PyTreeNode):
  """Where each token goes. weights and probs are float32; probs (over all experts) feed the balance loss.

  lost: pairs of token and expert that a bounded buffer had no room for (see expert_parallel); None before they were sent. log_z:
  log of the softmax's denominator, which the z-loss keeps small.
  """

  experts: Int[Array, '*b A']
  weights: Float[Array, '*b A']
  probs: Float[Array, '*b E']
  lost: Int[Array, ''] | None = None
  log_z: Float[Array, '*b'] | None = None

  def without(self, idle: Bool[Array, '*b'], number: int) -> 'Routing':
    """The idle tokens sent nowhere: to expert `number`, the first that does not exist, with no weight."""
    choose = lambda new, old: jnp.where(idle[..., None], jnp.asarray(new, old.dtype), old)
    return self.replace(experts=choose(number, self.experts), weights=choose(0, self.weights))


def route(
  x: Float[Array, '*b D'],
  router: Float[Array, 'D E'],
  active: int,
  normalise: bool,
  logits_dtype: DTypeLike | None = None,
  bias: Float[Array, ' E'] | None = None,
) -> Routing:
  """The `active` most probable experts of each token. Softmax over *all* experts in float32, then top-k, then (optionally)
  renormalised: the reference's order. logits_dtype: of the product with the router; None: that of x, as in the reference. bias:
  of a model in training (train.router_bias): added to the probabilities to select by, not to those that weigh."""
  dtype = logits_dtype or x.dtype
  logits = jnp.einsum('...D,DE->...E', x.astype(dtype), router.astype(dtype))
  logits = logits.astype(jnp.float32)
  probs = jax.nn.softmax(logits, axis=-1)
  if bias is None:
    weights, experts = jax.lax.top_k(probs, active)
  else:
    _, experts = jax.lax.top_k(jax.lax.stop_gradient(probs) + bias, active)
    weights = jnp.take_along_axis(probs, experts, axis=-1)
  if normalise:
    weights = weights / weights.sum(axis=-1, keepdims=True)
  return Routing(experts, weights, probs, log_z=jax.nn.logsumexp(logits, axis=-1))


def expert_pairs(routing: Routing, keep: Bool[Array, '*b'] | None = None) -> Float[Array, ' E']:
  """How many pairs of token and expert each expert gets, of the tokens to keep: exact up to 2^24."""
  number = routing.probs.shape[-1]
  weight = jnp.ones(routing.experts.shape, jnp.float32) if keep is None else keep[..., None].astype(jnp.float32)
  weight = jnp.broadcast_to(weight, routing.experts.shape)
  return jnp.zeros(number).at[routing.experts.reshape(-1)].add(weight.reshape(-1))


def expert_load(pairs: Float[Array, ' E']) -> Float[Array, ' E']:
  """Share of the pairs that each expert gets (balanced: 1 / E each); a metric of training."""
  return pairs / jnp.maximum(pairs.sum(), 1)


def moe(
  x: Float[Array, 'B T D'],
  p: Params,
  experts: Experts,
  active: int,
  normalise: bool,
  *,
  live: Bool[Array, 'B T'] | None = None,
  form: str | None = None,
  dispatch: Dispatch = LOSSLESS,
  router_dtype: DTypeLike | None = None,
) -> tuple[Float[Array, 'B T D'], Routing]:
  """Sum of the active experts' outputs, weighted; plus the gated shared expert where there is one.

  p: router; for the Talker, shared and shared_gate; in training perhaps router_bias, of selection. live: False where a token is
  padding, which then takes no expert (and gets zeros from them); None: all are. form: of FORMS, on one device; None: the best for
  this size and platform. dispatch: how tokens reach their experts on a mesh. router_dtype: of the router's logits; None: that of
  x.
  """
  routing = route(x, p['router'], active, normalise, router_dtype, p.get('router_bias'))
  sent = routing if live is None else routing.without(~live, experts.number)
  mesh = current_mesh()
  if mesh is not None:
    y, lost = expert_parallel(x, sent, experts, mesh, dispatch)
  else:
    flat = jax.tree.map(lambda a: a.reshape(-1, a.shape[-1]), sent.replace(log_z=None))
    form = form or experts_form(len(flat.experts), flat.experts.shape[1], experts)
    y, lost = FORMS[form](x.reshape(-1, x.shape[-1]), flat, experts).reshape(x.shape), jnp.int32(0)
  routing = routing.replace(lost=lost)
  if 'shared' in p:
    # Not a matmul: XLA on CPU sums the last rows of a matrix times a vector in another order than those before.
    gate = (x.astype(jnp.float32) * p['shared_gate'].astype(jnp.float32)).sum(axis=-1, keepdims=True)
    y = add(y, jax.nn.sigmoid(gate) * swiglu(x, p['shared']).astype(jnp.float32))
  return y, routing


def dense_form(x: Float[Array, 'T D'], routing: Routing, experts: Experts) -> Float[Array, 'T D']:
  """Every expert on every token, weighted by zero where not chosen: the definition, kept as the reference for the others."""
  T = x.shape[0]
  weights = jnp.zeros((T, experts.number)).at[jnp.arange(T)[:, None], routing.experts].add(routing.weights)
  every = jax.vmap(swiglu, in_axes=(None, 0))(x, experts.all())
  return jnp.einsum('ETD,TE->TD', every.astype(jnp.float32), weights).astype(x.dtype)


def gathered_form(x: Float[Array, 'T D'], routing: Routing, experts: Experts) -> Float[Array, 'T D']:
  """One (token, expert) pair after another, reading just that expert's weights: for small decode batches."""
  T, A = routing.experts.shape

  def one_pair(out, pair):
    token, expert, weight = pair
    y = swiglu(x[token][None], experts.one(expert))[0]
    return out.at[token].add(weight * y.astype(jnp.float32)), None

  pairs = (jnp.repeat(jnp.arange(T), A), routing.experts.reshape(-1), routing.weights.reshape(-1))
  return jax.lax.scan(one_pair, jnp.zeros(x.shape), pairs)[0].astype(x.dtype)


def grouped_form(form: str, x: Float[Array, 'T D'], routing: Routing, experts: Experts) -> Float[Array, 'T D']:
  """Pairs sorted by expert, run together, put back in token order, weighted and summed."""
  T, A = routing.experts.shape
  expert = routing.experts.reshape(-1)
  order, back = sorting(expert)
  y = run_experts(move_rows(x, order, back, A), expert[order], experts, form)
  y = jnp.where((expert < experts.number)[:, None], move_rows(y, back, order), 0)
  return weighted_sum(y, routing.weights)


FORMS = {'dense': dense_form, 'gathered': gathered_form}
FORMS |= {name: functools.partial(grouped_form, name) for name in GROUPED}
