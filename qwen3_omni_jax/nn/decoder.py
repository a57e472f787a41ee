"""The decoder-only transformer that the Thinker, the Talker and the code predictor share.

One layer, run over stacked parameters by one `lax.scan`, in three ways that differ in where keys and values come from:
`forward` (no cache; training and whole passes), `prefill` (fills an empty cache) and `extend` (adds tokens to a filled one;
one token of it is a decode step).

Expert weights stay outside the scanned parameters in `prefill` and `extend`: a layer then reads only the experts it uses
instead of being handed a copy of all of them (see nn.experts). `forward` scans them, which is what backward needs.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..config import TextConfig
from ..shapes import Array, Bool, Float, Int, Params
from ..sharding import shard_cache, shard_rows
from . import rope
from .attention import attention
from .cache import KVCache
from .cached_attention import cached_attention
from .expert_parallel import LOSSLESS, Dispatch
from .expert_weights import Experts
from .kernels import reads_cache_in_place
from .layers import rms_norm, swiglu, swiglu_spec
from .moe import Routing, moe, moe_spec
from .params import Param, Spec, stack
from .pick_rows import pick_rows
from .remat import rematerialised


def decoder_spec(cfg: TextConfig) -> Spec:
  """Parameters of the stacked layers."""
  D, N, K, H = cfg.hidden_size, cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim
  layer: Spec = {
    'attn_norm': Param((D,), ('embed',), 'ones'),
    'attn': {
      'q': Param((D, N, H), ('embed', 'heads', 'head_dim'), fan_in=D),
      'k': Param((D, K, H), ('embed', 'kv_heads', 'head_dim'), fan_in=D),
      'v': Param((D, K, H), ('embed', 'kv_heads', 'head_dim'), fan_in=D),
      'o': Param((N, H, D), ('heads', 'head_dim', 'embed'), fan_in=N * H),
      'q_norm': Param((H,), ('head_dim',), 'ones'),
      'k_norm': Param((H,), ('head_dim',), 'ones'),
    },
    'mlp_norm': Param((D,), ('embed',), 'ones'),
  }
  if cfg.num_experts:
    layer['moe'] = moe_spec(D, cfg.moe_intermediate_size, cfg.num_experts, cfg.shared_expert_intermediate_size)
  else:
    layer['mlp'] = swiglu_spec(D, cfg.intermediate_size)
  return stack(cfg.num_hidden_layers, layer)


class Deepstack(flax.struct.PyTreeNode):
  """Visual features added to the residual stream after the first layers: level i after layer i.

  index: row of `levels` for each token, -1 where the token is not visual. lanes: see nn.pick_rows.
  """

  levels: Float[Array, 'I R D']
  index: Int[Array, 'B T']
  lanes: int = flax.struct.field(pytree_node=False, default=1)

  def add(self, x: Float[Array, 'B T D'], layer: Int[Array, '']) -> Float[Array, 'B T D']:
    count = self.levels.shape[0]

    def added():
      level = jax.lax.dynamic_index_in_dim(self.levels, jnp.minimum(layer, count - 1), keepdims=False)
      return x + pick_rows(level, self.index, self.lanes).astype(x.dtype)

    return jax.lax.cond(layer < count, added, lambda: x)


class Trace(flax.struct.PyTreeNode):
  """What each layer did, for parity tests and training losses.

  hidden: layer outputs before deepstack is added. routing: None for dense models.
  """

  hidden: Float[Array, 'L B T D']
  routing: Routing | None


def _layer(
  p: Params,
  cfg: TextConfig,
  x: Array,
  angle: Array,
  attend: Callable,
  experts: Experts | None,
  dispatch: Dispatch = LOSSLESS,
  live: Bool[Array, 'B T'] | None = None,
  router_dtype: DTypeLike | None = None,
):
  """One block. attend(q, k, v) -> (attention output, whatever the caller keeps). live, router_dtype: see moe."""
  normed = rms_norm(x, p['attn_norm'], cfg.rms_norm_eps)
  a = p['attn']
  q = jnp.einsum('BTD,DNH->BTNH', normed, a['q'].astype(x.dtype))
  k = jnp.einsum('BTD,DKH->BTKH', normed, a['k'].astype(x.dtype))
  v = jnp.einsum('BTD,DKH->BTKH', normed, a['v'].astype(x.dtype))
  q = rope.rotate(rms_norm(q, a['q_norm'], cfg.rms_norm_eps), angle)
  k = rope.rotate(rms_norm(k, a['k_norm'], cfg.rms_norm_eps), angle)
  out, kept = attend(q, k, v)
  x = x + jnp.einsum('BTNH,NHD->BTD', out, a['o'].astype(x.dtype))
  normed = rms_norm(x, p['mlp_norm'], cfg.rms_norm_eps)
  if experts is None:
    return shard_rows(x + swiglu(normed, p['mlp'])), None, kept
  y, routing = moe(
    normed,
    p['moe'],
    experts,
    cfg.num_experts_per_tok,
    cfg.norm_topk_prob,
    live=live,
    dispatch=dispatch,
    router_dtype=router_dtype,
  )
  return shard_rows(x + y), routing, kept


def rope_angles(cfg: TextConfig, positions: Array) -> Float[Array, 'B T H2']:
  """Rotation angles: positions '3 B T' where the config has sections (multimodal), else 'B T'."""
  if cfg.mrope_section:
    return rope.mrope_angles(positions, cfg.head_dim, cfg.rope_theta, cfg.mrope_section)
  return rope.angles(positions, cfg.head_dim, cfg.rope_theta)


def forward(
  layers: Params,
  cfg: TextConfig,
  x: Float[Array, 'B T D'],
  positions: Array,
  segment: Int[Array, 'B T'],
  deepstack: Deepstack | None = None,
  *,
  remat: bool | str = False,
  dispatch: Dispatch = LOSSLESS,
  router_dtype: DTypeLike | None = None,
  observe: Callable[[Array, Routing | None], Any] = Trace,
  tap_layer: int | None = None,
) -> tuple[Float[Array, 'B T D'], Any, Float[Array, 'B T D'] | None]:
  """Every layer over whole sequences, no cache. segment: document of each token, 0 = padding, which takes no experts.

  dispatch: how tokens reach their experts on a mesh. router_dtype: of the router's logits; None: that of x, as in the reference.
  observe(output before deepstack, routing) is kept of each layer, stacked: by default a Trace, which costs memory only if it is
  used; a training loss keeps sums. Returns (output, what was observed, the input of layer `tap_layer` before deepstack, or None).
  """
  step = _whole_step(cfg, positions, segment, deepstack, dispatch, router_dtype)

  def body(carry, inputs):
    (x, tap), (p, layer) = carry, inputs
    hidden, x, routing = step(x, p, layer)
    tap = None if tap_layer is None else jnp.where(layer == tap_layer - 1, hidden, tap)
    return (x, tap), observe(hidden, routing)

  begin = (x, None if tap_layer is None else x)
  (x, tap), observed = jax.lax.scan(rematerialised(body, remat), begin, (layers, jnp.arange(cfg.num_hidden_layers)))
  return x, observed, tap


def forward_to(
  layers: Params,
  cfg: TextConfig,
  x: Float[Array, 'B T D'],
  positions: Array,
  segment: Int[Array, 'B T'],
  deepstack: Deepstack | None = None,
  *,
  tap_layer: int,
  dispatch: Dispatch = LOSSLESS,
) -> Float[Array, 'B T D']:
  """The tap of `forward` alone, without the layers above it. Not to be differentiated: a layer's weights are indexed in the whole
  stack, whose gradient would be added up as a whole at every layer."""
  step = _whole_step(cfg, positions, segment, deepstack, dispatch, None)

  def body(carry, layer):
    x, _ = carry
    p = jax.tree.map(lambda w: jax.lax.dynamic_index_in_dim(w, layer, keepdims=False), layers)
    hidden, x, _ = step(x, p, layer)
    return (x, hidden), None

  return jax.lax.scan(body, (x, x), jnp.arange(tap_layer))[0][1]


def _whole_step(cfg: TextConfig, positions: Array, segment: Array, deepstack: Deepstack | None, dispatch, router_dtype):
  """(x, parameters of a layer, its number) -> (its output before deepstack, and after, routing), of whole sequences."""
  angle = rope_angles(cfg, positions)

  def attend(q, k, v):
    return attention(q, k, v, q_segment=segment, k_segment=segment, causal=True), None

  def step(x, p, layer):
    experts = Experts.of_layer(p['moe']['experts']) if cfg.num_experts else None
    hidden, routing, _ = _layer(p, cfg, x, angle, attend, experts, dispatch, segment != 0, router_dtype)
    return hidden, deepstack.add(hidden, layer) if deepstack is not None else hidden, routing

  return step


def prefill(
  layers: Params,
  cfg: TextConfig,
  x: Float[Array, 'B T D'],
  positions: Array,
  segment: Int[Array, 'B T'],
  cache: KVCache,
  deepstack: Deepstack | None = None,
  tap_layer: int | None = None,
) -> tuple[Float[Array, 'B T D'], KVCache, Float[Array, 'B T D'] | None]:
  """Fills slots 0 .. T of an empty cache. Returns (output, cache, the input of layer `tap_layer` before deepstack, or None)."""

  def attend(layer, cache, q, k, v):
    by_head = lambda new: jnp.einsum('BTKH->BKTH', new)[None]
    put = lambda c, new: jax.lax.dynamic_update_slice(c, by_head(new).astype(c.dtype), (layer, 0, 0, 0, 0))
    out = attention(q, k, v, q_segment=segment, k_segment=segment, causal=True)
    return out, KVCache(put(cache.k, k), put(cache.v, v))

  return _run_cached(layers, cfg, x, positions, segment != 0, cache, attend, deepstack, tap_layer)


def extend(
  layers: Params,
  cfg: TextConfig,
  x: Float[Array, 'B T D'],
  positions: Array,
  filled: Int[Array, ' B'],
  cache: KVCache,
  deepstack: Deepstack | None = None,
  tap_layer: int | None = None,
  segment: Int[Array, 'B T'] | None = None,
  rows: Int[Array, ' B'] | None = None,
) -> tuple[Float[Array, 'B T D'], KVCache, Float[Array, 'B T D'] | None]:
  """Adds T tokens to each row after its `filled` slots; T = 1 is a decode step.

  segment: 0 marks padding among the T new tokens (at their end), which takes no experts; default all valid. Padding is written
  past the row's end, where the next call overwrites it, and nowhere where the cache has no such slot.
  rows: of the cache, each the place of one row of x; default: all in order. What is beyond the last one is written nowhere. Rows
  of x may share one if their tokens do not overlap: in every layer all keys are written before any query reads, so a later piece
  of a sequence sees the earlier one that is fed beside it.
  """
  B, T = x.shape[:2]
  slots = jnp.arange(cache.slots)
  held = jnp.arange(B) if rows is None else rows
  index = filled[:, None] + jnp.arange(T)
  valid = T if segment is None else (segment != 0).sum(axis=1)
  live = None if segment is None else segment != 0
  segment = jnp.ones((B, T), jnp.int32) if segment is None else segment
  k_segment = (slots < (filled + valid)[:, None]).astype(jnp.int32)
  k_index = jnp.broadcast_to(slots, (B, cache.slots))

  def of_layer(c, layer):
    read = jax.lax.dynamic_index_in_dim(c, layer, keepdims=False) if rows is None else c.at[layer, rows].get(mode='clip')
    return jnp.einsum('BKSH->BSKH', read)

  def attend(layer, cache, q, k, v):
    put = lambda c, new: c.at[layer, held[:, None], :, index].set(new.astype(c.dtype), mode='drop', unique_indices=True)
    cache = KVCache(put(cache.k, k), put(cache.v, v))
    if reads_cache_in_place(cache, in_order=rows is None):
      return cached_attention(q, cache, layer, filled, jnp.broadcast_to(valid, B), rows), cache
    out = attention(
      q,
      of_layer(cache.k, layer).astype(q.dtype),
      of_layer(cache.v, layer).astype(q.dtype),
      q_segment=segment,
      k_segment=k_segment,
      q_index=index,
      k_index=k_index,
      causal=True,
    )
    return out, cache

  return _run_cached(layers, cfg, x, positions, live, cache, attend, deepstack, tap_layer)


def _run_cached(layers, cfg, x, positions, live, cache, attend, deepstack, tap_layer):
  angle = rope_angles(cfg, positions)
  experts_stack = layers['moe']['experts'] if cfg.num_experts else None
  if cfg.num_experts:
    layers = {**layers, 'moe': {name: w for name, w in layers['moe'].items() if name != 'experts'}}
  cache = shard_cache(cache)
  tap = None if tap_layer is None else x

  def step(carry, inputs):
    x, cache, tap = carry
    p, layer = inputs
    experts = Experts.in_stack(experts_stack, layer) if cfg.num_experts else None
    hidden, _, cache = _layer(p, cfg, x, angle, lambda *qkv: attend(layer, cache, *qkv), experts, live=live)
    if tap_layer is not None:
      tap = jnp.where(layer == tap_layer - 1, hidden, tap)
    x = deepstack.add(hidden, layer) if deepstack is not None else hidden
    return (x, cache, tap), None

  (x, cache, tap), _ = jax.lax.scan(step, (x, cache, tap), (layers, jnp.arange(cfg.num_hidden_layers)))
  return x, shard_cache(cache), tap
