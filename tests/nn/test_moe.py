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
from qwen3_omni_jax.nn.int8 import Int8, dequantize, quantize
from qwen3_omni_jax.nn.moe import FORMS, moe, moe_spec, route
from qwen3_omni_jax.nn.params import abstract_params
from tests.arrays import normal, params_of

pytestmark = pytest.mark.quick_to_compile

D, F, E, A, LAYERS = 12, 7, 6, 2, 3
GROUPED_AND_GATHERED = ['gathered', 'ragged', 'looped', 'triton', 'megablox', 'tokamax']


@pytest.fixture(scope='module')
def params():
  return params_of(moe_spec(D, F, E, shared_ffn=5))


def skewed(x, kind):
  """Tokens whose routing is balanced, all to the same experts, or to only a few."""
  if kind == 'one':
    return np.broadcast_to(x[:1], x.shape)
  return np.where((np.arange(len(x)) % 3 == 0)[:, None], x, x[:1]) if kind == 'few' else x


@pytest.fixture(autouse=True)
def _as_libraries_expect():
  with jax.numpy_dtype_promotion('standard'):  # inside megablox and tokamax
    yield


@functools.partial(jax.jit, static_argnames='form')
def value_and_grad(x, params, live=None, keep=None, *, form):
  """((loss, (output, experts chosen)), gradients). live: of moe. keep: tokens that count in the loss; None: all."""

  def loss(x, p):
    y, routing = moe(x, p, Experts.of_layer(p['experts']), A, True, form=form, live=live)
    kept = jnp.sin(y) if keep is None else jnp.where(keep[..., None], jnp.sin(y), 0)
    return jnp.sum(kept), (y, routing.experts)

  return jax.value_and_grad(loss, (0, 1), has_aux=True)(x, params)


@pytest.mark.parametrize('form', GROUPED_AND_GATHERED)
@pytest.mark.parametrize('kind', ['balanced', 'few', 'one'])
@pytest.mark.parametrize('tokens', [1, 37])
def test_forms_equal_dense_forward_and_backward(params, form, kind, tokens):
  x = skewed(normal(1, tokens, D), kind)
  (value, _), grads = value_and_grad(x, params, form=form)
  (expected, _), expected_grads = value_and_grad(x, params, form='dense')
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), grads, expected_grads)


@pytest.mark.parametrize('form', ['dense', *GROUPED_AND_GATHERED])
def test_padding_takes_no_expert(params, form):
  """Its share of the result is zero, that of the other tokens as without it, and so are the gradients."""
  x = normal(1, 1, 10, D)
  live = np.arange(10)[None] % 3 != 0
  experts_only = {name: w for name, w in params.items() if not name.startswith('shared')}
  (_, (y, chosen)), grads = value_and_grad(x, experts_only, live, live, form=form)
  (_, (expected, chosen_of_all)), expected_grads = value_and_grad(x, experts_only, None, live, form=form)
  np.testing.assert_array_equal(y[~live], 0)
  np.testing.assert_allclose(y[live], expected[live], atol=1e-6)
  np.testing.assert_array_equal(chosen, chosen_of_all)  # what the losses see
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
  rows, expert = normal(1, 9, D), np.array([0, 0, 2, 3, 3, E, E, E, E], np.int32)

  def loss(form, rows, p):
    y = run_experts(rows, expert, Experts.of_layer(p), form)
    return jnp.sum(jnp.where((expert < E)[:, None], jnp.sin(y), 0))

  run = lambda form: jax.jit(jax.value_and_grad(functools.partial(loss, form), (0, 1)))(rows, params['experts'])
  expected = run('ragged')
  monkeypatch.setitem(GROUPED, 'careless', functools.partial(matmuls, careless))
  got = run('careless')
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected)


@pytest.fixture(scope='module')
def stack():
  """Experts of several layers."""
  layers = [params_of(moe_spec(D, F, E)['experts'], seed) for seed in range(LAYERS)]
  return jax.tree.map(lambda *w: np.stack(w), *layers)


@functools.partial(jax.jit, static_argnames='form')
def run_form(x, router, experts, form):
  return FORMS[form](x, route(x, router, A, True), experts)


@pytest.mark.parametrize('form', sorted(FORMS))
def test_experts_in_stack_are_those_of_the_layer(stack, form):
  x, router = normal(4, 5, D), normal(3, D, E)
  for layer in range(LAYERS):
    alone = run_form(x, router, Experts.of_layer(jax.tree.map(lambda w, i=layer: w[i], stack)), form)
    np.testing.assert_allclose(run_form(x, router, Experts.in_stack(stack, np.int32(layer)), form), alone, atol=1e-6)


@pytest.mark.parametrize('form', sorted(FORMS))
def test_every_form_takes_int8(stack, form):
  """The same result as from the widened weights, to float32 rounding."""
  int8 = {name: Int8(*quantize(w, (2,))) for name, w in stack.items()}
  wide = {name: dequantize(w.values, w.scale, np.float32) for name, w in int8.items()}
  got, expected = (run_form(normal(4, 5, D), normal(3, D, E), Experts.in_stack(w, np.int32(1)), form) for w in (int8, wide))
  np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


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
