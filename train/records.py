"""Records to examples: a conversation or a document becomes token ids, a loss mask and decoded media.

Three forms. *chat* is ms-swift's: `{"messages": [{"role", "content"}, …], "images": […], "audios": […], "videos": […]}`, with
`<image>`, `<audio>`, `<video>` in the texts where the media stand; contents may also be lists of parts as in the Qwen cookbooks.
*document* is for continued pretraining: `{"text": "…"}` with the same placeholders and lists, or `{"content": [parts]}`.
*speech* is text read aloud: `{"text", "audio" or "codes", "speaker"}`. An assistant's turn of a chat may have these keys too; its
recording is what the Talker is to say, and never a medium that the Thinker hears.
Runs in worker processes: nothing here imports jax.
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from qwen3_omni_jax.media.image import ImageSettings
from qwen3_omni_jax.media.inputs import ModelInputs
from qwen3_omni_jax.media.keys import KEYS, MAX_FRAMES, Kind, is_picture_list
from qwen3_omni_jax.media.processor import Processor

from .config import Form
from .mask import SpecialIds, assistant_turns, chat_mask, document_mask
from .spoken import SPEECH_KEYS, SpeechRules, read_aloud, recordings_apart, spoken_turn, utterance_of_turn
from .utterances import Utterance

MEDIA: tuple[Kind, ...] = ('image', 'audio', 'video')
_SOURCES = ('bytes', 'path', 'url')
_PLACEHOLDER = re.compile(r'<(image|audio|video)>')
_COMMON = {'id', 'images', 'audios', 'videos', 'fps', 'audio_in_video'}
_KEYS = {
  'chat': _COMMON | {'messages', 'tools'},
  'document': _COMMON | {'text', 'content'},
  'speech': SPEECH_KEYS | {'id', 'text'},
}
_SMALLEST = 1.125  # a frame at its smallest, rounded up to whole blocks of patches, as a multiple of the smallest size
KINDS = ('text', 'audio', 'image', 'video', 'mixed')  # of an example, by the media in it


@dataclasses.dataclass(frozen=True)
class Rules:
  """How the records of one source are read.

  fps, audio_in_video: defaults for records that do not set them. thinking: learn the assistant's reasoning too. ignore: keys of
  the records that are ignored. length: tokens of a row; a longer document is cut into pieces if split says so. speech: None where
  a batch has no room for it.
  """

  form: Form = 'chat'
  fps: float | None = None
  audio_in_video: bool = False
  thinking: bool = True
  ignore: tuple[str, ...] = ()
  length: int = 8192
  split: bool = False
  speech: SpeechRules | None = None


@dataclasses.dataclass(frozen=True)
class Example:
  """One record, or one piece of a long document. learn: bool 'T', which tokens are to be predicted. utterances: of its spoken
  answers. Text read aloud has an utterance and no tokens."""

  inputs: ModelInputs
  learn: np.ndarray
  kind: int  # index into KINDS
  utterances: tuple[Utterance, ...] = ()


def read_record(
  record: dict[str, Any], rules: Rules, processor: Processor, special: SpecialIds, video_room: int | None = None
) -> list[Example]:
  """The record's example; several for a long document. video_room: patches that a video may have. Raises ValueError saying
  what is wrong with the record."""
  known: set[str] = _KEYS[rules.form]
  unknown = [key for key in record if key not in known and key not in rules.ignore]
  if unknown:
    raise ValueError(
      f'unknown keys {", ".join(map(repr, sorted(unknown)))} in a {rules.form} record; known are {", ".join(sorted(known))} '
      "(others can be named in the source's `ignore`)"
    )
  if rules.form == 'speech':
    return [_read_aloud(record, rules, processor, special)]
  options = {
    'fps': _number(record, 'fps', rules.fps),
    'audio_in_video': _flag(record, 'audio_in_video', rules.audio_in_video),
  }
  media = _Media(record, None if video_room is None else _VideoRoom.of(video_room, processor.images))
  if rules.form == 'chat':
    examples = [_chat(record, media, options, rules, processor, special)]
  else:
    examples = _document(record, media, options, rules, processor, special)
  if not any(example.utterances or example.learn[1:].any() for example in examples):
    raise ValueError('nothing to learn in it: no words of an assistant, or no text')
  return examples


def _chat(
  record: dict[str, Any], media: '_Media', options: dict, rules: Rules, processor: Processor, special: SpecialIds
) -> Example:
  messages = record.get('messages')
  if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages) or not messages:
    raise ValueError('messages: expected a list of messages')
  turns, learnt, spoken = [], [], []
  for m, message in enumerate(messages):
    message = {key: value for key, value in message.items() if value is not None}
    recordings: list[Any] = []
    if assistant := message.get('role') == 'assistant':
      learnt.append(_flag(message, 'loss', True))
      message, recordings = recordings_apart(message)
    content = media.place(message.get('content', ''), f'messages[{m}].content')
    if assistant and isinstance(content, list):  # placeholders
      message, more = recordings_apart(message | {'content': content})
      content, recordings = message['content'], recordings + more
    if assistant:
      spoken.append(spoken_turn(message, recordings, f'messages[{m}]'))
    message = {key: value for key, value in message.items() if key != 'loss' and not (assistant and key in SPEECH_KEYS)}
    turns.append(message | {'content': content})
  media.check()
  tools = record.get('tools')
  if isinstance(tools, str):
    tools = json.loads(tools) if tools else None  # ms-swift writes them as a string
  inputs = processor(turns, add_generation_prompt=False, tools=tools, **options)
  learn = chat_mask(inputs.ids, learnt, special, rules.thinking)
  utterances = []
  spans = assistant_turns(inputs.ids, len(learnt), special) if any(spoken) else ()
  for speech, learns, (begin, end) in zip(spoken, learnt, spans, strict=False):
    if speech is not None and learns:
      utterances.append(utterance_of_turn(speech, inputs, begin, end, rules.speech, processor.cfg, special))
  return Example(inputs, learn, _kind(inputs), tuple(utterances))


def _read_aloud(record: dict[str, Any], rules: Rules, processor: Processor, special: SpecialIds) -> Example:
  """An utterance without anything that the Thinker reads, as `Omni.speak` says a text."""
  utterance = read_aloud(record, rules.speech, processor, special)
  return Example(ModelInputs(np.zeros(0, np.int32), np.zeros((3, 0), np.float32)), np.zeros(0, bool), 0, (utterance,))


def _document(
  record: dict[str, Any], media: '_Media', options: dict, rules: Rules, processor: Processor, special: SpecialIds
) -> list[Example]:
  if ('text' in record) == ('content' in record):
    raise ValueError('expected either text or content')
  name = 'text' if 'text' in record else 'content'
  content = media.place(record[name], name)
  media.check()
  if isinstance(content, str):
    content = [{'type': 'text', 'text': content}]
  inputs = processor.document(content, **options)
  whole = Example(inputs, document_mask(inputs.ids, special), _kind(inputs))
  return list(_pieces(whole, rules.length, processor)) if rules.split and len(inputs.ids) > rules.length else [whole]


class _Media:
  """The media lists of a record, handed out to the placeholders of its texts in order."""

  def __init__(self, record: dict[str, Any], room: '_VideoRoom | None'):
    self.room = room
    self.lists: dict[str, list[dict[str, Any]]] = {}  # of parts of messages
    self.taken = dict.fromkeys(MEDIA, 0)
    for kind in MEDIA:
      items = record.get(f'{kind}s', [])
      items = [items] if isinstance(items, (str, bytes, dict)) else items
      if not isinstance(items, list):
        raise ValueError(f'{kind}s: expected a list, found {type(items).__name__}')
      self.lists[kind] = [_part(item, kind, f'{kind}s[{i}]') for i, item in enumerate(items)]

  def place(self, content: Any, where: str) -> Any:
    """content with its placeholders replaced by parts, and its videos bounded."""
    content = self._placed(content, where)
    if self.room is None or not isinstance(content, list):
      return content
    return [self.room.bound(part) if isinstance(part, dict) and part.get('video') else part for part in content]

  def _placed(self, content: Any, where: str) -> Any:
    if isinstance(content, list):
      parts = []
      for p, part in enumerate(content):
        if isinstance(part, str):
          part = {'type': 'text', 'text': part}
        if isinstance(part, dict):
          part = {key: value for key, value in part.items() if value is not None}
          part |= {kind: _source(part[kind], f'{where}[{p}].{kind}') for kind in MEDIA if kind in part}
        if isinstance(part, dict) and isinstance(part.get('text'), str):
          text = self._placed(part['text'], f'{where}[{p}].text')
          parts += text if isinstance(text, list) else [part]
        else:
          parts.append(part)
      return parts
    if not isinstance(content, str):
      raise ValueError(f'{where}: expected text or a list of parts, found {type(content).__name__}')
    pieces = _PLACEHOLDER.split(content)  # text, kind, text, kind, …, text
    if len(pieces) == 1 or not any(self.lists.values()):
      return content  # without media lists, <image> is but a word
    parts = []
    for i, piece in enumerate(pieces):
      if i % 2:
        if self.taken[piece] >= len(self.lists[piece]):
          raise ValueError(f'{where}: more <{piece}> than the {len(self.lists[piece])} of {piece}s')
        parts.append(self.lists[piece][self.taken[piece]])
        self.taken[piece] += 1
      elif piece:
        parts.append({'type': 'text', 'text': piece})
    return parts

  def check(self) -> None:
    left = [f'{len(self.lists[k])} {k}s but {self.taken[k]} <{k}>' for k in MEDIA if len(self.lists[k]) != self.taken[k]]
    if left:
      raise ValueError('; '.join(left) + ' in the texts')


@dataclasses.dataclass(frozen=True)
class _VideoRoom:
  """The most that a video may have, in the terms of its keys."""

  total_pixels: int
  max_frames: int

  @classmethod
  def of(cls, patches: int, images: ImageSettings) -> '_VideoRoom':
    """patches: of all its pairs of frames together."""
    pixels, pair = patches * images.patch**2, images.temporal_patch
    return cls(pixels, max(pair * int(pixels / (_SMALLEST * images.video_min_pixels)), pair))

  def bound(self, part: dict[str, Any]) -> dict[str, Any]:
    """The part of a message with these bounds, where it asks for nothing that they would contradict."""
    keys: dict[str, Any] = {}
    number = lambda key, default: part[key] if isinstance(part.get(key), (int, float)) else default
    if part.get('resized_height') is None and part.get('resized_width') is None:
      keys['total_pixels'] = min(self.total_pixels, number('total_pixels', self.total_pixels))
    if part.get('nframes') is None and not is_picture_list(part['video']):
      most = min(self.max_frames, number('max_frames', MAX_FRAMES))
      if most >= number('min_frames', 0):
        keys['max_frames'] = most
    return part | keys


def _part(item: Any, kind: Kind, where: str) -> dict[str, Any]:
  """An item of a media list as a part of a message: a source, or an object that may have keys beside it."""
  keys = {}
  if isinstance(item, dict):
    keys = {key: value for key, value in item.items() if key not in _SOURCES and key != kind and value is not None}
    if unknown := [key for key in keys if key not in KEYS[kind]]:
      raise ValueError(f'{where}: unknown keys {", ".join(map(repr, sorted(unknown)))}; known are {", ".join(KEYS[kind])}')
    item = item[kind] if item.get(kind) else item
  return {'type': kind, kind: _source(item, where), **keys}


def _source(item: Any, where: str) -> Any:
  """A path, data: URL or bytes; {'bytes', 'path'} as Hugging Face datasets write media to Parquet; or a list of such pictures."""
  if isinstance(item, list) and item:
    return [_source(picture, f'{where}[{i}]') for i, picture in enumerate(item)]
  if isinstance(item, dict):
    item = item.get('bytes') or item.get('path') or item.get('url')
  if not isinstance(item, (str, bytes)) or not item:
    raise ValueError(f"{where}: expected a path, a data: URL, bytes or {{'bytes', 'path'}}")
  return item


def _number(record: dict[str, Any], key: str, default: float | None) -> float | None:
  value = record.get(key, default)
  if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1000):
    raise ValueError(f'{key}: expected a number above 0, found {str(value)[:40]!r}')
  return value


def _flag(record: dict[str, Any], key: str, default: bool) -> bool:
  value = record.get(key, default)
  if not isinstance(value, bool):
    raise ValueError(f'{key}: expected true or false, found {str(value)[:40]!r}')
  return value


def _kind(inputs: ModelInputs) -> int:
  kinds = {visual.kind for visual in inputs.visuals} | ({'audio'} if inputs.audios else set())
  return KINDS.index(kinds.pop() if len(kinds) == 1 else 'mixed' if kinds else 'text')


def _pieces(whole: Example, length: int, processor: Processor) -> Iterator[Example]:
  """A long document cut into pieces of at most `length` tokens, between tokens of text; a medium stays whole.

  Every piece has its own media and positions from 0; its first token is predicted by nothing.
  """
  cfg, inputs = processor.cfg.thinker, whole.inputs
  sees, hears = inputs.ids == cfg.vision_start_token_id, inputs.ids == cfg.audio_start_token_id
  hears_alone = hears & ~np.append(False, sees[:-1])  # the sound of a video begins inside the video
  begins = np.flatnonzero(whole.learn | sees | hears_alone)  # where a piece may begin
  audios, visuals = iter(inputs.audios), iter(inputs.visuals)
  begin = 0
  while begin < len(inputs.ids):
    end = len(inputs.ids)
    if end - begin > length:
      end = int(begins[np.searchsorted(begins, begin + length, side='right') - 1])
      if end <= begin:
        raise ValueError(f'a medium of more than {length} tokens; a row has {length}')
    part = slice(begin, end)
    piece = ModelInputs(
      inputs.ids[part],
      inputs.positions[:, part] - inputs.positions[:, begin : begin + 1],
      tuple(next(audios) for _ in range(int(hears[part].sum()))),
      tuple(next(visuals) for _ in range(int(sees[part].sum()))),
    )
    yield Example(piece, whole.learn[part], _kind(piece))
    begin = end
