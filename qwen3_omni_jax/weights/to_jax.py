"""A published folder to a converted one, in little memory."""

import pathlib
import shutil
import sys
import time

from ..config import load_config
from ..models.omni import omni_spec
from ..nn.params import leaves
from . import store
from .load import as_dtype
from .source import open_published, stored_dtypes
from .table import published

# Copied beside the weights, both ways.
SMALL_FILES = (
  'config.json', 'generation_config.json', 'vocab.json', 'merges.txt', 'tokenizer.json', 'tokenizer_config.json',
  'special_tokens_map.json', 'added_tokens.json', 'preprocessor_config.json', 'processor_config.json',
  'video_preprocessor_config.json', 'chat_template.json', 'chat_template.jinja', 'LICENSE', 'README.md',
)  # fmt: skip


def convert_to_jax(
  source: str | pathlib.Path, target: str | pathlib.Path, dtype: str | None = None, progress: bool = False
) -> None:
  """Converts a published folder. Until it is complete, the work is in `TARGET.partial`.

  Peak memory is about one published tensor and what is written at once (weights/store.py), however large a stack is.
  Raises ValueError with the full list of tensors that do not fit config.json; nothing is written then.
  """
  source, target = pathlib.Path(source), pathlib.Path(target)
  if not source.is_dir():
    raise ValueError(f'{source}: no such folder; expected a checkpoint in the published layout')
  if store.is_converted(source):
    raise ValueError(f'{source}: already converted; expected a checkpoint in the published layout')
  cfg = load_config(source)
  wanted = as_dtype(dtype)
  views = open_published(source, cfg)
  dtypes = stored_dtypes(views, cfg)
  tensors = published(cfg)
  stacked = {tensor.row.ours: len(tensor.index) for tensor in tensors.values()}
  slots = {
    path: store.Slot(param.shape, stacked[path], wanted or dtypes[path]) for path, param in leaves(omni_spec(cfg))
  }
  writer = store.Writer(target, slots)
  report = _Progress(sum(slot.nbytes for slot in slots.values())) if progress else None
  for name, tensor in tensors.items():
    value = tensor.to_ours(views[name].read())
    writer.write(tensor.row.ours, tensor.index, value)
    if report:
      report.add(value.size * slots[tensor.row.ours].dtype.itemsize)
  for file in SMALL_FILES:
    if (source / file).is_file():
      shutil.copyfile(source / file, writer.folder / file)
  writer.finish()
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
