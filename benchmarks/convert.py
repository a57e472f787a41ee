"""A checkpoint of true widths, cut in depth, to jax and back: peak memory, and speed beside a plain copy of the same bytes.

    python benchmarks/convert.py [--gb 8] [--rounds 3] [--folder DIR]

Everything starts with a cold page cache and ends when the data is on disk (fsync), the copy too; a copy that does not wait
for the disk is measured as well. They take turns, since a disk is not always equally fast; medians are compared. Each runs in
a process of its own, whose peak memory (VmHWM) is read at its end.
"""

import argparse
import filecmp
import json
import os
import pathlib
import shutil
import subprocess
import sys

import common
import numpy as np

CHILD = """
import json, os, pathlib, shutil, sys, time
action, source, target = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
started = time.perf_counter()
if action.startswith('copy'):
  target.mkdir()
  for file in sorted(source.iterdir()):
    shutil.copyfile(file, target / file.name)
    if action == 'copy':
      with open(target / file.name, 'rb') as copied:
        os.fsync(copied.fileno())
elif action == 'to-jax':
  from qwen3_omni_jax.weights.to_jax import convert_to_jax
  convert_to_jax(source, target)
else:
  from qwen3_omni_jax.weights.to_hf import convert_to_hf
  convert_to_hf(source, target)
seconds = time.perf_counter() - started
status = open('/proc/self/status').read().splitlines()
peak_kb = int(next(line for line in status if line.startswith('VmHWM')).split()[1])
print(json.dumps({'seconds': round(seconds, 1), 'peak_rss_gb': round(peak_kb * 1024 / 1e9, 3)}))
"""


def cut_config(gb: float) -> dict:
  """The released config with its widths and 128 experts, and as many Thinker layers as make about that many GB."""
  config = json.loads((common.ROOT / 'configs' / 'model' / 'instruct.json').read_text())
  thinker = config['thinker_config']
  thinker['audio_config']['encoder_layers'] = 4
  thinker['vision_config'] |= {'depth': 4, 'deepstack_visual_indexes': [1, 2, 3]}
  thinker['text_config']['num_hidden_layers'] = max(1, round((gb - 3.1) / 1.25))  # GB a layer; GB of all the rest
  config['talker_config'] |= {'accept_hidden_layer': 1}
  config['talker_config']['text_config']['num_hidden_layers'] = 3
  return config


def make(folder: pathlib.Path, gb: float) -> int:
  """Random bits in the published layout; returns their bytes."""
  import ml_dtypes

  from qwen3_omni_jax.config_json import parse_config
  from qwen3_omni_jax.weights.safetensors import INDEX, plan_shards
  from qwen3_omni_jax.weights.table import published_shapes

  config = cut_config(gb)
  bf16, rng = np.dtype(ml_dtypes.bfloat16), np.random.default_rng(0)
  plan = plan_shards({name: (bf16, shape) for name, shape in published_shapes(parse_config(config)).items()}, 2 * 10**9)
  folder.mkdir(parents=True)
  (folder / 'config.json').write_text(json.dumps(config, indent=2))
  (folder / INDEX).write_bytes(plan.index or b'')
  for file, header in plan.headers.items():
    with (folder / file).open('wb') as out:
      out.write(header.raw)
      for start in range(0, header.size, 2**26):
        size = min(2**26, header.size - start)
        out.write(rng.integers(0, 2**63, size // 8 + 1).tobytes()[:size])
  return sum(header.size for header in plan.headers.values())


def forget(folder: pathlib.Path) -> None:
  """Puts a folder on disk and takes it out of the page cache."""
  for path in folder.rglob('*'):
    if path.is_file():
      with path.open('rb') as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(action: str, source: pathlib.Path, target: pathlib.Path, size: int) -> dict:
  forget(source)
  run = subprocess.run([sys.executable, '-c', CHILD, action, str(source), str(target)], capture_output=True, text=True)
  if run.returncode:
    sys.exit(f'{action}: {run.stderr}')
  result = json.loads(run.stdout.splitlines()[-1])
  result |= {'mb_per_s': round(size / 1e6 / result['seconds']), 'load': round(os.getloadavg()[0], 1)}
  print(f'{action}: {result}', flush=True)
  return result


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--gb', type=float, default=8)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--folder', default=str(common.ROOT / '.cache' / 'convert'), help='new folder, removed afterwards')
  args = parser.parse_args()
  circumstances = common.circumstances()
  root = pathlib.Path(args.folder)
  root.mkdir(parents=True)
  try:
    size = make(root / 'hf', args.gb)
    print(f'{size / 1e9:.2f} GB', flush=True)
    runs: dict[str, list[dict]] = {action: [] for action in ('copy', 'copy, not synced', 'to-jax', 'to-hf')}
    for _ in range(args.rounds):
      for action, source, target in (
        ('copy', 'hf', 'copy'),
        ('copy, not synced', 'hf', 'copy'),
        ('to-jax', 'hf', 'jax'),
        ('to-hf', 'jax', 'back'),
      ):
        shutil.rmtree(root / target, ignore_errors=True)
        runs[action].append(measure(action, root / source, root / target, size))
    files = sorted(path.name for path in (root / 'hf').iterdir())
    equal, *_ = filecmp.cmpfiles(root / 'hf', root / 'back', files, shallow=False)
  finally:
    shutil.rmtree(root)
  median = lambda action, key: float(np.median([run[key] for run in runs[action]]))
  result = circumstances | {
    'gb': round(size / 1e9, 2),
    'median_mb_per_s': {action: round(median(action, 'mb_per_s')) for action in runs},
    'of_copy': {a: round(median(a, 'mb_per_s') / median('copy', 'mb_per_s'), 2) for a in ('to-jax', 'to-hf')},
    'peak_rss_gb': {a: max(run['peak_rss_gb'] for run in runs[a]) for a in ('to-jax', 'to-hf')},
    'came_back_identical': equal == files,
    'runs': runs,
  }
  print({key: result[key] for key in ('median_mb_per_s', 'of_copy', 'peak_rss_gb', 'came_back_identical')})
  common.save('convert', result)


if __name__ == '__main__':
  main()
