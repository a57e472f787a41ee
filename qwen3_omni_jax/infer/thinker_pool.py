"""The Thinker's half of the batch engine, on the host: which row is in which slot, and what each call computes."""

import dataclasses
import time
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from . import slots as device
from .decode import Limits
from .prefix_cache import CachedPiece
from .prepare import PreparedRow, PromptPiece
from .sampling import SamplingRows

if TYPE_CHECKING:
  from .batch import Engine


@dataclasses.dataclass(eq=False)
class ActiveRow:
  """A row in a slot. taps: (start, length, states) of the pieces whose media the Talker will read."""

  prepared: PreparedRow
  slot: int
  started: float
  piece: int = 0
  decoding: bool = False
  first_token: float = 0.0
  written: float = 0.0
  taps: list[tuple[int, int, 'Tap']] = dataclasses.field(default_factory=list)
  features: dict[bytes, np.ndarray] = dataclasses.field(default_factory=dict)

  @property
  def next(self) -> PromptPiece:
    return self.prepared.pieces[self.piece]

  @property
  def on_last(self) -> bool:
    return self.piece == len(self.prepared.pieces) - 1


class Tap:
  """Tapped states of one call's lanes, fetched from the device once, when somebody reads them."""

  def __init__(self, lanes, lane: int | None = None):
    self.lanes, self.lane = lanes, lane

  def array(self) -> np.ndarray:
    return np.asarray(self.lanes if self.lane is None else self.lanes[self.lane])


