"""Continuous batching: answers many conversations with one model and refills a slot as soon as its row has ended.

    engine = Engine(omni, EngineConfig(slots=64), voice=omni.voice)
    for result in engine.answer(rows):     # in the order in which they are finished
      ...

Threads prepare rows (media, template, tokens); slots of the Thinker generate text, slots of the Talker codes, and lanes of the
vocoder samples. Each stage holds different rows at the same time. The answer to a row does not depend on the other rows, on
their order, or on what was computed before (see docs/batch.md).
"""

import concurrent.futures
import dataclasses
import itertools
import logging
import time
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np

from ..sharding import jitted
from . import media_batch, slots, speech_slots
from .batch_plan import EngineConfig
from .omni import Omni
from .prefix_cache import LruStore, PieceDemand
from .prepare import Item, PreparedRow, PromptPiece, Row, RowError, prepare
from .reply import Reply
from .talker_pool import SpokenRequest, TalkerPool, Vocoder, spoken_request
from .thinker_pool import ActiveRow, ThinkerPool
from .voice import Speech, Voice

log = logging.getLogger(__name__)
NARROW_CANDIDATES = 64  # logits that rows of a small top_k draw from


@dataclasses.dataclass(frozen=True)
class Result:
  """What became of a row: a reply, or an error and its kind. timings: seconds since the row was taken up, by stage."""

  row: Row
  reply: Reply | None
  kind: str | None = None
  error: str | None = None
  seed: int | None = None
  timings: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Stats:
  """Counts of a run. *_live: slots at work, *_steps: slots there were, summed over steps (or frames); waiting_*: the same
  while rows waited for a slot."""

  prompt_tokens: int = 0
  padded_tokens: int = 0
  reused_tokens: int = 0
  output_tokens: int = 0
  frames: int = 0
  wave_frames: int = 0
  wave_padding: int = 0
  encoded_items: int = 0
  reused_items: int = 0
  thinker_live: int = 0
  thinker_steps: int = 0
  talker_live: int = 0
  talker_steps: int = 0
  occupied: int = 0
  occupied_of: int = 0
  peak_use: float = 0.0
  halvings: int = 0
  moved_rows: int = 0


