"""The Triton kernels: interpreted they equal the plain forms, they lower for a GPU without one, and on one they run."""

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

NAMES = ('__gpu$xla.gpu.triton', 'triton_kernel_call')  # of the calls that a lowered kernel becomes


def random(seed, *shape, dtype=jnp.float32):
  return jax.random.normal(jax.random.key(seed), shape, dtype)


def cached(T, slots, group, heads, filled, new, width=16, layers=2):
  B, N = len(filled), heads * group
  cache = KVCache(random(1, layers, B, heads, slots, width), random(2, layers, B, heads, slots, width))
  return random(0, B, T, N, width), cache, jnp.array(filled, jnp.int32), jnp.array(new, jnp.int32)


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
  got = jax.jit(cached_attention.cached_attention)(q, cache, jnp.int32(1), filled, new)
  count, B = jnp.arange(slots), len(filled)
  expected = attention(
    q,
    cache.k[1].swapaxes(1, 2),
    cache.v[1].swapaxes(1, 2),
    causal=True,
    q_index=filled[:, None] + jnp.arange(T),
    q_segment=(jnp.arange(T)[None] < new[:, None]).astype(jnp.int32),
    k_index=jnp.broadcast_to(count, (B, slots)),
    k_segment=(count[None] < (filled + new)[:, None]).astype(jnp.int32),
  )
  np.testing.assert_allclose(got, expected, atol=2e-6)


@pytest.mark.parametrize('shape', [{'data': 4, 'tensor': 2}, {'expert': 2, 'tensor': 4}], ids=str)
def test_attention_to_a_cache_on_a_mesh_equals_that_of_one_device(shape):
  q, cache, filled, new = cached(1, 130, 4, 2, (5, 120, 17, 64), (1, 1, 0, 1))
  run = lambda: jax.jit(cached_attention.cached_attention)(q, cache, jnp.int32(1), filled, new)
  expected = run()
  with jax.set_mesh(make_mesh(shape)):
    np.testing.assert_allclose(run(), expected, atol=1e-6)


def test_rows_of_the_cache_in_another_order():
  """Two pieces of one sequence beside each other, and a row that is nowhere."""
  q, cache, _, _ = cached(3, 130, 4, 2, (0, 0, 0), (0, 0, 0))
  rows, filled, new = jnp.array([2, 2, 3]), jnp.array([10, 13, 0], jnp.int32), jnp.array([3, 3, 0], jnp.int32)
  got = cached_attention.cached_attention(q, cache, jnp.int32(1), filled, new, rows)
  picked = jax.tree.map(lambda c: c[:, jnp.array([2, 2, 0])], cache)
  np.testing.assert_array_equal(got, cached_attention.cached_attention(q, picked, jnp.int32(1), filled, new))
  np.testing.assert_array_equal(got[2], 0)


def test_what_lies_past_a_row_is_not_read():
  q, cache, filled, new = cached(1, 130, 4, 2, (5, 64), (1, 1))
  past = jnp.arange(130) > filled[:, None]
  spoilt = jax.tree.map(lambda c: jnp.where(past[None, :, None, :, None], jnp.nan, c), cache)
  run = lambda cache: cached_attention.cached_attention(q, cache, jnp.int32(0), filled, new)
  np.testing.assert_array_equal(run(spoilt), run(cache))


@pytest.mark.parametrize('M', [7, 3000])
def test_sorting_for_gpu_is_the_stable_sort(monkeypatch, M):
  key = jax.random.randint(jax.random.key(0), (M,), 0, 20)
  expected = sorting(key)
  monkeypatch.setattr(permute, 'platform', lambda: 'gpu')
  for got, want in zip(sorting(key), expected, strict=True):
    np.testing.assert_array_equal(got, want)


def one_segment(T, length):
  return (jnp.arange(T) < length).astype(jnp.int32)[None].repeat(2, 0)


CUTS = jnp.searchsorted(jnp.array([50, 60, 190, 200]), jnp.arange(256), side='right') + 1
PACKED = jnp.where(jnp.arange(256) < 240, CUTS, 0)[None].repeat(2, 0)
SCATTERED = jnp.where(jnp.arange(256) % 2 == 0, 1, 2)[None].repeat(2, 0)


@pytest.mark.parametrize(
  'segment', [one_segment(256, 256), one_segment(256, 200), PACKED, SCATTERED], ids=['whole', 'padded', 'packed', 'scattered']
)
def test_cudnn_without_a_mask_equals_dense(segment):
  """Each of its ways, forward and backward. Off a GPU, XLA's own attention and blocks stand in for cuDNN."""
  on_gpu = jax.default_backend() == 'gpu'
  dtype = jnp.bfloat16 if on_gpu else jnp.float32
  q, k, v, dy = (random(i, 2, 256, heads, 64, dtype=dtype) for i, heads in enumerate((4, 2, 2, 4)))

  def run(backend):
    attend = lambda *x: attention(*x, q_segment=segment, k_segment=segment, causal=True, backend=backend)
    y, pull = jax.vjp(attend, q, k, v)
    return y, *pull(dy)

  for got, want in zip(run('cudnn'), run('dense'), strict=True):
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
