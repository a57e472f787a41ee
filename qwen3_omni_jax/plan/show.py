"""A plan for a terminal and as a page."""

from typing import Any

from qwen3_omni_jax.flops import by_part
from qwen3_omni_jax.report import figure, page, svg, table, text

_LABELS = {
  'weights': 'weights',
  'optimiser': 'optimiser',
  'activations': 'inputs and caches',
  'temporary': 'temporary',
  'other_parts': "the model's other parts",
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
