"""A plan as one object: memory, FLOPs, collectives, a roofline estimate, and whether it fits."""

import math
import resource
from typing import Any

from qwen3_omni_jax.config import OmniConfig
from qwen3_omni_jax.hardware import Topology

from .advice import advice
from .compiler import compile_program
from .job import Job, flops_of, recomputed_flops
from .memory import estimated_temporary, held_bytes
from .topology import abstract_mesh, tpu_mesh


def make_plan(cfg: OmniConfig, job: Job, topology: Topology, model: str = '') -> dict[str, Any]:
  """The plan of one job. For TPUs the program is compiled, for GPUs counted. Keys are those of `qwen3-omni plan --json`."""
  tpu = topology.accelerator.platform == 'tpu'
  mesh = tpu_mesh(topology, job.strategy) if tpu else abstract_mesh(topology, job.strategy)
  shape = {axis: size for axis, size in mesh.shape.items() if size > 1}
  memory = held_bytes(cfg, job, mesh)
  compiled = compile_program(cfg, job, mesh) if tpu else None
  if compiled is None:
    memory['temporary'] = estimated_temporary(cfg, job, shape)
    peak = sum(memory.values())
  elif compiled.needed is None:
    memory['temporary'] = compiled.memory['temporary']
    peak = compiled.memory['peak'] + memory['other_parts']
  else:
    peak = max(compiled.needed, sum(memory.values())) + memory['other_parts']
    memory['temporary'] = max(0, peak - sum(memory.values()))
  flops = flops_of(cfg, job)
  limit = topology.accelerator.hbm_bytes
  fits = peak <= limit
  plan: dict[str, Any] = {
    'model': model,
    'job': job.as_data(),
    'topology': topology.name,
    'slices': topology.slices,
    'devices': topology.devices,
    'mesh': shape,
    'per_device': {f'{name}_bytes': n for name, n in memory.items()} | {'peak_bytes': peak, 'hbm_bytes': limit},
    'memory_source': 'compiled' if compiled else 'estimate: counted from shapes, no compiler for GPUs here',
    'fits': fits,
    'compile_seconds': compiled and round(compiled.seconds, 1),
    'host_peak_bytes': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    'flops': {**flops, 'total': sum(flops.values())},
    'collectives': compiled and compiled.collectives,
    'collectives_source': _source(compiled),
    'compiler_says': compiled.why if compiled else '',
  }
  plan['estimate'] = _estimate(cfg, job, topology, plan)
  plan['advice'] = [] if fits else advice(cfg, job, topology, peak)
  return plan


def _source(compiled) -> str:
  if compiled is None:
    return 'not counted: no compiler for GPUs here'
  if compiled.needed is not None:
    return 'not counted: the program does not fit'
  if compiled.collectives is None:
    return 'not counted: libtpu has not written down the compiled program'
  return 'compiled program; bytes a device receives in one run'


def _estimate(cfg: OmniConfig, job: Job, topology: Topology, plan: dict[str, Any]) -> dict[str, Any]:
  """Time by the roofline: the longest of arithmetic, memory and links, each at its peak, all overlapped. A lower bound."""
  device, memory = topology.accelerator, plan['per_device']
  flops = plan['flops']['total']
  again = recomputed_flops(cfg, job)
  moved = memory['weights_bytes'] + memory['activations_bytes']
  if job.kind == 'train':  # state read and written, temporaries written and read
    moved = 2 * (memory['weights_bytes'] + memory['optimiser_bytes'] + memory['temporary_bytes'])
  times = {'compute_s': (flops + again) / topology.devices / device.flops, 'memory_s': moved / device.hbm_rate}
  if plan['collectives'] is not None:
    sent = [(along, n) for kinds in plan['collectives'].values() for along, n in kinds.items()]
    far = sum(n for along, n in sent if topology.slices > 1 and 'data' in along.split('+'))
    times['links_s'] = (sum(n for _, n in sent) - far) / device.link_rate + far / device.network_rate
  step = max(times.values())
  tokens = job.batch * (job.length if job.kind in ('train', 'prefill') else 1) * (job.run.step.accumulate if job.run else 1)
  return {
    'is_estimate': True,
    **times,
    'step_s': step,
    'bound_by': max(times, key=lambda name: times[name])[:-2],
    'mfu': flops / (step * topology.devices * device.flops),
    'tokens_per_s': tokens / step,
  }


def finite(plan: Any) -> Any:
  """Without values that JSON has no word for."""
  if isinstance(plan, dict):
    return {key: finite(value) for key, value in plan.items()}
  return None if isinstance(plan, float) and not math.isfinite(plan) else plan
