"""One of two processes: `python -m tests.train.two_profilers PORT PROCESS FOLDER`. Started by test_profiler.py.

Prints the step before which it began to trace; only the second is asked for a trace.
"""

import pathlib
import sys
import time

import jax
from qwen3_omni_jax.train import profiler


def main(port: str, process: int, folder: pathlib.Path) -> None:
  jax.config.update('jax_platforms', 'cpu')
  jax.distributed.initialize(f'localhost:{port}', 2, process)
  profiler.LOOK_S = 0.5
  start = jax.profiler.start_trace
  step = 0

  def start_and_say(place: str) -> None:
    start(place)
    print(step, flush=True)

  jax.profiler.start_trace = start_and_say
  client = profiler.Board()._client()
  with profiler.Profiler(folder, None) as profile:
    for step in range(60):
      profile(step, ask=step == 5 and process == 1)
      client.wait_at_barrier(f'step {step}', 60_000)  # steps of a run are done together
      time.sleep(0.05)
  jax.distributed.shutdown()


if __name__ == '__main__':
  main(sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3]))
