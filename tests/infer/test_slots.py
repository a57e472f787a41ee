"""Pieces of prompts in lanes: what comes of a piece is its own, to the last bit, in any lane and any company (float32, CPU)."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from qwen3_omni_jax import Omni
from qwen3_omni_jax.infer import slots, speech_slots
from qwen3_omni_jax.infer.batch import Engine
from qwen3_omni_jax.infer.batch_plan import EngineConfig
from qwen3_omni_jax.infer.prepare import Row
from qwen3_omni_jax.infer.sampling import SamplingRows
from qwen3_omni_jax.infer.talker_inputs import TalkerInputs
from qwen3_omni_jax.models.talker import OPENING
from qwen3_omni_jax.models.thinker import thinker_spec
from tests.arrays import params_of

LANES, C, SLOTS, LENGTH = 6, 24, 10, 80
NARROW = 20


@pytest.fixture(scope='module')
def omni(tiny_folder):
  return Omni.load(tiny_folder, dtype='float32')


@pytest.fixture(scope='module')
def wide(omni):
  """A Thinker so wide that on CPU a sum over its width is made in another order in a matmul of 16 rows than in one of 96."""
  sizes = dict(hidden_size=512, moe_intermediate_size=192, num_experts=4, num_experts_per_tok=2)
  cfg = dataclasses.replace(omni.cfg.thinker, text=dataclasses.replace(omni.cfg.thinker.text, **sizes))
  params = {'thinker': params_of(thinker_spec(cfg))}
  return types.SimpleNamespace(cfg=types.SimpleNamespace(thinker=cfg), params=params, dtype=omni.dtype)


@dataclasses.dataclass
class Part:
  """A piece of a prompt, made of its seed. alike: all its tokens are one, so that a few experts have them all."""

  slot: int
  seed: int
  tokens: int = C
  start: int = 0
  last: bool = True
  alike: bool = False


@dataclasses.dataclass
class Feeder:
  """Feeds parts into an empty state, one dict of lanes a call, with or without features at a third of their tokens."""

  omni: types.SimpleNamespace
  media: bool

  def __call__(self, *calls: dict[int, Part]):
    cfg = self.omni.cfg.thinker
    state = slots.empty_slots(cfg, SLOTS, LENGTH, self.omni.dtype)
    taps = {}
    for lanes in calls:
      piece, sampling = self._arrays(lanes)
      stop, params = np.array([-1], np.int32), self.omni.params['thinker']
      state, tap = slots.feed_pieces(params, cfg, state, piece, sampling, stop, self.omni.dtype, 2)
      taps |= {(part.slot, part.start): np.asarray(tap[lane, : part.tokens]) for lane, part in lanes.items()}
    return jax.tree.map(np.asarray, state), taps

  def _arrays(self, lanes: dict[int, Part]) -> tuple[slots.Piece, SamplingRows]:
    cfg, many = self.omni.cfg.thinker, np.zeros(LANES, np.int32)
    levels = 1 + len(cfg.vision.deepstack_visual_indexes)
    piece = slots.Piece(
      slot=np.full(LANES, SLOTS, np.int32),
      start=many.copy(),
      ids=np.zeros((LANES, C), np.int32),
      positions=np.zeros((3, LANES, C), np.float32),
      segment=np.zeros((LANES, C), np.int32),
      last=np.zeros(LANES, bool),
      limit=many + 9,
      next_position=np.zeros(LANES, np.float32),
      media=np.zeros((LANES, C), bool) if self.media else None,
      features=np.zeros((levels, LANES, C, cfg.text.hidden_size), np.float32) if self.media else None,
    )
    sampling = SamplingRows(
      np.full(LANES, 0.8, np.float32),
      many + NARROW,
      np.full(LANES, 0.9, np.float32),
      np.full(LANES, 1.3, np.float32),
      many.astype(np.uint32),
      candidates=(NARROW,),
    )
    for lane, part in lanes.items():
      rng, n = np.random.default_rng(part.seed), part.tokens
      ids, features = rng.integers(0, cfg.text.vocab_size, n), rng.standard_normal((levels, n, cfg.text.hidden_size))
      piece.slot[lane], piece.start[lane], piece.last[lane] = part.slot, part.start, part.last
      piece.ids[lane, :n], piece.segment[lane, :n] = ids[0] if part.alike else ids, 1
      piece.positions[:, lane, :n], piece.next_position[lane] = part.start + np.arange(n), part.start + n
      sampling.seed[lane] = part.seed
      if piece.media is not None and piece.features is not None:
        piece.media[lane, :n:3], piece.features[:, lane, :n] = True, features
    return piece, sampling


def of_slot(state, slot: int) -> dict[str, np.ndarray]:
  """All that is known of a row."""
  filled = state.filled[slot]
  rest = {f.name: getattr(state, f.name)[slot] for f in dataclasses.fields(state) if f.name != 'cache'}
  return {'k': state.cache.k[:, slot, :, :filled], 'v': state.cache.v[:, slot, :, :filled], **rest}


def assert_same_bits(found: dict, expected: dict, case):
  for name, value in expected.items():
    np.testing.assert_array_equal(found[name], value, err_msg=f'{case}: {name}')


@pytest.mark.parametrize('media', [False, True])
@pytest.mark.parametrize('tokens', [C, C - 7])
def test_a_piece_is_the_same_bits_in_any_lane_and_any_company(wide, media, tokens):
  feed, rng = Feeder(wide, media), np.random.default_rng(tokens)
  me = Part(slot=3, seed=7, tokens=tokens)
  state, taps = feed({0: me})
  expected, tap = of_slot(state, 3), taps[3, 0]
  assert expected['filled'] == tokens and expected['count'] == 1 and not expected['done'] and expected['seen'].sum() > 1
  slots_of_others = [0, 1, 2, 4, 5, 6]
  for trial in range(4 * LANES):
    lane, kind = LANES - 1 - trial % LANES, trial // LANES
    lanes = {lane: me}
    for i in set(range(LANES)) - {lane} if kind else ():
      if kind == 1:  # all their tokens are one: two experts have nearly all rows of the call
        lanes[i] = Part(slots_of_others[i], 50, alike=True)
      elif rng.random() < 0.7:
        lanes[i] = Part(slots_of_others[i], int(rng.integers(1000)), int(rng.integers(1, C + 1)))
    state, taps = feed(lanes)
    assert_same_bits(of_slot(state, 3), expected, (trial, lanes))
    np.testing.assert_array_equal(taps[3, 0], tap)


def test_pieces_of_one_prompt_are_the_same_bits_in_one_call_or_several(wide):
  """In any lanes, and after another row has used the slot."""
  feed = Feeder(wide, False)
  parts = [Part(5, 30 + i, C - 9 * (i == 2), i * C, i == 2) for i in range(3)]
  state, _ = feed(*({0: part} for part in parts))
  expected = of_slot(state, 5)
  assert expected['filled'] == 3 * C - 9 and expected['count'] == 1
  old, other = Part(5, 99), Part(1, 98, 11)
  for calls in (
    [{0: parts[0], 1: parts[1], 2: parts[2]}],
    [{4: parts[0], 2: other, 0: parts[1], 1: parts[2]}],
    [{3: parts[0], 5: other}, {2: parts[1], 0: parts[2]}],
    [{1: old}, {2: parts[0], 3: parts[1]}, {1: parts[2]}],
  ):
    state, _ = feed(*calls)
    assert_same_bits(of_slot(state, 5), expected, calls)


def test_an_unused_lane_changes_nothing(wide):
  feed = Feeder(wide, False)
  state, _ = feed({0: Part(2, 1)})
  for slot in set(range(SLOTS)) - {2}:
    row = of_slot(state, slot)
    assert row['done'] and not any(row[name].any() for name in ('filled', 'count', 'token', 'position', 'seen', 'output'))
  assert not np.delete(state.cache.k, 2, axis=1).any()


def test_a_spoken_reply_begins_with_the_same_bits_in_any_lane_and_any_company(omni):
  """The Talker's prompt in its slot, its text track, and the first code."""
  cfg, P, U, K = omni.cfg, 4, 32, 2
  params = omni.params

  def begin(lanes: dict[int, tuple[int, int]]):
    """lanes: slot and seed of each."""
    many = np.zeros(P, np.int32)
    inputs = TalkerInputs(
      np.broadcast_to(np.arange(U, dtype=np.int32), (P, U)),
      np.zeros((P, U), bool),
      many.copy(),
      many + U,
      np.zeros((3, P, U + OPENING), np.float32),
      np.zeros(P, np.float32),
    )
    prompts = speech_slots.TalkerPrompts(
      many + SLOTS,
      np.zeros((P, U + 3), np.int32),
      np.zeros((P, U + 3, cfg.thinker.text.hidden_size), np.float32),
      inputs,
      np.zeros((P, U), np.int32),
      many.copy(),
      many.copy(),
    )
    for lane, (slot, seed) in lanes.items():
      rng = np.random.default_rng(seed)
      n, prompts.reply_length[lane] = rng.integers(9, U), rng.integers(1, 9)
      prompts.slot[lane], inputs.length[lane], inputs.media[lane, : n // K] = slot, n, True
      prompts.ids[lane], prompts.reply[lane] = rng.integers(0, 900, U + 3), rng.integers(0, 900, U)
      prompts.tap[lane], inputs.positions[:, lane] = rng.standard_normal(prompts.tap[lane].shape), np.arange(U + OPENING)
    seeds = [lanes[lane][1] if lane in lanes else 0 for lane in range(P)]
    state, text = speech_slots.empty_speech(cfg, SLOTS, 64, omni.dtype)
    state, text = speech_slots.begin_talk(params, cfg, state, text, prompts, omni.voice.draws(cfg, seeds), omni.dtype)
    n, length = state.filled[3], text.count[3]
    rest = {f.name: getattr(state, f.name)[3] for f in dataclasses.fields(state) if f.name != 'cache'}
    keys, values = state.cache.k[:, 3, :, :n], state.cache.v[:, 3, :, :n]
    return {**rest, 'k': keys, 'v': values, 'length': length, 'text': text.rows[3, :length]}

  expected = begin({0: (3, 7)})
  assert expected['filled'] > OPENING and expected['length'] > 0 and expected['k'].any()
  for lanes in ({2: (3, 7)}, {3: (3, 7), 0: (1, 8)}, {1: (3, 7), 0: (0, 1), 2: (5, 2), 3: (9, 3)}):
    assert_same_bits(begin(lanes), expected, lanes)


def test_prompts_are_fed_in_full_calls_while_rows_wait(omni, monkeypatch):
  """A slot that comes free waits until there are enough for a call; the last rows do not wait."""
  plain, used = slots.feed_pieces, []

  def feed(params, cfg, state, piece, *rest):
    used.append(int(piece.segment.any(axis=1).sum()))
    return plain(params, cfg, state, piece, *rest)

  monkeypatch.setattr(slots, 'feed_pieces', feed)
  rows = [Row(f'{i}', [{'role': 'user', 'content': f'Question {i}?'}], 2 + 3 * i % 7, temperature=0.0) for i in range(40)]
  config = EngineConfig(slots=16, lengths=(64,), pieces=(32, 32), lanes=4, ahead=40)
  assert not [r.error for r in Engine(omni, config, stop_token_ids=()).answer(rows) if r.error]
  assert sum(used) == len(rows) and len(used) <= 16, used