class Engine:
  """The slots of one loaded checkpoint. voice: speech settings of all rows that are to be spoken; None: text only.

  An engine answers one stream of rows at a time; its compiled programs and caches serve the next.
  """

  def __init__(
    self, omni: Omni, config: EngineConfig | None = None, voice: Voice | None = None, stop_token_ids: Sequence[int] | None = None
  ):
    self.omni = omni
    self.config = config or EngineConfig()
    self.voice = omni.voice_for(voice) if voice is not None else omni.voice
    self.speaks = voice is not None
    self.stop_ids = omni.defaults.stop_ids(stop_token_ids)
    self.stop = np.array([*self.stop_ids, -1], np.int32)
    self.tap_layer = omni.cfg.talker.accept_hidden_layer if self.speaks and omni.cfg.talker is not None else None
    self.max_tokens = min(self.config.lengths[-1], omni.cfg.thinker.text.max_position_embeddings)
    self.widths: tuple[int, ...] = ()
    self.features = LruStore(self.config.feature_bytes, lambda value: value.nbytes)
    size = lambda piece: 2 * piece.window.k.nbytes + (0 if piece.tap is None else piece.tap.nbytes)
    self.prefix_store = LruStore(self.config.prefix_bytes, size)
    self.stats = Stats()
    self._reset()

  def _reset(self) -> None:
    self.demand = PieceDemand()
    self.thinkers: dict[int, ThinkerPool] = {}
    self.talkers: dict[int, TalkerPool] = {}
    self.vocoder = Vocoder(self) if self.speaks else None

  # ---- admission

  def answer(self, rows: Iterable[Row]) -> Iterator[Result]:
    """Results in the order in which they are finished. A row that cannot be answered gives a Result with an error; the others go
    on. rows is read ahead by a few rows only."""
    source = iter(rows)
    ahead = self.config.ahead or 2 * self.config.slots
    voice = self.voice if self.speaks else None
    self._alive: dict[int, tuple[PreparedRow, float]] = {}
    ids = itertools.count()
    with concurrent.futures.ThreadPoolExecutor(self.config.workers, 'prepare') as threads:
      pending: dict[concurrent.futures.Future, tuple[Row, float]] = {}
      more_rows = True
      try:
        while True:
          room = ahead - len(pending) - self._waiting()
          while more_rows and room > 0:
            row = next(source, None)
            if row is None:
              more_rows = False
              break
            future = threads.submit(prepare, self.omni, row, self.config.pieces, self.max_tokens, voice)
            pending[future] = (row, time.perf_counter())
            room -= 1
          idle = not self._busy()
          if idle and not pending:
            if not more_rows:
              return
            continue
          if idle:
            concurrent.futures.wait(pending, return_when=concurrent.futures.FIRST_COMPLETED)
          for future in [f for f in pending if f.done()]:
            row, started = pending.pop(future)
            try:
              self._admit(future.result(), started, next(ids))
            except RowError as e:
              yield Result(row, None, e.kind, str(e))
            except Exception as e:  # one row must not end the run
              yield Result(row, None, 'internal', f'{type(e).__name__}: {e}'[:500])
          yield from self._turn_or_halve(more_rows or bool(pending))
      finally:
        for future in pending:
          future.cancel()
        self._reset()

  def _admit(self, prepared: PreparedRow, started: float, number: int) -> None:
    sampling = prepared.sampling
    if sampling.temperature > 0:
      vocab = self.omni.cfg.thinker.text.vocab_size
      narrow = min(NARROW_CANDIDATES, vocab)
      width = narrow if 0 < sampling.top_k <= narrow else vocab
      self.widths = tuple(sorted({*self.widths, width}))
    prepared.number = number
    self._alive[number] = (prepared, started)
    self._enqueue(prepared)

  def _enqueue(self, prepared: PreparedRow) -> None:
    self.demand.request([piece.key for piece in prepared.pieces[:-1]])
    self._pool(self.config.length_class(prepared.length(self.config.room))).waiting.append(prepared)

  def _pool(self, length: int) -> ThinkerPool:
    if length not in self.thinkers:
      self.thinkers[length] = ThinkerPool(self, length)
    return self.thinkers[length]

  def _waiting(self) -> int:
    return sum(len(pool.waiting) for pool in self.thinkers.values())

  def _busy(self) -> bool:
    pools = [*self.thinkers.values(), *self.talkers.values()]
    return any(pool.busy for pool in pools) or (self.vocoder is not None and self.vocoder.busy)

  # ---- scheduling

  def _turn_or_halve(self, more_rows: bool) -> list[Result]:
    """A turn; if memory runs out, drops everything on the device and begins again with half the slots."""
    try:
      return self._turn(more_rows)
    except jax.errors.JaxRuntimeError as e:
      if 'RESOURCE_EXHAUSTED' not in str(e) or self.config.slots == 1:
        raise
    halved = self.config.halved()
    log.warning('out of memory: %d slots become %d, rows in them begin again', self.config.slots, halved.slots)
    self.config = halved
    self.prefix_store.clear()
    self._reset()
    self.stats.halvings += 1
    for prepared, _ in self._alive.values():
      self._enqueue(prepared)
    return []

  def _turn(self, more_rows: bool) -> list[Result]:
    """One pass over every stage: dispatches all calls, then collects what has ended. more_rows: rows are still to come."""
    for pool in list(self.thinkers.values()):
      self._run_thinker(pool, more_rows)
    for pool in self.talkers.values():
      frames_next = self._worth_running(pool.load, pool.slots)
      while pool.begin(frames_next, self._thinker_busy()):
        pass
      pool.steps_run = None
      if frames_next:
        pool.speak(self.config.frames, bool(pool.waiting))
    vocoder = self.vocoder
    ran_vocoder = vocoder is not None and self._worth_running(vocoder.load, vocoder.size) and vocoder.run()
    return [*self._collect_texts(), *self._collect_codes(), *(self._collect_waves() if ran_vocoder else ())]

  def _worth_running(self, rows: int, places: int) -> bool:
    """Whether a later stage should run: it is nearly full, or the Thinker has no more rows for it.

    A call costs the same for one row as for all, and a batch job need not return a single answer early.
    """
    return 4 * rows >= 3 * places or (rows > 0 and not self._thinker_busy())

  def _run_thinker(self, pool: ThinkerPool, more_rows: bool) -> None:
    pool.assign()
    occupied = sum(1 for row in pool.rows if row is not None)
    self.stats.peak_use = max(self.stats.peak_use, occupied / pool.slots)
    if pool.waiting:
      self.stats.occupied += occupied
      self.stats.occupied_of += pool.slots
    while pool.feed(more_rows):  # a step costs the same for one row as for all: first every slot that can be is set going
      pass
    pool.steps_run = None
    if pool.decoding:
      pool.decode(self.config.steps, bool(pool.waiting) or more_rows)

  def _collect_texts(self) -> Iterator[Result]:
    """Results of rows whose text is complete; those to be spoken go on to the Talker."""
    for pool in list(self.thinkers.values()):
      if pool.steps_run is not None:
        steps = int(pool.steps_run)
        self.stats.thinker_live += steps * pool.live
        self.stats.thinker_steps += steps * pool.slots
      if any(row is not None and row.decoding for row in pool.rows):
        finished, full = pool.take_finished()
        for row in full:
          self.stats.moved_rows += 1
          self._pool(self.config.length_class(pool.length + 1)).promoted.append((pool, row))
        for row, tokens in finished:
          if (result := self._finish_text(row, tokens)) is not None:
            yield result

  def _collect_codes(self) -> Iterator[Result]:
    """Passes rows whose codes are complete to the vocoder; rows without a frame are finished."""
    for pool in self.talkers.values():
      if pool.steps_run is None:
        continue
      steps = int(pool.steps_run)
      self.stats.talker_live += steps * pool.live
      self.stats.talker_steps += steps * pool.slots
      for row in pool.take_finished():
        assert row.codes is not None and self.vocoder is not None
        self.stats.frames += len(row.codes)
        if len(row.codes):
          self.vocoder.waiting.append(row)
        else:
          yield self._finish_speech(row, np.zeros(0, np.float32))

  def _collect_waves(self) -> Iterator[Result]:
    assert self.vocoder is not None
    for row, samples in self.vocoder.take_finished():
      yield self._finish_speech(row, samples)

  def _thinker_busy(self) -> bool:
    return any(pool.busy for pool in self.thinkers.values())

  def encode(self, chosen: Sequence[tuple[ActiveRow, PromptPiece]]) -> None:
    """Encodes the media of these pieces where they are not cached; other rows' media of the same shapes fill the calls."""
    needed = [(row, item) for row, piece in chosen for item in piece.items]
    for row, item in needed:
      if item.key not in row.features and (value := self.features.get(item.key)) is not None:
        row.features[item.key] = value
        self.stats.reused_items += 1
    while missing := [item for row, item in needed if item.key not in row.features]:
      group = self._encoder_group(missing)
      values = media_batch.encode_items(
        self.omni.params, self.omni.cfg.thinker, group, self.config.encoder_lanes, self.omni.dtype
      )
      self.stats.encoded_items += len(group)
      for key, value in values.items():
        self.features.put(key, value)
      for row, item in needed:
        if item.key in values:
          row.features[item.key] = values[item.key]

  def _encoder_group(self, missing: list[Item]) -> list[Item]:
    """The first missing item, then others of its shape: of these pieces, of rows in slots, of rows that wait."""
    first = missing[0]
    pools = self.thinkers.values()
    rows = [row.prepared for pool in pools for row in pool.filling] + [row for pool in pools for row in pool.waiting]
    group: dict[bytes, Item] = {}
    for item in itertools.chain(missing, (item for row in rows for item in row.items)):
      if len(group) == self.config.encoder_lanes:
        break
      if (item.kind, item.shape) == (first.kind, first.shape) and item.key not in self.features:
        group.setdefault(item.key, item)
    return list(group.values())

  # ---- results

  def _finish_text(self, row: ActiveRow, tokens: list[int]) -> Result | None:
    """The result of a row whose text is complete, or None if it goes on to the Talker."""
    self.stats.output_tokens += len(tokens)
    stopped = bool(tokens) and tokens[-1] in self.stop_ids
    say = len(tokens) - stopped
    row.written = time.perf_counter()
    if row.prepared.speech and self.speaks:
      if say == 0:
        return self._result(row, tokens, Speech(np.zeros(0, np.float32), np.zeros((0, self._codebooks), np.int32), 'stop'))
      request = spoken_request(self, row, tokens, say)
      length = self.config.speech_class(request.needed)
      if length not in self.talkers:
        self.talkers[length] = TalkerPool(self, length)
      self.talkers[length].waiting.append(request)
      return None
    return self._result(row, tokens, None)

  @property
  def _codebooks(self) -> int:
    return self.omni.cfg.talker.num_code_groups if self.omni.cfg.talker is not None else 0

  def _finish_speech(self, row: SpokenRequest, samples: np.ndarray) -> Result:
    assert row.codes is not None
    return self._result(row.active, row.tokens, Speech(samples, row.codes, row.reason))

  def _result(self, row: ActiveRow, tokens: list[int], speech: Speech | None) -> Result:
    prepared, started = self._alive.pop(row.prepared.number)
    now = time.perf_counter()
    times = {'slot_s': row.started, 'first_token_s': row.first_token, 'text_s': row.written, 'total_s': now}
    timings = {name: round(t - started, 6) for name, t in times.items()}
    reply = Reply.of(self.omni.processor.tokenizer, prepared.inputs.ids, tokens, self.stop_ids, timings, speech)
    return Result(prepared.row, reply, seed=prepared.sampling.seed, timings=timings)


def answer_rows(
  omni: Omni,
  rows: Iterable[Row],
  config: EngineConfig | None = None,
  voice: Voice | None = None,
  stop_token_ids: Sequence[int] | None = None,
) -> Iterator[Result]:
  """Results of all rows, in the order in which they are finished. voice: `omni.voice` or another, if any row is to be spoken."""
  return Engine(omni, config, voice, stop_token_ids).answer(rows)


def compiled_programs() -> dict[str, int]:
  """How many programs of each kind this process has compiled for engines so far."""
  functions = {
    'feed_pieces': slots.feed_pieces,
    'decode_slots': slots.decode_slots,
    'take_piece': slots.take_piece,
    'put_piece': slots.put_piece,
    'move_slot': slots.move_slot,
    'encode_audio': media_batch.encode_audio_lanes,
    'encode_visual': media_batch.encode_visual_lanes,
    'begin_talk': speech_slots.begin_talk,
    'speak_slots': speech_slots.speak_slots,
    'vocode_lanes': speech_slots.vocode_lanes,
  }
  return {name: jitted(function)._cache_size() for name, function in functions.items()}
