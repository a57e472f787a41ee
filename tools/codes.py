"""`qwen3-omni codes`: recordings to the codes that training of speech reads, resumably, in any number of processes."""

import argparse
import json
import os
import signal

from qwen3_omni_jax import compile_cache, devices

from .progress import progress_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    '--codec', required=True, metavar='DIR', help='speech codec: folder or hub id, MimiModel or 12 Hz tokenizer'
  )
  parser.add_argument(
    '--input', required=True, nargs='+', metavar='FILE', help="sound files, or records (.jsonl); or 'wavs/*.wav'"
  )
  parser.add_argument('--out', required=True, metavar='DIR', help='folder of the codes; run again to go on with it')
  parser.add_argument('--codebooks', type=int, metavar='Q', help="codebooks to keep (default: the tokenizer's, else 16)")
  parser.add_argument('--media-root', metavar='DIR', help="where paths lead from (default: the records' folder)")
  work = parser.add_argument_group('work')
  work.add_argument(
    '--shard', metavar='I/N', help='make only every N-th part, from the I-th (default: as the launcher says, or all)'
  )
  work.add_argument('--part', type=int, default=256, metavar='N', help='recordings in a part file (default 256)')
  work.add_argument('--slots', type=int, default=8, metavar='N', help='recordings encoded together (default 8)')
  work.add_argument('--workers', type=int, default=2, metavar='N', help='threads that read sound (default 2)')
  work.add_argument('--retry-failed', action='store_true', help='make parts again in which a recording could not be read')
  compile_cache.add_argument(work)
  parser.add_argument('--json', action='store_true', help='print the summary as one JSON object')


def run(args: argparse.Namespace) -> int:
  from .batch import parse_shard

  shard = parse_shard(args.shard) if args.shard else _of_launcher()
  devices.start(args.compile_cache)
  from ..infer.codes import make_codes

  signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # preemption: end as by Ctrl-C
  summary = make_codes(
    args.codec,
    args.input,
    args.out,
    num_code_groups=args.codebooks,
    media_root=args.media_root,
    shard=shard,
    slots=args.slots,
    workers=args.workers,
    part_size=args.part,
    retry_failed=args.retry_failed,
    on_progress=_progress(),
  )
  return _tell(summary, args.json)


def _of_launcher() -> tuple[int, int] | None:
  """This process's share where it is one of several. They work apart: nothing is sent between them."""
  from ..distributed import find_cluster

  cluster = find_cluster(os.environ)
  if cluster is None:
    return None
  if cluster.process is None or cluster.processes is None:
    raise ValueError('one of several hosts of a TPU slice: give each of them its --shard I/N')
  return cluster.process, cluster.processes


def _progress():
  report = progress_line()

  def tell(done: int, total: int, seconds: float) -> None:
    report(lambda s: f'{done} of {total} recordings, {seconds / 3600:.2f} h of sound, {seconds / s:.0f} times real time')

  return tell


def _tell(summary: dict, as_json: bool) -> int:
  """Exit code: 0 all recordings have codes; 3 some could not be read; 4 parts are missing (other processes make them)."""
  errors = summary.get('errors', {})
  if as_json:
    print(json.dumps(summary, ensure_ascii=False))
  elif not summary['complete']:
    print(f'{summary["parts_missing"]} parts are missing: other processes make them, or were killed; run again to be sure')
  else:
    own = summary['own']
    made = f' ({own["hours"]:.2f} h in this run, {own["times_real_time"]:g} times real time)' if own['recordings'] else ''
    print(f'{summary["recordings"] - len(errors)} recordings, {summary["hours"]:.2f} h of sound{made}')
    print('entropy of the codebooks, bits: ' + ' '.join(f'{bits:.1f}' for bits in summary['entropy_bits']))
    if errors:
      print(f'{len(errors)} could not be read:')
      print('\n'.join(f'  {key}: {message}' for key, message in list(errors.items())[:20]))
      if len(errors) > 20:
        print('  … (all are in index.json)')
  if not summary['complete']:
    return 4
  return 3 if errors else 0
