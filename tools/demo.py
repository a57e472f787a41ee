"""`qwen3-omni demo`: what the package does, from nothing, on any machine, in about a minute.

First a small trained model, which hears words and sees pictures. Then one of random weights that has every part of the released
model: video, the sound of a video, everything at once, and speech. The files stay: the commands of the README are for them.
"""

import argparse
import importlib.resources
import json
import pathlib
import shutil
import sys
import time
from typing import Any

from qwen3_omni_jax import compile_cache, devices


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--out', default='demo', metavar='DIR', help='working folder; its contents are replaced (default demo)')
  parser.add_argument('--model', metavar='DIR', help='answer with this checkpoint instead')
  parser.add_argument('--dtype', default='float32', choices=('bfloat16', 'float32'))
  parser.add_argument('--max-new-tokens', type=int, default=24)
  compile_cache.add_argument(parser)


_OURS = ('tiny-hf', 'tiny-jax', 'media', 'chat.jsonl', 'questions.jsonl', 'conversation.json')
_HEARD = ('stop_no_four_one_yes.wav', 'Write down the words.')
_SEEN = ('three_red_triangles.png', 'What is there?')
SPOKEN = ('text', 'everything')


def run(args: argparse.Namespace) -> int:
  started, out = time.perf_counter(), pathlib.Path(args.out)
  devices.start(args.compile_cache)
  out.mkdir(parents=True, exist_ok=True)
  for name in _OURS:
    shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink(missing_ok=True)
  media = _write_files(out)
  if args.model is None:
    _trained(out, args.dtype)
    _random(out, media, args)
  else:
    _answer(args.model, conversations(media), out, args, words=True)
  print(f'{time.perf_counter() - started:.0f} s in all; programs are compiled once, so the next run is faster.')
  if args.model is None:
    _what_next(out)
  return 0


def nano() -> pathlib.Path:
  """The folder of the trained model and its examples."""
  return pathlib.Path(str(importlib.resources.files('qwen3_omni_jax.examples'))) / 'nano'


def _trained(out: pathlib.Path, dtype: str) -> None:
  from ..infer.omni import Omni

  print('\nA trained model: 3.6 M parameters, taught to write down spoken words and to say what a picture shows.\n')
  omni = Omni.load(nano() / 'model', dtype=dtype, speech=False)
  ask = lambda kind, file, text: _message(text, (kind, out / 'media' / file))
  replies = omni.generate([ask('audio', *_HEARD), ask('image', *_SEEN)], max_new_tokens=8)
  for verb, (file, text), reply in zip(('hears', 'sees'), (_HEARD, _SEEN), replies, strict=True):
    print(f'  {verb:5} {out / "media" / file}\n        {text:21} -> {reply.text}')


def _random(out: pathlib.Path, media: dict[str, pathlib.Path], args: argparse.Namespace) -> None:
  from ..weights.to_jax import convert_to_jax
  from .tiny import make_checkpoint

  print(
    '\nA model of random weights, with every part of the released one. Its words mean nothing: what is shown is that all runs.\n'
  )
  print(f'  made in the published layout: {out / "tiny-hf"}')
  make_checkpoint(out / 'tiny-hf', preset='tiny', seed=0)
  convert_to_jax(out / 'tiny-hf', out / 'tiny-jax')
  print(f'  converted: {out / "tiny-jax"}')
  rest = [c for c in conversations(media) if c[0] in ('video', 'video with its sound', 'everything')]
  _answer(out / 'tiny-jax', rest, out, args, words=False)


