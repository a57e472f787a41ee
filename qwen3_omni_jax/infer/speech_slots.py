"""Slots of the Talker and lanes of the vocoder: spoken replies start in free rows of a running SpeechState.

As in `slots`, the lanes of a prompt call, the slots of a frame, and the lanes of the vocoder run together in arrays of one shape.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp

from ..config import OmniConfig
from ..models.code2wav import Code2WavState, code2wav_step, restart_rows
from ..models.code_predictor import Predictor
from ..models.talker import TextTrack
from ..nn.cache import init_cache
from ..shapes import Array, Bool, Float, Int, Params
from ..sharding import follow_params
from .speech import (
  ENDED,
  PERIODS,
  RUNNING,
  Draws,
  SpeechLimits,
  SpeechState,
  begin_speech,
  next_frame,
  talker_of,
  whole_text,
  why_ended,
)
from .talker_inputs import TalkerInputs


class TalkerPrompts(flax.struct.PyTreeNode):
  """Replies to be spoken, one a lane. Prompts are compact: the user's tokens, then the assistant's header of three tokens."""

  slot: Int[Array, ' P']  # an unused lane has the number of slots
  ids: Int[Array, 'P U3']
  tap: Float[Array, 'P U3 D']  # read at media tokens only
  inputs: TalkerInputs
  reply: Int[Array, 'P K']
  reply_length: Int[Array, ' P']
  speaker: Int[Array, ' P']


def empty_speech(cfg: OmniConfig, slots: int, length: int, dtype) -> tuple[SpeechState, TextTrack]:
  """`slots` free slots for Talker prompts and frames of up to `length` together."""
  talker = talker_of(cfg)
  D = talker.text.hidden_size
  zeros = lambda: jnp.zeros(slots, jnp.int32)  # an array of its own each: the state is donated
  special = lambda: jnp.zeros(D, dtype)
  state = SpeechState(
    cache=init_cache(talker.text, slots, length, dtype),
    filled=zeros(),
    position=jnp.zeros(slots, jnp.float32),
    hidden=jnp.zeros((slots, D), dtype),
    code0=zeros(),
    reason=jnp.full(slots, ENDED, jnp.int32),
    codes=jnp.zeros((slots, length, talker.num_code_groups), jnp.int32),
    frames=zeros(),
    seen=jnp.zeros((slots, talker.text.vocab_size), bool),
    repeats=jnp.zeros((slots, PERIODS), jnp.int32),
  )
  return state, TextTrack(jnp.zeros((slots, length, D), dtype), zeros(), special(), special(), special())


@follow_params
@functools.partial(jax.jit, static_argnames=('cfg', 'dtype'), donate_argnames=('state', 'text'))
def begin_talk(
  params: Params, cfg: OmniConfig, state: SpeechState, text: TextTrack, prompts: TalkerPrompts, draws: Draws, dtype
) -> tuple[SpeechState, TextTrack]:
  """Talker prompts into their slots, and the first code 0 of each. draws: of the lanes."""
  slots, P = state.reason.shape[0], prompts.slot.shape[0]
  used = prompts.slot < slots
  slot = jnp.where(used, prompts.slot, slots + jnp.arange(P, dtype=jnp.int32))  # an unused lane is put nowhere
  track = whole_text(params, cfg, prompts.reply, prompts.reply_length, dtype)
  tokens = prompts.inputs.positions.shape[2]
  ids, tap, inputs = prompts.ids, prompts.tap, prompts.inputs
  new = begin_speech(params, cfg, ids, tap, inputs, track, prompts.speaker, draws, used, slots=tokens, frames=1)
  put = lambda old, new: old.at[slot].set(new.astype(old.dtype), mode='drop')
  # what a slot held past the new prompt, and its codes past the frames of now, nobody reads
  cache = jax.tree.map(lambda c, n: c.at[:, slot, :, :tokens].set(n.astype(c.dtype), mode='drop'), state.cache, new.cache)
  rest = jax.tree.map(put, state.replace(cache=None, codes=None), new.replace(cache=None, codes=None))
  rows = text.rows.at[slot, : prompts.reply.shape[1]].set(track.rows.astype(text.rows.dtype), mode='drop')
  text = TextTrack(rows, put(text.count, track.count), track.bos, track.eos, track.pad)
  return rest.replace(cache=cache, codes=state.codes), text


@follow_params
@functools.partial(jax.jit, static_argnames=('cfg',), donate_argnames=('state',))
def speak_slots(
  params: Params,
  cfg: OmniConfig,
  predictor: Predictor,
  state: SpeechState,
  text: TextTrack,
  draws: Draws,
  limits: SpeechLimits,
  steps: Int[Array, ''],
  idle_limit: Int[Array, ''],
) -> tuple[SpeechState, Int[Array, '']]:
  """(state after up to `steps` frames of all slots, frames run). idle_limit: stops when so many slots have no running row."""
  all_there = jnp.ones(state.reason.shape[0], bool)
  guard = lambda state: state.replace(reason=why_ended(state, text, all_there, limits))
  state = guard(state)

  def more(carry):
    i, state = carry
    return (i < steps) & ((state.reason != RUNNING).sum() < jnp.minimum(idle_limit, state.reason.shape[0]))

  def body(carry):
    i, state = carry
    return i + 1, guard(next_frame(params, cfg, predictor, state, text, state.reason == RUNNING, draws))

  run, state = jax.lax.while_loop(more, body, (jnp.int32(0), state))
  return state, run


@follow_params
@functools.partial(jax.jit, static_argnames=('cfg', 'dtype'), donate_argnames=('state',))
def vocode_lanes(
  params: Params, cfg: OmniConfig, codes: Int[Array, 'P F Q'], state: Code2WavState, fresh: Bool[Array, ' P'], dtype
) -> tuple[Float[Array, 'P W'], Code2WavState]:
  """The next F frames of every lane. fresh: lanes that begin a new reply."""
  assert cfg.code2wav is not None
  return code2wav_step(params['code2wav'], cfg.code2wav, codes, restart_rows(state, fresh), dtype=dtype)
