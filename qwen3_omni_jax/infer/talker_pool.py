"""The Talker's half of the batch engine, on the host: codes in slots of the Talker, then samples in lanes of the vocoder."""

import dataclasses
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from ..media.turns import speaker_code
from ..models.code2wav import init_state, lead_samples
from ..models.talker import HEADER, OPENING
from . import speech_slots as device
from .batch_plan import PROMPT_CLASSES, prompt_class
from .prepare import PreparedRow, compact_prompt
from .speech import REASONS, RUNNING, SpeechLimits
from .talker_inputs import TalkerInputs, talker_inputs
from .thinker_pool import ActiveRow

if TYPE_CHECKING:
  from .batch import Engine


@dataclasses.dataclass(eq=False)
class SpokenRequest:
  """A complete text reply that is to be spoken."""

  active: ActiveRow
  tokens: list[int]  # the whole reply
  reply_length: int  # tokens to speak: without the stop token
  frames: int  # at most
  index: np.ndarray  # the prompt's user tokens
  header: int
  slot: int = -1
  codes: np.ndarray | None = None
  reason: str = ''

  @property
  def prepared(self) -> PreparedRow:
    return self.active.prepared

  @property
  def needed(self) -> int:
    """Tokens of the padded Talker prompt, and frames."""
    return self.prompt_class + OPENING + self.frames + 1

  @property
  def prompt_class(self) -> int:
    """Size to which the Talker's prompt is padded; PROMPT_CLASSES[-1] is beyond any model's length."""
    return prompt_class(min(max(len(self.index), min(self.reply_length, self.frames + 1)), PROMPT_CLASSES[-1]))


def spoken_request(engine: 'Engine', active: ActiveRow, tokens: list[int], reply_length: int) -> SpokenRequest:
  prepared, voice = active.prepared, engine.voice
  index, header = compact_prompt(prepared, engine.omni.cfg)
  frames = voice.most_frames([prepared.max_frames], [reply_length])
  return SpokenRequest(active, tokens, reply_length, frames, index, header)


class TalkerPool:
  """Slots of one length."""

  def __init__(self, engine: 'Engine', length: int):
    self.engine, self.length = engine, length
    self.slots = engine.config.slots_of(length, speech=True)
    self.waiting: deque[SpokenRequest] = deque()
    self.rows: list[SpokenRequest | None] = [None] * self.slots
    self.live, self.steps_run = 0, None  # of the last call: rows at work, and steps run (on device)
    self.state, self.text = device.empty_speech(engine.omni.cfg, self.slots, length, engine.omni.dtype)
    self.seeds, self.frames = [0] * self.slots, [0] * self.slots

  @property
  def busy(self) -> bool:
    return bool(self.waiting) or any(self.rows)

  @property
  def running(self) -> int:
    return sum(1 for row in self.rows if row is not None)

  @property
  def load(self) -> int:
    """Slots that are taken, or would be at once."""
    return min(self.slots, self.running + len(self.waiting))

  def begin(self, frames_next: bool, more_rows: bool) -> bool:
    """One call of Talker prompts of one padded size into free slots.

    Returns False if there is no prompt, or so few that they wait for others. frames_next: frames are computed next. more_rows:
    rows are still to come.
    """
    free = [slot for slot, row in enumerate(self.rows) if row is None]
    if not free or not self.waiting:
      return False
    config, size = self.engine.config, self.waiting[0].prompt_class
    lanes = config.lanes_of(size)
    chosen = [row for row in self.waiting if row.prompt_class == size][: min(lanes, len(free))]
    others = more_rows or len(self.waiting) > len(chosen)
    underfilled = not frames_next or (others and len(free) < config.min_free_slots(self.slots))
    if underfilled and len(chosen) < lanes:
      return False
    for row, slot in zip(chosen, free, strict=False):
      self.waiting.remove(row)
      row.slot, self.rows[slot] = slot, row
      self.seeds[slot], self.frames[slot] = row.prepared.sampling.seed, row.frames
    self._run(chosen, size)
    return True

  def _run(self, chosen: list[SpokenRequest], U: int) -> None:
    engine, P = self.engine, self.engine.config.lanes_of(U)
    cfg, dtype = engine.omni.cfg, engine.omni.dtype
    inputs = TalkerInputs(
      index=np.broadcast_to(np.arange(U, dtype=np.int32), (P, U)),
      media=np.zeros((P, U), bool),
      length=np.zeros(P, np.int32),
      header=np.full(P, U, np.int32),
      positions=np.zeros((3, P, U + OPENING), np.float32),
      next_position=np.zeros(P, np.float32),
    )
    prompts = device.TalkerPrompts(
      slot=np.full(P, self.slots, np.int32),
      ids=np.zeros((P, U + HEADER), np.int32),
      tap=np.zeros((P, U + HEADER, cfg.thinker.text.hidden_size), dtype),
      inputs=inputs,
      reply=np.zeros((P, U), np.int32),
      reply_length=np.zeros(P, np.int32),
      speaker=np.zeros(P, np.int32),
    )
    for lane, row in enumerate(chosen):
      prompt, n = row.prepared.inputs, len(row.index)
      one = talker_inputs([prompt], cfg)
      inputs.media[lane, :n], inputs.length[lane] = one.media[0, :n], n
      inputs.positions[:, lane, : n + OPENING] = one.positions[:, 0, : n + OPENING]
      inputs.next_position[lane] = one.next_position[0]
      prompts.slot[lane], prompts.reply_length[lane] = row.slot, row.reply_length
      prompts.ids[lane, :n] = prompt.ids[row.index]
      prompts.ids[lane, U:] = prompt.ids[row.header : row.header + HEADER]
      tokens = row.tokens[: min(row.reply_length, U)]
      prompts.reply[lane, : len(tokens)] = tokens
      prompts.speaker[lane] = speaker_code(cfg.talker, row.prepared.speaker)
      for start, length, tap in row.active.taps:
        at = np.flatnonzero((row.index >= start) & (row.index < start + length))
        prompts.tap[lane, at] = tap.array()[row.index[at] - start]
    seeds = [row.prepared.sampling.seed for row in chosen] + [0] * (P - len(chosen))
    draws = engine.voice.draws(cfg, seeds)
    self.state, self.text = device.begin_talk(engine.omni.params, cfg, self.state, self.text, prompts, draws, dtype)

  def speak(self, steps: int, refill: bool) -> None:
    """Dispatches frames of all slots. refill: rows wait for slots, so stop when enough are free for a call of prompts."""
    omni, voice = self.engine.omni, self.engine.voice
    self.live = self.running
    idle_limit = max(self.slots - self.live + 1, self.engine.config.min_free_slots(self.slots)) if refill else self.slots
    limits: SpeechLimits = voice.limits(self.frames)
    self.state, self.steps_run = device.speak_slots(
      omni.params,
      omni.cfg,
      omni.predictor,
      self.state,
      self.text,
      voice.draws(omni.cfg, self.seeds),
      limits,
      np.int32(steps),
      np.int32(idle_limit),
    )

  def take_finished(self) -> list[SpokenRequest]:
    """Rows whose speech has ended, with their codes; their slots are free again."""
    reason = np.asarray(self.state.reason)
    ended = [row for row in self.rows if row is not None and reason[row.slot] != RUNNING]
    if ended:
      frames, codes = np.asarray(self.state.frames), np.asarray(self.state.codes)
      for row in ended:
        row.codes, row.reason = codes[row.slot, : frames[row.slot]].copy(), REASONS[reason[row.slot]]
        self.rows[row.slot] = None
    return ended


