"""Kills a training run again and again: `python -m tests.train.crash [--kills 10] [--terms 5] [--cache DIR] [--save]`.

The run that was killed must leave the same losses and the same records at every step as one that was not, to the bit; no record
may be seen twice or lost; and where the newest checkpoint is cut short, the one before it must be used. What was seen is printed,
and kept in benchmarks/results/train_crash.json with --save.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from qwen3_omni_jax.train.run import PREEMPTED

from tests.train.records import write_records

STEPS = 24
SETTINGS = [
  f'steps={STEPS}',
  'mesh=single',
  'save.every=3',
  'log.every=1',
  'log.records=true',
  'log.tensorboard=false',
  'step={dtype: float32, remat: none, encoder_remat: none}',
  'optimiser.warmup=2',
  'parts=[{pattern: audio/, lr: 1e-3}, {pattern: thinker/, lr: 1e-3}]',
]


def data(file: pathlib.Path, **others) -> str:
  return 'data=' + json.dumps(
    {
      'rows': 2,
      'length': 96,
      'lanes': 2,
      'audio_s': 16,
      'visual_patches': 256,
      'visual_row': 128,
      'buffer': 8,
      'max_image_pixels': 4096,
      'sources': [{'path': str(file)}],
      **others,
    }
  )


def command(model: pathlib.Path, out: pathlib.Path, *settings: str, module: str = 'qwen3_omni_jax.cli') -> list[str]:
  return [sys.executable, '-m', module, 'train', f'model={model}', f'out={out}', *settings]


def environment(cache: pathlib.Path | None, **others: str) -> dict[str, str]:
  cached = {'QWEN3_OMNI_COMPILE_CACHE': 'off'}
  if cache:
    cached = {'JAX_COMPILATION_CACHE_DIR': str(cache), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
  return {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_backend_optimization_level=0', **cached, **others}


def lines(out: pathlib.Path) -> dict[int, tuple]:
  """{step: (loss, gradient's norm, records)}; fails if a step is there twice."""
  found: dict[int, tuple] = {}
  for step in json_lines(out / 'metrics.jsonl'):
    if 'loss' not in step:  # an evaluation
      continue
    assert step['step'] not in found, f'step {step["step"]} was written twice'
    found[step['step']] = (step['loss'], step['grad_norm'], step['ids'])
  return found


def json_lines(file: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def check_every_record_once(out: pathlib.Path, step: int) -> int:
  """Up to that step, of which there is a checkpoint, the run saw each record that its lanes took from their streams once, but for
  those that still wait to be packed. Returns how many it saw. Raises AssertionError."""
  from qwen3_omni_jax.train.config import Run
  from qwen3_omni_jax.train.config_file import read
  from qwen3_omni_jax.train.data import ExampleStream

  from qwen3_omni_jax.media.processor import Processor

  run = read(Run, out / 'config.yaml')
  state = json.loads((out / 'checkpoints' / str(step) / 'data' / 'metadata').read_text())
  expected: collections.Counter = collections.Counter()
  for lane, at in state['lanes'].items():
    stream = ExampleStream(run.data, Processor.from_folder(pathlib.Path(run.model)), int(lane))
    waiting = {record for _, record, _ in at['waiting']}
    expected.update(stream[k].id for k in range(at['taken'][0]) if k not in waiting)
  files = [out / 'metrics.jsonl', *out.glob('records-*.jsonl')]  # of the first process, and of the others
  every = [line for file in files for line in json_lines(file) if line['step'] <= step]
  seen = collections.Counter(name for line in every for _, name in line['ids'])
  assert seen == expected, {'twice': seen - expected, 'lost': expected - seen}
  return seen.total()


def run_once(
  arguments: list[str], env: dict[str, str], out: pathlib.Path, number: int, rng: random.Random
) -> tuple[int, str, float]:
  """Starts the run and sends it a signal (0: none) some steps later, or while a checkpoint is being written.

  Returns its exit code, what it said, and the seconds from the signal to its end.
  """
  log, sent = out.with_suffix('.log'), 0.0
  with log.open('ab') as err:
    begun = log.stat().st_size
    process = subprocess.Popen(arguments, env=env, stderr=err, stdout=err)
    if number:
      in_checkpoint, wanted = rng.random() < 0.4, rng.randint(1, 5)
      said = lambda: log.read_bytes()[begun:].count(b'\nstep ') + log.read_bytes()[begun:].startswith(b'step ')
      while process.poll() is None and not (said() >= 1 and (unfinished(out) if in_checkpoint else said() >= wanted)):
        time.sleep(0.002)
      time.sleep(rng.random() * 0.05)
      process.send_signal(number)
      sent = time.perf_counter()
    code = process.wait()
  return code, log.read_bytes()[begun:].decode(errors='replace'), time.perf_counter() - sent


def unfinished(out: pathlib.Path) -> bool:
  """Whether a checkpoint has been begun and is not complete."""
  return any('tmp' in p.name for p in (out / 'checkpoints').glob('*')) if out.exists() else False


def crash(
  model: pathlib.Path, folder: pathlib.Path, kills: int, terms: int, seed: int = 0, cache: pathlib.Path | None = None
) -> dict:
  """Kills (SIGKILL) and ends (SIGTERM) a run so many times, and compares it with an undisturbed one. Returns what was seen.

  Raises AssertionError where they differ. A run that is complete before all signals were sent is compared, and another begun.
  """
  rng, env = random.Random(seed), environment(cache)
  records = write_records(folder / 'data')
  seen: dict = {
    'steps': STEPS,
    'runs': 0,
    'kills': 0,
    'kills_during_a_checkpoint': 0,
    'terms': 0,
    'term_to_saved_s': [],
    'term_to_exit_s': [],
    'resumed_after': [],
  }

  def start(out: pathlib.Path, number: int) -> tuple[int, str, float]:
    code, text, seconds = run_once(command(model, out, *SETTINGS, data(records)), env, out, number, rng)
    seen['runs'] += 1
    if 'going on after step' in text:
      seen['resumed_after'].append(int(text.split('going on after step ')[1].split(';')[0].split()[0]))
    print(f'{out.name}: {signal.Signals(number).name if number else "not disturbed"}, exit {code}', file=sys.stderr, flush=True)
    return code, text, seconds

  def complete(out: pathlib.Path) -> str:
    code, text, _ = start(out, 0)
    assert code == 0, text
    return text

  calm = folder / 'calm'
  complete(calm)
  expected = lines(calm)
  assert sorted(expected) == list(range(1, STEPS + 1))
  seen['records'] = check_every_record_once(calm, STEPS)
  signals = [signal.SIGKILL] * kills + [signal.SIGTERM] * terms
  rng.shuffle(signals)
  outs: list[pathlib.Path] = []
  while signals:
    outs.append(folder / f'killed-{len(outs)}')
    while signals:
      number = signals.pop()
      code, text, seconds = start(outs[-1], number)
      if number == signal.SIGKILL and code == -signal.SIGKILL:
        seen['kills'] += 1
        seen['kills_during_a_checkpoint'] += unfinished(outs[-1])
      elif number == signal.SIGTERM and code == PREEMPTED and 'stopped by SIGTERM' in text:
        seen['terms'] += 1
        seen['term_to_saved_s'].append(float(text.split(' s ago')[0].rsplit(' ', 1)[1]))
        seen['term_to_exit_s'].append(round(seconds, 2))
      else:
        assert code == 0 or code == -number, f'{code}: {text}'
        signals.insert(0, number)  # it was done before the signal came
        break
    complete(outs[-1])
    got = lines(outs[-1])
    assert got == expected, {step: (got.get(step), expected[step]) for step in expected if got.get(step) != expected[step]}
    check_every_record_once(outs[-1], STEPS)
  seen['runs_compared'] = len(outs)
  seen['damaged_checkpoint'] = damaged(calm, folder / 'cut', complete)
  assert lines(folder / 'cut') == expected
  return seen


def damaged(calm: pathlib.Path, out: pathlib.Path, complete) -> str:
  """What a copy of a complete run says whose newest checkpoint was cut short."""
  shutil.copytree(calm, out)
  for file in (out / 'checkpoints' / str(STEPS) / 'state').rglob('*'):
    if file.is_file() and file.stat().st_size > 100:
      file.write_bytes(file.read_bytes()[:50])
  said = next(line for line in complete(out).splitlines() if 'is damaged' in line)
  assert f'{STEPS} is damaged' in said and 'falling back to the one before it' in said, said
  return said.replace(f'{out.parent}/', '')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--kills', type=int, default=10)
  parser.add_argument('--terms', type=int, default=5)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--cache', type=pathlib.Path, help="of compiled programs; default: the run's own")
  parser.add_argument('--save', action='store_true')
  args = parser.parse_args()
  from qwen3_omni_jax.tools.tiny import make_checkpoint

  from benchmarks import common

  circumstances = common.circumstances() | {'command': ' '.join(['python -m tests.train.crash', *sys.argv[1:]])}
  with tempfile.TemporaryDirectory() as place:
    root = pathlib.Path(place)
    make_checkpoint(root / 'tiny')
    result = circumstances | crash(root / 'tiny', root, args.kills, args.terms, args.seed, args.cache or root / 'cache')
  print(json.dumps(result))
  if args.save:
    common.save('train_crash', result)


if __name__ == '__main__':
  main()
