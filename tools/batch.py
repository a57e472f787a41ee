"""`qwen3-omni batch`: answers a file of conversations into a folder, each exactly once, and resumes after a kill."""

import argparse
import json
import signal
import sys
from typing import Any

from qwen3_omni_jax import compile_cache, devices

from .conversation import add_media_argument
from .progress import progress_line

SETTINGS = ('max_new_tokens', 'temperature', 'top_k', 'top_p', 'repetition_penalty', 'seed', 'max_frames', 'talker_temperature')


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--model', metavar='DIR', help='checkpoint folder, hub id, or URL of a converted folder')
  parser.add_argument('--input', nargs='+', metavar='FILE', help="JSON lines or Parquet; several, or a pattern: 'shards-*.jsonl'")
  parser.add_argument('--output', required=True, metavar='DIR', help='folder of the results; run again to go on with it')
  parser.add_argument('--media-root', metavar='DIR', help="media paths in rows must lie here (default: the input's folder)")
  parser.add_argument('--dtype', default='bfloat16', choices=('bfloat16', 'float32'), help='of weights and activations')
  parser.add_argument('--mesh', metavar='SHAPE', help="share the work over all devices: 'serve', or sizes as in data=2,expert=4")
  answers = parser.add_argument_group('answers (rows may name their own)')
  answers.add_argument('--speech', action='store_true', help='speak every row that does not say otherwise')
  answers.add_argument('--speaker', help='voice (default Ethan)')
  answers.add_argument('--max-new-tokens', type=int, help="limit of a reply (default: the checkpoint's, else 1024)")
  answers.add_argument('--temperature', type=float, help='0 is greedy')
  answers.add_argument('--top-k', type=int)
  answers.add_argument('--top-p', type=float)
  answers.add_argument('--repetition-penalty', type=float)
  answers.add_argument('--seed', type=int, help="added to the seed that follows from a row's id")
  answers.add_argument('--max-frames', type=int, metavar='N', help='longest speech, in frames of 80 ms')
  answers.add_argument('--talker-temperature', type=float, metavar='T', help='0: greedy speech (of the whole job)')
  answers.add_argument('--fps', type=float, help='frames per second taken from videos (default 2)')
  answers.add_argument('--audio-in-video', action='store_true', default=None, help='hear the sound of videos too')
  add_media_argument(answers)
  answers.add_argument('--enable-thinking', action=argparse.BooleanOptionalAction, help="the chat template's thinking switch")
  answers.add_argument('--score', action='store_true', help='score the last assistant turn of every row instead of answering')
  answers.add_argument('--top-logprobs', type=int, default=0, metavar='K', help='with --score: the K best tokens at every place')
  files = parser.add_argument_group('files')
  files.add_argument('--audio', default='flac', choices=('flac', 'wav'), help='of spoken replies, 24 kHz, 16 bit')
  files.add_argument('--tar', action='store_true', help='one archive of sound for each block of rows')
  files.add_argument('--token-ids', action='store_true', help="write replies' token ids too")
  files.add_argument('--block-rows', type=int, default=64, metavar='N', help='rows to a part file (default 64)')
  files.add_argument('--retry-failed', action='store_true', help='try rows again that ended in an error')
  files.add_argument('--merge', action='store_true', help='only check that all rows are there, and write summary and report')
  work = parser.add_argument_group('work')
  work.add_argument('--shard', metavar='I/N', help='take only every N-th block, from the I-th (default: any that nobody has)')
  work.add_argument('--slots', type=int, default=32, help='rows that decode together (default 32)')
  work.add_argument('--speech-slots', type=int, help='rows that speak together (default: as many)')
  work.add_argument('--lengths', metavar='N,N', help='tokens that slots hold (default 256,1024,4096,16384)')
  work.add_argument('--workers', type=int, default=2, help='threads that decode media and tokenize (default 2)')
  compile_cache.add_argument(work)
  work.add_argument('--dry-run', action='store_true', help='print memory and programs, load and run nothing')
  parser.add_argument('--json', action='store_true', help='print the summary as one JSON object')


