"""`qwen3-omni convert`: converts published weights to a checkpoint for jax, and back, in little memory."""

import argparse
import os
import sys

from qwen3_omni_jax import devices

PARTS = ('audio', 'vision', 'thinker', 'talker', 'code2wav')


def add_arguments(parser: argparse.ArgumentParser) -> None:
  from .compare_weights import add_directions  # here, so that this file also runs as a script

  directions = parser.add_subparsers(dest='direction', required=True, metavar='DIRECTION')
  to_jax = directions.add_parser('to-jax', help='published layout to a converted folder')
  _add_common(to_jax, 'folder in the published layout, or hub id (org/name)', ('int8',))
  to_jax.add_argument('--only', nargs='+', choices=PARTS, metavar='PART', default=(), help=f'{", ".join(PARTS)} (default: all)')
  to_jax.set_defaults(action=_to_jax)
  to_hf = directions.add_parser('to-hf', help='any checkpoint to the published layout, for transformers, vLLM and others')
  _add_common(to_hf, 'checkpoint folder of any kind, or hub id')
  to_hf.add_argument('--fused-experts', action='store_true', help='names and experts as transformers 5 keeps them in memory')
  to_hf.add_argument('--adapter', nargs='+', metavar='DIR', help='LoRA adapters (folders as PEFT saves them) to merge')
  to_hf.add_argument('--base', metavar='DIR', help='folder of the parts that --from does not hold')
  to_hf.set_defaults(action=_to_hf)
  add_directions(directions)


def _add_common(parser: argparse.ArgumentParser, source: str, more_dtypes: tuple[str, ...] = ()) -> None:
  parser.add_argument('--from', dest='source', required=True, metavar='DIR', help=source)
  parser.add_argument('--to', dest='target', required=True, metavar='DIR', help='new folder; a second run goes on in it')
  parser.add_argument(
    '--dtype', choices=('bfloat16', 'float16', 'float32', *more_dtypes), help='store the weights as this (default: as they are)'
  )
  parser.add_argument('--dry-run', action='store_true', help='say what would be done, check the disk space, write nothing')


def run(args: argparse.Namespace) -> int:
  if getattr(args, 'numerics', False):
    devices.start()
  else:
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # bytes from disk to disk: no device is taken from others
  return args.action(args)


def _to_jax(args: argparse.Namespace) -> int:
  from ..weights.to_jax import convert_to_jax

  convert_to_jax(args.source, args.target, args.dtype, only=args.only, dry_run=args.dry_run, progress=True)
  return 0


def _to_hf(args: argparse.Namespace) -> int:
  from ..weights.to_hf import convert_to_hf

  convert_to_hf(
    args.source,
    args.target,
    dtype=args.dtype,
    fused_experts=args.fused_experts,
    adapter=args.adapter,
    base=args.base,
    dry_run=args.dry_run,
    progress=True,
  )
  return 0


if __name__ == '__main__':  # as a script: the installed module, so that its relative imports work
  from qwen3_omni_jax.tools import convert_weights

  _parser = argparse.ArgumentParser(description=__doc__)
  convert_weights.add_arguments(_parser)
  try:
    sys.exit(convert_weights.run(_parser.parse_args()))
  except ValueError as error:
    sys.exit(f'convert_weights: {error}')
