"""In bfloat16, what lies between two matmuls is the float32 result rounded once: no operation in between rounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_omni_jax.nn import layers
from qwen3_omni_jax.nn.attention import attention
from qwen3_omni_jax.nn.moe import route
from qwen3_omni_jax.nn.permute import weighted_sum
from qwen3_omni_jax.nn.rope import angles, rotate
from tests.arrays import normal

B, T, N, H, D, F, A = 2, 9, 4, 12, 48, 20, 3
narrow = lambda *shape, seed=0: jnp.asarray(normal(seed, *shape), jnp.bfloat16)
wide = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
turn = angles(np.arange(B * T, dtype=np.int32).reshape(B, T) * 37, H, 1e4)

CASES = {
  'rms_norm': (lambda x, w: layers.rms_norm(x, w, 1e-6), narrow(B, T, D), narrow(D, seed=1)),
  'layer_norm': (lambda x, p: layers.layer_norm(x, p, 1e-6), narrow(B, T, D), {'scale': narrow(D), 'bias': narrow(D, seed=1)}),
  'gelu': (layers.gelu, narrow(B, T, D)),
  'gelu_tanh': (layers.gelu_tanh, narrow(B, T, D)),
  'silu': (layers.silu, narrow(B, T, D)),
  'silu_gate': (layers.silu_gate, narrow(B, T, F), narrow(B, T, F, seed=1)),
  'add': (layers.add, narrow(B, T, D), narrow(B, T, D, seed=1), narrow(D, seed=2)),
  'rotate': (lambda x: rotate(x, turn), narrow(B, T, N, H)),
}


@pytest.mark.parametrize('name', CASES)
def test_bfloat16_is_float32_rounded_once(name):
  function, *args = CASES[name]
  exact = jax.jit(function)(*wide(args))
  np.testing.assert_array_equal(jax.jit(function)(*args), exact.astype(jnp.bfloat16))


def test_a_bias_is_added_before_the_product_is_rounded():
  """Also where x has several leading axes. All numbers are small multiples of 1/8: float32 sums of them are exact."""
  some = lambda seed, *shape: jnp.asarray(np.random.default_rng(seed).integers(-30, 30, shape) / 8, jnp.bfloat16)
  x, p = some(0, B, T, D), {'kernel': some(1, D, F), 'bias': some(2, F)}
  exact = jax.jit(layers.linear)(*wide((x, p)))
  np.testing.assert_array_equal(jax.jit(layers.linear)(x, p), exact.astype(jnp.bfloat16))


def test_the_sum_over_experts_is_rounded_once():
  y, weights = narrow(T * A, D), normal(1, T, A)
  np.testing.assert_array_equal(weighted_sum(y, weights), weighted_sum(wide(y), weights).astype(jnp.bfloat16))


def test_weights_of_experts_are_not_rounded():
  routing = route(narrow(T, D), narrow(D, 8, seed=1), A, normalise=True)
  np.testing.assert_allclose(np.asarray(routing.weights, np.float64).sum(axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize('backend', ['dense', 'blockwise', 'cudnn'])
def test_attention_scales_scores_not_queries(backend):
  """A query times H ** -0.5 would be rounded once more. Weights are rounded too, so the error is above that of the result's
  own rounding: 1.3 times here, with rounded queries 1.6."""
  S, size = 64, 24
  q, k, v = (narrow(B, S, N, size, seed=seed) for seed in range(3))
  segment = jnp.ones((B, S), jnp.int32)
  run = jax.jit(lambda q, k, v: attention(q, k, v, q_segment=segment, k_segment=segment, backend=backend))
  with jax.numpy_dtype_promotion('standard'):  # inside jax's own form, which stands for cuDNN here
    exact, rounded = run(*wide((q, k, v))), run(q, k, v)
  error = lambda x: np.sqrt(np.square(np.asarray(x, np.float64) - exact).mean())
  assert error(rounded) < 1.45 * error(exact.astype(jnp.bfloat16))
