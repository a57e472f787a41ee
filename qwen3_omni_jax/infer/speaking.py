"""Speech on the host: spoken batches, and one reply streamed while its text is still being generated."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from ..media.turns import speaker_code
from ..models.code2wav import init_state, lead_samples, sample_count
from ..models.talker import OPENING, TextTrack
from . import speech as device
from .collate import bucket
from .talker_inputs import Prompt, talker_inputs
from .voice import DEFAULT_SCHEDULE, RATE_HZ, AudioChunk, Speech, Voice

if TYPE_CHECKING:
  from .omni import Omni

FRAMES_PER_CALL = 50  # frames between two looks from the host, when nothing is streamed


@dataclasses.dataclass(frozen=True)
class TalkerContext:
  """The prompt as the Talker sees it after prefill: its ids and the Thinker's tapped hidden states, both on device."""

  ids: jnp.ndarray
  tap: jnp.ndarray


class Speaker:
  """The speech of one batch: what is fixed for all its frames, and the state of the loop.

  The Talker's prompt needs each row's first token; later tokens come with the `text` of `run`.
  """

  def __init__(
    self,
    omni: 'Omni',
    rows: Sequence[Prompt],
    talker_context: TalkerContext,
    speakers: Sequence[str],
    seeds: Sequence[int],
    max_frames: Sequence[int],
    max_tokens: Sequence[int],
    voice: Voice,
    reference_exact: bool,
  ):
    self.omni, self.rows, self.talker_context = omni, rows, talker_context
    self.voice, self.reference_exact = voice, reference_exact
    cfg = omni.cfg
    assert cfg.talker is not None and cfg.code2wav is not None
    self.batch = talker_context.ids.shape[0]
    extra = self.batch - len(rows)
    codes = [speaker_code(cfg.talker, name) for name in speakers]
    self.inputs = talker_inputs(rows, cfg, self.batch, reference_exact=reference_exact)
    self.speaker = jnp.array(codes + codes[:1] * extra, jnp.int32)
    self.draws = voice.draws(cfg, [*seeds, *[0] * extra])
    self.limits = voice.limits([*max_frames, *[0] * extra])
    self.frames = bucket(voice.most_frames(max_frames, max_tokens), 8)
    self.slots = bucket(self.inputs.index.shape[1] + OPENING + self.frames)
    self.state: device.SpeechState | None = None

  def begin(self, text: TextTrack, live: np.ndarray) -> None:
    """Prefills the Talker. live: rows that have something to say."""
    self.state = device.begin_speech(
      self.omni.params,
      self.omni.cfg,
      self.talker_context.ids,
      self.talker_context.tap,
      self.inputs,
      text,
      self.speaker,
      self.draws,
      jnp.asarray(live),
      slots=self.slots,
      frames=self.frames,
    )

  def run(self, text: TextTrack, text_done: bool, steps: int) -> None:
    """Up to `steps` more frames of every row that has text for them."""
    done = jnp.full(self.batch, text_done)
    self.state = device.speak(
      self.omni.params, self.omni.cfg, self.omni.predictor, self.state, text, done, self.draws, self.limits, jnp.int32(steps)
    )

  @property
  def ended(self) -> bool:
    assert self.state is not None
    return bool((np.asarray(self.state.reason) != device.RUNNING).all())

  def spoken(self, samples: np.ndarray) -> Speech:
    """The finished speech of a single row whose samples were streamed."""
    assert self.state is not None
    codes = np.asarray(self.state.codes[0, : int(self.state.frames[0])])
    return Speech(samples, codes, device.REASONS[int(self.state.reason[0])])

  def results(self) -> list[Speech]:
    """The finished speech of every row, its wave decoded whole."""
    assert self.state is not None and self.omni.cfg.code2wav is not None
    cfg = self.omni.cfg.code2wav
    frames, reasons = np.asarray(self.state.frames), np.asarray(self.state.reason)
    codes = self.state.codes[:, : max(bucket(int(frames.max())), 1)]
    decode = device.decode_wave_like_reference if self.reference_exact else device.decode_wave
    # A row's frames after its end are zeros; nothing before the end depends on them.
    waves = np.asarray(decode(self.omni.params, self.omni.cfg, codes, dtype=self.omni.dtype))
    codes = np.asarray(codes)
    chunk = 300 if self.reference_exact else None
    return [
      Speech(waves[b, : sample_count(cfg, n, chunk)], codes[b, :n], device.REASONS[reasons[b]])
      for b, n in enumerate(frames[: len(self.rows)])
    ]


def spoken_tokens(counts: np.ndarray, stopped: np.ndarray, reference_exact: bool) -> np.ndarray:
  """Tokens to speak of each reply: all but the stop token. The reference also leaves out the last token of a reply that was
  cut by its limit."""
  return np.where(stopped | reference_exact, np.maximum(counts - 1, 0), counts).astype(np.int32)


def speak_replies(speaker: Speaker, output: jnp.ndarray, reply_length: np.ndarray) -> list[Speech]:
  """Speech of complete replies. output: token ids 'B O'; reply_length: how many of them each row speaks."""
  text = device.whole_text(speaker.omni.params, speaker.omni.cfg, output, jnp.asarray(reply_length), dtype=speaker.omni.dtype)
  speaker.begin(text, reply_length > 0)
  while not speaker.ended:
    speaker.run(text, True, FRAMES_PER_CALL)
  return speaker.results()


class WaveStream:
  """Chunks of one row's wave as its frames come, by a schedule of chunk sizes."""

  def __init__(self, speaker: Speaker, schedule: Sequence[int] = DEFAULT_SCHEDULE):
    if not schedule or min(schedule) < 1:
      raise ValueError(f'chunk schedule {tuple(schedule)}: expected frame counts of 1 or more')
    self.speaker, self.schedule = speaker, tuple(schedule)
    self.sent = self.chunks = 0
    assert speaker.omni.cfg.code2wav is not None
    self.cfg = speaker.omni.cfg.code2wav
    self.state = init_state(self.cfg, 1, speaker.omni.dtype)

  @property
  def next_size(self) -> int:
    """Frames of the next chunk."""
    return self.schedule[min(self.chunks, len(self.schedule) - 1)]

  def ready(self, last: bool = False) -> Iterator[AudioChunk]:
    """Every chunk the frames so far complete; with `last`, what remains too."""
    state = self.speaker.state
    assert state is not None
    frames = int(state.frames[0])
    while frames - self.sent >= self.next_size or (last and frames > self.sent):
      size, real = self.next_size, min(self.next_size, frames - self.sent)
      codes = np.zeros((1, size, state.codes.shape[2]), np.int32)
      codes[0, :real] = np.asarray(state.codes[0, self.sent : self.sent + real])
      omni = self.speaker.omni
      wave, self.state = device.decode_wave_chunk(omni.params, omni.cfg, codes, self.state, dtype=omni.dtype)
      lead = lead_samples(self.cfg) if self.sent == 0 else 0  # samples before the beginning of the wave
      yield AudioChunk(np.asarray(wave)[0, lead : real * self.cfg.samples_per_frame], RATE_HZ, self.sent)
      self.sent += real
      self.chunks += 1
