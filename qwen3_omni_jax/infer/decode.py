"""Thinker decoding: prefill, one step, and a loop of steps, over one explicit State.

The same step runs inside the on-device loop whether tokens are streamed (a few steps a call) or not (many).
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp

from ..config import ThinkerConfig
from ..models.audio_encoder import encode_audio
from ..models.omni import join_features
from ..models.thinker import (
  Features,
  ThinkerOut,
  ThinkerTokens,
  logits,
  thinker_extend,
  thinker_forward,
  thinker_prefill,
)
from ..models.vision_encoder import encode_vision
from ..nn.cache import KVCache, init_cache
from ..shapes import Array, Bool, Float, Int, Params
from ..sharding import follow_params
from .collate import AudioWindows, Batch, Media, VisualFrames, bucket
from .sampling import SamplingRows, penalise, sample


class State(flax.struct.PyTreeNode):
  """Everything a decode step reads and writes."""

  cache: KVCache
  filled: Int[Array, ' B']  # cache slots in use
  position: Float[Array, ' B']  # position of the next token to be fed
  token: Int[Array, ' B']  # sampled last, not fed yet
  done: Bool[Array, ' B']
  output: Int[Array, 'B O']  # tokens sampled so far
  count: Int[Array, ' B']  # how many of them, the stop token included
  seen: Bool[Array, 'B V'] | None  # prompt and output tokens; None where no row has a repetition penalty


class Limits(flax.struct.PyTreeNode):
  """When rows end: a stop token (its id is kept in the output), or `tokens` of output. stop is padded with -1."""

  stop: Int[Array, ' X']
  tokens: Int[Array, ' B']


@follow_params
@functools.partial(jax.jit, static_argnames=('cfg', 'dtype'))
def encode_audio_windows(params: Params, cfg: ThinkerConfig, group: AudioWindows, dtype) -> Float[Array, 'R T D']:
  return encode_audio(params, cfg.audio, group.mel.astype(dtype), group.frames, group.conv_frames, group.segment)


@follow_params
@functools.partial(jax.jit, static_argnames=('cfg', 'dtype'))
def encode_visual_frames(params: Params, cfg: ThinkerConfig, group: VisualFrames, dtype):
  return encode_vision(
    params,
    cfg.vision,
    group.patches.astype(dtype),
    group.rows,
    group.cols,
    group.heights,
    group.widths,
    group.length,
    group.segment,
  )


def encode_media(params: Params, cfg: ThinkerConfig, media: Media, dtype=jnp.float32) -> Features:
  """Every group through its encoder: one compiled program per group shape."""
  audio = [encode_audio_windows(params['audio'], cfg, group, dtype) for group in media.audio]
  visual = [encode_visual_frames(params['vision'], cfg, group, dtype) for group in media.visual]
  features = join_features(audio, visual)

  def padded(x, axis):  # a bucket of rows, so that prefill is compiled for few sizes
    if x is None:
      return None
    rows = x.shape[axis]
    return jnp.pad(x, [(0, 0)] * axis + [(0, bucket(rows) - rows), (0, 0)])

  return Features(padded(features.audio, 0), padded(features.visual, 0), padded(features.deepstack, 1))


@follow_params
@functools.partial(jax.jit, static_argnames=('cfg', 'dtype', 'slots', 'outputs', 'penalised', 'tap_layer'))
def prefill(
  params: Params,
  cfg: ThinkerConfig,
  batch: Batch,
  features: Features,
  sampling: SamplingRows,
  limits: Limits,
  *,
  slots: int,
  outputs: int,
  penalised: bool,
  dtype=jnp.float32,
  tap_layer: int | None = None,
) -> tuple[State, ThinkerOut]:
  """Prompts through the Thinker and the first token of every row. params: the Thinker's."""
  tokens: ThinkerTokens = batch.tokens
  B, T = tokens.ids.shape
  cache = init_cache(cfg.text, B, slots, dtype)
  out, cache = thinker_prefill(params, cfg, tokens, features, cache, tap_layer=tap_layer, dtype=dtype)
  last = jnp.take_along_axis(out.hidden, jnp.maximum(batch.length - 1, 0)[:, None, None], axis=1)[:, 0]
  seen = None
  if penalised:
    ids = jnp.where(tokens.segment != 0, tokens.ids, cfg.text.vocab_size)
    seen = jnp.zeros((B, cfg.text.vocab_size), bool).at[jnp.arange(B)[:, None], ids].set(True, mode='drop')
  state = State(
    cache=cache,
    filled=batch.length,
    position=batch.next_position,
    token=jnp.zeros(B, jnp.int32),
    done=(batch.length == 0) | (limits.tokens <= 0),
    output=jnp.zeros((B, outputs), jnp.int32),
    count=jnp.zeros(B, jnp.int32),
    seen=seen,
  )
  return _sample_next(params, state, last, sampling, limits), out


@follow_params
@functools.partial(jax.jit, static_argnames=('cfg', 'dtype', 'tap_layer'), donate_argnames=('cache',))
def extend_prompt(
  params: Params,
  cfg: ThinkerConfig,
  tokens: ThinkerTokens,
  features: Features,
  filled: Int[Array, ' B'],
  cache: KVCache,
  dtype=jnp.float32,
  tap_layer: int | None = None,
) -> tuple[Float[Array, 'B D'], Float[Array, 'B T D'] | None, KVCache]:
  """A further piece of prompts, padded at its end: (hidden state of each row's last token, tapped states, cache)."""
  out, cache = thinker_extend(params, cfg, tokens, features, filled, cache, tap_layer=tap_layer, dtype=dtype)
  last = jnp.maximum((tokens.segment != 0).sum(axis=1) - 1, 0)
  return jnp.take_along_axis(out.hidden, last[:, None, None], axis=1)[:, 0], out.tap, cache


