"""Writes docs/plans.md: full-size jobs planned one after the other, each in a process of its own.

    python tools/plan_table.py [--rows 0 3 4] [--out docs/plans.md]

Results are kept in plans.json beside it, with commit and date, so that rows may be made one at a time.
"""

import argparse
import datetime
import json
import pathlib
import subprocess
import sys

S2, S3 = ('--config', 's2_general'), ('--config', 's3_long')
PRETRAIN, SFT = ('--config', 'talker_pretrain'), ('--config', 'talker_sft')
TEXT = ('data.audio_s=0', 'data.visual_patches=0')  # the same step without media
ROWS: tuple[tuple[str, ...], ...] = (
  ('decode', 'v5e:4x4', '--batch', '64', '--length', '4096'),
  ('prefill', 'v5e:4x4', '--batch', '16', '--length', '8192'),
  ('prefill', 'v5e:4x4', '--batch', '16', '--length', '4096'),
  ('speech', 'v5e:4x4', '--batch', '64', '--length', '2048'),
  ('decode', 'v6e:2x4', '--batch', '64', '--length', '4096'),
  ('prefill', 'v6e:2x4', '--batch', '8', '--length', '8192'),
  ('speech', 'v6e:2x4', '--batch', '64', '--length', '2048'),
  ('train', 'v5p:4x4x4', *S2),
  ('train', 'v5p:4x4x4', *S2, *TEXT),
  ('train', 'v6e:16x16', *S2),
  ('train', 'v6e:16x16', '--slices', '2', *S2),
  ('train', 'v6e:16x16', '--slices', '2', *S2, *TEXT),
  ('train', 'v5p:8x8x8', *S2),
  ('train', 'gpu:64xH200', *S2),
  ('train', 'v5p:4x4x4', *S3),
  ('train', 'v6e:16x16', *S3),
  ('train', 'v6e:16x16', '--slices', '2', *S3),
  ('train', 'v5p:8x8x8', *S3),
  ('train', 'v5p:2x2x4', *PRETRAIN),
  ('train', 'v5p:2x2x4', *SFT),
  ('train', 'v6e:4x4', *PRETRAIN),
  ('train', 'v6e:4x4', *SFT),
)
HEAD = (
  'job',
  'topology',
  'rows x length',
  'mesh',
  'room for experts',
  'weights',
  'optimiser',
  'inputs, caches',
  'temporary',
  'other parts',
  'peak',
  'HBM',
  'fits',
  'compile s',
  'host GiB',
  'collectives',
  'step ms, estimate',
)


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rows', type=int, nargs='*', help='rows to plan anew, by number; default all; none: only the table')
  parser.add_argument('--out', default='docs/plans.md')
  args = parser.parse_args()
  out = pathlib.Path(args.out)
  kept = out.with_suffix('.json')
  plans = json.loads(kept.read_text()) if kept.is_file() else {}
  shown = {' '.join(_command(row)) for row in ROWS}
  plans = {key: plan for key, plan in plans.items() if key in shown}
  for number in range(len(ROWS)) if args.rows is None else args.rows:
    key = ' '.join(_command(ROWS[number]))
    command = [sys.executable, '-m', 'qwen3_omni_jax.cli', *_command(ROWS[number]), '--json']
    done = subprocess.run(command, capture_output=True, text=True)
    if not done.stdout.startswith('{'):
      print(f'{key}: {done.stderr.strip()[-500:]}', file=sys.stderr)
      continue
    commit = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True).stdout.strip()
    plans[key] = json.loads(done.stdout) | {'commit': commit, 'date': datetime.date.today().isoformat()}
    kept.write_text(json.dumps(plans, indent=1) + '\n')
    print(key, plans[key]['fits'], plans[key]['compile_seconds'])
  out.write_text(document(plans))
  return 0


def _command(row: tuple[str, ...]) -> list[str]:
  return ['plan', '--job', row[0], '--topology', *row[1:]]


def document(plans: dict) -> str:
  lines = [
    '# Plans',
    '',
    'Full-size jobs of the released Instruct model, each compiled in a process of its own.',
    'Written by `python tools/plan_table.py`. Programs were compiled by libtpu on a CPU; none of them has run on a TPU.',
    'Sizes are GiB a device, collectives what one receives in a step. Training batches are full, the room for media too. Step',
    'times are roofline estimates: lower bounds, not measurements; what crosses from slice to slice is not in them (the compiler',
    'makes host transfers of it). Compile times are of two CPU cores that did other work meanwhile.',
    '',
    '| ' + ' | '.join(HEAD) + ' |',
    '|' + '---|' * len(HEAD),
  ]
  for row in ROWS:
    lines.append('| ' + ' | '.join(_cells(row, plans.get(' '.join(_command(row))))) + ' |')
  lines += ['', 'Commands, commit and date of each:', '']
  for row in ROWS:
    plan = plans.get(' '.join(_command(row)))
    lines.append(f'- `qwen3-omni {" ".join(_command(row))}`: ' + (f'{plan["commit"]}, {plan["date"]}' if plan else 'not run'))
  return '\n'.join(lines) + '\n'


def _cells(row: tuple[str, ...], plan: dict | None) -> list[str]:
  name = ' '.join([row[0], *(row[row.index('--config') + 1 :] if '--config' in row else ())])
  name = name.replace(' '.join(TEXT), 'text alone')
  if plan is None:
    return [name, row[1], *['not run'] * (len(HEAD) - 2)]
  job, memory = plan['job'], plan['per_device']
  gib = lambda name: f'{memory.get(f"{name}_bytes", 0) / 2**30:.2f}'
  run = job.get('run')
  buffer = run and run['step']['buffer']
  room = 'all there can be' if buffer is None else f'{buffer:g} x balanced'
  sent = sum(n for along in (plan['collectives'] or {}).values() for n in along.values())
  slices = f' x {plan["slices"]}' if plan['slices'] > 1 else ''
  return [
    name,
    plan['topology'] + slices,
    f'{job["batch"]} x {job["length"]}',
    ' '.join(f'{axis} {size}' for axis, size in plan['mesh'].items()),
    room,
    *map(gib, ('weights', 'optimiser', 'activations', 'temporary', 'other_parts', 'peak', 'hbm')),
    'yes' if plan['fits'] else 'no',
    'counted' if plan['compile_seconds'] is None else f'{plan["compile_seconds"]:.0f}',
    f'{plan["host_peak_bytes"] / 2**30:.1f}',
    'not counted' if plan['collectives'] is None else f'{sent / 2**30:.1f}',
    f'{1e3 * plan["estimate"]["step_s"]:.1f}',
  ]


if __name__ == '__main__':
  sys.exit(main())
