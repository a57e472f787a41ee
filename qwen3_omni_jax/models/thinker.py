"""The Thinker: a mixture-of-experts language model over text tokens and encoded audio, images and video.

Features of the encoders replace the embeddings of their pad tokens; the vision encoder's deepstack levels are added after the
first layers. Positions are (time, height, width) triples made by the processor.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from ..config import ThinkerConfig
from ..nn.cache import KVCache
from ..nn.decoder import Deepstack, Trace, decoder_spec, extend, forward, forward_to, prefill
from ..nn.expert_parallel import LOSSLESS, Dispatch
from ..nn.layers import rms_norm
from ..nn.params import Param, Spec, declare
from ..nn.pick_rows import pick_rows
from ..shapes import Array, Float, Int, Params
from ..sharding import shard_looked_up, shard_rows


def thinker_spec(cfg: ThinkerConfig) -> Spec:
  D, V = cfg.text.hidden_size, cfg.text.vocab_size
  return {
    'embed': Param((V, D), ('vocab', 'embed'), fan_in=D),
    'layers': decoder_spec(cfg.text),
    'norm': Param((D,), ('embed',), 'ones'),
    'head': Param((D, V), ('embed', 'vocab'), fan_in=D),
  }


class ThinkerTokens(flax.struct.PyTreeNode):
  """Token sequences, padded at the end, and where encoder features go.

  positions: (time, height, width), float32. segment: document number, 0 = padding. audio_index / visual_index: row of the
  features for each token, -1 for none.
  """

  ids: Int[Array, 'B T']
  positions: Float[Array, '3 B T']
  segment: Int[Array, 'B T']
  audio_index: Int[Array, 'B T'] | None = None
  visual_index: Int[Array, 'B T'] | None = None


class Features(flax.struct.PyTreeNode):
  """Encoder outputs as rows, in any order and with any padding rows between: the indices of ThinkerTokens pick.

  lanes: tokens and rows cut into so many equal parts correspond, part by part (see nn.pick_rows); 1 promises nothing.
  """

  audio: Float[Array, 'R D'] | None = None
  visual: Float[Array, 'R D'] | None = None
  deepstack: Float[Array, 'I R D'] | None = None
  lanes: int = flax.struct.field(pytree_node=False, default=1)


class ThinkerOut(flax.struct.PyTreeNode):
  """hidden: after the final norm. embeds and tap are what the Talker is given: the input embeddings (features merged in) and
  the output of layer `accept_hidden_layer` - 1; tap is None unless asked for."""

  hidden: Float[Array, 'B T D']
  embeds: Float[Array, 'B T D']
  tap: Float[Array, 'B T D'] | None = None


def embed_tokens(params: Params, ids: Int[Array, 'B T'], dtype=jnp.float32) -> Float[Array, 'B T D']:
  return shard_looked_up(jnp.take(params['embed'], ids, axis=0).astype(dtype))


def merge_features(
  embeds: Float[Array, 'B T D'], features: Float[Array, 'R D'], index: Int[Array, 'B T'], lanes: int = 1
) -> Float[Array, 'B T D']:
  """embeds with features[index] wherever index >= 0. lanes: see nn.pick_rows."""
  return jnp.where(index[..., None] >= 0, pick_rows(features, index, lanes).astype(embeds.dtype), embeds)


def embed_inputs(
  params: Params, tokens: ThinkerTokens, features: Features, dtype=jnp.float32
) -> tuple[Float[Array, 'B T D'], Deepstack | None]:
  """Input embeddings with every feature in its place, and the deepstack to add along the way."""
  embeds = embed_tokens(params, tokens.ids, dtype)
  deepstack = None
  if features.audio is not None:
    embeds = merge_features(embeds, features.audio, tokens.audio_index, features.lanes)
  if features.visual is not None:
    embeds = merge_features(embeds, features.visual, tokens.visual_index, features.lanes)
    deepstack = Deepstack(features.deepstack, tokens.visual_index, features.lanes)
  return shard_rows(embeds), deepstack


def thinker_forward(
  params: Params,
  cfg: ThinkerConfig,
  tokens: ThinkerTokens,
  features: Features,
  *,
  dtype=jnp.float32,
  remat: bool | str = False,
  dispatch: Dispatch = LOSSLESS,
  router_dtype: DTypeLike | None = None,
  observe: Callable = Trace,
  tap_layer: int | None = None,
) -> tuple[ThinkerOut, Any]:
  """Whole sequences without a cache: training, scoring, parity tests. dispatch: of tokens to experts on a mesh. router_dtype:
  of the router's logits. observe: what is kept of each layer (see nn.decoder.forward). tap_layer: as in thinker_prefill."""
  embeds, deepstack = embed_inputs(params, tokens, features, dtype)
  x, trace, tap = forward(
    params['layers'],
    cfg.text,
    embeds,
    tokens.positions,
    tokens.segment,
    deepstack,
    remat=remat,
    dispatch=dispatch,
    router_dtype=router_dtype,
    observe=observe,
    tap_layer=tap_layer,
  )
  return ThinkerOut(rms_norm(x, params['norm'], cfg.text.rms_norm_eps), embeds, tap), trace