@follow_params
@functools.partial(jax.jit, static_argnames=('outputs',), donate_argnames=('cache',))
def begin_decode(
  params: Params,
  cache: KVCache,
  filled: Int[Array, ' B'],
  position: Float[Array, ' B'],
  hidden: Float[Array, 'B D'],
  seen: Bool[Array, 'B V'] | None,
  sampling: SamplingRows,
  limits: Limits,
  *,
  outputs: int,
) -> State:
  """The first token after prompts that were fed piece by piece."""
  B = filled.shape[0]
  zeros = jnp.zeros(B, jnp.int32)
  output = jnp.zeros((B, outputs), jnp.int32)
  state = State(cache, filled, position, zeros, limits.tokens <= 0, output, zeros, seen)
  return _sample_next(params, state, hidden, sampling, limits)


def _sample_next(params: Params, state: State, hidden: Float[Array, 'B D'], sampling: SamplingRows, limits: Limits) -> State:
  """Samples the next token of every row that is not done and appends it to the output."""
  scores = logits(params, hidden)
  if state.seen is not None:
    scores = penalise(scores, state.seen, sampling.repetition_penalty)
  token = sample(scores, sampling, state.count)
  live = ~state.done
  token = jnp.where(live, token, state.token)
  rows = jnp.arange(token.shape[0])
  slot = jnp.where(live, state.count, state.output.shape[1])  # done rows write nowhere
  count = state.count + live.astype(jnp.int32)
  stopped = (token[:, None] == limits.stop).any(axis=1)
  return state.replace(
    token=token,
    output=state.output.at[rows, slot].set(token, mode='drop'),
    count=count,
    done=state.done | (live & (stopped | (count >= limits.tokens))),
    seen=None if state.seen is None else state.seen.at[rows, token].max(live),
  )


def step(
  params: Params,
  cfg: ThinkerConfig,
  state: State,
  sampling: SamplingRows,
  limits: Limits,
  dtype=jnp.float32,
  tap_layer: int | None = None,
) -> tuple[State, ThinkerOut]:
  """Feeds each row's last token and samples the next. Done rows stay as they are."""
  live = ~state.done
  B = state.token.shape[0]
  tokens = ThinkerTokens(
    ids=state.token[:, None],
    positions=jnp.broadcast_to(state.position[:, None], (3, B, 1)),
    segment=live[:, None].astype(jnp.int32),
  )
  out, cache = thinker_extend(params, cfg, tokens, Features(), state.filled, state.cache, tap_layer=tap_layer, dtype=dtype)
  state = state.replace(
    cache=cache, filled=state.filled + live.astype(jnp.int32), position=state.position + live.astype(jnp.float32)
  )
  return _sample_next(params, state, out.hidden[:, 0], sampling, limits), out


@follow_params
@functools.partial(jax.jit, static_argnames=('cfg', 'dtype'), donate_argnames=('state',))
def decode(
  params: Params,
  cfg: ThinkerConfig,
  state: State,
  sampling: SamplingRows,
  limits: Limits,
  steps: Int[Array, ''],
  dtype=jnp.float32,
) -> State:
  """Up to `steps` steps on device, fewer if every row is done."""

  def more(carry):
    i, state = carry
    return (i < steps) & ~state.done.all()

  def body(carry):
    i, state = carry
    return i + 1, step(params, cfg, state, sampling, limits, dtype)[0]

  return jax.lax.while_loop(more, body, (jnp.int32(0), state))[1]


SCORE_BLOCK = 512  # tokens whose logits over the whole vocabulary exist at once


@follow_params
@functools.partial(jax.jit, static_argnames=('cfg', 'dtype'))
def score(
  params: Params, cfg: ThinkerConfig, tokens: ThinkerTokens, features: Features, dtype=jnp.float32
) -> Float[Array, 'B T']:
  """log p(token t | tokens before t) for t >= 1, float32; 0 at t = 0 and at padding."""
  out, _ = thinker_forward(params, cfg, tokens, features, dtype=dtype)
  B, T = tokens.ids.shape
  pad = -T % SCORE_BLOCK if T > SCORE_BLOCK else 0
  block = min(T, SCORE_BLOCK)
  hidden = jnp.pad(out.hidden, [(0, 0), (0, pad), (0, 0)]).reshape(B, -1, block, out.hidden.shape[-1])
  target = jnp.pad(jnp.roll(tokens.ids, -1, axis=1), [(0, 0), (0, pad)]).reshape(B, -1, block)

  def one_block(inputs):
    h, t = inputs
    scores = logits(params, h)
    return jnp.take_along_axis(scores, t[..., None], axis=-1)[..., 0] - jax.nn.logsumexp(scores, axis=-1)

  by_block = jax.lax.map(one_block, (jnp.moveaxis(hidden, 1, 0), jnp.moveaxis(target, 1, 0)))
  scores = jnp.moveaxis(by_block, 0, 1).reshape(B, -1)[:, : T - 1]
  return jnp.where(tokens.segment != 0, jnp.pad(scores, [(0, 0), (1, 0)]), 0)