@dataclasses.dataclass(eq=False)
class _Lane:
  row: SpokenRequest
  sent: int = 0
  pieces: list[np.ndarray] = dataclasses.field(default_factory=list)


class Vocoder:
  """Turns codes into samples, `wave_frames` frames of every lane a call; a lane takes the next reply when its own is done."""

  def __init__(self, engine: 'Engine'):
    self.engine = engine
    self.size = engine.config.vocoder_lanes
    self.waiting: deque[SpokenRequest] = deque()
    self.lanes: list[_Lane | None] = [None] * self.size
    assert engine.omni.cfg.code2wav is not None
    self.cfg = engine.omni.cfg.code2wav
    self.state = init_state(self.cfg, self.size, engine.omni.dtype)
    self._wave = None

  @property
  def busy(self) -> bool:
    return bool(self.waiting) or any(self.lanes)

  @property
  def load(self) -> int:
    """Replies in lanes and waiting for one."""
    return len(self.waiting) + sum(lane is not None for lane in self.lanes)

  def run(self) -> bool:
    """Dispatches one call; False if nothing is to be decoded."""
    fresh = np.zeros(self.size, bool)
    for i, lane in enumerate(self.lanes):
      if lane is None and self.waiting:
        self.lanes[i], fresh[i] = _Lane(self.waiting.popleft()), True
    if not any(self.lanes):
      return False
    omni, F = self.engine.omni, self.engine.config.wave_frames
    codes = np.zeros((self.size, F, self.cfg.num_quantizers), np.int32)
    for i, lane in enumerate(self.lanes):
      if lane is not None and lane.row.codes is not None:
        part = lane.row.codes[lane.sent : lane.sent + F]
        codes[i, : len(part)] = part
    self._wave, self.state = device.vocode_lanes(omni.params, omni.cfg, codes, self.state, fresh, omni.dtype)
    return True

  def take_finished(self) -> list[tuple[SpokenRequest, np.ndarray]]:
    """Replies whose samples are complete."""
    if self._wave is None:
      return []
    wave, self._wave = np.asarray(self._wave), None
    cfg, F, ended = self.cfg, self.engine.config.wave_frames, []
    for i, lane in enumerate(self.lanes):
      if lane is None or lane.row.codes is None:
        continue
      real = min(F, len(lane.row.codes) - lane.sent)
      lead = lead_samples(cfg) if lane.sent == 0 else 0
      lane.pieces.append(wave[i, lead : real * cfg.samples_per_frame].copy())
      lane.sent += real
      self.engine.stats.wave_frames += real
      self.engine.stats.wave_padding += F - real
      if lane.sent >= len(lane.row.codes):
        ended.append((lane.row, np.concatenate(lane.pieces)))
        self.lanes[i] = None
    return ended
