"""`qwen3-omni demo`: the whole path on a tiny random checkpoint, from nothing, on any machine.

Makes the checkpoint, converts it, writes a sound, a picture and a video with sound, and answers a conversation about each and
one about all of them.
"""

import argparse
import pathlib
import shutil
import time


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--out', default='demo', metavar='DIR', help='working folder; its contents are replaced (default demo)')
  parser.add_argument('--model', metavar='DIR', help='answer with this checkpoint instead of a tiny random one')
  parser.add_argument('--dtype', default='float32', choices=('bfloat16', 'float32'))
  parser.add_argument('--max-new-tokens', type=int, default=24)


_OURS = ('tiny-hf', 'tiny-jax', 'media')
SPOKEN = ('text', 'everything')


def run(args: argparse.Namespace) -> int:
  out = pathlib.Path(args.out)
  out.mkdir(parents=True, exist_ok=True)
  for name in _OURS:
    shutil.rmtree(out / name, ignore_errors=True)
  from .sample_media import write_samples

  model = args.model or _tiny_checkpoint(out)
  print(f'writing sample media to {out / "media"}')
  media = write_samples(out / 'media')
  started = time.perf_counter()
  from ..infer.omni import Omni

  omni = Omni.load(model, dtype=args.dtype)
  print(f'loaded {model} in {time.perf_counter() - started:.1f} s\n')
  if args.model is None:
    print('The weights are random: the words below mean nothing. What is shown is that every part runs.\n')
  for title, conversation, options in conversations(media):
    speech = title in SPOKEN and omni.cfg.talker is not None
    options = options | ({'speech': True, 'max_frames': 50} if speech else {})
    reply = omni.generate([conversation], max_new_tokens=args.max_new_tokens, **options)[0]
    seconds = reply.timings
    print(f'[{title}]')
    print(f'  {reply.text!r}')
    print(
      f'  {reply.prompt_tokens} prompt tokens, {len(reply.token_ids)} new tokens, {reply.finish_reason}; encoders '
      f'{seconds["encode_s"]:.2f} s, first token {seconds["first_token_s"]:.2f} s, total {seconds["total_s"]:.2f} s '
      '(compilation included)'
    )
    if reply.speech is not None:
      import soundfile

      file = out / f'{title}.wav'
      soundfile.write(file, reply.speech.samples, reply.speech.rate_hz)
      print(f'  {reply.speech.duration_s:.2f} s of speech in {file}, made in {seconds["speech_s"]:.2f} s (compilation included)')
    print()
  return 0


def _tiny_checkpoint(out: pathlib.Path) -> pathlib.Path:
  from ..weights.to_jax import convert_to_jax
  from .tiny import make_checkpoint

  print(f'making a tiny random checkpoint in the published layout: {out / "tiny-hf"}')
  make_checkpoint(out / 'tiny-hf', preset='tiny', seed=0)
  print(f'converting it: {out / "tiny-jax"}')
  convert_to_jax(out / 'tiny-hf', out / 'tiny-jax')
  return out / 'tiny-jax'


def conversations(media: dict[str, pathlib.Path]) -> list[tuple[str, list[dict], dict]]:
  """(title, messages, processor options) of each demonstration."""
  part = lambda kind: {'type': kind, kind: str(media[kind])}
  ask = lambda question, *kinds: [{'role': 'user', 'content': [*(part(k) for k in kinds), {'type': 'text', 'text': question}]}]
  return [
    ('text', ask('Say hello.'), {}),
    ('audio', ask('What do you hear?', 'audio'), {}),
    ('image', ask('What do you see?', 'image'), {}),
    ('video', ask('What happens?', 'video'), {'fps': 2.0}),
    ('video with its sound', ask('What happens?', 'video'), {'fps': 2.0, 'audio_in_video': True}),
    ('everything', ask('What do these have in common?', 'audio', 'image', 'video'), {'fps': 2.0}),
  ]
