"""`qwen3-omni convert`: published weights to a checkpoint that jax restores onto any mesh. No torch; memory stays small."""

import argparse
import os
import pathlib
import shutil
import sys
import time

SMALL_FILES = (
  'config.json', 'generation_config.json', 'vocab.json', 'merges.txt', 'tokenizer.json', 'tokenizer_config.json',
  'special_tokens_map.json', 'added_tokens.json', 'preprocessor_config.json', 'processor_config.json',
  'video_preprocessor_config.json', 'chat_template.json', 'chat_template.jinja', 'LICENSE', 'README.md',
)  # fmt: skip
COMMIT_BYTES = 256 * 2**20  # written to disk at once; bounds the memory in use


def add_arguments(parser: argparse.ArgumentParser) -> None:
  directions = parser.add_subparsers(dest='direction', required=True, metavar='DIRECTION')
  to_jax = directions.add_parser('to-jax', help='published layout to a converted folder')
  to_jax.add_argument('--from', dest='source', required=True, metavar='HF_DIR', help='folder in the published layout')
  to_jax.add_argument('--to', dest='target', required=True, metavar='DIR', help='new folder')
  to_jax.add_argument('--dtype', choices=('bfloat16', 'float32'), help='store the weights as this (default: as they are)')


def run(args: argparse.Namespace) -> int:
  convert_to_jax(pathlib.Path(args.source), pathlib.Path(args.target), args.dtype, progress=True)
  return 0


def convert_to_jax(source: pathlib.Path, target: pathlib.Path, dtype: str | None = None, progress: bool = False) -> None:
  """Converts a published folder. The target appears only when it is complete; until then the work is in `TARGET.partial`."""
  import math

  import ml_dtypes
  import numpy as np
  import tensorstore as ts

  from ..config import load_config
  from ..models.omni import omni_spec
  from ..nn.params import leaves
  from ..weights import store
  from ..weights.source import open_published
  from ..weights.table import published

  if not source.is_dir():
    raise ValueError(f'{source}: no such folder; expected a checkpoint in the published layout')
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    raise ValueError(f'{target}: not empty; give a new folder')
  cfg = load_config(source)
  views = open_published(source, cfg)
  tensors = published(cfg)
  first = next(iter(views.values()))
  stored = np.dtype({'bfloat16': ml_dtypes.bfloat16, 'float32': np.float32}[dtype] if dtype else first.shard.dtype(first.name))
  stacked = {tensor.row.ours: len(tensor.index) for tensor in tensors.values()}
  shapes = {path: (param.shape, stacked[path]) for path, param in leaves(omni_spec(cfg))}
  total = sum(math.prod(shape) for shape, _ in shapes.values()) * stored.itemsize
  parent = target.absolute().parent
  parent.mkdir(parents=True, exist_ok=True)
  if shutil.disk_usage(parent).free < total * 1.02:
    free = shutil.disk_usage(parent).free
    raise ValueError(f'{parent}: {free / 1e9:.1f} GB free, the checkpoint needs {total * 1.02 / 1e9:.1f} GB')
  partial = target.with_name(target.name + '.partial')
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir()
  arrays = store.create(partial, shapes, stored)
  report = _Progress(total) if progress else None
  batch, batched = ts.Transaction(), 0  # one commit for many small tensors: a commit each would take longer than the data
  for name, tensor in tensors.items():
    value = np.ascontiguousarray(tensor.to_ours(views[name].read()).astype(stored, copy=False))
    arrays[tensor.row.ours].with_transaction(batch)[tensor.index].write(value).result()
    batched += value.nbytes
    if batched > COMMIT_BYTES:
      batch.commit_sync()
      batch, batched = ts.Transaction(), 0
    if report:
      report.add(value.nbytes)
  batch.commit_sync()
  for file in SMALL_FILES:
    if (source / file).is_file():
      shutil.copyfile(source / file, partial / file)
  if target.exists():
    target.rmdir()
  os.replace(partial, target)
  if report:
    report.done(target)


class _Progress:
  """Bytes, speed and remaining time: one line rewritten on a terminal, a line every ten seconds elsewhere."""

  def __init__(self, total: int):
    self.total, self.bytes, self.started = total, 0, time.monotonic()
    self.live = sys.stderr.isatty()
    self.next = self.started + (0.2 if self.live else 10)

  def add(self, size: int) -> None:
    self.bytes += size
    now = time.monotonic()
    if now < self.next:
      return
    self.next = now + (0.2 if self.live else 10)
    speed = self.bytes / (now - self.started)
    line = (
      f'{self.bytes / 1e9:.2f} of {self.total / 1e9:.2f} GB, {speed / 1e6:.0f} MB/s, '
      f'{(self.total - self.bytes) / speed:.0f} s left'
    )
    print(f'\r{line}   ' if self.live else line, end='' if self.live else '\n', file=sys.stderr, flush=True)

  def done(self, target: pathlib.Path) -> None:
    seconds = time.monotonic() - self.started
    start = '\r' if self.live else ''
    print(f'{start}{target}: {self.bytes / 1e9:.2f} GB in {seconds:.1f} s ({self.bytes / 1e6 / seconds:.0f} MB/s)   ')


if __name__ == '__main__':
  from qwen3_omni_jax.cli import main

  sys.exit(main(['convert', *sys.argv[1:]]))