def thinker_tap(
  params: Params,
  cfg: ThinkerConfig,
  tokens: ThinkerTokens,
  features: Features,
  *,
  tap_layer: int,
  dtype=jnp.float32,
  dispatch: Dispatch = LOSSLESS,
) -> Float[Array, 'B T D']:
  """The tap of thinker_forward alone: the layers above it are not computed. Of a frozen Thinker (see nn.decoder.forward_to)."""
  embeds, deepstack = embed_inputs(params, tokens, features, dtype)
  layers, positions = params['layers'], tokens.positions
  return forward_to(layers, cfg.text, embeds, positions, tokens.segment, deepstack, tap_layer=tap_layer, dispatch=dispatch)


def thinker_prefill(
  params: Params,
  cfg: ThinkerConfig,
  tokens: ThinkerTokens,
  features: Features,
  cache: KVCache,
  *,
  tap_layer: int | None = None,
  dtype=jnp.float32,
) -> tuple[ThinkerOut, KVCache]:
  """Prompts into an empty cache. tap_layer: the Talker's accept_hidden_layer, where speech follows."""
  embeds, deepstack = embed_inputs(params, tokens, features, dtype)
  x, cache, tap = prefill(params['layers'], cfg.text, embeds, tokens.positions, tokens.segment, cache, deepstack, tap_layer)
  return ThinkerOut(rms_norm(x, params['norm'], cfg.text.rms_norm_eps), embeds, tap), cache


def thinker_extend(
  params: Params,
  cfg: ThinkerConfig,
  tokens: ThinkerTokens,
  features: Features,
  filled: Int[Array, ' B'],
  cache: KVCache,
  *,
  rows: Int[Array, ' B'] | None = None,
  tap_layer: int | None = None,
  dtype=jnp.float32,
) -> tuple[ThinkerOut, KVCache]:
  """More tokens after the `filled` cache slots of each row: a decode step (T = 1), a chunk of a prompt, a next turn. rows: of the
  cache, if they are not all in order (see nn.decoder.extend)."""
  embeds, deepstack = embed_inputs(params, tokens, features, dtype)
  x, cache, tap = extend(
    params['layers'], cfg.text, embeds, tokens.positions, filled, cache, deepstack, tap_layer, tokens.segment, rows
  )
  return ThinkerOut(rms_norm(x, params['norm'], cfg.text.rms_norm_eps), embeds, tap), cache


def logits(params: Params, hidden: Float[Array, '*b D']) -> Float[Array, '*b V']:
  """Next-token logits, float32, from hidden states after the final norm."""
  return jnp.einsum('...D,DV->...V', hidden, params['head'].astype(hidden.dtype), preferred_element_type=jnp.float32)


class Thinker(nn.Module):
  """The Thinker as a Flax module: `apply({'params': …}, tokens, features)` gives (logits, ThinkerOut, Trace)."""

  cfg: ThinkerConfig
  dtype: jnp.dtype = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, tokens: ThinkerTokens, features: Features | None = None):
    params = declare(self, thinker_spec(self.cfg))
    features = Features() if features is None else features
    out, trace = thinker_forward(params, self.cfg, tokens, features, dtype=self.dtype, remat=self.remat)
    return logits(params, out.hidden), out, trace
