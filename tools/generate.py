"""`qwen3-omni generate`: answer one conversation. Text streams to the terminal as it is written."""

import argparse
import json
import sys
from typing import Any

from .conversation import add_input_arguments, add_model_arguments, prompt_options, read_conversation


def add_arguments(parser: argparse.ArgumentParser) -> None:
  add_model_arguments(parser)
  media: dict[str, Any] = dict(action='append', default=[], metavar='FILE')
  parser.add_argument('--text', help='the question')
  parser.add_argument('--system', help='a system message')
  parser.add_argument('--audio', help='an audio file (may be repeated)', **media)
  parser.add_argument('--image', help='an image file (may be repeated)', **media)
  parser.add_argument('--video', help='a video file (may be repeated)', **media)
  add_input_arguments(parser)
  parser.add_argument('--max-new-tokens', type=int, help="limit of the reply (default: the checkpoint's, else 1024)")
  parser.add_argument('--temperature', type=float, help='0 is greedy')
  parser.add_argument('--top-k', type=int)
  parser.add_argument('--top-p', type=float)
  parser.add_argument('--repetition-penalty', type=float)
  parser.add_argument('--seed', type=int, default=0)


def conversation_of(args: argparse.Namespace) -> tuple[list[dict], dict]:
  """(messages, prompt options) from the flags or from --input."""
  asked = args.text or args.audio or args.image or args.video
  if bool(asked) == bool(args.input):
    raise ValueError('give either --input conversation.json, or --text / --audio / --image / --video')
  if args.input:
    if args.system:
      raise ValueError('--system goes with --text and media flags; put the system message into the --input file')
    messages, extra = read_conversation(args.input)
    return messages, prompt_options(args) | extra
  content = [{'type': kind, kind: path} for kind in ('audio', 'image', 'video') for path in getattr(args, kind)]
  content += [{'type': 'text', 'text': args.text}] if args.text else []
  system = [{'role': 'system', 'content': args.system}] if args.system else []
  return [*system, {'role': 'user', 'content': content}], prompt_options(args)


def run(args: argparse.Namespace) -> int:
  import pathlib

  messages, prompt = conversation_of(args)
  from ..infer.omni import Omni
  from ..infer.reply import Finished, TextDelta

  root = args.media_root or (pathlib.Path(args.input).parent if args.input else None)
  omni = Omni.load(args.model, dtype=args.dtype, media_root=root)
  names = ('max_new_tokens', 'temperature', 'top_k', 'top_p', 'repetition_penalty', 'seed')
  settings = {name: getattr(args, name) for name in names}
  if args.json:
    reply = omni.generate([messages], **settings, **prompt)[0]
    print(json.dumps(reply.to_json(), ensure_ascii=False))
    return 0
  for event in omni.stream(messages, **settings, **prompt):
    if isinstance(event, TextDelta):
      print(event.text, end='', flush=True)
    elif isinstance(event, Finished):
      reply = event.reply
      seconds = reply.timings
      print()
      print(
        f'[{reply.prompt_tokens} prompt tokens, {len(reply.token_ids)} new, {reply.finish_reason}; '
        f'first token {seconds["first_token_s"]:.2f} s, total {seconds["total_s"]:.2f} s]',
        file=sys.stderr,
      )
  return 0
