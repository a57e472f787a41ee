"""The Thinker's side of the batch engine on the host: which row sits in which slot, and what each call feeds."""

import dataclasses
import time
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from . import slots as device
from .decode import Limits
from .prefix_cache import KeptPiece
from .prepare import Prepared, PromptPiece
from .sampling import SamplingRows

if TYPE_CHECKING:
  from .batch import Engine


@dataclasses.dataclass(eq=False)
class Active:
  """A row in a slot. taps: (start, length, states) of the pieces whose media the Talker will read."""

  prepared: Prepared
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
    self.waiting: deque[Prepared] = deque()
    self.coming: deque[tuple[ThinkerPool, Active]] = deque()  # rows of smaller pools that are full
    self.rows: list[Active | None] = [None] * self.slots
    self.filling: list[Active] = []
    self.live, self.steps_run = 0, None  # of the last call: rows at work, and steps run (on device)
    self.state = device.empty_slots(engine.omni.cfg.thinker, self.slots, length, engine.omni.dtype)
    number = self.slots
    self.temperature, self.top_p = np.zeros(number, np.float32), np.ones(number, np.float32)
    self.top_k, self.seed = np.ones(number, np.int32), np.zeros(number, np.uint32)
    self.penalty, self.limit = np.ones(number, np.float32), np.zeros(number, np.int32)

  @property
  def busy(self) -> bool:
    return bool(self.waiting or self.coming) or any(self.rows)

  @property
  def decoding(self) -> int:
    return sum(1 for row in self.rows if row is not None and row.decoding)

  def assign(self) -> None:
    """Gives free slots to rows that come from smaller ones, then to waiting rows, oldest first."""
    for slot in [slot for slot, row in enumerate(self.rows) if row is None]:
      if self.coming:
        smaller, row = self.coming.popleft()
        self.state = device.move_slot(smaller.state, self.state, np.int32(row.slot), np.int32(slot))
        smaller.rows[row.slot] = None
        row.slot, row.decoding = slot, True
      elif self.waiting:
        row = Active(self.waiting.popleft(), slot, time.perf_counter())
        self.filling.append(row)
      else:
        return
      self.rows[slot] = row
      sampling = row.prepared.sampling
      vocab = self.engine.omni.cfg.thinker.text.vocab_size
      self.temperature[slot], self.top_p[slot] = sampling.temperature, sampling.top_p
      self.top_k[slot], self.seed[slot] = min(sampling.top_k or vocab, vocab), sampling.seed
      self.penalty[slot], self.limit[slot] = sampling.repetition_penalty, self._limit(row.prepared)

  def _limit(self, prepared: Prepared) -> int:
    """Tokens of a row's reply that there is room for here."""
    return min(prepared.max_new_tokens, self.length - len(prepared.inputs.ids))

  # ---- prompts

  def feed(self, more: bool) -> bool:
    """One call of pieces, after what other rows have already computed was copied. False if there was nothing to feed, or so
    little that it waits for other rows' slots. more: rows are still to come."""
    for row in self.filling:
      self._reuse(row)
    chosen = self._choose()
    few = len(chosen) < self.engine.config.lanes and self.slots - self.decoding < self.engine.config.together(self.slots)
    if not chosen or (few and (more or self.waiting)):
      return False
    self.engine.encode(chosen)
    self._run(chosen)
    self.filling = [row for row in self.filling if not row.decoding]
    return True

  def _reuse(self, row: Active) -> None:
    """Copies pieces that are kept into the row's slot, up to the last piece, which gives its first token."""
    while not row.on_last and row.next.key in self.engine.kept:
      piece, kept = row.next, self.engine.kept.get(row.next.key)
      ids = row.prepared.inputs.ids[piece.start : piece.start + piece.length]
      self.state = device.put_piece(self.state, np.int32(row.slot), np.int32(piece.start), kept.window, ids)
      self.engine.stats.reused_tokens += piece.length
      self._passed(row, piece, None if kept.tap is None else Tap(kept.tap))

  def _passed(self, row: Active, piece: PromptPiece, tap: Tap | None) -> None:
    if tap is not None and row.prepared.speech and piece.items:
      row.taps.append((piece.start, piece.length, tap))
    if not row.on_last:
      self.engine.wanted.served(piece.key)
    row.piece += 1

  def _choose(self) -> list[tuple[Active, PromptPiece]]:
    """Pieces for one call, in order: of one size, all with media or all without, no two that are the same computation."""
    chosen: list[tuple[Active, PromptPiece]] = []
    kind, now = None, set()
    for row in self.filling:
      pieces = row.prepared.pieces
      for at in range(row.piece, len(pieces)):
        piece = pieces[at]
        like = (piece.size, bool(piece.items))
        kind = kind or like
        if like != kind or len(chosen) == self.engine.config.lanes:
          break
        if piece.key in now and at < len(pieces) - 1:
          break  # another lane of this call computes it; it will be copied
        if self.engine.wanted.others(piece.key):
          now.add(piece.key)
        chosen.append((row, piece))
    return chosen

  def _run(self, chosen: list[tuple[Active, PromptPiece]]) -> None:
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
    where = np.zeros(P, np.int32)
    for lane, (row, piece) in enumerate(chosen):
      prepared, here = row.prepared, slice(piece.start, piece.start + piece.length)
      n, inputs = piece.length, prepared.inputs
      lanes.slot[lane] = where[lane] = row.slot
      lanes.start[lane], lanes.ids[lane, :n], lanes.segment[lane, :n] = piece.start, inputs.ids[here], 1
      lanes.positions[:, lane, :n] = inputs.positions[:, here]
      if piece is prepared.pieces[-1]:
        lanes.last[lane], lanes.limit[lane] = True, self._limit(prepared)
        lanes.next_position[lane] = inputs.positions.max() + 1
      if media:
        self._place(lanes, lane, row, piece, here)
    sampling = self._sampling(where)
    self.state, tap = device.feed_pieces(
      engine.omni.params['thinker'], cfg, self.state, lanes, sampling, engine.stop, dtype, engine.tap_layer
    )
    now = time.perf_counter()
    for lane, (row, piece) in enumerate(chosen):
      mine = Tap(tap, lane) if tap is not None and piece.items else None
      last = row.on_last
      if not last and (engine.wanted.others(piece.key) or engine.wanted.worth_keeping(piece.key)):
        window = device.take_piece(self.state.cache, np.int32(row.slot), np.int32(piece.start), C)
        engine.kept.put(piece.key, KeptPiece(window, None if mine is None else mine.array()))
      self._passed(row, piece, mine)
      if last:
        row.decoding, row.first_token = True, now
    stats = engine.stats
    stats.prompt_tokens += sum(piece.length for _, piece in chosen)
    stats.padded_tokens += sum(C - piece.length for _, piece in chosen)

  def _place(self, lanes: device.Piece, lane: int, row: Active, piece: PromptPiece, here: slice) -> None:
    """The features of a piece, each at its token."""
    items, item_of = row.prepared.items, row.prepared.item_of[here]
    feature_of = row.prepared.feature_of[here]
    assert lanes.features is not None and lanes.media is not None
    for i in np.unique(item_of[item_of >= 0]):
      at = np.flatnonzero(item_of == i)
      values = row.features[items[i].key]  # 'J n D'; sound has J = 1
      lanes.features[: len(values), lane, at] = values[:, feature_of[at]]
      lanes.media[lane, at] = True

  # ---- replies

  def _sampling(self, where: np.ndarray | None = None) -> SamplingRows:
    pick = (lambda a: a) if where is None else (lambda a: a[where])
    return SamplingRows(
      *(pick(a) for a in (self.temperature, self.top_k, self.top_p, self.penalty, self.seed)), candidates=self.engine.widths
    )

  def decode(self, steps: int, refill: bool) -> None:
    """Steps of all slots; dispatched only. refill: rows wait for slots, so stop when there are enough for a call of pieces."""
    self.live = self.decoding
    idle = self.slots - self.live
    enough = max(idle + 1, self.engine.config.together(self.slots)) if refill else self.slots
    engine = self.engine
    limits = Limits(engine.stop, self.limit)
    self.state, self.steps_run = device.decode_slots(
      engine.omni.params['thinker'],
      engine.omni.cfg.thinker,
      self.state,
      self._sampling(),
      limits,
      np.int32(steps),
      np.int32(enough),
      engine.omni.dtype,
    )

  def harvest(self) -> tuple[list[tuple[Active, list[int]]], list[Active]]:
    """Rows whose reply is finished, with its tokens: their slots are free again. And rows that are full: they keep theirs until
    there is a larger one."""
    done, count = np.asarray(self.state.done), np.asarray(self.state.count)
    over = [row for row in self.rows if row is not None and row.decoding and done[row.slot]]
    output = np.asarray(self.state.output) if over else None
    finished, full = [], []
    for row in over:
      assert output is not None
      tokens = output[row.slot, : count[row.slot]].tolist()
      if len(tokens) < row.prepared.max_new_tokens and tokens[-1] not in self.engine.stop_ids:
        row.decoding = False
        full.append(row)
      else:
        self.rows[row.slot] = None
        finished.append((row, tokens))
    return finished, full
