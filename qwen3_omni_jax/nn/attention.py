"""Softmax attention: one function for every network; the mask is an argument.

The mask follows from two integers per token: its *segment* (document, audio window, video frame; 0 = padding, which neither
attends nor is attended to) and its *index* (its place in time, for causal and windowed attention).
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ..shapes import Array, Bool, Float, Int
from ..sharding import batch_axes, current_mesh, item_axes, length_axis
from .attention_kernels import cudnn_attention, cudnn_causal, splash_attention, splash_kernel, splash_specs
from .blockwise import blockwise, tie_to
from .kernels import CUDNN_SCORES, attention_kernel

QUERY_BLOCK = 128  # queries the dense form takes at once, so that their scores stay in cache (two to three times faster on CPU)


def attention(
  q: Float[Array, 'B T N H'],
  k: Float[Array, 'B S K H'],
  v: Float[Array, 'B S K H'],
  *,
  q_segment: Int[Array, 'B T'],
  k_segment: Int[Array, 'B S'],
  q_index: Int[Array, 'B T'] | None = None,
  k_index: Int[Array, 'B S'] | None = None,
  causal: bool = False,
  window: int | None = None,
  backend: str | None = None,
) -> Float[Array, 'B T N H']:
  """softmax(q k^T / sqrt(H)) v over the tokens that each query attends to; N/K query heads share a key-value head.

  A query attends to keys of its own non-zero segment; with `causal` only those with k_index <= q_index; with `window` only those
  with q_index - k_index < window. Indices default to 0, 1, 2, …  Scores and softmax are float32. A query with all
  keys masked (padding) gives zeros. backend: of kernels.ATTENTION; None: the best for platform and shape.
  """
  B, T, S = *q.shape[:2], k.shape[1]
  aligned = causal and q_index is None and k_index is None  # query t attends to no key beyond t
  if q_index is None:
    q_index = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
  if k_index is None:
    k_index = jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (B, S))
  mesh = current_mesh()
  rows, length = ((), None) if mesh is None else _mesh_axes(B, T, mesh, causal)
  cuts = 1 if mesh is None or length is None else mesh.shape[length]
  plain = window is None and (aligned or not causal)
  backend = attention_kernel(q, k, plain_mask=plain, causal=causal, cuts=cuts, requested=backend)
  attend = functools.partial(_attend, causal=causal, window=window, backend=backend)
  kernel_of = lambda heads: splash_kernel(heads, T, S, causal, cuts) if backend == 'splash' else None
  if mesh is None:
    return attend(q, k, v, (q_segment, q_index), (k_segment, k_index), kernel_of(q.shape[2]), aligned)
  return _on_mesh(attend, kernel_of, mesh, rows, length, q, k, v, (q_segment, q_index), (k_segment, k_index), aligned)


def _attend(q, k, v, query, key, kernel, aligned: bool, *, causal: bool, window: int | None, backend: str):
  """On one device. kernel: splash's own. aligned: see _dense."""
  B, T, N, H = q.shape
  K = k.shape[2]
  mask_fn = functools.partial(_mask, causal=causal, window=window)
  if backend == 'splash':  # the one that scales nothing itself; the others scale the float32 scores
    q = (q.astype(jnp.float32) * H**-0.5).astype(q.dtype)
    return splash_attention(kernel, q, k, v, query[0], key[0])
  segment = query[0]
  if backend != 'dense':  # masks are then built where they are used, in the backward pass and in a branch not taken too
    q, query, key = tie_to(q, query, key)
  groups = lambda q: q.reshape(B, T, K, N // K, H)
  masked = lambda q, k, v: cudnn_attention(q, k, v, mask_fn(query, key))
  in_blocks = lambda q, k, v: jnp.reshape(blockwise(mask_fn, groups(q), k, v, query, key), (B, T, N, H))
  if backend == 'cudnn' and aligned and window is None and T == k.shape[1]:
    return cudnn_causal(q, k, v, segment, masked if T * T <= CUDNN_SCORES else in_blocks)
  if backend == 'cudnn':
    return masked(q, k, v)
  if backend == 'dense':
    return _dense(groups(q), k, v, query, key, mask_fn, aligned).reshape(B, T, N, H)
  return in_blocks(q, k, v)


def _mesh_axes(B: int, T: int, mesh, causal: bool):
  """Mesh axes for rows and for length. What an encoder takes is many short rows: they are shared out over all axes."""
  rows = batch_axes(B, mesh) if causal else item_axes(B, mesh)
  return rows, None if 'context' in rows else length_axis(T, mesh)


def _on_mesh(attend, kernel_of, mesh, rows, length, q, k, v, query, key, aligned: bool):
  """Rows, heads and queries shared out; keys and values of a sequence cut by length are gathered (grouped heads make them
  small), and every query block skips what it does not see."""
  (T, N), (S, K) = q.shape[1:3], k.shape[1:3]
  rows = rows or None
  keys_cut = length is not None and S == T
  share = N // mesh.shape['tensor']  # query heads of a device
  heads = 'tensor' if mesh.shape['tensor'] > 1 and N % mesh.shape['tensor'] == 0 else None
  kv_heads = heads if heads and K % mesh.shape[heads] == 0 else None
  if heads and not kv_heads and (N // K) % share:
    heads = None  # a device's query heads would need parts of several groups

  kernel = kernel_of(share if heads else N)

  def local(q, k, v, query, key, kernel):
    if keys_cut:
      gather = lambda a: jax.lax.all_gather(a, 'context', axis=1, tiled=True)
      k, v, key = gather(k), gather(v), jax.tree.map(gather, key)
    if heads and not kv_heads:  # the one group that this device's query heads belong to
      group = jax.lax.axis_index(heads) * share // (N // K)
      k, v = (jax.lax.dynamic_slice_in_dim(a, group, 1, axis=2) for a in (k, v))
    return attend(q, k, v, query, key, kernel, aligned and length is None)

  P = PartitionSpec
  q_spec, kv_spec = P(rows, length, heads), P(rows, length if keys_cut else None, kv_heads)
  on_query, on_key = (P(rows, length),) * 2, (P(rows, length if keys_cut else None),) * 2
  on_kernel = None if kernel is None else splash_specs(kernel, mesh, length, attend.keywords['causal'])
  run = jax.shard_map(local, in_specs=(q_spec, kv_spec, kv_spec, on_query, on_key, on_kernel), out_specs=q_spec, check_vma=False)
  return run(q, k, v, query, key, kernel)


def _mask(query, key, *, causal: bool, window: int | None) -> Bool[Array, 'B T S']:
  (q_segment, q_index), (k_segment, k_index) = query, key
  mask = (q_segment[:, :, None] == k_segment[:, None, :]) & (q_segment[:, :, None] != 0)
  distance = q_index[:, :, None] - k_index[:, None, :]
  if causal:
    mask &= distance >= 0
  if window is not None:
    mask &= distance < window
  return mask


_LOWEST = -1e30  # finite, so that a fully masked block gives exp(0) * 0 weights and never NaN


def _dense(q, k, v, query, key, mask_fn, aligned: bool):
  """A few blocks of queries, each against all keys, or with `aligned` against those up to its own end."""
  T = q.shape[1]
  size = max(QUERY_BLOCK, -(-T // 8))
  blocks = []
  for start in range(0, T, size):
    rows = slice(start, start + size)
    keys = slice(0, start + size if aligned else None)
    q_ids, k_ids = [x[:, rows] for x in query], [x[:, keys] for x in key]
    blocks.append(_dense_block(q[:, rows], k[:, keys], v[:, keys], mask_fn(q_ids, k_ids)))
  return jnp.concatenate(blocks, axis=1) if len(blocks) > 1 else blocks[0]


def _dense_block(q, k, v, mask):
  # Batch axes are moved to the front first and the division comes last, on the small side: measured two to three times
  # faster on CPU than the same sums in the arrays' own order.
  q, k, v = jnp.einsum('BTKGH->BKGTH', q), jnp.einsum('BSKH->BKSH', k), jnp.einsum('BSKH->BKSH', v)
  scores = jnp.einsum('BKGTH,BKSH->BKGTS', q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
  scores = jnp.where(mask[:, None, None], scores, _LOWEST)
  top = scores.max(axis=-1, keepdims=True)
  weights = jnp.exp(scores - top).astype(v.dtype)
  out = jnp.einsum('BKGTS,BKSH->BKGTH', weights, v, preferred_element_type=jnp.float32)
  # A matmul with ones, not a sum: XLA on CPU would compute every exp a second time to feed a sum.
  total = jnp.einsum('BKGTS,S->BKGT', weights, jnp.ones(k.shape[2], v.dtype), preferred_element_type=jnp.float32)
  out = jnp.where(top > _LOWEST / 2, out / total[..., None], 0)
  return jnp.einsum('BKGTH->BTKGH', out.astype(v.dtype))
