"""What records say of speech: who says what, and the codes of the recording.

Runs in worker processes: nothing here imports jax.
"""

import dataclasses
from typing import Any

import numpy as np

from qwen3_omni_jax.config import OmniConfig
from qwen3_omni_jax.media.inputs import ModelInputs
from qwen3_omni_jax.media.processor import Processor
from qwen3_omni_jax.media.turns import speaker_code

from .codes import Codes
from .mask import SpecialIds
from .utterances import Utterance, make_utterance

RATE_HZ = 24_000  # of speech
SPEECH_KEYS = {'audio', 'codes', 'speaker'}  # of an assistant's turn, and of text read aloud
_SOUNDS = ('audio', 'audio_url', 'input_audio')  # keys of a part of a message that is a sound


@dataclasses.dataclass(frozen=True)
class SpeechRules:
  """How the speech of one source is read. speaker: of the turns that name none. codes: of the recordings."""

  speaker: str = ''
  codes: Codes | None = None


@dataclasses.dataclass(frozen=True)
class Spoken:
  """What a record says of the speech of one answer. where: for messages."""

  audio: Any
  codes: Any
  speaker: Any
  where: str


def read_codes(spoken: Spoken, rules: SpeechRules | None, cfg: OmniConfig) -> np.ndarray:
  """int 'T Q': the codes of a recording. Raises ValueError for what nobody can learn to say."""
  if rules is None:
    raise ValueError(
      f'{spoken.where}: an answer with audio, and no room for speech (data.speech_rows is 0); set it, or take the audio out'
    )
  assert cfg.talker is not None and cfg.code2wav is not None, 'lane_shape refuses speech without a Talker'
  where = f'{spoken.where}.codes'
  if spoken.codes is None:
    where = f'{spoken.where}.audio'
    codes = _looked_up(spoken.audio, rules.codes, where)
  else:
    codes = _given(spoken.codes, cfg.talker.num_code_groups, where)
  return _checked(codes, cfg.talker.num_code_groups, cfg.code2wav.codebook_size, where)


def _looked_up(audio: Any, codes: Codes | None, where: str) -> np.ndarray:
  if isinstance(audio, dict):
    audio = audio.get('path') or audio.get('url') or audio.get('bytes')
  if not isinstance(audio, str) or not audio or audio.startswith('data:'):
    raise ValueError(
      f'{where}: expected the path of a recording, by which its codes are found, found {type(audio).__name__}; '
      'give a path, or the codes themselves (`codes`)'
    )
  if codes is None:
    raise ValueError(
      f'{where}: {audio}: the source has no folder of codes; make one with `qwen3-omni codes` and name it (`codes` of the source)'
    )
  if audio not in codes:
    raise ValueError(f'{where}: {audio}: {codes.why_not(audio)}; run `qwen3-omni codes` for it')
  return codes[audio]


def _given(value: Any, groups: int, where: str) -> np.ndarray:
  """Of a record: a list of frames, or bytes of little-endian int16."""
  if isinstance(value, bytes):
    if len(value) % (2 * groups):
      raise ValueError(f'{where}: {len(value)} bytes; expected a multiple of {2 * groups}: {groups} int16 for each frame')
    return np.frombuffer(value, '<i2').reshape(-1, groups)
  try:
    codes = np.array(value) if value else np.zeros((0, groups), np.int16)
  except ValueError as e:
    raise ValueError(f'{where}: expected frames of {groups} codes each, found lists of unlike length') from e
  if codes.dtype.kind not in 'iu':
    raise ValueError(f'{where}: expected whole numbers, found {codes.dtype}')
  return codes


def _checked(codes: np.ndarray, groups: int, size: int, where: str) -> np.ndarray:
  if codes.ndim != 2 or codes.shape[1] != groups:
    raise ValueError(f'{where}: {list(codes.shape)}; expected frames × {groups} codebooks, as this checkpoint has')
  if not len(codes):
    raise ValueError(f'{where}: 0 frames; the recording is empty')
  if codes.min() < 0 or codes.max() >= size:
    raise ValueError(f'{where}: codes from {codes.min()} to {codes.max()}; the codebooks have entries 0 to {size - 1}')
  if len(codes) > 1 and (codes == codes[0]).all():
    raise ValueError(f'{where}: {len(codes)} times the same frame: silence, or a codec without its weights')
  return codes


