"""The speech loop: Talker step, code predictor and every draw of a frame in one compiled function, many frames a call.

Frame t is fed with text token t + 1. While the Thinker is still generating, a row waits for its next token; so the same loop
serves streaming and speech of complete texts.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ..config import OmniConfig, TalkerConfig
from ..models.code2wav import Code2WavState, chunked_decode, code2wav, code2wav_step
from ..models.code_predictor import Predictor, predict_codes, prepare_predictor
from ..models.talker import (
  TextTrack,
  code_logits,
  embed_codes,
  project,
  suppress_special,
  talker_prefill,
  talker_prompt,
  talker_step,
)
from ..models.thinker import embed_tokens
from ..nn.cache import KVCache, init_cache
from ..shapes import Array, Bool, Float, Int, Params
from ..sharding import follow_params
from .sampling import SamplingRows, penalise, sample
from .talker_inputs import TalkerInputs, reply_track, thinker_rows

RUNNING, ENDED, LENGTH, RUNAWAY, LOOP = range(5)  # SpeechState.reason
REASONS = ('running', 'stop', 'length', 'runaway', 'loop')
PERIODS = 8  # a loop of up to this many frames is noticed


class SpeechLimits(flax.struct.PyTreeNode):
  """When rows stop without the Talker's own end: after `frames`; after per_token * text + base frames; when code 0 has
  repeated itself (with a period of 1 to 8 frames) for `loop` frames. per_token 0 and loop 0 are off."""

  frames: Int[Array, ' B']
  per_token: Int[Array, '']
  base: Int[Array, '']
  loop: Int[Array, '']


class Draws(flax.struct.PyTreeNode):
  """How codes are drawn: code 0 by the Talker, the others by the code predictor."""

  talker: SamplingRows
  predictor: SamplingRows


class SpeechState(flax.struct.PyTreeNode):
  """Everything a frame reads and writes."""

  cache: KVCache
  filled: Int[Array, ' B']
  position: Float[Array, ' B']
  hidden: Float[Array, 'B D']  # that gave code0
  code0: Int[Array, ' B']  # drawn, its frame not yet completed
  reason: Int[Array, ' B']  # RUNNING, or why the row ended
  codes: Int[Array, 'B F Q']
  frames: Int[Array, ' B']
  seen: Bool[Array, 'B V']  # code 0 values drawn so far, for the repetition penalty
  repeats: Int[Array, 'B P']  # frames for which code 0 has equalled the one p + 1 frames before


@follow_params
@functools.partial(jax.jit, static_argnames=('cfg', 'slots', 'frames'))
def begin_speech(
  params: Params,
  cfg: OmniConfig,
  prompt_ids: Int[Array, 'B T'],
  tap: Float[Array, 'B T D'],
  inputs: TalkerInputs,
  text: TextTrack,
  speaker: Int[Array, ' B'],
  draws: Draws,
  live: Bool[Array, ' B'],
  *,
  slots: int,
  frames: int,
) -> SpeechState:
  """Talker prompts into a new cache, and the first code 0 of every row. live: rows that have something to say.

  text: at least each row's first token. slots: of the cache, at least prompt + frames.
  """
  talker, B = talker_of(cfg), prompt_ids.shape[0]
  rows = thinker_rows(params['thinker'], prompt_ids, tap, inputs)
  prompt = talker_prompt(params['talker'], talker, rows, text, speaker)
  cache = init_cache(talker.text, B, slots, tap.dtype)
  hidden, cache = talker_prefill(params['talker'], talker, prompt, inputs.positions, cache)
  state = SpeechState(
    cache=cache,
    filled=prompt.length,
    position=jnp.asarray(inputs.next_position),
    hidden=hidden,
    code0=jnp.zeros(B, jnp.int32),
    reason=jnp.where(live, RUNNING, ENDED).astype(jnp.int32),
    codes=jnp.zeros((B, frames, talker.num_code_groups), jnp.int32),
    frames=jnp.zeros(B, jnp.int32),
    seen=jnp.zeros((B, talker.text.vocab_size), bool),
    repeats=jnp.zeros((B, PERIODS), jnp.int32),
  )
  return _draw_code0(params, cfg, state, live, draws)


def talker_of(cfg: OmniConfig) -> TalkerConfig:
  assert cfg.talker is not None, 'Omni refuses to speak without a Talker'
  return cfg.talker


def _draw_code0(params: Params, cfg: OmniConfig, state: SpeechState, live: Bool[Array, ' B'], draws: Draws) -> SpeechState:
  """Draws the next frame's code 0 of the live rows from state.hidden."""
  logits = penalise(code_logits(params['talker'], state.hidden), state.seen, draws.talker.repetition_penalty)
  code0 = sample(suppress_special(talker_of(cfg), logits), draws.talker, state.frames, stream=1)
  code0 = jnp.where(live, code0, state.code0)
  rows = jnp.arange(code0.shape[0])
  return state.replace(
    code0=code0,
    seen=state.seen.at[rows, code0].max(live),
    reason=jnp.where(live & (code0 == talker_of(cfg).codec_eos_token_id), ENDED, state.reason),
  )


