"""Kills the processes of one run again and again: `python -m tests.train.crash_processes [--kills 60] [--terms 40] [--save]`.

Two processes (gloo) train as one. SIGKILL and SIGTERM come in any order, to the first process, to the second or to both, while
they start, between steps or during a checkpoint. Where one dies the rest are killed, and all are started again, as JobSet and
Slurm do. What is left must be what an undisturbed run leaves, to the bit: losses, norms and records of all processes at every
step, none lost or repeated, and no checkpoint set aside. What was seen is printed, and kept in
benchmarks/results/train_crash_two.json with --save.
"""

import argparse
import json
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from qwen3_omni_jax.train.run import PREEMPTED

from tests.train.crash import SETTINGS, check_every_record_once, command, data, environment, unfinished
from tests.train.processes import finish, log_of, start, told
from tests.train.records import write_records

PROCESSES = 2
PARTS = 'parts=[{pattern: thinker/(norm|head), lr: 1e-3}]'  # a step without much to compute: this is about starts and ends
PHASES = {'start': 0.1, 'checkpoint': 0.4, 'step': 0.5}  # when a signal is sent, and how often
LIMIT_S = 300  # from SIGTERM to the end of all processes, on a busy machine


def send(started: list[subprocess.Popen], out: pathlib.Path, number: int, phase: str, rng: random.Random) -> tuple[int, ...]:
  """Waits for the phase and sends the signal; returns the processes that it was sent to."""
  targets, steps = rng.choice(((0,), (1,), (0, 1))), rng.randint(1, 4)
  alive = lambda: all(process.poll() is None for process in started)
  said = lambda: f'\n{log_of(out, 0).read_text(errors="replace")}'.count('\nstep ')
  if phase == 'start':
    time.sleep(rng.random() * 5)
  else:
    while alive() and not (said() >= 1 and (unfinished(out) if phase == 'checkpoint' else said() >= steps)):
      time.sleep(0.002)
    time.sleep(rng.random() * 0.05)
  for target in targets:
    started[target].send_signal(number)
  return targets


def end(started: list[subprocess.Popen], number: int, rng: random.Random) -> list[int]:
  """Waits for the processes, the rest of which are killed where one died. Returns their exit codes."""
  limit = time.monotonic() + (LIMIT_S if number == signal.SIGTERM else rng.random() * 0.5)
  died = lambda: any(process.poll() not in (None, 0, PREEMPTED) for process in started)
  while any(process.poll() is None for process in started) and time.monotonic() < limit:
    if number == signal.SIGTERM and died():
      break
    time.sleep(0.01)
  for process in started:
    process.kill()
  return [process.wait() for process in started]


def crash_processes(
  model: pathlib.Path, folder: pathlib.Path, kills: int, terms: int, steps: int, seed: int = 0, cache: pathlib.Path | None = None
) -> dict:
  """Returns what was seen; AssertionError where a disturbed run differs from the undisturbed one.

  A run that is complete before all signals were sent is compared, and another begun.
  """
  rng, env = random.Random(seed), environment(cache or folder / 'cache')
  records = write_records(folder / 'data')
  settings = [*SETTINGS, PARTS, f'steps={steps}', 'mesh=fsdp', data(records)]

  def launch(out: pathlib.Path) -> list[subprocess.Popen]:
    arguments = command(model, out, *settings, module='tests.train.quick_start')
    return start(PROCESSES, arguments, env, out)

  seen: dict = {'steps': steps, 'processes': PROCESSES, 'starts': 0, 'resumed_after': [], 'term_to_exit_s': []}
  seen |= {name: dict.fromkeys(PHASES, 0) for name in ('kills', 'terms')} | {'sent_to': {'0': 0, '1': 0, '0 and 1': 0}}

  def complete(out: pathlib.Path) -> dict[int, tuple]:
    said = finish(launch(out), out)
    assert 'damaged' not in said and not list(out.glob('checkpoints/damaged-*')), said
    check_every_record_once(out, steps)
    return told(out)

  began = time.perf_counter()
  expected = complete(folder / 'calm')
  seen['undisturbed_s'] = round(time.perf_counter() - began, 1)
  assert sorted(expected) == list(range(1, steps + 1))
  seen['records'] = sum(len(records) for _, _, records in expected.values())
  signals = [signal.SIGKILL] * kills + [signal.SIGTERM] * terms
  rng.shuffle(signals)
  outs: list[pathlib.Path] = []
  while signals:
    out = folder / f'killed-{len(outs)}'
    outs.append(out)
    while signals:
      number, phase = signals.pop(), rng.choices(list(PHASES), list(PHASES.values()))[0]
      started = launch(out)
      targets = send(started, out, number, phase, rng)
      sent = time.perf_counter()
      in_checkpoint = unfinished(out)
      codes = end(started, number, rng)
      texts = [log_of(out, process).read_text(errors='replace') for process in range(PROCESSES)]
      assert 'damaged' not in ''.join(texts), texts
      seen['starts'] += 1
      if 'going on after step ' in texts[0]:
        seen['resumed_after'].append(int(texts[0].split('going on after step ')[1].split(';')[0].split()[0]))
      print(f'{out.name}: {signal.Signals(number).name} to {targets} in {phase}, exit {codes}', file=sys.stderr, flush=True)
      if set(codes) == {0}:
        signals.insert(0, number)  # it was done before the signal came
        break
      early = number == signal.SIGTERM and -signal.SIGTERM in codes  # before it could be handled
      if number == signal.SIGTERM and not early:
        assert set(codes) == {PREEMPTED} and 'stopped by SIGTERM' in texts[0], (codes, texts)
        seen['term_to_exit_s'].append(round(time.perf_counter() - sent, 1))
      elif number == signal.SIGKILL:
        assert all(codes[target] == -signal.SIGKILL for target in targets), (codes, texts)
      where = 'start' if phase == 'start' else 'checkpoint' if in_checkpoint else 'step'
      seen['kills' if number == signal.SIGKILL else 'terms'][where] += 1
      seen['sent_to'][' and '.join(map(str, targets))] += 1
    got = complete(out)
    assert got == expected, {step: (got.get(step), expected[step]) for step in expected if got.get(step) != expected[step]}
  seen['runs_compared'] = len(outs)
  seen['seconds'] = round(time.perf_counter() - began)
  return seen


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--kills', type=int, default=60)
  parser.add_argument('--terms', type=int, default=40)
  parser.add_argument('--steps', type=int, default=150)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--save', action='store_true')
  args = parser.parse_args()
  from qwen3_omni_jax.tools.tiny import make_checkpoint

  from benchmarks import common

  circumstances = common.circumstances() | {'command': ' '.join(['python -m tests.train.crash_processes', *sys.argv[1:]])}
  with tempfile.TemporaryDirectory() as place:
    root = pathlib.Path(place)
    make_checkpoint(root / 'tiny')
    result = circumstances | crash_processes(root / 'tiny', root, args.kills, args.terms, args.steps, args.seed)
  print(json.dumps(result))
  if args.save:
    common.save('train_crash_two', result)


if __name__ == '__main__':
  main()