class ThinkerPool:
  """Slots of one length."""

  def __init__(self, engine: 'Engine', length: int):
    self.engine, self.length = engine, length
    self.slots = engine.config.slots_of(length)
    self.waiting: deque[PreparedRow] = deque()
    self.promoted: deque[tuple[ThinkerPool, ActiveRow]] = deque()  # rows that filled their slot in a smaller pool
    self.rows: list[ActiveRow | None] = [None] * self.slots
    self.filling: list[ActiveRow] = []
    self.live, self.steps_run = 0, None  # of the last call: rows at work, and steps run (on device)
    self.state = device.empty_slots(engine.omni.cfg.thinker, self.slots, length, engine.omni.dtype)
    number = self.slots
    self.temperature, self.top_p = np.zeros(number, np.float32), np.ones(number, np.float32)
    self.top_k, self.seed = np.ones(number, np.int32), np.zeros(number, np.uint32)
    self.penalty, self.limit = np.ones(number, np.float32), np.zeros(number, np.int32)

  @property
  def busy(self) -> bool:
    return bool(self.waiting or self.promoted) or any(self.rows)

  @property
  def decoding(self) -> int:
    return sum(1 for row in self.rows if row is not None and row.decoding)

  def assign(self) -> None:
    """Gives free slots to rows promoted from smaller slots, then to waiting rows, oldest first."""
    for slot in [slot for slot, row in enumerate(self.rows) if row is None]:
      if self.promoted:
        smaller, row = self.promoted.popleft()
        self.state = device.move_slot(smaller.state, self.state, np.int32(row.slot), np.int32(slot))
        smaller.rows[row.slot] = None
        row.slot, row.decoding = slot, True
      elif self.waiting:
        row = ActiveRow(self.waiting.popleft(), slot, time.perf_counter())
        self.filling.append(row)
      else:
        return
      self.rows[slot] = row
      sampling = row.prepared.sampling
      vocab = self.engine.omni.cfg.thinker.text.vocab_size
      self.temperature[slot], self.top_p[slot] = sampling.temperature, sampling.top_p
      self.top_k[slot], self.seed[slot] = min(sampling.top_k or vocab, vocab), sampling.seed
      self.penalty[slot], self.limit[slot] = sampling.repetition_penalty, self._limit(row.prepared)

  def _limit(self, prepared: PreparedRow) -> int:
    """Most tokens of a row's reply in a slot of this pool."""
    return min(prepared.max_new_tokens, self.length - len(prepared.inputs.ids))

  # ---- prompts

  def feed(self, more_rows: bool) -> bool:
    """One call of prompt pieces, after copying the pieces that are cached.

    Returns False if there was nothing to feed, or so few pieces that they wait for other rows' slots. more_rows: rows are still
    to come.
    """
    for row in self.filling:
      self._reuse(row)
    chosen = self._select_pieces()
    config, free = self.engine.config, self.slots - self.decoding
    underfilled = len(chosen) < config.lanes and free < config.min_free_slots(self.slots)
    if not chosen or (underfilled and (more_rows or self.waiting)):
      return False
    self.engine.encode(chosen)
    self._run(chosen)
    self.filling = [row for row in self.filling if not row.decoding]
    return True

  def _reuse(self, row: ActiveRow) -> None:
    """Copies cached pieces into the row's slot, up to but not including the last piece, which gives its first token."""
    while not row.on_last and row.next.key in self.engine.prefix_store:
      piece, cached = row.next, self.engine.prefix_store.get(row.next.key)
      ids = row.prepared.inputs.ids[piece.start : piece.start + piece.length]
      self.state = device.put_piece(self.state, np.int32(row.slot), np.int32(piece.start), cached.window, ids)
      self.engine.stats.reused_tokens += piece.length
      self._advance(row, piece, None if cached.tap is None else Tap(cached.tap))

  def _advance(self, row: ActiveRow, piece: PromptPiece, tap: Tap | None) -> None:
    if tap is not None and row.prepared.speech and piece.items:
      row.taps.append((piece.start, piece.length, tap))
    if not row.on_last:
      self.engine.demand.served(piece.key)
    row.piece += 1

  def _select_pieces(self) -> list[tuple[ActiveRow, PromptPiece]]:
    """Pieces for one call, in order: of one size, all with media or all without, no two that are the same computation."""
    chosen: list[tuple[ActiveRow, PromptPiece]] = []
    kind, now = None, set()
    for row in self.filling:
      pieces = row.prepared.pieces
      for at in range(row.piece, len(pieces)):
        piece = pieces[at]
        shape = (piece.size, bool(piece.items))
        kind = kind or shape
        if shape != kind or len(chosen) == self.engine.config.lanes:
          break
        if piece.key in now and at < len(pieces) - 1:
          break  # another lane of this call computes it; it will be copied
        if self.engine.demand.shared(piece.key):
          now.add(piece.key)
        chosen.append((row, piece))
    return chosen

  def _run(self, chosen: list[tuple[ActiveRow, PromptPiece]]) -> None:
    engine, P, C = self.engine, self.engine.config.lanes, chosen[0][1].size
    cfg, dtype = engine.omni.cfg.thinker, engine.omni.dtype
    media = bool(chosen[0][1].items)
    levels = 1 + len(cfg.vision.deepstack_visual_indexes)
    lanes = device.Piece(
      slot=np.full(P, self.slots, np.int32),
      start=np.zeros(P, np.int32),
      ids=np.zeros((P, C), np.int32),
      positions=np.zeros((3, P, C), np.float32),
      segment=np.zeros((P, C), np.int32),
      last=np.zeros(P, bool),
      limit=np.zeros(P, np.int32),
      next_position=np.zeros(P, np.float32),
      media=np.zeros((P, C), bool) if media else None,
      features=np.zeros((levels, P, C, cfg.text.hidden_size), dtype) if media else None,
    )
    lane_slots = np.zeros(P, np.int32)
    for lane, (row, piece) in enumerate(chosen):
      prepared, span = row.prepared, slice(piece.start, piece.start + piece.length)
      n, inputs = piece.length, prepared.inputs
      lanes.slot[lane] = lane_slots[lane] = row.slot
      lanes.start[lane], lanes.ids[lane, :n], lanes.segment[lane, :n] = piece.start, inputs.ids[span], 1
      lanes.positions[:, lane, :n] = inputs.positions[:, span]
      if piece is prepared.pieces[-1]:
        lanes.last[lane], lanes.limit[lane] = True, self._limit(prepared)
        lanes.next_position[lane] = inputs.positions.max() + 1
      if media:
        self._copy_features(lanes, lane, row, piece, span)
    sampling = self._sampling(lane_slots)
    self.state, tap = device.feed_pieces(
      engine.omni.params['thinker'], cfg, self.state, lanes, sampling, engine.stop, dtype, engine.tap_layer
    )
    now = time.perf_counter()
    for lane, (row, piece) in enumerate(chosen):
      lane_tap = Tap(tap, lane) if tap is not None and piece.items else None
      last = row.on_last
      if not last and (engine.demand.shared(piece.key) or engine.demand.worth_caching(piece.key)):
        window = device.take_piece(self.state.cache, np.int32(row.slot), np.int32(piece.start), C)
        engine.prefix_store.put(piece.key, CachedPiece(window, None if lane_tap is None else lane_tap.array()))
      self._advance(row, piece, lane_tap)
      if last:
        row.decoding, row.first_token = True, now
    stats = engine.stats
    stats.prompt_tokens += sum(piece.length for _, piece in chosen)
    stats.padded_tokens += sum(C - piece.length for _, piece in chosen)

  def _copy_features(self, lanes: device.Piece, lane: int, row: ActiveRow, piece: PromptPiece, span: slice) -> None:
    """The features of a piece, each at its token."""
    items, item_of = row.prepared.items, row.prepared.item_of[span]
    feature_of = row.prepared.feature_of[span]
    assert lanes.features is not None and lanes.media is not None
    for i in np.unique(item_of[item_of >= 0]):
      at = np.flatnonzero(item_of == i)
      values = row.features[items[i].key]  # 'J n D'; sound has J = 1
      lanes.features[: len(values), lane, at] = values[:, feature_of[at]]
      lanes.media[lane, at] = True

  # ---- replies

  def _sampling(self, lane_slots: np.ndarray | None = None) -> SamplingRows:
    pick = (lambda a: a) if lane_slots is None else (lambda a: a[lane_slots])
    return SamplingRows(
      *(pick(a) for a in (self.temperature, self.top_k, self.top_p, self.penalty, self.seed)), candidates=self.engine.widths
    )

  def decode(self, steps: int, refill: bool) -> None:
    """Dispatches decode steps of all slots. refill: rows wait for slots, so stop when enough are free for a call of pieces."""
    self.live = self.decoding
    idle = self.slots - self.live
    idle_limit = max(idle + 1, self.engine.config.min_free_slots(self.slots)) if refill else self.slots
    engine = self.engine
    limits = Limits(engine.stop, self.limit)
    self.state, self.steps_run = device.decode_slots(
      engine.omni.params['thinker'],
      engine.omni.cfg.thinker,
      self.state,
      self._sampling(),
      limits,
      np.int32(steps),
      np.int32(idle_limit),
      engine.omni.dtype,
    )

  def take_finished(self) -> tuple[list[tuple[ActiveRow, list[int]]], list[ActiveRow]]:
    """(finished rows with their tokens, full rows).

    Slots of finished rows are free again; a full row keeps its slot until a larger one is free.
    """
    done, count = np.asarray(self.state.done), np.asarray(self.state.count)
    ended = [row for row in self.rows if row is not None and row.decoding and done[row.slot]]
    output = np.asarray(self.state.output) if ended else None
    finished, full = [], []
    for row in ended:
      assert output is not None
      tokens = output[row.slot, : count[row.slot]].tolist()
      if len(tokens) < row.prepared.max_new_tokens and tokens[-1] not in self.engine.stop_ids:
        row.decoding = False
        full.append(row)
      else:
        self.rows[row.slot] = None
        finished.append((row, tokens))
    return finished, full
