"""The blockwise form is the dense one; masks are segment, causal and window; padding sees nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_omni_jax.nn import attention as A
from qwen3_omni_jax.nn import blockwise
from tests.arrays import normal

pytestmark = pytest.mark.quick_to_compile

B, T, S, N, K, H = 2, 50, 70, 4, 2, 8


@pytest.fixture
def qkv():
  return [normal(seed, *shape) for seed, shape in enumerate(((B, T, N, H), (B, S, K, H), (B, S, K, H)))]


Q_SEGMENT = np.where(np.arange(T) < 45, np.where(np.arange(T) < 20, 1, 2), 0).astype(np.int32)[None].repeat(B, 0)
K_SEGMENT = np.where(np.arange(S) < 60, np.where(np.arange(S) < 25, 1, 2), 0).astype(np.int32)[None].repeat(B, 0)


def attend(backend, causal=True, window=None):
  options = dict(q_segment=Q_SEGMENT, k_segment=K_SEGMENT, causal=causal, window=window, backend=backend)
  return lambda q, k, v: A.attention(q, k, v, **options)


def by_hand(q, k, v, *, causal, window):
  """One query at a time, in float64."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  out = np.zeros_like(q)
  for b in range(B):
    for t in range(T):
      seen = np.array(
        [
          Q_SEGMENT[b, t] == K_SEGMENT[b, s] != 0 and not (causal and s > t) and not (window and t - s >= window)
          for s in range(S)
        ]
      )
      for n in range(N) if seen.any() else ():
        scores = k[b, seen, n // (N // K)] @ q[b, t, n] / H**0.5
        weights = np.exp(scores - scores.max())
        out[b, t, n] = (weights / weights.sum()) @ v[b, seen, n // (N // K)]
  return out


@pytest.mark.parametrize('backend', ['dense', 'blockwise', 'cudnn'])
@pytest.mark.parametrize(('causal', 'window'), [(False, None), (True, None), (True, 7)])
def test_attention_is_softmax_over_what_each_query_may_see(qkv, backend, causal, window, monkeypatch):
  monkeypatch.setattr(blockwise, 'BLOCK', 16)
  out = jax.jit(attend(backend, causal, window))(*qkv)
  np.testing.assert_allclose(out, by_hand(*qkv, causal=causal, window=window), atol=2e-6)  # float32 sums of 60 terms
  assert not np.any(out[:, 45:])  # padding


@pytest.mark.parametrize('other', ['blockwise', 'cudnn'])
def test_gradients_equal_those_of_dense(qkv, other, monkeypatch):
  monkeypatch.setattr(blockwise, 'BLOCK', 16)

  gradients = lambda backend: jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(attend(backend)(*x)))))(qkv)
  for dense, got in zip(gradients('dense'), gradients(other), strict=True):
    np.testing.assert_allclose(got, dense, atol=1e-5)


def test_blockwise_builds_no_square_matrix():
  """Forward and backward, which needs no more than forward but for the gradients: 14 MB here, 29 if it kept what every block of
  queries had after every block of keys."""

  def temporary(run, n):
    x = jax.ShapeDtypeStruct((1, n, 2, 8), jnp.float32)
    segment = jax.ShapeDtypeStruct((1, n), jnp.int32)
    return jax.jit(run).lower(x, x, x, segment).compile().memory_analysis().temp_size_in_bytes

  attend = lambda q, k, v, s: A.attention(q, k, v, q_segment=s, k_segment=s, causal=True, backend='blockwise').sum()
  assert temporary(attend, 4096) < 4096 * 4096  # the scores alone would take 4 * 2 * n * n
  assert temporary(jax.grad(attend, (0, 1, 2)), 8192) < 20e6


def test_gradients_through_layers_keep_no_masks():
  """Temporaries of a gradient through a scan over layers grow with the length: masks do not depend on what is differentiated, so
  jax would compute those of all tiles ahead, stack them for every pair of tiles and hand them to backward."""

  def temporary(n):
    x, segment = jax.ShapeDtypeStruct((1, n, 2, 8), jnp.float32), jax.ShapeDtypeStruct((1, n), jnp.int32)

    def loss(x, segment):
      attend = lambda x: A.attention(x, x, x, q_segment=segment, k_segment=segment, causal=True, backend='blockwise')
      return jax.lax.scan(jax.checkpoint(lambda x, _: (attend(x), None)), x, None, 2)[0].sum()

    return jax.jit(jax.grad(loss)).lower(x, segment).compile().memory_analysis().temp_size_in_bytes

  assert temporary(4096) < 2.5 * temporary(2048)
