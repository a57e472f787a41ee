"""`qwen3-omni generate`: answers one conversation and streams the text to the terminal."""

import argparse
import contextlib
import json
import pathlib
import sys
from typing import Any

from qwen3_omni_jax import devices

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
  parser.add_argument('--speech', metavar='WAV', help='speak the reply into this 24 kHz file (- : raw 16-bit PCM to stdout)')
  parser.add_argument('--stream', action='store_true', help='write sound as it is made, while the text is still being written')
  parser.add_argument('--speaker', default='Ethan', help='voice (default Ethan)')
  parser.add_argument('--max-frames', type=int, metavar='N', help='longest speech, in frames of 80 ms')
  parser.add_argument('--talker-temperature', type=float, metavar='T', help='0: greedy speech')
  parser.add_argument('--reference-exact', action='store_true', help='do as transformers does (docs/departures.md)')


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
  messages, prompt = conversation_of(args)
  if (args.stream or args.max_frames or args.talker_temperature is not None) and not args.speech:
    raise ValueError('--stream, --max-frames and --talker-temperature go with --speech out.wav')
  if args.stream and (args.json or args.reference_exact):
    raise ValueError('--stream goes with neither --json nor --reference-exact: they need the whole reply')
  devices.start(args.compile_cache)
  from ..infer.omni import Omni

  root = args.media_root or (pathlib.Path(args.input).parent if args.input else None)
  omni = Omni.load(args.model, mesh=args.mesh, dtype=args.dtype, media_root=root, speech=bool(args.speech))
  names = ('max_new_tokens', 'temperature', 'top_k', 'top_p', 'repetition_penalty', 'seed')
  settings = {name: getattr(args, name) for name in names} | prompt
  if args.speech:
    names = ('speaker', 'max_frames', 'talker_temperature')
    settings |= {'speech': True} | {name: getattr(args, name) for name in names}
  if args.stream:
    return _stream(omni, messages, settings, args.speech)
  if args.json or args.speech or args.reference_exact:
    reply = omni.generate([messages], reference_exact=args.reference_exact, **settings)[0]
    if args.speech:
      with wave_writer(args.speech) as write:
        write(reply.speech.samples)
    print(json.dumps(reply.to_json(), ensure_ascii=False) if args.json else reply.text, file=_text_out(args.speech))
    if not args.json:
      _summary(reply)
    return 0
  return _stream(omni, messages, settings, None)


def _stream(omni, messages: list[dict], settings: dict[str, Any], speech: str | None) -> int:
  from ..infer.reply import Finished, TextDelta
  from ..infer.voice import AudioChunk

  with wave_writer(speech) as write:
    for event in omni.stream(messages, **settings):
      if isinstance(event, TextDelta):
        print(event.text, end='', flush=True, file=_text_out(speech))
      elif isinstance(event, AudioChunk):
        write(event.samples)
      elif isinstance(event, Finished):
        print(file=_text_out(speech))
        _summary(event.reply)
  return 0


def _text_out(speech: str | None):
  return sys.stderr if speech == '-' else sys.stdout


@contextlib.contextmanager
def wave_writer(target: str | None):
  """A function that appends samples to a 24 kHz wav file, or writes 16-bit PCM to stdout for '-'."""
  from ..infer.voice import RATE_HZ

  if target is None:
    yield lambda samples: None
  elif target == '-':

    def raw(samples):
      sys.stdout.buffer.write((samples * 32767).astype('<i2').tobytes())
      sys.stdout.buffer.flush()

    yield raw
  else:
    import soundfile

    try:
      file = soundfile.SoundFile(target, 'w', RATE_HZ, 1, 'PCM_16', format='WAV')
    except (soundfile.SoundFileError, OSError) as e:
      raise ValueError(f'{target}: cannot be written ({e})') from e
    with file:

      def append(samples):
        file.write(samples)
        file.flush()

      yield append


def _summary(reply) -> None:
  seconds, speech = reply.timings, reply.speech
  sound = ''
  if speech is not None:
    sound = f'; {speech.duration_s:.2f} s of speech ({len(speech.codes)} frames, {speech.finish_reason})'
    if 'first_audio_s' in seconds:
      sound += f', first audio {seconds["first_audio_s"]:.2f} s'
  print(
    f'[{reply.prompt_tokens} prompt tokens, {len(reply.token_ids)} new, {reply.finish_reason}; first token '
    f'{seconds["first_token_s"]:.2f} s, total {seconds["total_s"]:.2f} s{sound}]',
    file=sys.stderr,
  )
