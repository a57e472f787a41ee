"""The job of a plan: which program, of which shapes."""

import dataclasses
import math
from typing import Any

from qwen3_omni_jax.config import OmniConfig
from qwen3_omni_jax.flops import Work, forward_flops
from qwen3_omni_jax.train.config import Run
from qwen3_omni_jax.train.config_file import to_data
from qwen3_omni_jax.train.geometry import lane_shape
from qwen3_omni_jax.train.state import PARTS, SPEECH_PARTS, assign_roles
from qwen3_omni_jax.train.utilisation import trained_flops

FRAME_PATCHES = 1024  # of an image of 512 x 512, or of two frames of a video: what the room for pictures is taken to hold
JOBS = ('train', 'prefill', 'decode', 'speech')


@dataclasses.dataclass(frozen=True)
class Job:
  """batch: rows over all devices. length: tokens of a row (train, prefill), or cache slots (decode; frames and prompt of speech).

  strategy: of sharding.mesh_shape. run: of a training job, whose shapes, mesh and everything else are the run's; its sizes are
  resolved for the devices (train.geometry).
  """

  kind: str
  batch: int
  length: int
  strategy: str
  run: Run | None = None

  def __post_init__(self):
    problems = []
    if self.kind not in JOBS:
      problems.append(f'job {self.kind!r}: expected one of {", ".join(JOBS)}')
    if (self.kind == 'train') != (self.run is not None):
      problems.append('a training job, and no other, has the configuration of a run')
    if self.batch < 1 or self.length < 16:
      problems.append(f'batch {self.batch} and length {self.length}: expected at least 1 and 16')
    if problems:
      raise ValueError('; '.join(problems))

  @classmethod
  def of_run(cls, run: Run) -> 'Job':
    return cls('train', run.data.rows, run.data.length, run.mesh, run)

  def as_data(self) -> dict[str, Any]:
    """For JSON."""
    return {
      'kind': self.kind,
      'batch': self.batch,
      'length': self.length,
      'strategy': self.strategy,
      'run': None if self.run is None else to_data(self.run),
    }


def work_of(cfg: OmniConfig, job: Job) -> Work:
  """What one run of the program computes: a step, a prefill, a decode step or a frame of every row. Batches and caches are full:
  so are the rooms of a training batch for audio and pictures, which real batches seldom fill."""
  if job.kind == 'decode':
    return Work.of_step(job.batch, job.length)
  if job.kind == 'speech':
    return Work.of_frame(job.batch, job.length)
  lengths = [job.length] * job.batch
  if job.run is None:
    return Work.of_lengths(cfg, lengths, logits=job.batch)
  shape, microbatches = lane_shape(job.run.data, cfg), job.run.step.accumulate
  lanes = job.run.data.lanes
  windows = shape.audio_rows * lanes * (shape.chunks // cfg.thinker.audio.chunks_per_window)
  data, share = job.run.data, 1.0 if job.run.speech is None else job.run.speech.frames
  work = Work.of_lengths(
    cfg,
    lengths,
    talker=[data.speech_length] * data.speech_rows,
    code_frames=math.ceil(share * data.speech_length) * data.speech_rows,
    audio=[cfg.thinker.audio.n_window_infer] * windows,
    frames=[FRAME_PATCHES] * (shape.patches * shape.visual_rows * lanes // FRAME_PATCHES),
  )
  return sum((work for _ in range(microbatches)), Work())


def flops_of(cfg: OmniConfig, job: Job) -> dict[str, float]:
  """FLOPs by 'part.kind' over all devices."""
  if job.run is None:
    return forward_flops(cfg, work_of(cfg, job))
  return trained_flops(cfg, assign_roles(cfg, job.run), work_of(cfg, job), job.run.speech)


def recomputed_flops(cfg: OmniConfig, job: Job) -> float:
  """FLOPs that a step computes again because it kept no activations; a frozen Thinker whose Talker learns needs none."""
  if job.run is None or job.run.step.remat != 'full':
    return 0.0
  roles, flops = assign_roles(cfg, job.run), forward_flops(cfg, work_of(cfg, job))
  again = SPEECH_PARTS if job.run.speech is not None and not roles.learns(*PARTS) else roles.parts
  return sum(n for name, n in flops.items() if name.partition('.')[0] in again)
