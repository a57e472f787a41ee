"""Slots of the Thinker: prompts are fed piece by piece into rows of a running State while other rows decode.

A slot is a row of `decode.State`. Free and filling slots are `done`, so a decode step leaves them alone. Prompts come in pieces
of a few fixed sizes; the last piece samples the first token and sets the slot going. **Lanes are run one after another**, each on
arrays of its own row alone, so that what a row computes cannot depend on what runs beside it, not even by rounding; unused
lanes cost nothing. Decode steps run all slots together: their arrays always have the same shape, whatever is in the slots.
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


@flax.struct.dataclass
class Piece:
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
  params: Params, cfg: ThinkerConfig, state: State, piece: Piece, sampling: SamplingRows, stop: Int[Array, ' X'], dtype,
  tap_layer: int | None = None,
) -> tuple[State, Float[Array, 'P C D'] | None]:  # fmt: skip
  """The pieces into their slots; and the tapped states of their tokens, for the Talker. params: the Thinker's.

  Slots whose prompt ends get their first token. sampling: of the lanes, stop: padded with -1.
  """
  slots, C = state.done.shape[0], piece.ids.shape[1]

  def one_lane(state: State, lane):
    piece, sampling = lane

    def run(state: State):
      slot, start = piece.slot, piece.start
      row = jax.tree.map(lambda c: jax.lax.dynamic_slice_in_dim(c, slot, 1, axis=1), state.cache)
      index = None if piece.media is None else jnp.where(piece.media, jnp.arange(C, dtype=jnp.int32), -1)[None]
      features = Features()
      if piece.features is not None:
        features = Features(visual=piece.features[0], deepstack=piece.features[1:])
      tokens = ThinkerTokens(piece.ids[None], piece.positions[:, None], piece.segment[None], visual_index=index)
      out, row = thinker_extend(params, cfg, tokens, features, start[None], row, tap_layer=tap_layer, dtype=dtype)
      length = piece.segment.sum()
      assert state.seen is not None  # the slots of a batch always count them: penalties come and go with rows
      seen = jnp.where(start == 0, False, state.seen[slot])
      seen = seen.at[jnp.where(piece.segment != 0, piece.ids, seen.shape[0])].set(True, mode='drop')
      state = _put_window(state, slot, start, _window(row, 0, start, C), seen, start + length)

      def begin(state: State):
        scores = logits(params, jax.lax.dynamic_slice_in_dim(out.hidden[0], length - 1, 1))
        rows = jax.tree.map(lambda a: a[None], sampling)
        scores = penalise(scores, seen[None], rows.repetition_penalty)
        token = sample(scores, rows, jnp.zeros(1, jnp.int32))[0]
        return state.replace(
          position=state.position.at[slot].set(piece.next_position),
          token=state.token.at[slot].set(token),
          done=state.done.at[slot].set((token == stop).any() | (piece.limit <= 1)),
          output=state.output.at[slot, 0].set(token),
          count=state.count.at[slot].set(1),
          seen=state.seen.at[slot, token].set(True) if state.seen is not None else None,
        )

      return jax.lax.cond(piece.last, begin, lambda state: state, state), None if out.tap is None else out.tap[0]

    nothing = None if tap_layer is None else jnp.zeros((C, cfg.text.hidden_size), dtype)
    return jax.lax.cond(piece.slot < slots, run, lambda state: (state, nothing), state)

  lanes = piece.replace(
    positions=jnp.moveaxis(piece.positions, 1, 0),
    features=None if piece.features is None else jnp.moveaxis(piece.features, 1, 0),
  )
  return jax.lax.scan(one_lane, state, (lanes, sampling))


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
  params: Params, cfg: ThinkerConfig, state: State, sampling: SamplingRows, limits: Limits, steps: Int[Array, ''],
  refill: Bool[Array, ''], dtype,
) -> tuple[State, Int[Array, '']]:  # fmt: skip
  """Up to `steps` steps of all slots; and how many were run. refill: stop as soon as a row ends, others wait for its slot."""
  before = state.done.sum()

  def more(carry):
    i, state = carry
    ended = state.done.sum()
    return (i < steps) & (ended < state.done.shape[0]) & ~(refill & (ended > before))

  def body(carry):
    i, state = carry
    return i + 1, step(params, cfg, state, sampling, limits, dtype)[0]

  run, state = jax.lax.while_loop(more, body, (jnp.int32(0), state))
  return state, run
