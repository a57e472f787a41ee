"""Arguments for the conversation: flags for a single question, or a JSON file with a whole conversation."""

import argparse
import json
import pathlib
from typing import Any

from qwen3_omni_jax import compile_cache

MEDIA_KEYS = ('audio', 'image', 'video', 'audio_url', 'image_url', 'video_url')
MAX_CONVERSATION_BYTES = 512 * 2**20  # media may be inside as data: URLs


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    '--model',
    required=True,
    metavar='DIR',
    help='checkpoint folder of either kind, hub id, or gs:// or s3:// URL of a converted folder',
  )
  parser.add_argument('--dtype', default='bfloat16', choices=('bfloat16', 'float32'), help='of weights and activations')
  parser.add_argument(
    '--mesh', metavar='SHAPE', help="share the work over all devices: a strategy ('serve'), or sizes as in data=2,expert=4"
  )
  compile_cache.add_argument(parser)
  parser.add_argument('--json', action='store_true', help='print one JSON object')


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--input', metavar='FILE', help='conversation.json: a list of messages, or {"messages": […]}')
  parser.add_argument('--media-root', metavar='DIR', help="media paths inside --input must lie here (default: FILE's folder)")
  parser.add_argument('--fps', type=float, help='frames per second taken from videos (default 2)')
  parser.add_argument('--audio-in-video', action='store_true', help='hear the sound of videos too')
  add_media_argument(parser)
  parser.add_argument('--enable-thinking', action=argparse.BooleanOptionalAction, help="the chat template's thinking switch")


def add_media_argument(parser: Any, default: str = 'processor') -> None:
  parser.add_argument(
    '--media',
    choices=('processor', 'utils'),
    help="who chooses frames and sizes: the checkpoint's processor, or the published utilities before it (docs/data.md); "
    f'default {default}',
  )


def prompt_options(args: argparse.Namespace) -> dict[str, Any]:
  """Keyword arguments for the processor."""
  options: dict[str, Any] = {'audio_in_video': args.audio_in_video}
  if args.fps is not None:
    options['fps'] = args.fps
  if args.media is not None:
    options['media'] = args.media
  if args.enable_thinking is not None:
    options['enable_thinking'] = args.enable_thinking
  return options


def read_conversation(path: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """(messages, extra prompt options) from a JSON file. Relative media paths are taken from the file's folder."""
  file = pathlib.Path(path)
  if not file.is_file():
    raise ValueError(f'{path}: no such file; expected a JSON conversation')
  if file.stat().st_size > MAX_CONVERSATION_BYTES:
    raise ValueError(f'{path}: {file.stat().st_size} bytes; the limit is {MAX_CONVERSATION_BYTES}. Give media by path')
  try:
    data = json.loads(file.read_text(encoding='utf-8'))
  except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as e:
    raise ValueError(f'{path}: not valid JSON ({e})') from e
  extra: dict[str, Any] = {}
  if isinstance(data, dict):
    unknown = sorted(data.keys() - {'messages', 'tools'})
    if unknown or 'messages' not in data:
      raise ValueError(f"{path}: expected 'messages' (and 'tools'), found {', '.join(sorted(data)) or 'an empty object'}")
    extra = {'tools': data['tools']} if data.get('tools') else {}
    data = data['messages']
  if not isinstance(data, list):
    raise ValueError(f'{path}: expected a list of messages, found {type(data).__name__}')
  return _from_folder(data, file.parent.absolute()), extra


def _from_folder(messages: list[Any], folder: pathlib.Path) -> list[Any]:
  """Relative media paths made relative to the conversation's own folder."""

  def local(value: Any) -> Any:
    relative = isinstance(value, str) and ':' not in value[:10] and not pathlib.Path(value).is_absolute()
    if isinstance(value, list):
      return [local(picture) for picture in value]
    return str(folder / value) if relative and value else value

  def part(item: Any) -> Any:
    if not isinstance(item, dict):
      return item
    return {k: local(v) if k in MEDIA_KEYS else v for k, v in item.items()}

  return [
    {**m, 'content': [part(p) for p in m['content']]} if isinstance(m, dict) and isinstance(m.get('content'), list) else m
    for m in messages
  ]
