"""Several processes train as one: `python -m tests.train.processes [--folder DIR] [--save]`.

1, 2 and 4 processes (gloo, told of one another by plain variables) must have the same losses at every step and see the same
records; so must a run of 2 processes, of which one is sent SIGTERM, that 4 go on with. What was seen is printed, and kept in
benchmarks/results/train_processes.json with --save. In a folder that is given, what is there already is not done again.
"""

import argparse
import json
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

from qwen3_omni_jax.train.run import PREEMPTED

from tests.train.crash import SETTINGS, check_every_record_once, command, data, environment, json_lines, lines
from tests.train.records import write_records

STEPS = 10
RTOL = {'loss': 1e-5, 'grad_norm': 5e-5}  # float32 sums in another order, over ten steps; a norm is that of a few large gradients


def start(number: int, arguments: list[str], env: dict[str, str], out: pathlib.Path) -> list[subprocess.Popen]:
  """The processes of one run; each writes to OUT-PROCESS.log."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  started = []
  for process in range(number):
    others = {'COORDINATOR_ADDRESS': f'localhost:{port}', 'NUM_PROCESSES': str(number), 'PROCESS_ID': str(process)}
    with log_of(out, process).open('wb') as log:
      started.append(subprocess.Popen(arguments, env=env | others, stderr=log, stdout=log))
  return started


def finish(started: list[subprocess.Popen], out: pathlib.Path, code: int = 0, limit_s: float = 3000) -> str:
  """Waits for all of them; what the first one said. Raises AssertionError if one ends with another exit code."""
  try:
    codes = [process.wait(limit_s) for process in started]
  finally:
    for process in started:
      process.kill()
      process.wait()
  assert set(codes) == {code}, f'{codes}\n' + '\n'.join(log_of(out, process).read_text() for process in range(len(codes)))
  return log_of(out, 0).read_text()


def log_of(out: pathlib.Path, process: int) -> pathlib.Path:
  return out.with_name(f'{out.name}-{process}.log')


def told(out: pathlib.Path) -> dict[int, tuple[float, float, list]]:
  """{step: (loss, gradient's norm, records of all processes)}. Raises AssertionError if a process has a step twice."""
  found = {step: (loss, norm, list(ids)) for step, (loss, norm, ids) in lines(out).items()}
  for file in sorted(out.glob('records-*.jsonl')):
    steps = json_lines(file)
    assert len({line['step'] for line in steps}) == len(steps), f'{file}: a step was written twice'
    for line in steps:
      found[line['step']][2].extend(line['ids'])
  return found


def difference(out: pathlib.Path, expected: dict[int, tuple]) -> dict[str, float]:
  """Largest relative ones of losses and of norms. Raises AssertionError where one is too large, or for other steps or records."""
  got = told(out)
  assert sorted(got) == sorted(expected) == list(range(1, STEPS + 1))
  assert all(got[step][2] == expected[step][2] for step in expected), 'other records'
  largest = {name: max(abs(got[step][i] / expected[step][i] - 1) for step in expected) for i, name in enumerate(RTOL)}
  assert all(largest[name] <= RTOL[name] for name in RTOL), largest
  return largest


def processes(model: pathlib.Path, folder: pathlib.Path) -> dict:
  """Runs them all, and returns what was seen; AssertionError where something differs."""
  records, env = write_records(folder / 'data'), environment(folder / 'cache')
  room = data(records, rows=4, lanes=4, audio_s=32, visual_patches=512)
  arguments = lambda out: command(model, out, *SETTINGS, f'steps={STEPS}', 'mesh=fsdp', room)
  outs = {number: folder / f'of-{number}' for number in (1, 2, 4)}
  for number, out in outs.items():
    began = time.perf_counter()
    if STEPS in told(out):
      continue
    finish(start(number, arguments(out), env, out), out)
    print(f'{number} processes: {time.perf_counter() - began:.0f} s', file=sys.stderr, flush=True)
  expected = told(outs[1])
  seen = {
    'steps': STEPS,
    'records': check_every_record_once(outs[1], STEPS),
    'last_loss': expected[STEPS][0],
    'largest_difference': {f'{number} processes': difference(outs[number], expected) for number in (2, 4)},
  }

  out = folder / 'parted'
  shutil.rmtree(out, ignore_errors=True)
  started = start(2, arguments(out), env, out)
  while started[1].poll() is None and '\nstep 4/' not in log_of(out, 0).read_text():
    time.sleep(0.002)
  started[1].send_signal(signal.SIGTERM)  # not the first one, which has to hear of it
  said = finish(started, out, PREEMPTED)
  assert 'stopped by SIGTERM after step' in said, said
  seen['stopped_after'] = int(said.split('stopped by SIGTERM after step ')[1].split(',')[0])
  said = finish(start(4, arguments(out), env, out), out)
  assert f'going on after step {seen["stopped_after"]}' in said, said
  seen['largest_difference']['2 processes, then 4'] = difference(out, expected)
  assert check_every_record_once(out, STEPS) == seen['records']
  return seen


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--folder', type=pathlib.Path)
  parser.add_argument('--save', action='store_true')
  args = parser.parse_args()
  from qwen3_omni_jax.tools.tiny import make_checkpoint

  from benchmarks import common

  circumstances = common.circumstances() | {'command': ' '.join(['python -m tests.train.processes', *sys.argv[1:]])}
  with tempfile.TemporaryDirectory() as place:
    root = (args.folder or pathlib.Path(place)).absolute()
    if not (root / 'tiny').exists():
      make_checkpoint(root / 'tiny')
    result = circumstances | processes(root / 'tiny', root)
  print(json.dumps(result))
  if args.save:
    common.save('train_processes', result)


if __name__ == '__main__':
  main()
