"""`qwen3-omni convert`: published weights to a checkpoint that jax restores onto any mesh, in little memory."""

import argparse
import pathlib
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
  from .compare_weights import add_directions  # here, so that this file also runs as a script

  directions = parser.add_subparsers(dest='direction', required=True, metavar='DIRECTION')
  to_jax = directions.add_parser('to-jax', help='published layout to a converted folder')
  to_jax.add_argument('--from', dest='source', required=True, metavar='HF_DIR', help='folder in the published layout')
  to_jax.add_argument('--to', dest='target', required=True, metavar='DIR', help='new folder')
  to_jax.add_argument(
    '--dtype', choices=('bfloat16', 'float16', 'float32'), help='store the weights as this (default: as they are)'
  )
  to_jax.set_defaults(action=_to_jax)
  add_directions(directions)


def run(args: argparse.Namespace) -> int:
  return args.action(args)


def _to_jax(args: argparse.Namespace) -> int:
  from ..weights.to_jax import convert_to_jax

  convert_to_jax(pathlib.Path(args.source), pathlib.Path(args.target), args.dtype, progress=True)
  return 0


if __name__ == '__main__':  # as a script: the installed module, so that its relative imports work
  from qwen3_omni_jax.tools import convert_weights

  _parser = argparse.ArgumentParser(description=__doc__)
  convert_weights.add_arguments(_parser)
  try:
    sys.exit(convert_weights.run(_parser.parse_args()))
  except ValueError as error:
    sys.exit(f'convert_weights: {error}')