def _answer(
  model: str | pathlib.Path,
  questions: list[tuple[str, list[dict], dict]],
  out: pathlib.Path,
  args: argparse.Namespace,
  words: bool,
) -> None:
  """Answers each conversation, and says how much was read, written and spoken; with words, what was written."""
  from ..infer.omni import Omni

  omni = Omni.load(model, dtype=args.dtype)
  for title, conversation, options in questions:
    speech = title in SPOKEN and omni.cfg.talker is not None
    options = options | ({'speech': True, 'max_frames': 50} if speech else {})
    begun = time.perf_counter()
    reply = omni.generate([conversation], max_new_tokens=args.max_new_tokens, **options)[0]
    line = f'  {title}: {reply.prompt_tokens} tokens read, {len(reply.token_ids)} written'
    if reply.speech is not None:
      import soundfile

      file = out / f'{title}.wav'
      soundfile.write(file, reply.speech.samples, reply.speech.rate_hz)
      line += f', {reply.speech.duration_s:.1f} s spoken into {file}'
    print(f'{line}, in {time.perf_counter() - begun:.1f} s')
    if words:
      print(f'    {reply.text!r}')
  print()


def _write_files(out: pathlib.Path) -> dict[str, pathlib.Path]:
  """Sample media, and files for the commands of the README: questions to `batch`, a conversation to `score`, chats to `train`."""
  from .sample_media import write_samples

  media = write_samples(out / 'media')
  for name, _ in (_HEARD, _SEEN):
    shutil.copy(nano() / name, out / 'media' / name)
  heard, seen = (_message(text, (kind, f'media/{file}')) for kind, (file, text) in (('audio', _HEARD), ('image', _SEEN)))
  questions = [
    {'custom_id': 'words', 'body': {'messages': heard, 'max_tokens': 8}},
    {'custom_id': 'picture', 'body': {'messages': seen, 'max_tokens': 8}},
    {'custom_id': 'missing', 'body': {'messages': _message('What is there?', ('image', 'media/missing.png'))}},
  ]
  answer = {'role': 'assistant', 'content': 'stop no four one yes'}
  (out / 'conversation.json').write_text(json.dumps({'messages': [*heard, answer]}, indent=1) + '\n')
  (out / 'questions.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in questions))
  chats = [
    [{'role': 'user', 'content': f'Count to {n}.'}, {'role': 'assistant', 'content': ' '.join(map(str, range(1, n + 1)))}]
    for n in range(2, 10)
  ]
  (out / 'chat.jsonl').write_text(''.join(json.dumps({'messages': chat}) + '\n' for chat in chats))
  return media


def _message(text: str, *media: tuple[str, Any]) -> list[dict]:
  return [
    {'role': 'user', 'content': [*({'type': kind, kind: str(file)} for kind, file in media), {'type': 'text', 'text': text}]}
  ]


def conversations(media: dict[str, pathlib.Path]) -> list[tuple[str, list[dict], dict]]:
  """(title, messages, processor options) of each demonstration."""
  ask = lambda question, *kinds: _message(question, *((kind, media[kind]) for kind in kinds))
  return [
    ('text', ask('Say hello.'), {}),
    ('audio', ask('What do you hear?', 'audio'), {}),
    ('image', ask('What do you see?', 'image'), {}),
    ('video', ask('What happens?', 'video'), {'fps': 2.0}),
    ('video with its sound', ask('What happens?', 'video'), {'fps': 2.0, 'audio_in_video': True}),
    ('everything', ask('What do these have in common?', 'audio', 'image', 'video'), {'fps': 2.0}),
  ]


def _what_next(out: pathlib.Path) -> None:
  print('\nTry:\n')
  program = pathlib.Path(sys.argv[0])
  if shutil.which('qwen3-omni') is None and program.name == 'qwen3-omni':
    print(f'  source {_near(program.parent / "activate")}')
  file, text = _HEARD
  print(f"  qwen3-omni generate --model {_near(nano() / 'model')} --audio {out / 'media' / file} --text '{text}'")
  print(f'  qwen3-omni generate --model {out / "tiny-jax"} --text Hello --speech hello.wav --max-frames 50')


def _near(path: pathlib.Path) -> pathlib.Path:
  """As seen from the working folder, if it is in it."""
  path, here = path.absolute(), pathlib.Path.cwd()
  return path.relative_to(here) if path.is_relative_to(here) else path
