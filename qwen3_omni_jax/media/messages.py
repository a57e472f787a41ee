"""Conversations as users write them, checked and put in one form.

Accepted: `{'role', 'content'}` messages as in the Qwen cookbooks, content a string or a list of parts
(`{'type': 'audio', 'audio': source}` and likewise image, video, text), and the OpenAI spellings (`image_url`,
`input_audio`, `video_url`, `audio_url`). A part may carry the keys of `keys`.
"""

import base64
import dataclasses
from typing import Any

from .keys import KEYS, NO_KEYS, Kind, MediaKeys, read_keys
from .text import check_characters

ROLES = ('system', 'user', 'assistant', 'tool')
_PART_KEYS = {'text': {'type', 'text'}} | {kind: {'type', kind, *keys} for kind, keys in KEYS.items()}
_MESSAGE_KEYS = {'role', 'content', 'reasoning_content', 'tool_calls', 'name', 'tool_call_id'}


@dataclasses.dataclass(frozen=True)
class MediaItem:
  """A medium of a conversation."""

  kind: Kind
  source: Any
  where: str  # 'messages[1].content[0]'
  keys: MediaKeys = NO_KEYS


def parse_messages(messages: Any) -> tuple[list[dict[str, Any]], list[MediaItem]]:
  """(messages for the chat template, with placeholders for media; the media in reading order).

  Raises ValueError naming every problem with its place.
  """
  if not isinstance(messages, (list, tuple)):
    raise ValueError(f'messages: expected a list, found {type(messages).__name__}')
  if not messages:
    raise ValueError('messages: empty; expected at least one message')
  errors: list[str] = []
  plain, media = [], []
  for m, message in enumerate(messages):
    where = f'messages[{m}]'
    if not isinstance(message, dict):
      errors.append(f'{where}: expected an object, found {type(message).__name__}')
      continue
    role = message.get('role')
    if role not in ROLES:
      errors.append(f'{where}.role: {str(role)[:40]!r} is not one of {", ".join(ROLES)}')
    errors += [f'{where}: unknown key {str(key)[:40]!r}' for key in message if key not in _MESSAGE_KEYS]
    content = message.get('content')
    if isinstance(content, (list, tuple)):
      if not content:
        errors.append(f'{where}.content: empty')
      parts = [_part(part, f'{where}.content[{p}]', errors) for p, part in enumerate(content)]
      media += [item for _, item in parts if item is not None]
      content = [part for part, _ in parts]
    elif content is None and message.get('tool_calls'):
      content = ''
    elif isinstance(content, str):
      _characters(content, f'{where}.content', errors)
    else:
      errors.append(f'{where}.content: expected text or a list of parts, found {type(content).__name__}')
    rest = {k: _plain(v, f'{where}.{k}', errors) for k, v in message.items() if k not in ('role', 'content')}
    plain.append({'role': role, 'content': content, **rest})
  if errors:
    raise ValueError('; '.join(errors))
  return plain, media


def _part(part: Any, where: str, errors: list[str]) -> tuple[dict[str, Any], MediaItem | None]:
  if isinstance(part, str):
    return {'type': 'text', 'text': part}, None
  if not isinstance(part, dict):
    errors.append(f'{where}: expected an object, found {type(part).__name__}')
    return {}, None
  part = _from_openai(part, where, errors)
  kind = part.get('type') or next((k for k in _PART_KEYS if k in part), None)
  if kind not in _PART_KEYS:
    errors.append(f'{where}.type: {str(kind)[:40]!r} is not one of {", ".join(_PART_KEYS)}')
    return {}, None
  errors += [f'{where}: unknown key {str(key)[:40]!r}' for key in part if key not in _PART_KEYS[kind]]
  value = part.get(kind)
  if value is None or (isinstance(value, (str, bytes, list, tuple)) and not value and kind != 'text'):
    errors.append(f'{where}.{kind}: missing or empty')
    return {}, None
  if kind == 'text':
    if isinstance(value, str):
      _characters(value, f'{where}.text', errors)
    else:
      errors.append(f'{where}.text: expected a string, found {type(value).__name__}')
    return {'type': 'text', 'text': value}, None
  return {'type': kind, kind: kind}, MediaItem(kind, value, where, read_keys(part, kind, where, errors))


def _from_openai(part: dict[str, Any], where: str, errors: list[str]) -> dict[str, Any]:
  """The cookbook form of an OpenAI content part; other parts as they are."""
  for kind in ('audio', 'image', 'video'):
    key = f'{kind}_url'
    if key in part:
      url = part[key].get('url') if isinstance(part[key], dict) else part[key]
      rest = {k: v for k, v in part.items() if k not in ('type', key)}
      return {'type': kind, kind: url, **rest}
  if 'input_audio' in part:
    audio = part['input_audio']
    rest = {k: v for k, v in part.items() if k not in ('type', 'input_audio')}
    if not isinstance(audio, dict) or not isinstance(audio.get('data'), str):
      errors.append(f"{where}.input_audio: expected {{'data': base64, 'format': …}}")
      return {'type': 'audio', 'audio': b'?'}
    try:
      return {'type': 'audio', 'audio': base64.b64decode(audio['data'], validate=True), **rest}
    except ValueError as e:
      errors.append(f'{where}.input_audio.data: broken base64 ({e})')
      return {'type': 'audio', 'audio': b'?'}
  return part


def _plain(value: Any, where: str, errors: list[str], depth: int = 0) -> Any:
  """value if it is JSON all the way down: templates must not get hold of other objects."""
  if depth > 32:
    errors.append(f'{where}: nested too deeply')
    return None
  if isinstance(value, str):
    _characters(value, where, errors)
  if value is None or isinstance(value, (str, bool, int, float)):
    return value
  if isinstance(value, dict):
    for key in value:
      _characters(str(key), f'{where}: key', errors)
    return {str(k): _plain(v, f'{where}.{k}', errors, depth + 1) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(v, f'{where}[{i}]', errors, depth + 1) for i, v in enumerate(value)]
  errors.append(f'{where}: expected JSON, found {type(value).__name__}')
  return None


def _characters(text: str, where: str, errors: list[str]) -> None:
  try:
    check_characters(text)
  except ValueError as e:
    errors.append(f'{where}: {e}')


def plain_json(value: Any, where: str) -> Any:
  """value, or ValueError if it is not plain JSON (tools, template variables)."""
  errors: list[str] = []
  out = _plain(value, where, errors)
  if errors:
    raise ValueError('; '.join(errors))
  return out