def check_codebooks(codes: Codes, cfg: OmniConfig) -> None:
  """Raises ValueError if these cannot be the codes of this checkpoint."""
  assert cfg.talker is not None and cfg.code2wav is not None
  expected = {
    'num_code_groups': (codes.num_code_groups, cfg.talker.num_code_groups),
    'codebook_size': (codes.codebook_size, cfg.code2wav.codebook_size),
    'frame_rate': (codes.frame_rate, RATE_HZ / cfg.code2wav.samples_per_frame),
  }
  if wrong := [f'{name} {found:g}, the checkpoint has {own:g}' for name, (found, own) in expected.items() if found != own]:
    raise ValueError(f'{codes.folder}: ' + '; '.join(wrong) + '. Make the codes with the codec of this checkpoint')


def read_speaker(spoken: Spoken, rules: SpeechRules, cfg: OmniConfig) -> int:
  """Codec id of who speaks."""
  name = rules.speaker if spoken.speaker is None else spoken.speaker
  if not isinstance(name, str) or not name:
    raise ValueError(f"{spoken.where}.speaker: missing; give it there, or the source's `speaker`")
  assert cfg.talker is not None
  try:
    return speaker_code(cfg.talker, name)
  except ValueError as e:
    raise ValueError(f'{spoken.where}.speaker: {e}') from e


def recordings_apart(message: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
  """The message without the sounds among the parts of its content, and these."""
  content = message.get('content')
  if not isinstance(content, list):
    return message, []
  sound = lambda part: next((part[key] for key in _SOUNDS if part.get(key) is not None), None) if isinstance(part, dict) else None
  parts = [part for part in content if sound(part) is None]
  return message | {'content': parts or ''}, [sound(part) for part in content if sound(part) is not None]


def spoken_turn(message: dict[str, Any], recordings: list[Any], where: str) -> Spoken | None:
  """What an assistant's turn says of its speech; None if it is only written."""
  recordings = [message['audio'], *recordings] if 'audio' in message else recordings
  if len(recordings) > 1:
    raise ValueError(f'{where}: {len(recordings)} recordings of one answer; expected one')
  if not recordings and 'codes' not in message:
    return None
  return Spoken(recordings[0] if recordings else None, message.get('codes'), message.get('speaker'), where)


def utterance_of_turn(
  spoken: Spoken, inputs: ModelInputs, begin: int, end: int, rules: SpeechRules | None, cfg: OmniConfig, special: SpecialIds
) -> Utterance:
  """Of the answer whose words are the tokens begin to end of a conversation."""
  codes = read_codes(spoken, rules, cfg)
  assert rules is not None
  speaker, said = read_speaker(spoken, rules, cfg), inputs.ids[begin:end]
  if begin == end:
    raise ValueError(f'{spoken.where}: audio without text; the Talker says text, so give the words (content)')
  if np.isin(said, special.media).any():
    raise ValueError(f'{spoken.where}: a spoken answer with media in it; give them in a turn of the user')
  before = begin - 3  # where <|im_start|>assistant begins
  return make_utterance(inputs.ids[:before], inputs.positions[:, :before], said, codes, speaker, cfg, special)


def read_aloud(record: dict[str, Any], rules: SpeechRules | None, processor: Processor, special: SpecialIds) -> Utterance:
  """Of a record that is a text and its recording."""
  text, spoken = record.get('text'), Spoken(record.get('audio'), record.get('codes'), record.get('speaker'), 'the record')
  if not isinstance(text, str) or not text:
    raise ValueError('text: missing; expected the words that are said')
  if spoken.audio is None and spoken.codes is None:
    raise ValueError('audio: missing; expected the recording of the text, or its codes (`codes`)')
  codes = read_codes(spoken, rules, processor.cfg)
  assert rules is not None
  speaker, said = read_speaker(spoken, rules, processor.cfg), np.array(processor.tokenizer.encode(text), np.int32)
  return make_utterance(np.zeros(0, np.int32), np.zeros((3, 0), np.float32), said, codes, speaker, processor.cfg, special)
