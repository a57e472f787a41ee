"""Policies of rematerialisation: the backward pass repeats no grouped matmul and no attention kernel that a policy says is kept.

Counted in the gradient as traced, in the forms that accelerators run too: `jax.checkpoint` sees kernels as calls, not as matmuls.
"""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_omni_jax.nn.attention import attention
from qwen3_omni_jax.nn.expert_parallel import Dispatch
from qwen3_omni_jax.nn.expert_weights import Experts
from qwen3_omni_jax.nn.moe import moe, moe_spec
from qwen3_omni_jax.nn.params import stack
from qwen3_omni_jax.nn.remat import NAMES, rematerialised
from qwen3_omni_jax.sharding import make_mesh
from tests.arrays import normal, params_of

pytestmark = pytest.mark.quick_to_compile

D, F, E, LAYERS = 128, 128, 8, 2
COUNTED = {'ragged_dot_general', 'pallas_call', 'while', 'cond', 'ragged_all_to_all', 'all_to_all'}
CALLS = {'jit', 'pjit', 'remat_opt', 'closed_call', 'custom_vjp_call', 'custom_jvp_call', 'custom_vmap_call'}


def count(jaxpr, live=None) -> collections.Counter:
  """Operations of each kind whose results are used: the others are dropped when a program is compiled."""
  found: collections.Counter = collections.Counter()
  outs = [v for v, used in zip(jaxpr.outvars, live or [True] * len(jaxpr.outvars), strict=True) if used]
  needed = {v for v in outs if isinstance(v, jax.extend.core.Var)}
  for eqn in reversed(jaxpr.eqns):
    used = [v in needed for v in eqn.outvars]
    if not any(used):
      continue
    needed |= {v for v in eqn.invars if isinstance(v, jax.extend.core.Var)}
    name = eqn.primitive.name
    found[name] += 1
    for leaf in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, 'jaxpr') or hasattr(x, 'eqns')):
      inner = getattr(leaf, 'jaxpr', leaf)
      if hasattr(inner, 'eqns') and name != 'pallas_call':
        found += count(inner, used if name in CALLS and len(inner.outvars) == len(used) else None)
  return found


def in_gradient(layer, params, x, remat: str) -> collections.Counter:
  loss = lambda params, x: jax.lax.scan(rematerialised(layer, remat), x, params)[0].astype(jnp.float32).sum()
  with jax.numpy_dtype_promotion('standard'):  # inside megablox and tokamax
    found = count(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(params, x).jaxpr)
  return collections.Counter({name: n for name, n in found.items() if name in COUNTED})


def expert_layer(x, p, **options):
  return x + moe(x, p, Experts.of_layer(p['experts']), 2, True, **options)[0], None


@functools.cache
def expert_params():
  return params_of(stack(LAYERS, moe_spec(D, F, E)))


@pytest.mark.parametrize(
  ('form', 'operation'),
  [
    ('looped', 'while'),
    ('ragged', 'ragged_dot_general'),
    ('megablox', 'pallas_call'),
    ('triton', 'pallas_call'),
    ('tokamax', 'ragged_dot_general'),
  ],
)
def test_the_experts_matmuls_are_not_computed_again(form, operation):
  layer = functools.partial(expert_layer, form=form)
  found = {name: in_gradient(layer, expert_params(), normal(1, 1, 64, D), name)[operation] for name in NAMES}
  assert found['experts'] == found['dots'] == found['offload'] == found['none'] > 0
  assert found['full'] == found['attention'] > found['none']


@pytest.mark.parametrize('method', ['padded', 'ragged'])
def test_what_came_back_of_the_experts_is_not_fetched_again_on_a_mesh(method):
  layer = functools.partial(expert_layer, dispatch=Dispatch(method, buffer=2.0, form='ragged'))
  exchange = {'padded': 'all_to_all', 'ragged': 'ragged_all_to_all'}[method]
  with jax.set_mesh(make_mesh({'fsdp': 2, 'expert': 4})):
    full, experts, none = (in_gradient(layer, expert_params(), normal(1, 8, 8, D), name) for name in ('full', 'experts', 'none'))
  assert experts['ragged_dot_general'] == none['ragged_dot_general'] < full['ragged_dot_general']
  assert none[exchange] < experts[exchange] < full[exchange]  # what is sent to the experts is sent again


@pytest.mark.parametrize(('backend', 'operation'), [('blockwise', 'cond'), ('splash', 'pallas_call')])
def test_attention_is_not_computed_again(backend, operation):
  T = 640  # two blocks
  segment = jnp.ones((1, T), jnp.int32)

  def layer(x, w):
    heads = lambda y: y.reshape(1, T, 2, 64)
    q, k, v = (heads(x @ w_) for w_ in w)
    out = attention(q, k, v, q_segment=segment, k_segment=segment, causal=True, backend=backend)
    return x + out.reshape(x.shape), None

  weights = normal(2, LAYERS, 3, D, D)
  found = {name: in_gradient(layer, weights, normal(1, 1, T, D), name)[operation] for name in NAMES}
  assert found['attention'] == found['experts'] == found['dots'] == found['none'] > 0
  assert found['full'] > found['none']


@pytest.mark.parametrize('remat', ['attention', 'experts', 'dots'])
def test_gradients_are_the_same_whatever_is_kept(remat):
  def gradient(remat):
    loss = lambda params, x: jnp.sin(jax.lax.scan(rematerialised(expert_layer, remat), x, params)[0]).sum()
    return jax.jit(jax.grad(loss))(expert_params(), normal(1, 1, 64, D))

  for a, b in zip(jax.tree.leaves(gradient(remat)), jax.tree.leaves(gradient('none')), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.abs(b).max())


def test_an_unknown_policy_is_refused():
  with pytest.raises(ValueError, match='expected one of none, full, attention, experts, dots, offload'):
    rematerialised(expert_layer, 'all')
