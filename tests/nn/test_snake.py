"""SnakeBeta: values and gradients written out against those of autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_omni_jax.nn.snake import snake_beta


def arrays(dtype=np.float32, B=2, T=37, C=3):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(B, T, C)) * 3
  return tuple(jnp.asarray(value, dtype) for value in (x, rng.normal(size=C), rng.normal(size=C), rng.normal(size=(B, T, C))))


def written(x, alpha, beta):
  """The formula as it is published."""
  return x + jnp.sin(x * jnp.exp(alpha)) ** 2 / (jnp.exp(beta) + 1e-9)


def pulled(function, *inputs):
  *inputs, g = inputs
  value, pull = jax.vjp(function, *inputs)
  return value, *pull(g)


@pytest.mark.parametrize('what', ['value', 'x', 'alpha', 'beta'])
def test_snake_and_its_gradients_are_those_of_the_formula(what):
  i = ['value', 'x', 'alpha', 'beta'].index(what)
  got, want = pulled(snake_beta, *arrays())[i], pulled(written, *arrays())[i]
  np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-6 * np.abs(want).max())


def test_gradients_of_snake_keep_the_types_of_what_they_belong_to():
  x, alpha, beta, g = arrays()
  half = x.astype(jnp.bfloat16)
  value, *found = pulled(snake_beta, half, alpha, beta, g.astype(jnp.bfloat16))
  assert [value.dtype, *(y.dtype for y in found)] == [jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32]
  np.testing.assert_allclose(found[1], pulled(written, half.astype(jnp.float32), alpha, beta, g)[2], rtol=0.02, atol=0.05)
