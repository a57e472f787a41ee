"""Attention of new tokens to a filled cache, for GPU: a Pallas kernel, by way of Triton.

Keys and values are read in place in the cache of all layers, and only as far as each row is filled: no layer is sliced out, and
empty slots cost nothing. The query heads that share a key head go through the tensor cores together. Where rows and heads are
too few to occupy a GPU, the keys are divided among several programs, and their results are combined.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec

from ..shapes import Array, Float, Int
from ..sharding import batch_axes, current_mesh
from .cache import KVCache
from .tiles import dot, fit, inside, load, run_programs, span, store

KEYS = 64  # of a step
QUERIES = 64  # rows of a tile: tokens times the heads of a group
PROGRAMS = 264  # that occupy a GPU: two for each multiprocessor of an H100 or H200
_LOWEST = -1e30  # finite: see nn/attention.py


def cached_attention(
  q: Float[Array, 'B T N H'],
  cache: KVCache,
  layer: Int[Array, ''],
  filled: Int[Array, ' B'],
  new: Int[Array, ' B'],
  rows: Int[Array, ' B'] | None = None,
) -> Float[Array, 'B T N H']:
  """softmax(q k' / sqrt(H)) v: token t of a row sees its slots up to filled + t, where its own key and value already are.

  new: tokens of each row, of T; what comes after is padding and gives zeros. rows: of the cache, one for each of q; default all
  in order. As nn.attention.attention with these masks. On a mesh (rows in order only) each device has its rows of the cache, and
  takes its share of the heads where the axis `tensor` divides the key heads.
  """
  mesh, K = current_mesh(), cache.k.shape[2]
  if mesh is None:
    return _attend(q, cache, layer, filled, new, rows, jnp.int32(0), K)
  share = K // mesh.shape['tensor'] if K % mesh.shape['tensor'] == 0 else K
  cut, heads = batch_axes(q.shape[0], mesh) or None, 'tensor' if share < K else None

  def local(q, cache, layer, filled, new):
    first = jax.lax.axis_index(heads) * share if heads else jnp.int32(0)
    return _attend(q, cache, layer, filled, new, None, first, share)

  P = PartitionSpec
  specs = P(cut, None, heads), P(None, cut), P(), P(cut), P(cut)
  return jax.shard_map(local, in_specs=specs, out_specs=specs[0], check_vma=False)(q, cache, layer, filled, new)


def _attend(q, cache: KVCache, layer, filled, new, rows, first: Int[Array, ''], K: int):
  """On one device. first: of the cache's K heads that q's belong to."""
  B, T, N, H = q.shape
  group = N // K
  by_head = jnp.einsum('BTKGH->BKTGH', q.reshape(B, T, K, group, H)).reshape(B, K, T * group, H)
  rows = jnp.arange(B, dtype=jnp.int32) if rows is None else rows
  size = fit(QUERIES, T * group)
  blocks = pl.cdiv(T * group, size)
  parts = max(1, min(16, PROGRAMS // (B * K * blocks), cache.slots // (2 * KEYS)))
  shape = (B, K, parts, T * group)
  kernel = functools.partial(_kernel, group=group, size=size, blocks=blocks, parts=parts)
  out = (
    jax.ShapeDtypeStruct((*shape, H), q.dtype if parts == 1 else jnp.float32),
    jax.ShapeDtypeStruct((*shape, 1), jnp.float32),
  )
  run = run_programs(kernel, out, B * K * blocks * parts, 4, 3)
  y, weight = run(jnp.stack([layer, first]), rows, filled, new, by_head, cache.k, cache.v)
  if parts == 1:
    y = y[:, :, 0]
  else:
    y = jnp.einsum('BKPR,BKPRH->BKRH', jax.nn.softmax(weight[..., 0], axis=2), y).astype(q.dtype)
  return jnp.einsum('BKTGH->BTKGH', y.reshape(B, K, T, group, H)).reshape(q.shape)


def _kernel(
  place_ref,
  row_ref,
  filled_ref,
  new_ref,
  q_ref,
  k_ref,
  v_ref,
  y_ref,
  weight_ref,
  *,
  group: int,
  size: int,
  blocks: int,
  parts: int,
):
  """One tile of queries against one part of the keys that it sees: its result, and the log of its weights' sum."""
  K, R, H = q_ref.shape[1:]
  at = pl.program_id(0)
  part, block, row = at % parts, at // parts % blocks, at // (parts * blocks)
  b, head = row // K, row % K
  filled, new = filled_ref[b], new_ref[b]
  token = (block * size + jnp.arange(size, dtype=jnp.int32)) // group
  limit = jnp.where(token < new, filled + token + 1, 0)  # slots that each query sees
  most = jnp.minimum(new, (block * size + size - 1) // group + 1)
  seen = jnp.where(block * size // group < new, filled + most, 0)
  share = pl.cdiv(pl.cdiv(seen, parts), KEYS) * KEYS
  start = part * share
  end = jnp.minimum(start + share, seen)
  rows, whole = span(block, size, R), (pl.ds(0, H), None)
  q = load(q_ref, (b, head), rows, whole)
  place = place_ref[0], row_ref[b], place_ref[1] + head

  def step(i, carry):
    top, total, y = carry
    first = start + i * KEYS
    keys = pl.ds(first, KEYS), inside(first, KEYS, end)
    k = load(k_ref, place, keys, whole).astype(q.dtype)
    v = load(v_ref, place, keys, whole).astype(q.dtype)
    slot = first + jnp.arange(KEYS, dtype=jnp.int32)
    sees = (slot[None] < limit[:, None]) & (slot[None] < end)
    scores = jnp.where(sees, dot(q, k, trans_b=True) * H**-0.5, _LOWEST)
    new_top = jnp.maximum(top, scores.max(axis=1))
    weights = jnp.where(sees, jnp.exp(scores - new_top[:, None]), 0)
    keep = jnp.exp(top - new_top)
    y = y * keep[:, None] + dot(weights.astype(v.dtype), v)
    return new_top, total * keep + weights.sum(axis=1), y

  begin = jnp.full(size, _LOWEST, jnp.float32), jnp.zeros(size, jnp.float32), jnp.zeros((size, H), jnp.float32)
  top, total, y = jax.lax.fori_loop(0, pl.cdiv(end - start, KEYS), step, begin)
  safe = jnp.where(total > 0, total, 1)
  store(y_ref, (b, head, part), rows, whole, y / safe[:, None])
  weight = jnp.where(total > 0, top + jnp.log(safe), _LOWEST)
  store(weight_ref, (b, head, part), rows, (pl.ds(0, 1), None), weight[:, None])
