"""`qwen3-omni live`: streams a file, or raw audio from stdin, into the model as from a microphone, and speaks the answer."""

import argparse
import sys
import time

from qwen3_omni_jax import devices

from .conversation import add_model_arguments

BLOCK_S = 0.1  # of sound handed over at a time


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('source', metavar='FILE.wav|-', help='- reads raw mono 16-bit PCM at 16 kHz from stdin')
  add_model_arguments(parser)
  parser.add_argument('--text', help='words to add after the sound')
  parser.add_argument('--system', help='a system message')
  parser.add_argument('--speech', metavar='WAV', help='write the spoken reply here (- : raw 16-bit PCM at 24 kHz to stdout)')
  parser.add_argument('--speaker', default='Ethan')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--max-new-tokens', type=int)
  parser.add_argument('--max-frames', type=int)
  parser.add_argument('--fast', action='store_true', help='do not wait for the time the sound would take')
  parser.add_argument('--no-warm-up', action='store_true', help='let the first answer pay for compilation')


def run(args: argparse.Namespace) -> int:
  import json

  import numpy as np

  devices.start(args.compile_cache)
  from ..infer.live import LiveAudio
  from ..infer.omni import Omni
  from ..infer.reply import Finished, TextDelta
  from ..infer.voice import AudioChunk
  from ..media.audio import RATE_HZ, load_audio
  from .generate import wave_writer

  wave = None if args.source == '-' else load_audio(args.source)
  omni = Omni.load(args.model, mesh=args.mesh, dtype=args.dtype)
  spoken = omni.cfg.talker is not None
  settings = dict(speech=spoken, seed=args.seed, max_new_tokens=args.max_new_tokens)
  if spoken:
    settings |= {'speaker': args.speaker, 'max_frames': args.max_frames}
  if not args.no_warm_up:
    rehearsal = LiveAudio(omni, system=args.system)
    rehearsal.push(np.zeros(9 * RATE_HZ, np.float32) if wave is None else wave)
    list(rehearsal.answer(args.text, **settings))
  live = LiveAudio(omni, system=args.system)
  block, heard, late = round(BLOCK_S * RATE_HZ), 0, 0.0
  started = time.perf_counter()
  for samples in _blocks(wave, block):
    heard += len(samples)
    live.push(samples)
    ahead = heard / RATE_HZ - (time.perf_counter() - started)
    late = max(late, -ahead)
    if ahead > 0 and not args.fast and wave is not None:
      time.sleep(ahead)
  events = live.answer(args.text, **settings)
  text_out = sys.stderr if args.speech == '-' else sys.stdout
  report = {}
  with wave_writer(args.speech) as write:
    for event in events:
      if isinstance(event, TextDelta) and not args.json:
        print(event.text, end='', flush=True, file=text_out)
      elif isinstance(event, AudioChunk):
        write(event.samples)
      elif isinstance(event, Finished):
        report = event.reply.to_json() | {
          'heard_s': round(heard / RATE_HZ, 3),
          'exact': live.exact,
          'late_s': round(late, 3),
          'usage': event.usage,
        }
  if args.json:
    print(json.dumps(report, ensure_ascii=False), file=text_out)
    return 0
  seconds = report['timings']
  first = f'first audio {seconds["first_audio_s"] * 1e3:.0f} ms' if 'first_audio_s' in seconds else 'no audio'
  print(
    f'\n[{report["heard_s"]} s heard; after the end of speech: first token {seconds["first_token_s"] * 1e3:.0f} ms, {first}]',
    file=sys.stderr,
  )
  return 0


def _blocks(wave, block: int):
  """float32 samples as they would arrive: of `wave`, or of stdin."""
  import numpy as np

  if wave is not None:
    yield from (wave[i : i + block] for i in range(0, len(wave), block))
    return
  while data := sys.stdin.buffer.read(2 * block):
    yield np.frombuffer(data[: len(data) // 2 * 2], '<i2').astype(np.float32) / 32768
