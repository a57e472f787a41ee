"""What is chosen on TPU compiles for TPU, ahead of time, forward and backward, on meshes. Nothing here is executed."""

import contextlib
import functools
import os

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from qwen3_omni_jax.nn.attention import attention
from qwen3_omni_jax.nn.expert_parallel import Dispatch
from qwen3_omni_jax.nn.expert_weights import Experts
from qwen3_omni_jax.nn.kernels import attention_kernel, experts_kernel
from qwen3_omni_jax.nn.moe import moe, moe_spec
from qwen3_omni_jax.nn.params import abstract_params
from qwen3_omni_jax.sharding import make_mesh, param_shardings

pytest.importorskip('libtpu', reason='the compiler for TPU')

TOPOLOGIES = {'v5e': 'v5e:2x2', 'v6e': 'v6e:2x2', 'v5p': 'v5p:2x2x1'}
BF16 = jnp.bfloat16
# Query heads, key-value heads, width of a head, causal.
HEADS = {'Thinker': (32, 4, 128, True), 'Talker': (16, 2, 128, True), 'AuT': (20, 20, 64, False)}


@functools.cache
def devices(chip: str):
  """Of a TPU that is not there."""
  from jax.experimental import topologies

  quiet = dict(TPU_SKIP_MDS_QUERY='1', TPU_ACCELERATOR_TYPE='v5litepod-16', TPU_WORKER_HOSTNAMES='localhost', TPU_WORKER_ID='0')
  os.environ.update(quiet, ALLOW_MULTIPLE_LIBTPU_LOAD='1')
  return list(topologies.get_topology_desc(platform='tpu', topology_name=TOPOLOGIES[chip]).devices)


@pytest.fixture(autouse=True, scope='module')
def _programs_are_not_kept():
  """Where there is no TPU they cannot be read from the persistent cache."""
  least = jax.config.jax_persistent_cache_min_compile_time_secs
  jax.config.update('jax_persistent_cache_min_compile_time_secs', float('inf'))
  yield
  jax.config.update('jax_persistent_cache_min_compile_time_secs', least)


@contextlib.contextmanager
def on_tpu(chip: str, shape):
  """tokamax looks at the default device; kernels are written for jax's usual promotion of dtypes."""
  mesh = make_mesh(shape, devices(chip))
  with jax.set_mesh(mesh), jax.default_device(devices(chip)[0]):
    with jax.numpy_dtype_promotion('standard'):
      yield mesh


def kernel_calls(compiled) -> int:
  """Kernels in a program; -1 where this compiler cannot print it (modules with ragged all-to-all)."""
  try:
    return compiled.as_text().count('tpu_custom_call')
  except Exception:
    return -1


@pytest.mark.parametrize(
  ('chip', 'shape', 'part'),
  [
    ('v5e', {'context': 2, 'fsdp': 2}, 'Thinker'),
    ('v5e', {'data': 2, 'tensor': 2}, 'Talker'),
    ('v5e', {'context': 2, 'fsdp': 2}, 'AuT'),
    ('v6e', {'context': 2, 'fsdp': 2}, 'Thinker'),
    ('v5p', {'data': 2, 'tensor': 2}, 'Thinker'),
  ],
)
def test_splash_compiles(chip, shape, part):
  N, K, H, causal = HEADS[part]
  B, T = 4, 1024

  def loss(qkv, segment):
    return attention(*qkv, q_segment=segment, k_segment=segment, causal=causal).astype(jnp.float32).sum()

  with on_tpu(chip, shape) as mesh:
    rows = NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))
    qkv = [jax.ShapeDtypeStruct((B, T, heads, H), BF16, sharding=rows) for heads in (N, K, K)]
    segment = jax.ShapeDtypeStruct((B, T), jnp.int32, sharding=rows)
    assert attention_kernel(*qkv[:2], plain_mask=True) == 'splash'
    compiled = jax.jit(jax.value_and_grad(loss)).lower(qkv, segment).compile()
    assert kernel_calls(compiled) == 3  # forward, and two backward


@pytest.mark.parametrize(
  ('chip', 'form'),
  [
    ('v5e', 'megablox'),
    pytest.param('v6e', 'megablox', marks=pytest.mark.slow),
    pytest.param('v5p', 'megablox', marks=pytest.mark.slow),
    pytest.param('v5e', 'tokamax', marks=pytest.mark.slow),
    pytest.param('v6e', 'tokamax', marks=pytest.mark.slow),
  ],
)
def test_grouped_matmuls_compile(chip, form):
  """At the Thinker's widths, with ragged all-to-all around them."""
  spec = moe_spec(2048, 768, 8)

  def loss(x, p):
    y, _ = moe(x, p, Experts.of_layer(p['experts']), 4, True, dispatch=Dispatch(form=form))
    return y.astype(jnp.float32).sum()

  with on_tpu(chip, {'expert': 2, 'fsdp': 2}) as mesh:
    assert experts_kernel(2048, 768) == 'megablox'
    x = jax.ShapeDtypeStruct((4, 256, 2048), BF16, sharding=NamedSharding(mesh, PartitionSpec(('fsdp', 'expert'))))
    place = lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding)
    params = jax.tree.map(place, abstract_params(spec, BF16), param_shardings(spec, mesh))
    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(x, params).compile()
    assert kernel_calls(compiled) in (9, -1)  # three matmuls, each with two gradients
