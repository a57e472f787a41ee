"""Slots of the Thinker: prompts are fed piece by piece into rows of a running State while other rows decode.

A slot is a row of `decode.State`. Free and filling slots are `done`, so a decode step does not change them. Prompts come in
pieces of a few fixed sizes; the last piece samples the first token, and then the slot decodes. All lanes of a call run
together, as all slots do in a decode step: the weights are read once. Arrays always have the same shape and no sum goes over
rows, so a row gives the same bits beside any others (for the experts on CPU see nn/expert_loop.py). An unused lane takes no
experts and writes nowhere; otherwise it costs as much as a used one.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp

from ..config import ThinkerConfig
from ..models.thinker import Features, ThinkerTokens, logits, thinker_extend
from ..nn.cache import KVCache, init_cache
from ..shapes import Array, Bool, Float, Int, Params
from ..sharding import follow_params
from .decode import Limits, State, step
from .sampling import SamplingRows, penalise, sample


class Piece(flax.struct.PyTreeNode):
  """Pieces of prompts, one a lane ('P' lanes of up to 'C' tokens), padded at their ends."""

  slot: Int[Array, ' P']  # where it belongs; an unused lane has the number of slots
  start: Int[Array, ' P']  # tokens of the prompt before it
  ids: Int[Array, 'P C']
  positions: Float[Array, '3 P C']
  segment: Int[Array, 'P C']  # 1 = token, 0 = padding
  last: Bool[Array, ' P']  # the prompt ends with it
  limit: Int[Array, ' P']  # tokens of output
  next_position: Float[Array, ' P']
  media: Bool[Array, 'P C'] | None = None  # tokens whose input is a feature; None: there are none in these pieces
  features: Float[Array, 'J P C D'] | None = None  # [0] the input, [1:] deepstack levels (zeros for sound)


def empty_slots(cfg: ThinkerConfig, slots: int, length: int, dtype) -> State:
  """`slots` free slots for prompts and replies of up to `length` tokens together."""
  zeros = lambda: jnp.zeros(slots, jnp.int32)  # an array of its own each: the state is donated
  return State(
    cache=init_cache(cfg.text, slots, length, dtype),
    filled=zeros(),
    position=jnp.zeros(slots, jnp.float32),
    token=zeros(),
    done=jnp.ones(slots, bool),
    output=jnp.zeros((slots, length), jnp.int32),
    count=zeros(),
    seen=jnp.zeros((slots, cfg.text.vocab_size), bool),
  )


@follow_params
@functools.partial(jax.jit, static_argnames=('cfg', 'dtype', 'tap_layer'), donate_argnames=('state',))
def feed_pieces(
  params: Params,
  cfg: ThinkerConfig,
  state: State,
  piece: Piece,
  sampling: SamplingRows,
  stop: Int[Array, ' X'],
  dtype,
  tap_layer: int | None = None,
) -> tuple[State, Float[Array, 'P C D'] | None]:
  """The pieces into their slots; and the tapped states of their tokens, for the Talker. params: the Thinker's.

  Slots whose prompt ends get their first token. Several lanes may hold pieces of one prompt, in any order. sampling: of the
  lanes, stop: padded with -1.
  """
  slots, P, C = state.done.shape[0], *piece.ids.shape
  vocab = cfg.text.vocab_size
  nowhere = slots + jnp.arange(P, dtype=jnp.int32)  # no two alike, so that every index is written once
  slot = jnp.where(piece.slot < slots, piece.slot, nowhere)
  index, features = None, Features()
  if piece.media is not None and piece.features is not None:
    index = jnp.where(piece.media, jnp.arange(P * C, dtype=jnp.int32).reshape(P, C), -1)
    together = piece.features.reshape(-1, P * C, piece.features.shape[-1])
    features = Features(visual=together[0], deepstack=together[1:], lanes=P)
  tokens = ThinkerTokens(piece.ids, piece.positions, piece.segment, visual_index=index)
  out, cache = thinker_extend(
    params, cfg, tokens, features, piece.start, state.cache, rows=slot, tap_layer=tap_layer, dtype=dtype
  )
  length = (piece.segment != 0).sum(axis=1, dtype=jnp.int32)
  begins, ends = (jnp.where(mask, slot, nowhere) for mask in (piece.start == 0, piece.last))
  assert state.seen is not None  # the slots of a batch always count them: penalties come and go with rows
  ids = jnp.where(piece.segment != 0, piece.ids, vocab)
  seen = state.seen.at[begins].set(False, mode='drop').at[slot[:, None], ids].set(True, mode='drop')

  def first_tokens():
    last = jnp.take_along_axis(out.hidden, jnp.maximum(length - 1, 0)[:, None, None], axis=1)[:, 0]
    scores = penalise(logits(params, last), seen.at[ends].get(mode='clip'), sampling.repetition_penalty)
    return sample(scores, sampling, jnp.zeros(P, jnp.int32))

  token = jax.lax.cond(piece.last.any(), first_tokens, lambda: jnp.zeros(P, jnp.int32))
  over = (token[:, None] == stop).any(axis=1) | (piece.limit <= 1)
  put = lambda old, where, new: old.at[where].set(new, mode='drop')
  state = state.replace(
    cache=cache,
    filled=put(state.filled, begins, 0).at[slot].max(piece.start + length, mode='drop'),
    position=put(state.position, ends, piece.next_position),
    token=put(state.token, ends, token),
    done=put(put(state.done, slot, True), ends, over),
    output=state.output.at[ends, 0].set(token, mode='drop'),
    count=put(put(state.count, slot, 0), ends, 1),
    seen=seen.at[ends, token].set(True, mode='drop'),
  )
  return state, out.tap


def _window(cache: KVCache, row, start, size: int) -> KVCache:
  """Keys and values of `size` tokens of one row: 'L 1 K C H'."""
  cut = lambda c: jax.lax.dynamic_slice(c, (0, row, 0, start, 0), (c.shape[0], 1, c.shape[2], size, c.shape[4]))
  return KVCache(cut(cache.k), cut(cache.v))


def _put_window(state: State, slot, start, window: KVCache, seen: Bool[Array, ' V'], filled) -> State:
  put = lambda c, new: jax.lax.dynamic_update_slice(c, new.astype(c.dtype), (0, slot, 0, start, 0))
  assert state.seen is not None
  return state.replace(
    cache=KVCache(put(state.cache.k, window.k), put(state.cache.v, window.v)),
    filled=state.filled.at[slot].set(filled),
    done=state.done.at[slot].set(True),
    count=state.count.at[slot].set(0),
    seen=state.seen.at[slot].set(seen),
  )


@functools.partial(jax.jit, static_argnames=('size',))
def take_piece(cache: KVCache, slot: Int[Array, ''], start: Int[Array, ''], size: int) -> KVCache:
  """A copy of the keys and values of `size` tokens of a slot, to be put into others."""
  return _window(cache, slot, start, size)


@functools.partial(jax.jit, donate_argnames=('state',))
def put_piece(state: State, slot: Int[Array, ''], start: Int[Array, ''], window: KVCache, ids: Int[Array, ' C']) -> State:
  """A piece that another row has computed, into a slot that is filled up to it."""
  assert state.seen is not None
  seen = jnp.where(start == 0, False, state.seen[slot]).at[ids].set(True)
  return _put_window(state, slot, start, window, seen, start + ids.shape[0])


@functools.partial(jax.jit, donate_argnames=('larger',))
def move_slot(smaller: State, larger: State, slot: Int[Array, ''], to: Int[Array, '']) -> State:
  """`larger` with a row of `smaller`, that is full, in its slot `to`: it goes on there."""
  start = jnp.int32(0)
  size = smaller.cache.k.shape[3]
  assert smaller.seen is not None
  window = _window(smaller.cache, slot, start, size)
  state = _put_window(larger, to, start, window, smaller.seen[slot], smaller.filled[slot])
  output = jnp.zeros(state.output.shape[1], jnp.int32).at[: smaller.output.shape[1]].set(smaller.output[slot])
  return state.replace(
    position=state.position.at[to].set(smaller.position[slot]),
    token=state.token.at[to].set(smaller.token[slot]),
    done=state.done.at[to].set(False),
    output=state.output.at[to].set(output),
    count=state.count.at[to].set(smaller.count[slot]),
  )


@follow_params
@functools.partial(jax.jit, static_argnames=('cfg', 'dtype'), donate_argnames=('state',))
def decode_slots(
  params: Params,
  cfg: ThinkerConfig,
  state: State,
  sampling: SamplingRows,
  limits: Limits,
  steps: Int[Array, ''],
  idle_limit: Int[Array, ''],
  dtype,
) -> tuple[State, Int[Array, '']]:
  """(state after up to `steps` steps of all slots, steps run). idle_limit: stops when so many slots have no live row."""

  def more(carry):
    i, state = carry
    return (i < steps) & (state.done.sum() < jnp.minimum(idle_limit, state.done.shape[0]))

  def body(carry):
    i, state = carry
    return i + 1, step(params, cfg, state, sampling, limits, dtype)[0]

  run, state = jax.lax.while_loop(more, body, (jnp.int32(0), state))
  return state, run