def next_frame(
  params: Params,
  cfg: OmniConfig,
  predictor: Predictor,
  state: SpeechState,
  text: TextTrack,
  live: Bool[Array, ' B'],
  draws: Draws,
) -> SpeechState:
  """Completes the frame of each live row and draws the next code 0. Other rows stay as they are."""
  talker = talker_of(cfg)
  pick = lambda logits, step: sample(logits, draws.predictor, state.frames, stream=2 + step)
  code0_embedding = embed_codes(params['talker'], state.code0, state.hidden.dtype)
  rest, total = predict_codes(predictor, talker, state.hidden, code0_embedding, pick)
  rows = jnp.arange(live.shape[0])
  slot = jnp.where(live, state.frames, state.codes.shape[1])
  codes = state.codes.at[rows, slot].set(jnp.concatenate([state.code0[:, None], rest], axis=1), mode='drop')
  x = total + text.row(state.frames + 1).astype(total.dtype)
  hidden, cache = talker_step(params['talker'], talker, x, state.position, state.filled, state.cache, live)
  step = live.astype(jnp.int32)
  earlier = state.frames[:, None] - 1 - jnp.arange(PERIODS)
  before = jnp.take_along_axis(codes[:, :, 0], jnp.maximum(earlier, 0), axis=1)
  same = (before == state.code0[:, None]) & (earlier >= 0)
  repeats = jnp.where(live[:, None], jnp.where(same, state.repeats + 1, 0), state.repeats)
  state = state.replace(
    cache=cache,
    filled=state.filled + step,
    position=state.position + step.astype(jnp.float32),
    hidden=jnp.where(live[:, None], hidden, state.hidden),
    codes=codes,
    frames=state.frames + step,
    repeats=repeats,
  )
  return _draw_code0(params, cfg, state, live, draws)


@follow_params
@functools.partial(jax.jit, static_argnames=('cfg',), donate_argnames=('state',))
def speak(
  params: Params,
  cfg: OmniConfig,
  predictor: Predictor,
  state: SpeechState,
  text: TextTrack,
  text_done: Bool[Array, ' B'],
  draws: Draws,
  limits: SpeechLimits,
  steps: Int[Array, ''],
) -> SpeechState:
  """Up to `steps` frames on device: until every row has ended or waits for text."""

  def ready(state):
    return (state.reason == RUNNING) & (text_done | (state.frames + 1 < text.count))

  def more(carry):
    i, state = carry
    return (i < steps) & ready(state).any()

  def body(carry):
    i, state = carry
    state = next_frame(params, cfg, predictor, state, text, ready(state), draws)
    return i + 1, state.replace(reason=why_ended(state, text, text_done, limits))

  return jax.lax.while_loop(more, body, (jnp.int32(0), state.replace(reason=why_ended(state, text, text_done, limits))))[1]


def why_ended(state: SpeechState, text: TextTrack, text_done: Bool[Array, ' B'], limits: SpeechLimits) -> Int[Array, ' B']:
  """Why rows must stop although the Talker did not end."""
  allowed = limits.per_token * text.count + limits.base
  runaway = (limits.per_token > 0) & text_done & (state.frames >= allowed)
  loop = (limits.loop > 0) & (state.repeats >= limits.loop).any(axis=1)
  why = jnp.where(state.frames >= limits.frames, LENGTH, jnp.where(runaway, RUNAWAY, jnp.where(loop, LOOP, RUNNING)))
  return jnp.where(state.reason == RUNNING, why, state.reason).astype(jnp.int32)


@follow_params
@functools.partial(jax.jit, static_argnames=('dtype',))
def ready_predictor(params: Params, dtype) -> Predictor:
  """The code predictor's weights as the loop reads them; made once per loaded checkpoint."""
  return prepare_predictor(params, dtype)


@follow_params
@functools.partial(jax.jit, static_argnames=('cfg', 'dtype'))
def whole_text(
  params: Params, cfg: OmniConfig, reply: Int[Array, 'B K'], count: Int[Array, ' B'], dtype=jnp.float32
) -> TextTrack:
  """The text track of replies that are all there."""
  return reply_track(params, cfg, reply, count, dtype)


@follow_params
@functools.partial(jax.jit, donate_argnames=('text',))
def add_text(params: Params, text: TextTrack, token: Int[Array, ' B'], count: Int[Array, ' B']) -> TextTrack:
  """text with each row's newest token (its number is count - 1) put in, where count has grown."""
  row = project(params['talker']['text_projection'], embed_tokens(params['thinker'], token, text.rows.dtype))
  at = jnp.where(count > text.count, count - 1, text.rows.shape[1])
  rows = text.rows.at[jnp.arange(count.shape[0]), at].set(row, mode='drop')
  return text.replace(rows=rows, count=jnp.maximum(count, text.count))


WAVE_CHUNK = 100  # frames decoded at a time where the whole is at hand; bounds memory


@follow_params
@functools.partial(jax.jit, static_argnames=('cfg', 'dtype'))
def decode_wave(params: Params, cfg: OmniConfig, codes: Int[Array, 'B F Q'], dtype=jnp.float32) -> Float[Array, 'B W']:
  return code2wav(params['code2wav'], cfg.code2wav, codes, dtype=dtype, chunk=WAVE_CHUNK)


@follow_params
@functools.partial(jax.jit, static_argnames=('cfg', 'dtype'))
def decode_wave_like_reference(
  params: Params, cfg: OmniConfig, codes: Int[Array, 'B F Q'], dtype=jnp.float32
) -> Float[Array, 'B W']:
  return chunked_decode(params['code2wav'], cfg.code2wav, codes, dtype=dtype)


@follow_params
@functools.partial(jax.jit, static_argnames=('cfg', 'dtype'), donate_argnames=('state',))
def decode_wave_chunk(
  params: Params, cfg: OmniConfig, codes: Int[Array, 'B F Q'], state: Code2WavState, dtype=jnp.float32
) -> tuple[Float[Array, 'B W'], Code2WavState]:
  return code2wav_step(params['code2wav'], cfg.code2wav, codes, state, dtype=dtype)


def speech_limits(frames: list[int], per_token: int, base: int, loop: int) -> SpeechLimits:
  return SpeechLimits(np.array(frames, np.int32), np.int32(per_token), np.int32(base), np.int32(loop))
