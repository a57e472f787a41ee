"""Attention by kernels of libraries, for nn/attention.py: same arguments, same results as its plain forms."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from ..shapes import Array, Bool, Float, Int
from ..sharding import platform
from .remat import ATTENTION

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
    block_q=block_q,
    block_kv=block_k,
    block_kv_compute=block_k,
    block_q_dkv=block_q,
    block_kv_dkv=block_k,
    block_kv_dkv_compute=block_k,
    block_q_dq=block_q,
    block_kv_dq=block_k,
  )
  mask = masks.CausalMask((T, S)) if causal else masks.FullMask((T, S))
  return splash.make_splash_mha(
    masks.MultiHeadMask([mask] * heads),
    block_sizes=sizes,
    head_shards=1,
    q_seq_shards=shards,
    residual_checkpoint_name=ATTENTION,
    interpret=platform() == 'cpu',
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
  run = jax.vmap(lambda q, k, v, q_ids, k_ids: kernel(q, k, v, segment_ids=splash.SegmentIds(q_ids, k_ids)))
  out = run(heads_first(q), heads_first(k), heads_first(v), q_segment, k_segment)
  # To the kernel, padding is a segment like any other.
  return jnp.where(q_segment[..., None, None] != 0, heads_first(out), 0)[:, :T]


def cudnn_attention(
  q: Float[Array, 'B T N H'], k: Float[Array, 'B S K H'], v: Float[Array, 'B S K H'], mask: Bool[Array, 'B T S']
) -> Float[Array, 'B T N H']:
  """On CPU, XLA's own form of the same function."""
  out = _cudnn()(q, k, v, mask=mask[:, None])
  return jnp.where(mask.any(axis=2)[..., None, None], out, 0)


SEGMENTS = 64  # of a row, that cuDNN keeps apart by where they start


def cudnn_causal(q, k, v, segment: Int[Array, 'B T'], otherwise: Callable) -> Float[Array, 'B T N H']:
  """The same where nothing but segments and causality, by place, is masked: without a mask to read it takes a third of the time.

  otherwise(q, k, v): for rows of more than SEGMENTS segments, or whose numbers do not ascend, and for GPUs before Hopper.
  """
  ways = [functools.partial(_cudnn(), is_causal=True), otherwise, otherwise]
  if platform() == 'gpu' and int(getattr(jax.local_devices()[0], 'compute_capability', '0').split('.')[0]) >= 9:
    ways[1] = functools.partial(_packed, segment=segment)
  count = _segment_starts(segment).sum(axis=1).max()
  ascends = ((segment == 0) | (segment >= jax.lax.cummax(segment, axis=1))).all()
  padding_last = ((segment == 0) | (jnp.cumsum(segment == 0, axis=1) == 0)).all()
  way = jnp.where((count <= 1) & padding_last, 0, jnp.where((count <= SEGMENTS) & ascends, 1, 2))
  return jnp.where((segment != 0)[..., None, None], jax.lax.switch(way, ways, q, k, v), 0)


def _cudnn():
  library = 'cudnn' if platform() == 'gpu' else 'xla'
  return functools.partial(jax.nn.dot_product_attention, implementation=library)  # scales the scores by H ** -0.5


def _segment_starts(segment: Int[Array, 'B T']) -> Bool[Array, 'B T']:
  before = jnp.pad(segment, ((0, 0), (1, 0)))[:, :-1]
  return (segment != 0) & (segment != before)


def _packed(q, k, v, *, segment: Int[Array, 'B T']):
  """Causal attention within each of a row's segments, at most SEGMENTS, by where they start and how long they are."""
  from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention

  q, k, v = (jnp.where((segment != 0)[..., None, None], x, 0) for x in (q, k, v))  # gradients of padding are not written
  starts = _segment_starts(segment)
  number = jnp.where(segment != 0, jnp.cumsum(starts, axis=1) - 1, -1)
  mine = number[:, :, None] == jnp.arange(SEGMENTS)  # 'B T M'
  length = mine.sum(axis=1, dtype=jnp.int32)
  first = jnp.argmax(mine, axis=1).astype(jnp.int32)
  length, first = (jnp.where(length > 0, x, -1) for x in (length, first))
  offset = jnp.pad(first, ((0, 0), (0, 1)), constant_values=-1)
  return dot_product_attention(
    q,
    k,
    v,
    q_seqlen=length,
    kv_seqlen=length,
    q_offsets=offset,
    kv_offsets=offset,
    scale=q.shape[-1] ** -0.5,
    mask_type=MaskType.PADDING_CAUSAL,
  )
