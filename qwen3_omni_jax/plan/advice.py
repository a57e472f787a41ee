"""What would make a job fit that does not: single changes first, by the estimates of `memory`."""

import dataclasses
import math
from collections.abc import Iterator

from qwen3_omni_jax.config import OmniConfig
from qwen3_omni_jax.hardware import Topology

from .job import Job
from .memory import estimated_temporary, held_bytes
from .topology import abstract_mesh


def advice(cfg: OmniConfig, job: Job, topology: Topology, needed: int) -> list[str]:
  """Lines for a job that needs `needed` bytes per device: of each kind of change the smallest that is enough."""
  limit = topology.accelerator.hbm_bytes
  now, fitting = _total(cfg, job, topology), {}
  gib = lambda n: f'{n / 2**30:.1f} GiB'
  for kind, flag, changed in _changes(job):
    saved = now - _total(cfg, changed, topology) if kind not in fitting else 0
    if kind not in fitting and needed - saved <= limit:
      fitting[kind] = f'{flag} (saves about {gib(saved)} a device)'
  more = 1 << max(0, math.ceil(math.log2(needed / limit * topology.devices)))
  devices = f'a larger topology: about {more} devices of {topology.accelerator.name}, or devices with more than {gib(limit)}'
  return [*fitting.values(), devices]


def _total(cfg: OmniConfig, job: Job, topology: Topology) -> float:
  """Bytes per device; infinite where the shapes do not divide."""
  try:
    mesh = abstract_mesh(topology, job.strategy)
    held = held_bytes(cfg, job, mesh)
  except ValueError:
    return math.inf
  return sum(held.values()) + estimated_temporary(cfg, job, dict(mesh.shape))


def _changes(job: Job) -> Iterator[tuple[str, str, Job]]:
  """(kind of change, how to ask for it, the changed job)."""
  if job.run is None:
    for name in ('serve', 'expert', 'pod'):
      if name != job.strategy:
        yield f'strategy {name}', f'--strategy {name}', dataclasses.replace(job, strategy=name)
    for name, value in (('batch', job.batch), ('length', job.length)):
      for smaller in _halves(value):
        yield name, f'--{name} {smaller}', dataclasses.replace(job, **{name: smaller})
    return
  run = job.run
  step = lambda **change: Job.of_run(dataclasses.replace(run, step=dataclasses.replace(run.step, **change)))
  if run.step.buffer is None or run.step.buffer > 2:
    yield 'buffer', 'step.buffer=2', step(buffer=2.0)
  if run.step.remat != 'full':
    yield 'remat', 'step.remat=full', step(remat='full')
  for name in ('pod', 'fsdp'):
    if name != run.mesh:
      yield f'mesh {name}', f'mesh={name}', Job.of_run(dataclasses.replace(run, mesh=name))
  for smaller in _halves(run.data.length):
    yield (
      'length',
      f'data.length={smaller}',
      Job.of_run(dataclasses.replace(run, data=dataclasses.replace(run.data, length=smaller))),
    )


def _halves(value: int) -> Iterator[int]:
  yield from (value >> n for n in range(1, 12) if value % (1 << n) == 0 and value >> n >= 16)
