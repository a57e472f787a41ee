"""Metrics of a run: a line on the terminal, a line of JSON for every step, TensorBoard, and Weights & Biases if configured."""

import json
import math
import sys
import uuid
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from . import goodput
from .batch import KINDS
from .goodput import Goodput
from .lines import Lines
from .samples import Sample
from .utilisation import peak

FILE = 'metrics.jsonl'
LOST_ALARM = 1e-3  # share of the pairs of token and expert without room, from which on every step says so


class Metrics:
  """The log of one run, written by the first process, with the statistics of its own input.

  With `records`, every other process writes the ids of its records to records-PROCESS.jsonl. Values are fetched one step late, so
  that the host does not wait for the devices. Lines are written every `every` steps, with checkpoints and evaluations: each write
  to a mounted bucket copies the whole file. began: see Goodput.

  time: where the time goes. Who works between steps says so (`time.spent`).
  """

  def __init__(
    self,
    folder: epath.Path,
    steps: int,
    *,
    every: int,
    tensorboard: bool,
    wandb: str | None,
    records: bool,
    began: float | None = None,
  ):
    self.steps, self.every, self.records = steps, every, records
    self.is_writer = jax.process_index() == 0
    folder = epath.Path(folder)
    self.skipped_in_a_row: int | None = 0  # up to the last step that was logged; None: not known since the run went back
    self._lines = Lines(folder / (FILE if self.is_writer else f'records-{jax.process_index()}.jsonl'))
    self._pending: tuple[int, dict, dict[str, Any]] | None = None
    self.time = Goodput(folder / goodput.FILE if self.is_writer else None, began)
    self._logged_s = dict(self.time.seconds)
    self._tensorboard = self._wandb = None
    self._peak = peak()
    if self.is_writer and tensorboard:
      from tensorboardX import SummaryWriter

      self._tensorboard = SummaryWriter(str(folder / 'tensorboard'))
    if self.is_writer and wandb:
      try:
        import wandb as service  # type: ignore[import-not-found]
      except ImportError as error:
        raise ValueError('log.wandb is set, but wandb is not installed: pip install wandb, or leave it out') from error
      name = folder / 'wandb_id'  # a run that goes on is the same one there too
      if not name.exists():
        name.write_text(uuid.uuid4().hex[:8])
      self._wandb = service.init(
        project=wandb, dir=None if '://' in str(folder) else str(folder), id=name.read_text(), resume='allow'
      )

  def resume(self, step: int) -> None:
    """Removes the lines of steps after this one, which are repeated."""
    self.time.resume(step)
    self._logged_s = dict(self.time.seconds)
    if not self.is_writer:
      return
    wanted = lambda line: 0 <= _logged_step(line) <= step
    self._lines.keep(wanted)
    for file in self._lines.file.parent.glob('records-*.jsonl'):  # also those of processes that are no more
      Lines(file).keep(wanted)

  def step(self, step: int, metrics: dict, stats: Sequence[dict[str, Any]]) -> None:
    """Metrics of a step that was just dispatched, and the loader's statistics of its batches."""
    self.flush()
    self._pending = (step, metrics, _input_stats(stats, self.records))

  def write(self) -> None:
    """Waits for the last dispatched step and puts all lines on disk: before a checkpoint that has these steps."""
    self.flush()
    self._lines.write()

  def flush(self) -> None:
    """Waits for the last dispatched step and logs it."""
    if self._pending is None:
      return
    (step, metrics, input_stats), self._pending = self._pending, None
    values = {name: _plain(np.asarray(value)) for name, value in jax.device_get(metrics).items()}
    self.skipped_in_a_row = int(values.get('skipped_in_a_row') or 0)
    self.time.spent('step')
    self.time.done(skipped=self.skipped_in_a_row > 0)
    passed = {phase: total - self._logged_s[phase] for phase, total in self.time.seconds.items()}
    seconds = max(passed['compile'] + passed['input'] + passed['step'] + passed['lost'], 1e-9)  # lost: steps that did not count
    other_s = {f'{phase}_s': passed[phase] for phase in ('input', 'checkpoint', 'evaluation')}
    self._logged_s = dict(self.time.seconds)
    for kind in KINDS:
      if not values.get(f'weight/{kind}'):
        values.pop(f'weight/{kind}', None)
        values.pop(f'cross_entropy/{kind}', None)
    for name in [name for name, value in values.items() if name.startswith('source/') and name.endswith('/weight') and not value]:
      values.pop(name.removesuffix('weight') + 'cross_entropy', None)
    for name in [name for name, value in values.items() if name.endswith('/speech_weight') and not value]:
      values.pop(name.removesuffix('speech_weight') + 'codes', None)
    line = {'step': step, **values, 'step_s': seconds, 'tokens_per_s': values['tokens'] / seconds, **other_s, **input_stats}
    if 'speech/frames' in values:
      line['frames_per_s'] = values['speech/frames'] / seconds
    line |= self.time.scalars()
    if self._peak is not None and input_stats['flops']:
      line['mfu'] = input_stats['flops'] / seconds / self._peak
    if not self.is_writer:
      if self.records:
        self._lines.add({'step': step, 'ids': input_stats['ids']})
      return
    self._lines.add(line)
    scalars = {name: value for name, value in line.items() if isinstance(value, (int, float)) and name != 'step'}
    if self._tensorboard is not None:
      for name, value in scalars.items():
        self._tensorboard.add_scalar(name, value, step)
    if self._wandb is not None:
      self._wandb.log(scalars, step=step)
    if (lost := line.get('lost_share') or 0) >= LOST_ALARM:
      warning = f'step {step}: {lost:.2%} of the pairs of token and expert found no room; raise step.buffer, or look at busiest'
      print(f'WARNING {warning}', file=sys.stderr, flush=True)
    if step % self.every == 0 or step == self.steps:
      self._lines.write()
      self.time.write()
      print(self._terminal(line), file=sys.stderr, flush=True)

  def _terminal(self, line: dict[str, Any]) -> str:
    left = (self.steps - line['step']) * line['step_s']
    parts = [
      f'step {line["step"]}/{self.steps}',
      f'loss {line["loss"]:.4f}',
      f'grad {line["grad_norm"]:.2g}',
      f'{line["tokens_per_s"]:,.0f} tokens/s',
      f'{line["step_s"]:.2f} s',
      f'MFU {line["mfu"]:.1%}' if 'mfu' in line else '',
      f'padding {line["padding"]:.0%}' if 'padding' in line else '',
      f'codes {line["speech/codes"]:.3f} predictor {line["speech/predictor"]:.3f}' if 'speech/codes' in line else '',
      f'{line["frames_per_s"]:,.0f} frames/s' if 'frames_per_s' in line else '',
      f'busiest expert {line["busiest"]:.1f}x' if 'busiest' in line else '',
      f'lost {line["lost"]:.0f}' if line.get('lost') else '',
      f'input {line["input_s"] / line["step_s"]:.0%}',
      f'checkpoint {line["checkpoint_s"]:.1f} s' if line['checkpoint_s'] > 0.05 else '',
      f'skipped {line["skipped"]:.0f}' if line['skipped'] else '',
      f'bad records {line["bad"]}' if line.get('bad') else '',
      f'{left / 60:.0f} min left' if left > 60 else '',
    ]
    return '  '.join(part for part in parts if part)

  def evaluation(self, step: int, values: dict[str, float]) -> None:
    """Losses on held-out data after a step."""
    self._between_steps(step, 'evaluation', values, {'evaluation': values})

  def benchmarks(self, step: int, scores: dict[str, float]) -> None:
    """The first metric of each benchmark after a step."""
    self._between_steps(step, 'eval', scores, {f'eval/{name}': value for name, value in scores.items()})

  def samples(self, step: int, samples: Sequence[Sample], values: dict[str, float]) -> None:
    """Speech after a step, and what was measured of it."""
    self._between_steps(step, 'samples', values, {f'samples/{name}': value for name, value in values.items()})
    for i, sample in enumerate(samples):
      if self._tensorboard is not None and len(sample.sound):
        self._tensorboard.add_audio(f'samples/{i}', np.clip(sample.sound, -1, 1), step, sample.rate_hz)

  def _between_steps(self, step: int, what: str, values: dict[str, float], line: dict[str, Any]) -> None:
    self.flush()
    if self.is_writer:
      self._lines.add({'step': step, **line})
      self._lines.write()
      for name, value in values.items():
        if self._tensorboard is not None:
          self._tensorboard.add_scalar(f'{what}/{name}', value, step)
      if self._wandb is not None:
        self._wandb.log({f'{what}/{name}': value for name, value in values.items()}, step=step)
      print(f'step {step}  {what}: ' + '  '.join(f'{n} {v:.4f}' for n, v in values.items()), file=sys.stderr, flush=True)

  def rollback(self, step: int, to: int) -> None:
    """After this step, which was skipped too, the run went back to the parameters of another."""
    self.flush()
    if self.is_writer:
      self._lines.add({'step': step, 'rollback': {'to': to}})
      self._lines.write()
    self.skipped_in_a_row = None
    self.time.go_back(to)

  def close(self) -> None:
    self.write()
    if self._tensorboard is not None:
      self._tensorboard.close()
    if self._wandb is not None:
      self._wandb.finish()


def _logged_step(line: str) -> int:
  """The step of a line; -1 for the incomplete line of a killed process."""
  try:
    return json.loads(line)['step']
  except (ValueError, KeyError, TypeError):
    return -1


def _plain(value: np.ndarray) -> Any:
  """JSON has no infinities."""
  number = value.item()
  return number if math.isfinite(number) else None if isinstance(number, float) else number


def _input_stats(stats: Sequence[dict[str, Any]], records: bool) -> dict[str, Any]:
  """Sums over microbatches of this process; shares of room left empty."""
  total = lambda name: sum(s.get(name, 0) for s in stats)
  input_stats: dict[str, Any] = {name: total(name) for name in ('records', 'flops')}
  input_stats['bad'] = max((s.get('bad', 0) for s in stats), default=0)  # so far
  for name, key in (
    ('tokens', 'padding'),
    ('audio_s', 'padding_audio'),
    ('patches', 'padding_visual'),
    ('speech', 'padding_speech'),
  ):
    if room := total(f'{name}_room'):
      input_stats[key] = 1 - total(name) / room
  if records:
    input_stats['ids'] = [list(i) for s in stats for i in s.get('ids', ())]
  return input_stats
