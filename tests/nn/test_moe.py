"""Every form of the expert computation equals the dense one, forward and backward, whatever the routing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_omni_jax.nn import experts as experts_module
from qwen3_omni_jax.nn import kernels
from qwen3_omni_jax.nn.expert_weights import Experts
from qwen3_omni_jax.nn.experts import GROUPED, experts_form, matmuls, run_experts
from qwen3_omni_jax.nn.moe import FORMS, moe, moe_spec, route
from qwen3_omni_jax.nn.params import abstract_params, init_params

D, F, E, A, LAYERS = 12, 7, 6, 2, 3


@pytest.fixture
def params():
  return init_params(moe_spec(D, F, E, shared_ffn=5), jax.random.key(0))


def skewed(x, router, kind):
  """Tokens whose routing is balanced, all to the same experts, or to only a few."""
  if kind == 'one':
    return jnp.broadcast_to(x[:1], x.shape)
  return jnp.where((jnp.arange(len(x)) % 3 == 0)[:, None], x, x[:1]) if kind == 'few' else x


@pytest.fixture(autouse=True)
def _as_libraries_expect():
  with jax.numpy_dtype_promotion('standard'):  # inside megablox and tokamax
    yield


@pytest.mark.parametrize('form', ['gathered', 'ragged', 'looped', 'triton', 'megablox', 'tokamax'])
@pytest.mark.parametrize('kind', ['balanced', 'few', 'one'])
@pytest.mark.parametrize('tokens', [1, 37])
def test_forms_equal_dense_forward_and_backward(params, form, kind, tokens):
  x = skewed(jax.random.normal(jax.random.key(1), (tokens, D)), params['router'], kind)

  def loss(x, params, form):
    return jnp.sum(jnp.sin(moe(x, params, Experts.of_layer(params['experts']), A, True, form=form)[0]))

  value, grads = jax.value_and_grad(loss, (0, 1))(x, params, form)
  expected, expected_grads = jax.value_and_grad(loss, (0, 1))(x, params, 'dense')
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), grads, expected_grads)


@pytest.mark.parametrize('form', ['dense', 'gathered', 'ragged', 'looped', 'triton', 'megablox', 'tokamax'])
def test_padding_takes_no_expert(params, form):
  """Its share of the result is zero, that of the other tokens as without it, and so are the gradients."""
  x = jax.random.normal(jax.random.key(1), (1, 10, D))
  live = jnp.arange(10)[None] % 3 != 0
  experts_only = {name: w for name, w in params.items() if not name.startswith('shared')}
  run = functools.partial(moe, active=A, normalise=True, form=form)

  def loss(x, p, live, keep):
    y, routing = run(x, p, Experts.of_layer(p['experts']), live=live)
    return jnp.sum(jnp.where(keep[..., None], jnp.sin(y), 0)), (y, routing)

  (_, (y, routing)), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, experts_only, live, live)
  (_, (expected, all_routing)), expected_grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, experts_only, None, live)
  np.testing.assert_array_equal(y[~live], 0)
  np.testing.assert_allclose(y[live], expected[live], atol=1e-6)
  np.testing.assert_array_equal(routing.experts, all_routing.experts)  # what the losses see
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), grads, expected_grads)


def test_what_a_kernel_leaves_past_the_last_row_reaches_nothing(params, monkeypatch):
  """Kernels do not write rows that belong to no expert here: what lies there, in values and gradients, may be anything."""

  @jax.custom_vjp
  def careless(x, w, sizes):
    y = jax.lax.ragged_dot(x, w, sizes)
    return jnp.where((jnp.arange(len(x)) < sizes.sum())[:, None], y, jnp.nan)

  def backward(inputs, dy):
    x, w, sizes = inputs
    dx, dw = jax.vjp(lambda x, w: jax.lax.ragged_dot(x, w, sizes), x, w)[1](dy)
    return jnp.where((jnp.arange(len(x)) < sizes.sum())[:, None], dx, jnp.nan), dw, None

  careless.defvjp(lambda *inputs: (careless(*inputs), inputs), backward)
  rows, expert = jax.random.normal(jax.random.key(1), (9, D)), jnp.array([0, 0, 2, 3, 3, E, E, E, E])

  def loss(form, rows, p):
    y = run_experts(rows, expert, Experts.of_layer(p), form)
    return jnp.sum(jnp.where((expert < E)[:, None], jnp.sin(y), 0))

  expected = jax.value_and_grad(functools.partial(loss, 'ragged'), (0, 1))(rows, params['experts'])
  monkeypatch.setitem(GROUPED, 'careless', functools.partial(matmuls, careless))
  got = jax.value_and_grad(functools.partial(loss, 'careless'), (0, 1))(rows, params['experts'])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected)


@pytest.mark.parametrize('form', sorted(FORMS))
def test_experts_in_stack_are_those_of_the_layer(form):
  stack = jax.vmap(lambda k: init_params(moe_spec(D, F, E)['experts'], k))(jax.random.split(jax.random.key(2), LAYERS))
  router = jax.random.normal(jax.random.key(3), (D, E))
  x = jax.random.normal(jax.random.key(4), (5, D))
  routing = route(x, router, A, True)
  for layer in range(LAYERS):
    alone = FORMS[form](x, routing, Experts.of_layer(jax.tree.map(lambda w, i=layer: w[i], stack)))
    np.testing.assert_allclose(FORMS[form](x, routing, Experts.in_stack(stack, jnp.int32(layer))), alone, atol=1e-6)


def test_route_picks_the_most_probable_experts_and_normalises():
  x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
  router = jnp.array([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])
  routing = route(x, router, 2, True)
  np.testing.assert_array_equal(routing.experts, [[0, 2], [1, 2]])
  e = np.exp(1.0)
  np.testing.assert_allclose(routing.weights, [[e / (e + 1), 1 / (e + 1)]] * 2, rtol=1e-6)
  np.testing.assert_allclose(routing.probs.sum(axis=-1), 1, rtol=1e-6)
  raw = route(x, router, 2, False)
  np.testing.assert_allclose(raw.weights[0], np.sort(np.asarray(routing.probs[0]))[::-1][:2], rtol=1e-6)


def test_few_tokens_read_few_experts(monkeypatch):
  experts = jax.eval_shape(Experts.of_layer, abstract_params(moe_spec(128, 256, 128)['experts']))
  forms = {}
  for here in ('cpu', 'tpu', 'gpu'):
    for module in (kernels, experts_module):
      monkeypatch.setattr(module, 'platform', lambda here=here: here)
    forms[here] = tuple(experts_form(tokens, 8, experts) for tokens in (1, 8, 2048))
  assert forms == {
    'cpu': ('gathered', 'looped', 'looped'),  # looped reads only the experts that have rows, too
    'tpu': ('gathered', 'gathered', 'megablox'),
    'gpu': ('triton', 'triton', 'triton'),
  }
