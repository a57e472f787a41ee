"""Attention by kernels of libraries, for nn/attention.py: same arguments, same results as its plain forms."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from ..shapes import Array, Bool, Float, Int
from ..sharding import platform

LANES = 128  # of a TPU's vector unit: what the kernel's blocks are multiples of
LARGEST_BLOCK = 512


def splash_kernel(heads: int, queries: int, keys: int, causal: bool, shards: int = 1):
  """The kernel for lengths as splash_attention pads them: an array of blocks to visit, and code.

  shards: devices over which the queries are cut; with `causal` each needs its part of the kernel (see splash_specs).
  """
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  if not causal:  # the same wherever the queries come from
    queries, shards = queries // shards, 1
  T, S = -(-queries // (LANES * shards)) * LANES * shards, -(-keys // LANES) * LANES
  block_q, block_k = math.gcd(T // shards, LARGEST_BLOCK), math.gcd(S, LARGEST_BLOCK)
  sizes = splash.BlockSizes(
    block_q=block_q, block_kv=block_k, block_kv_compute=block_k, block_q_dkv=block_q, block_kv_dkv=block_k,
    block_kv_dkv_compute=block_k, block_q_dq=block_q, block_kv_dq=block_k,
  )  # fmt: skip
  mask = masks.CausalMask((T, S)) if causal else masks.FullMask((T, S))
  return splash.make_splash_mha(
    masks.MultiHeadMask([mask] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=shards, interpret=platform() == 'cpu'
  )


def splash_specs(kernel, mesh, length: str | None, causal: bool):
  """How the kernel itself is cut where queries are cut over the mesh axis `length`."""
  return kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, length if causal else None)))


def splash_attention(
  kernel,
  q: Float[Array, 'B T N H'],
  k: Float[Array, 'B S K H'],
  v: Float[Array, 'B S K H'],
  q_segment: Int[Array, 'B T'],
  k_segment: Int[Array, 'B S'],
) -> Float[Array, 'B T N H']:
  """q is scaled already. Lengths are padded to whole blocks with segment 0."""
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

  T = q.shape[1]
  pad = lambda x: jnp.pad(x, [(0, 0), (0, -x.shape[1] % LANES)] + [(0, 0)] * (x.ndim - 2))
  q, k, v, q_segment, k_segment = map(pad, (q, k, v, q_segment, k_segment))
  heads_first = lambda x: jnp.einsum('BTNH->BNTH', x)
  run = jax.vmap(lambda q, k, v, who, whom: kernel(q, k, v, segment_ids=splash.SegmentIds(who, whom)))
  out = run(*map(heads_first, (q, k, v)), q_segment, k_segment)
  # To the kernel, padding is a segment like any other.
  return jnp.where(q_segment[..., None, None] != 0, heads_first(out), 0)[:, :T]


def cudnn_attention(
  q: Float[Array, 'B T N H'], k: Float[Array, 'B S K H'], v: Float[Array, 'B S K H'], mask: Bool[Array, 'B T S']
) -> Float[Array, 'B T N H']:
  """q is scaled already. On CPU, XLA's own form of the same function."""
  library = 'cudnn' if platform() == 'gpu' else 'xla'
  out = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], scale=1.0, implementation=library)
  return jnp.where(mask.any(axis=2)[..., None, None], out, 0)
