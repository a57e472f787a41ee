"""Speech settings: the voice, sampling of codes, and limits for speech that does not end."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..config import OmniConfig
from .sampling import Sampling, sampling_rows
from .speech import Draws, SpeechLimits, speech_limits

RATE_HZ = 24_000  # of Code2Wav's output; fixed in the reference
DEFAULT_SPEAKER = 'Ethan'


@dataclasses.dataclass(frozen=True)
class Voice:
  """Speech settings of a call. The defaults are the published ones; a checkpoint's generation_config.json may set those of
  the Talker (`talker_temperature`, `talker_top_k`, `talker_top_p`, `talker_repetition_penalty`, `talker_max_new_tokens`).

  temperature 0 is greedy, for the code predictor too. Guards against speech that runs away (0 = off): at most
  frames_per_token × text tokens + 50 frames (speech takes 3 to 4), and a stop once code 0 has repeated itself for loop_frames.
  """

  temperature: float = 0.9
  top_k: int = 50
  top_p: float = 1.0
  repetition_penalty: float = 1.05
  predictor_temperature: float = 1.0
  predictor_top_k: int = 50
  predictor_top_p: float = 0.8
  max_frames: int = 4095
  frames_per_token: int = 16
  loop_frames: int = 50

  @classmethod
  def from_folder(cls, folder: str | pathlib.Path) -> 'Voice':
    """The checkpoint's defaults."""
    path = pathlib.Path(folder) / 'generation_config.json'
    data: dict[str, Any] = {}
    if path.is_file():
      data = json.loads(path.read_text(encoding='utf-8'))  # GenerationDefaults has reported what is not valid
    given = {name: data[key] for name, key in _KEYS.items() if isinstance(data.get(key), (int, float))}
    if 'talker_max_new_tokens' in data:
      given['max_frames'] = int(data['talker_max_new_tokens']) - 1  # the last code drawn never becomes a frame
    return cls(**given)

  def changed(self, **given: Any) -> 'Voice':
    """With every argument that is not None replaced; temperature 0 makes the code predictor greedy too."""
    given = {k: v for k, v in given.items() if v is not None}
    voice = dataclasses.replace(self, **given)
    if voice.temperature == 0 and 'predictor_temperature' not in given:
      voice = dataclasses.replace(voice, predictor_temperature=0.0)
    if not 0 < voice.max_frames < 2**20:
      raise ValueError(f'max_frames {voice.max_frames}: expected 1 or more')
    return voice

  def without_guards(self) -> 'Voice':
    return dataclasses.replace(self, frames_per_token=0, loop_frames=0)

  def draws(self, cfg: OmniConfig, seeds: Sequence[int]) -> Draws:
    """Sampling settings of rows with these seeds."""
    assert cfg.talker is not None
    talker = dict(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, repetition_penalty=self.repetition_penalty)
    predictor = dict(temperature=self.predictor_temperature, top_k=self.predictor_top_k, top_p=self.predictor_top_p)
    rows = lambda settings, vocab: sampling_rows([Sampling(**settings, seed=seed) for seed in seeds], vocab)
    return Draws(rows(talker, cfg.talker.text.vocab_size), rows(predictor, cfg.talker.code_predictor.vocab_size))

  def limits(self, max_frames: Sequence[int]) -> SpeechLimits:
    return speech_limits(list(max_frames), self.frames_per_token, _BASE_FRAMES, self.loop_frames)

  def most_frames(self, max_frames: Sequence[int], max_new_tokens: Sequence[int]) -> int:
    """Frames no row of a batch can exceed."""
    by_text = self.frames_per_token * max(max_new_tokens) + _BASE_FRAMES
    return min(max(max_frames), by_text) if self.frames_per_token else max(max_frames)


_BASE_FRAMES = 50
_KEYS = {
  'temperature': 'talker_temperature',
  'top_k': 'talker_top_k',
  'top_p': 'talker_top_p',
  'repetition_penalty': 'talker_repetition_penalty',
}


@dataclasses.dataclass(frozen=True)
class Speech:
  """A spoken reply. samples: float32 in [-1, 1] at rate_hz. codes: int32 'F Q', one row per 80 ms frame.

  finish_reason: 'stop' (the Talker ended), 'length' (max_frames), or the guard that cut it: 'runaway' or 'loop'.
  """

  samples: np.ndarray
  codes: np.ndarray
  finish_reason: str
  rate_hz: int = RATE_HZ

  @property
  def duration_s(self) -> float:
    return len(self.samples) / self.rate_hz


@dataclasses.dataclass(frozen=True)
class AudioChunk:
  """Newly decoded samples of a streamed reply; first_frame: the codec frame they begin with."""

  samples: np.ndarray
  rate_hz: int
  first_frame: int


DEFAULT_SCHEDULE = (1, 2, 4, 8, 16, 25)  # frames per streamed chunk; the last one repeats
