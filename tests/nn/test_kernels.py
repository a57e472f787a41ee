"""Kernels are chosen by platform and shape, may be named instead, and the ones of libraries give what the plain forms give."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_omni_jax.nn import kernels
from qwen3_omni_jax.nn.attention import attention
from qwen3_omni_jax.sharding import make_mesh
from tests.arrays import normal

pytestmark = pytest.mark.quick_to_compile


def shapes(T, N, K, H, dtype=jnp.bfloat16):
  return jax.ShapeDtypeStruct((2, T, N, H), dtype), jax.ShapeDtypeStruct((2, T, K, H), dtype)


@pytest.mark.parametrize(
  ('here', 'heads', 'length', 'plain', 'chosen'),
  [
    ('cpu', (32, 4, 128), 1024, True, 'dense'),
    ('cpu', (32, 4, 128), 4096, True, 'blockwise'),
    ('tpu', (32, 4, 128), 4096, True, 'splash'),
    ('tpu', (20, 20, 64), 1024, True, 'splash'),
    ('tpu', (16, 16, 72), 1024, True, 'dense'),
    ('tpu', (16, 16, 72), 4096, True, 'blockwise'),
    ('tpu', (32, 4, 128), 1024, False, 'dense'),
    ('tpu', (32, 4, 128), 104, True, 'dense'),
    ('gpu', (32, 4, 128), 1024, True, 'cudnn'),
    ('gpu', (16, 16, 72), 1024, True, 'cudnn'),
    ('gpu', (32, 4, 128), 1023, True, 'dense'),
    ('gpu', (32, 4, 128), 8192, True, 'cudnn'),
    ('gpu', (32, 4, 128), 32768, True, 'blockwise'),
  ],
)
def test_attention_by_platform_and_shape(monkeypatch, here, heads, length, plain, chosen):
  monkeypatch.setattr(kernels, 'platform', lambda: here)
  assert kernels.attention_kernel(*shapes(length, *heads), plain_mask=plain) == chosen


def test_experts_by_platform(monkeypatch):
  chosen = {}
  for here in ('cpu', 'tpu', 'gpu'):
    monkeypatch.setattr(kernels, 'platform', lambda here=here: here)
    chosen[here] = kernels.experts_kernel(2048, 768), kernels.experts_kernel(2048, 192)
  assert chosen == {'cpu': ('looped',) * 2, 'tpu': ('megablox', 'ragged'), 'gpu': ('triton',) * 2}
  monkeypatch.setattr(kernels, '_has_tokamax', lambda: False)
  with pytest.raises(ValueError, match='tokamax is not installed; pip install tokamax'):
    kernels.require_tokamax()


def test_a_named_kernel_is_used_where_it_can_do_the_shape(monkeypatch):
  monkeypatch.setenv(kernels.VARIABLE, 'attention=splash,experts=ragged')
  assert kernels.experts_kernel(2048, 768) == 'ragged'
  assert kernels.attention_kernel(*shapes(128, 4, 2, 64), plain_mask=True) == 'splash'
  assert kernels.attention_kernel(*shapes(128, 4, 2, 72), plain_mask=True) == 'dense'
  assert kernels.attention_kernel(*shapes(128, 4, 2, 64), plain_mask=True, requested='blockwise') == 'blockwise'


@pytest.mark.parametrize('text', ['attention=flash', 'experts', 'ffn=dense', 'attention=dense;experts=ragged'])
def test_names_that_are_not_kernels_are_refused(monkeypatch, text):
  monkeypatch.setenv(kernels.VARIABLE, text)
  with pytest.raises(ValueError, match='is not understood; expected attention=dense | blockwise'):
    kernels.experts_kernel(2048, 768)


def test_a_kernel_that_cannot_is_refused():
  with pytest.raises(ValueError, match=r'attention=splash: not for queries \(2, 128, 4, 72\)'):
    kernels.attention_kernel(*shapes(128, 4, 2, 72), plain_mask=True, requested='splash')


B, T, N, K, H = 2, 260, 4, 2, 64
SEGMENT = np.where(np.arange(T) < 200, np.where(np.arange(T) < 77, 1, 2), 0).astype(np.int32)[None].repeat(B, 0)


@functools.partial(jax.jit, static_argnames=('causal', 'backend'))
def attend(qkv, segment, causal, backend):
  loss = lambda x: jnp.sum(jnp.sin(attention(*x, q_segment=segment, k_segment=segment, causal=causal, backend=backend)))
  return jax.value_and_grad(loss)(qkv)


def qkv(T):
  return [normal(i, B, T, heads, H) for i, heads in enumerate((N, K, K))]


def assert_close(got, expected):
  np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
  for a, b in zip(got[1], expected[1], strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max())  # float32 sums of 200 terms


@pytest.mark.parametrize('causal', [True, False])
def test_splash_equals_dense_forward_and_backward(causal):
  """Interpreted: what a TPU would run, on CPU. Lengths that are no whole blocks; packed documents, grouped heads, padding."""
  x = qkv(T)
  assert_close(attend(x, SEGMENT, causal, 'splash'), attend(x, SEGMENT, causal, 'dense'))


@pytest.mark.parametrize('shape', [{'context': 2, 'data': 2, 'tensor': 2}, {'context': 2, 'tensor': 4}], ids=str)
def test_splash_on_a_mesh_equals_dense_on_one_device(shape):
  """Heads and queries shared out: a device's part of the mask is that of its queries."""
  x, segment = qkv(256), SEGMENT[:, :256]
  expected = attend(x, segment, True, 'dense')
  with jax.set_mesh(make_mesh(shape)):
    assert_close(attend(x, segment, True, 'splash'), expected)