def engine_config(args: argparse.Namespace):
  from ..infer.batch_plan import EngineConfig

  options: dict[str, Any] = {'slots': args.slots, 'speech_slots': args.speech_slots, 'workers': args.workers}
  if args.lengths:
    try:
      options['lengths'] = tuple(int(n) for n in args.lengths.split(','))
    except ValueError:
      raise ValueError(f'--lengths {args.lengths}: expected ascending numbers as in 256,1024') from None
    smallest = options['lengths'][0]
    options['pieces'] = (min(64, smallest), min(256, smallest))
  return EngineConfig(**options)


def run(args: argparse.Namespace) -> int:
  if args.merge:
    from ..infer.job import merge

    return _tell(merge(args.output), args.json)
  if not args.model or not args.input:
    raise ValueError('give --model and --input (or --merge with --output)')
  shard = parse_shard(args.shard) if args.shard else None
  devices.start(args.compile_cache)
  config = engine_config(args)
  if args.dry_run:
    return _dry_run(args, config)
  from ..infer.job import JobConfig, run_job

  given = {name: getattr(args, name) for name in (*SETTINGS, 'fps', 'media', 'audio_in_video', 'enable_thinking', 'speaker')}
  job = JobConfig(
    model=args.model,
    input=tuple(args.input),
    output=args.output,
    speech=args.speech,
    score=args.score,
    top_logprobs=args.top_logprobs,
    audio=args.audio,
    tar=args.tar,
    token_ids=args.token_ids,
    media_root=args.media_root,
    dtype=args.dtype,
    mesh=args.mesh,
    block_rows=args.block_rows,
    shard=shard,
    retry_failed=args.retry_failed,
    engine=config,
    **given,
  )
  _say_programs(args, config)
  signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # preemption: end as by Ctrl-C
  return _tell(run_job(job, on_progress=_progress()), args.json)


def parse_shard(text: str) -> tuple[int, int]:
  left, _, right = text.partition('/')
  if not left.isdecimal() or not right.isdecimal():
    raise ValueError(f'--shard {text}: expected I/N, such as 0/4')
  return int(left), int(right)


def _load_config(args: argparse.Namespace):
  from ..config_json import load_config
  from ..weights.remote import located

  with located(args.model) as place:
    return load_config(place.folder)


def _say_programs(args: argparse.Namespace, config) -> None:
  from ..infer.batch_plan import program_bound

  bound = program_bound(config, _load_config(args), args.speech)
  print(f'programs: at most {sum(bound.values())} ({", ".join(f"{k} {v}" for k, v in bound.items())})', file=sys.stderr)


def _dry_run(args: argparse.Namespace, config) -> int:
  import jax

  from ..infer.batch_plan import memory_plan
  from ..sharding import mesh_shape

  shape = mesh_shape(args.mesh, jax.device_count()) if args.mesh else None
  for line in memory_plan(_load_config(args), config, args.dtype, args.speech, shape).lines():
    print(line)
  _say_programs(args, config)
  return 0


def _progress():
  report = progress_line()
  return lambda rows, total: report(lambda s: f'{rows} rows of this run, {total} in the job; {rows / s:.2f} rows/s')


def _tell(summary: dict[str, Any], as_json: bool) -> int:
  """Exit code: 0 every row answered; 3 some rows ended in errors; 4 rows are still missing (other processes, or a kill)."""
  if as_json:
    print(json.dumps(summary, ensure_ascii=False))
  elif not summary['complete']:
    print(
      f'{summary["open_blocks"]} blocks with {summary["rows_in_open_blocks"]} rows are not finished: other processes have '
      'them, or were killed; run the job again to be sure'
    )
  else:
    failures = ', '.join(f'{kind} {n}' for kind, n in summary['failures'].items())
    print(f'{summary["answered"]} of {summary["rows"]} rows answered')
    if failures:
      print(f'{summary["failed"]} errors: {failures}')
  if not summary['complete']:
    return 4
  return 3 if summary['failed'] else 0
