"""The configuration of a run, as in the files of configs/train (train/config.py reads them)."""

import dataclasses
from typing import Literal

from .config import Recipe
from .data import DataConfig


@dataclasses.dataclass(frozen=True)
class Saving:
  """every: steps between checkpoints; one more is written at the end. minutes: besides, so long after the last one. keep: newest
  ones kept; keep_every: besides, those of steps that it divides; best: besides, so many of the lowest held-out loss (of those
  saved at a step with an evaluation). rollback: after so many skipped steps in a row (step.spike, step.skip_nonfinite) go on from
  the newest checkpoint with the data that follow; 0: never."""

  every: int = 500
  keep: int = 2
  keep_every: int | None = None
  minutes: float | None = None
  best: int = 0
  rollback: int = 0


@dataclasses.dataclass(frozen=True)
class Logging:
  """every: steps between lines on the terminal. wandb: the project to log to. records: write the ids of the records of every
  step. profile: the first of three steps to trace with jax's profiler (SIGUSR1 traces the next three at any time).
  hang_s: seconds in one phase of a step after which every process says where it is; None: never."""

  every: int = 10
  tensorboard: bool = True
  wandb: str | None = None
  records: bool = False
  profile: int | None = None
  hang_s: float | None = 1800.0


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Loss on held-out data every so many steps, over the first `batches` batches of them."""

  data: DataConfig
  every: int = 500
  batches: int = 8


@dataclasses.dataclass(frozen=True)
class Run(Recipe):
  """model: a folder (converted or as published), a hub id, or the gs:// or s3:// URL of a converted folder. init: 'model' starts
  from its weights, 'random' from random ones of its shape. out: the run's folder, or a gs:// URL; a run in it goes on. mesh: a
  strategy of sharding.py or sizes of mesh axes; slices: of TPUs. export: a folder to write the result to in the published layout,
  LoRA merged, with the model's other parts. export_weights: what is exported where averages are kept (step.ema): these, or the
  raw weights."""

  model: str = ''
  out: str = ''
  init: Literal['model', 'random'] = 'model'
  mesh: str = 'fsdp'
  slices: int = 1
  seed: int = 0
  data: DataConfig = DataConfig()
  evaluate: Evaluation | None = None
  save: Saving = Saving()
  log: Logging = Logging()
  export: str | None = None
  export_weights: Literal['averaged', 'raw'] = 'averaged'

  def check(self) -> None:
    """Raises ValueError for what no run can do."""
    problems = [f'{name}: missing' for name in ('model', 'out') if not getattr(self, name)]
    problems += [
      f'{name} {value}: expected at least 1'
      for name, value in (
        ('steps', self.steps),
        ('save.every', self.save.every),
        ('save.keep', self.save.keep),
        ('log.every', self.log.every),
        ('step.accumulate', self.step.accumulate),
      )
      if value < 1
    ]
    problems += [
      f'{name} {value}: expected more than 0'
      for name, value in (('save.minutes', self.save.minutes), ('log.hang_s', self.log.hang_s))
      if value is not None and value <= 0
    ]
    if self.save.best and self.evaluate is None:
      problems.append('save.best: there is no held-out loss; give evaluate, or leave it out')
    if self.data.epochs is not None:
      problems.append('data.epochs: a run has a number of steps; leave it out')
    if '://' in self.out and not self.out.startswith('gs://'):
      problems.append(f'out {self.out}: Orbax writes checkpoints to a file system or to gs://; mount the bucket, or use gs://')
    if self.export is not None and '://' in self.model:
      problems.append(
        f'export: needs model on a local disk, found {self.model}; leave it out and export the last checkpoint later'
      )
    if problems:
      raise ValueError('configuration: ' + '; '.join(problems))
