"""`train` as the command runs it; when each step was dispatched and done is written to OUT/times-PROCESS.json."""

import json
import pathlib
import sys
import threading
import time

import jax
from qwen3_omni_jax.train import omni_task

from qwen3_omni_jax.cli import main

times: list[dict[str, float]] = []
compiled_step = omni_task.compiled_step


def timed_step(*args):
  step = compiled_step(*args)

  def timed(state, batch):
    state, values = step(state, batch)
    at = {'dispatched': time.perf_counter(), 'batch_waited': all(x.is_ready() for x in jax.tree.leaves(batch))}
    times.append(at)

    def wait():
      jax.block_until_ready(values)
      at['done'] = time.perf_counter()

    threading.Thread(target=wait).start()
    return state, values

  return timed


if __name__ == '__main__':
  omni_task.compiled_step = timed_step
  out = next(pathlib.Path(arg.removeprefix('out=')) for arg in sys.argv if arg.startswith('out='))
  try:
    code = main(['train', *sys.argv[1:]])
  finally:
    (out / f'times-{jax.process_index()}.json').write_text(json.dumps(times))
  sys.exit(code)
