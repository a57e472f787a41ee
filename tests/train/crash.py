"""Kills a training run again and again: `python -m tests.train.crash [--kills 10] [--terms 5]` prints what became of it.

The run that was killed must leave the same losses and the same records at every step as one that was not, to the bit.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from tests.train.records import write_records

STEPS = 24
SETTINGS = [
  f'steps={STEPS}', 'mesh=single', 'save.every=3', 'log.every=1', 'log.records=true', 'log.tensorboard=false',
  'step={dtype: float32, remat: none, encoder_remat: none}', 'optimiser.warmup=2',
  'parts=[{pattern: audio/, lr: 1e-3}, {pattern: thinker/, lr: 1e-3}]',
]  # fmt: skip


def data(file: pathlib.Path, **others) -> str:
  return 'data=' + json.dumps({
    'rows': 2, 'length': 96, 'lanes': 2, 'audio_s': 16, 'visual_patches': 256, 'visual_row': 128, 'buffer': 8,
    'max_image_pixels': 4096, 'sources': [{'path': str(file)}], **others,
  })  # fmt: skip


def command(model: pathlib.Path, out: pathlib.Path, *settings: str) -> list[str]:
  return [sys.executable, '-m', 'qwen3_omni_jax.cli', 'train', f'model={model}', f'out={out}', *settings]


def environment(cache: pathlib.Path | None, **others: str) -> dict[str, str]:
  cached = {'JAX_COMPILATION_CACHE_DIR': str(cache), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'} if cache else {}
  return {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_backend_optimization_level=0', **cached, **others}


def lines(out: pathlib.Path) -> dict[int, tuple]:
  """{step: (loss, gradient's norm, records)}; fails if a step is there twice."""
  file = out / 'metrics.jsonl'
  found: dict[int, tuple] = {}
  for line in file.read_text().splitlines() if file.exists() else ():
    step = json.loads(line)
    assert step['step'] not in found, f'step {step["step"]} was written twice'
    found[step['step']] = (step['loss'], step['grad_norm'], step['ids'])
  return found


def run_once(arguments: list[str], env: dict[str, str], out: pathlib.Path, number: int, rng: random.Random) -> tuple[int, str]:
  """Starts the run and sends it a signal (0: none) some steps later, or while a checkpoint is being written."""
  log = out.with_suffix('.log')
  with log.open('ab') as err:
    begun = log.stat().st_size
    process = subprocess.Popen(arguments, env=env, stderr=err, stdout=err)
    if number:
      in_checkpoint, wanted = rng.random() < 0.4, rng.randint(1, 5)
      said = lambda: log.read_bytes()[begun:].count(b'\nstep ') + log.read_bytes()[begun:].startswith(b'step ')
      writing = lambda: any('tmp' in p.name for p in (out / 'checkpoints').glob('*')) if out.exists() else False
      while process.poll() is None and not (said() >= 1 and (writing() if in_checkpoint else said() >= wanted)):
        time.sleep(0.002)
      time.sleep(rng.random() * 0.05)
      process.send_signal(number)
    code = process.wait()
  return code, log.read_bytes()[begun:].decode(errors='replace')


def crash(
  model: pathlib.Path, folder: pathlib.Path, kills: int, terms: int, seed: int = 0, cache: pathlib.Path | None = None
) -> dict:
  """Kills (SIGKILL) and ends (SIGTERM) a run so many times, and compares it with an undisturbed one. Returns what was seen.

  Raises AssertionError where they differ. A run that is complete before all signals were sent is compared, and another begun.
  """
  rng, env = random.Random(seed), environment(cache)
  records = write_records(folder / 'data')
  code, text = run_once(command(model, folder / 'calm', *SETTINGS, data(records)), env, folder / 'calm', 0, rng)
  assert code == 0, text
  expected = lines(folder / 'calm')
  assert sorted(expected) == list(range(1, STEPS + 1))
  signals = [signal.SIGKILL] * kills + [signal.SIGTERM] * terms
  rng.shuffle(signals)
  seen: dict = {'kills': 0, 'terms': 0, 'runs': 0, 'slowest_term_s': 0.0, 'resumed_after': []}
  round_number = 0
  while signals:
    out = folder / f'killed-{round_number}'
    while signals:
      number = signals.pop()
      begun = time.perf_counter()
      code, text = run_once(command(model, out, *SETTINGS, data(records)), env, out, number, rng)
      seen['runs'] += 1
      if 'going on after step' in text:
        seen['resumed_after'].append(int(text.split('going on after step ')[1].split(';')[0].split()[0]))
      if number == signal.SIGKILL and code == -signal.SIGKILL:
        seen['kills'] += 1
      elif number == signal.SIGTERM and code == 0 and 'stopped by SIGTERM' in text:
        seen['terms'] += 1
        seen['slowest_term_s'] = max(seen['slowest_term_s'], float(text.split(' s ago')[0].rsplit(' ', 1)[1]))
      else:
        assert code == 0 or code == -number, f'{code} after {time.perf_counter() - begun:.0f} s: {text}'
        signals.insert(0, number)  # it was done before the signal came
        break
    code, text = run_once(command(model, out, *SETTINGS, data(records)), env, out, 0, rng)
    assert code == 0, text
    got = lines(out)
    assert got == expected, {step: (got.get(step), expected[step]) for step in expected if got.get(step) != expected[step]}
    round_number += 1
  return seen


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--kills', type=int, default=10)
  parser.add_argument('--terms', type=int, default=5)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as place:
    from qwen3_omni_jax.tools.tiny import make_checkpoint

    root = pathlib.Path(place)
    make_checkpoint(root / 'tiny')
    print(json.dumps(crash(root / 'tiny', root, args.kills, args.terms, args.seed, root / 'cache')))
