"""The Triton kernels: interpreted they equal the plain forms, they lower for a GPU without one, and on one they run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_omni_jax.nn import attention_kernels, cached_attention, kernels, permute, tiles
from qwen3_omni_jax.nn.attention import attention
from qwen3_omni_jax.nn.cache import KVCache
from qwen3_omni_jax.nn.grouped_matmul import Groups, grouped_gate
from qwen3_omni_jax.nn.grouped_matmul import grouped_matmul as matmul
from qwen3_omni_jax.nn.permute import sorting
from qwen3_omni_jax.sharding import make_mesh
from tests.arrays import normal

pytestmark = pytest.mark.quick_to_compile

NAMES = ('__gpu$xla.gpu.triton', 'triton_kernel_call')  # of the calls that a lowered kernel becomes


def cached(T, slots, group, heads, filled, new, width=16, layers=2):
  B, N = len(filled), heads * group
  cache = KVCache(normal(1, layers, B, heads, slots, width), normal(2, layers, B, heads, slots, width))
  return normal(0, B, T, N, width), cache, np.array(filled, np.int32), np.array(new, np.int32)


@pytest.mark.parametrize('programs', [1, 264], ids=['whole rows', 'keys divided'])
@pytest.mark.parametrize(
  ('T', 'slots', 'group', 'filled', 'new'),
  [
    (1, 300, 4, (5, 299, 17, 0), (1, 1, 0, 1)),  # decode; the third row is idle
    (40, 200, 3, (0, 160), (40, 27)),  # a piece of a prompt: more than one tile of queries
  ],
  ids=['decode', 'piece'],
)
def test_attention_to_a_cache_equals_attention_to_a_copy_of_its_layer(monkeypatch, programs, T, slots, group, filled, new):
  monkeypatch.setattr(cached_attention, 'PROGRAMS', programs)
  q, cache, filled, new = cached(T, slots, group, 2, filled, new)
  got = jax.jit(cached_attention.cached_attention)(q, cache, np.int32(1), filled, new)
  at, count = np.arange(T, dtype=np.int32), np.arange(slots, dtype=np.int32)
  expected = jax.jit(functools.partial(attention, causal=True))(
    q,
    cache.k[1].swapaxes(1, 2),
    cache.v[1].swapaxes(1, 2),
    q_index=filled[:, None] + at,
    q_segment=(at[None] < new[:, None]).astype(np.int32),
    k_index=np.broadcast_to(count, (len(filled), slots)),
    k_segment=(count[None] < (filled + new)[:, None]).astype(np.int32),
  )
  np.testing.assert_allclose(got, expected, atol=2e-6)


@pytest.mark.parametrize('shape', [{'data': 4, 'tensor': 2}, {'expert': 2, 'tensor': 4}], ids=str)
def test_attention_to_a_cache_on_a_mesh_equals_that_of_one_device(shape):
  q, cache, filled, new = cached(1, 130, 4, 2, (5, 120, 17, 64), (1, 1, 0, 1))
  run = lambda: jax.jit(cached_attention.cached_attention)(q, cache, np.int32(1), filled, new)
  expected = run()
  with jax.set_mesh(make_mesh(shape)):
    np.testing.assert_allclose(run(), expected, atol=1e-6)


def test_rows_of_the_cache_in_another_order():
  """Two pieces of one sequence beside each other, and a row that is nowhere."""
  q, cache, _, _ = cached(3, 130, 4, 2, (0, 0, 0), (0, 0, 0))
  rows, filled, new = (np.array(x, np.int32) for x in ([2, 2, 3], [10, 13, 0], [3, 3, 0]))
  run = jax.jit(cached_attention.cached_attention)
  got = run(q, cache, np.int32(1), filled, new, rows)
  picked = jax.tree.map(lambda c: c[:, np.array([2, 2, 0])], cache)
  np.testing.assert_array_equal(got, run(q, picked, np.int32(1), filled, new))
  np.testing.assert_array_equal(got[2], 0)


def test_what_lies_past_a_row_is_not_read():
  q, cache, filled, new = cached(1, 130, 4, 2, (5, 64), (1, 1))
  past = np.arange(130) > filled[:, None]
  spoilt = jax.tree.map(lambda c: np.where(past[None, :, None, :, None], np.float32(np.nan), c), cache)
  run = jax.jit(lambda cache: cached_attention.cached_attention(q, cache, np.int32(0), filled, new))
  np.testing.assert_array_equal(run(spoilt), run(cache))


@pytest.mark.parametrize('M', [7, 3000])
def test_sorting_for_gpu_is_the_stable_sort(monkeypatch, M):
  key = np.random.default_rng(0).integers(0, 20, M).astype(np.int32)
  expected = jax.jit(sorting)(key)
  monkeypatch.setattr(permute, 'platform', lambda: 'gpu')
  for got, want in zip(jax.jit(lambda key: sorting(key))(key), expected, strict=True):
    np.testing.assert_array_equal(got, want)


def one_segment(T, length):
  return (np.arange(T) < length).astype(np.int32)[None].repeat(2, 0)


CUTS = np.searchsorted([50, 60, 190, 200], np.arange(256), side='right') + 1
PACKED = np.where(np.arange(256) < 240, CUTS, 0).astype(np.int32)[None].repeat(2, 0)
SCATTERED = np.where(np.arange(256) % 2 == 0, 1, 2).astype(np.int32)[None].repeat(2, 0)


@functools.partial(jax.jit, static_argnames='backend')
def attend(q, k, v, dy, segment, backend):
  """(output, gradients)"""
  causal = lambda *x: attention(*x, q_segment=segment, k_segment=segment, causal=True, backend=backend)
  y, pull = jax.vjp(causal, q, k, v)
  return y, *pull(dy)


@pytest.mark.parametrize(
  'segment', [one_segment(256, 256), one_segment(256, 200), PACKED, SCATTERED], ids=['whole', 'padded', 'packed', 'scattered']
)
def test_cudnn_without_a_mask_equals_dense(segment):
  """Each of its ways, forward and backward. Off a GPU, XLA's own attention and blocks stand in for cuDNN."""
  on_gpu = jax.default_backend() == 'gpu'
  dtype = jnp.bfloat16 if on_gpu else jnp.float32
  q, k, v, dy = (jnp.asarray(normal(i, 2, 256, heads, 64), dtype) for i, heads in enumerate((4, 2, 2, 4)))
  for got, want in zip(attend(q, k, v, dy, segment, 'cudnn'), attend(q, k, v, dy, segment, 'dense'), strict=True):
    got, want = (np.asarray(x, np.float32) for x in (got, want))
    assert np.linalg.norm(got - want) <= (2e-2 if on_gpu else 1e-5) * np.linalg.norm(want)


