"""Runs a conversion again and again, killing it at random moments, until it has been killed often enough.

    python -m tests.weights.killing to-jax|to-hf SOURCE FOLDER KILLS SEED

Prints a JSON line for every run: how it ended ('killed', 'finished'), the tensors that the journal named as finished
before it, and those that it read. A finished target is kept as FOLDER/doneN.
"""

import json
import os
import pathlib
import random
import shutil
import signal
import sys
import time

from qwen3_omni_jax.weights import batches
from qwen3_omni_jax.weights.opened import Piece
from qwen3_omni_jax.weights.to_hf import convert_to_hf
from qwen3_omni_jax.weights.to_jax import convert_to_jax
from qwen3_omni_jax.weights.view import View
from qwen3_omni_jax.weights.work import read_journal


def main(direction: str, source: str, folder: str, kills: str, seed: str) -> None:
  batches.BATCH_TENSORS = 8  # many small steps
  root, log = pathlib.Path(folder), pathlib.Path(folder, 'read.log')
  convert = convert_to_jax if direction == 'to-jax' else convert_to_hf
  rng = random.Random(int(seed))

  def run(target: pathlib.Path, seconds: float | None) -> dict:
    finished = sorted(read_journal(target.with_name(f'{target.name}.partial'))[1])
    log.write_bytes(b'')
    child = os.fork()  # of a process that has imported everything and started no threads
    if child == 0:
      watch_reads(log)
      convert(source, target)
      os._exit(0)
    if seconds is not None:
      time.sleep(seconds)
      os.kill(child, signal.SIGKILL)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    how = {0: 'finished', -signal.SIGKILL: 'killed'}[ended]
    if target.is_dir() and not target.with_name(f'{target.name}.partial').exists():
      how = 'finished'  # killed with nothing left to do: another run would rightly find a target that is not empty
    return {'how': how, 'finished_before': finished, 'read': log.read_text().split()}

  started = time.monotonic()
  print(json.dumps(run(root / 'undisturbed', None)), flush=True)
  whole = time.monotonic() - started
  killed = done = 0
  while killed < int(kills) or not (root / f'done{done - 1}').exists():
    result = run(root / 'target', rng.uniform(0, 1.1 * whole) if killed < int(kills) else None)
    print(json.dumps(result), flush=True)
    killed += result['how'] == 'killed'
    if result['how'] == 'finished':
      (root / 'target').rename(root / f'done{done}')
      done += 1
  shutil.rmtree(root / 'target.partial', ignore_errors=True)


def watch_reads(log: pathlib.Path) -> None:
  """Notes each published tensor that is read, at once, so that a kill loses none."""
  file = os.open(log, os.O_WRONLY | os.O_APPEND)
  for kind, name in ((View, lambda view: view.name), (Piece, lambda piece: piece.tensor.name)):
    plain = kind.read

    def read(self, *args, plain=plain, name=name, **options):
      os.write(file, f'{name(self)}\n'.encode())
      return plain(self, *args, **options)

    kind.read = read  # type: ignore[method-assign]


if __name__ == '__main__':
  main(*sys.argv[1:])
