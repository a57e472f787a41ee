"""A plan as one object: memory, FLOPs, collectives, a roofline estimate, and whether it fits; as JSON, text and HTML."""

import dataclasses
import math
import resource
from typing import Any

from qwen3_omni_jax.config import OmniConfig
from qwen3_omni_jax.flops import by_part, forward_flops
from qwen3_omni_jax.hardware import Topology

from .plan import Job, abstract_mesh, compile_program, flops_of, tpu_mesh, work_of
from .plan_memory import advice, estimated_temporary, held_bytes

_LABELS = {
  'weights': 'weights',
  'optimiser': 'optimiser',
  'activations': 'inputs and caches',
  'temporary': 'temporary',
  'other_parts': "the model's other parts",
}


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
    'job': dataclasses.asdict(job),
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
  again = sum(forward_flops(cfg, work_of(cfg, job)).values()) if job.kind == 'train' and job.remat == 'full' else 0.0
  moved = memory['weights_bytes'] + memory['activations_bytes']
  if job.kind == 'train':  # state read and written, temporaries written and read
    moved = 2 * (memory['weights_bytes'] + memory['optimiser_bytes'] + memory['temporary_bytes'])
  times = {'compute_s': (flops + again) / topology.devices / device.flops, 'memory_s': moved / device.hbm_rate}
  if plan['collectives'] is not None:
    sent = [(along, n) for kinds in plan['collectives'].values() for along, n in kinds.items()]
    far = sum(n for along, n in sent if topology.slices > 1 and 'data' in along.split('+'))
    times['links_s'] = (sum(n for _, n in sent) - far) / device.link_rate + far / device.network_rate
  step = max(times.values())
  tokens = job.batch * (job.length if job.kind in ('train', 'prefill') else 1)
  return {
    'is_estimate': True,
    **times,
    'step_s': step,
    'bound_by': max(times, key=lambda name: times[name])[:-2],
    'mfu': flops / (step * topology.devices * device.flops),
    'tokens_per_s': tokens / step,
  }


def lines(plan: dict[str, Any]) -> list[str]:
  """The plan for a terminal."""
  gib = lambda n: f'{n / 2**30:9.2f} GiB'
  job, memory, estimate = plan['job'], plan['per_device'], plan['estimate']
  mesh = ' x '.join(f'{axis} {size}' for axis, size in plan['mesh'].items()) or 'one device'
  slices = f' x {plan["slices"]} slices' if plan['slices'] > 1 else ''
  where = f'{plan["topology"]}{slices} = {plan["devices"]} devices'
  out = [f'{job["kind"]}: {job["batch"]} rows of {job["length"]} on {where}, {mesh}']
  out += ['', f'memory per device ({plan["memory_source"]})']
  out += [f'  {label:<24}{gib(memory[f"{name}_bytes"])}' for name, label in _LABELS.items() if memory.get(f'{name}_bytes')]
  out += [f'  {"peak":<24}{gib(memory["peak_bytes"])} of {memory["hbm_bytes"] / 2**30:.2f} GiB']
  out += ['', f'FLOPs of a {_run(job["kind"])}, all devices']
  out += [f'  {part:<24}{n / 1e12:13.3f} T' for part, n in plan['flops'].items()]
  out += ['', f'collectives ({plan["collectives_source"]})']
  for kind, along in (plan['collectives'] or {}).items():
    out += [f'  {kind:<20}{axes:<14}{n / 2**20:12.2f} MiB' for axes, n in along.items()]
  if plan['compile_seconds'] is not None:
    out += ['', f'compiled in {plan["compile_seconds"]:.0f} s, {plan["host_peak_bytes"] / 2**30:.1f} GiB of host memory']
  kinds = [name for name in ('compute_s', 'memory_s', 'links_s') if name in estimate]
  out += [
    '',
    f'estimate (roofline, a lower bound; not measured): {1e3 * estimate["step_s"]:.1f} ms a {_run(job["kind"])}, bound by '
    f'{estimate["bound_by"]}; MFU {100 * estimate["mfu"]:.1f} % at most; {estimate["tokens_per_s"]:.0f} tokens/s',
    f'  {", ".join(f"{name[:-2]} {1e3 * estimate[name]:.1f} ms" for name in kinds)}',
  ]
  out += ['', 'fits' if plan['fits'] else 'DOES NOT FIT. What would help:', *(f'  {line}' for line in plan['advice'])]
  return out


def _run(kind: str) -> str:
  return {'train': 'step', 'prefill': 'prefill', 'decode': 'decode step', 'speech': 'frame'}[kind]


def html(plan: dict[str, Any]) -> str:
  """The plan as a page with a bar of each device's memory."""
  from qwen3_omni_jax.report import figure, page, svg, table, text

  memory, drawn = plan['per_device'], figure(9, 2.2)
  axes, left = drawn.subplots(), 0.0
  for name, label in _LABELS.items():
    if size := memory.get(f'{name}_bytes', 0) / 2**30:
      axes.barh(['one device'], [size], left=left, label=f'{label} {size:.1f}')
      left += size
  limit = memory['hbm_bytes'] / 2**30
  axes.axvline(limit, linestyle='--', color='#d1242f', label=f'HBM {limit:.1f}')
  axes.set_xlim(0, 1.05 * max(limit, left))
  axes.set_xlabel('GiB')
  axes.legend(fontsize=8, ncols=3, loc='lower center', bbox_to_anchor=(0.5, 1.0))
  parts = [(name, f'{n / 1e12:.3f}') for name, n in {**by_part(plan['flops'])}.items()]
  sent = [(kind, along, f'{n / 2**20:.1f}') for kind, of in (plan['collectives'] or {}).items() for along, n in of.items()]
  return page(
    f'Plan: {plan["job"]["kind"]} on {plan["topology"]}',
    [
      ('Memory of a device', svg(drawn)),
      ('TFLOPs by part', table(('part', 'TFLOPs'), parts)),
      (f'Collectives ({plan["collectives_source"]})', table(('kind', 'mesh axes', 'MiB'), sent)),
      ('All', text('\n'.join(lines(plan)), code=True)),
    ],
  )


def finite(plan: Any) -> Any:
  """Without values that JSON has no word for."""
  if isinstance(plan, dict):
    return {key: finite(value) for key, value in plan.items()}
  return None if isinstance(plan, float) and not math.isfinite(plan) else plan