def exported(function, *shapes):
  """The StableHLO of a GPU's program."""
  checks = [jax.export.DisabledSafetyCheck.custom_call(name) for name in NAMES]
  return str(jax.export.export(jax.jit(function), platforms=['cuda'], disabled_checks=checks)(*shapes).mlir_module())


def test_kernels_lower_for_a_gpu(monkeypatch):
  """At released widths, out of stacks of more than 2^32 bytes."""
  for module in (tiles, kernels, attention_kernels):
    monkeypatch.setattr(module, 'platform', lambda: 'gpu')
  shape = lambda *s, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(s, dtype)
  D, F, E, L, M = 2048, 768, 128, 48, 64
  stack, back, ends = shape(L, E, D, F), shape(L, E, F, D), shape(E, dtype=jnp.int32)

  def layer(x, gate, up, down, ends, layer):
    groups = Groups(ends, layer, M)
    return matmul(grouped_gate(x, gate, up, groups), down, groups)

  text = exported(layer, shape(M, D), stack, stack, back, ends, shape(dtype=jnp.int32))
  assert sum(text.count(name) for name in NAMES) == 2
  loss = lambda *w: layer(*w, None).astype(jnp.float32).sum()
  masters = [shape(E, D, F, dtype=jnp.float32)] * 2 + [shape(E, F, D, dtype=jnp.float32)]
  text = exported(jax.grad(loss, (0, 1, 2, 3)), shape(512, D), *masters, ends)
  assert sum(text.count(name) for name in NAMES) == 8  # gate and up once more each, dx of three, dW of three
  cache = KVCache(shape(L, 64, 4, 2048, 128), shape(L, 64, 4, 2048, 128))
  rows = shape(64, dtype=jnp.int32)
  text = exported(cached_attention.cached_attention, shape(64, 1, 32, 128), cache, shape(dtype=jnp.int32), rows, rows)
  assert sum(text.count(name) for name in NAMES) == 1
