"""Says on which host and in which phase a run hangs, where the other hosts only say that they wait."""

import faulthandler
import socket
import sys
import threading
import time
from typing import Any

import jax


class Watchdog:
  """A thread that speaks when the main thread has been in one phase for `hang_s` seconds; None: none.

  Every process has its own and says its number, host, phase, step and the stacks of its threads, once for each phase that hangs.
  Use it as a context.
  """

  def __init__(self, hang_s: float | None, out: Any = None):
    self._hang_s, self._out = hang_s, out or sys.stderr
    self._phase, self._step, self._since, self._said = 'start', 0, time.monotonic(), False
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._watch, name='watchdog', daemon=True)

  def enter(self, phase: str, step: int) -> None:
    """The main thread begins a phase (input, step, checkpoint, evaluation …) of a step."""
    self._phase, self._step, self._since, self._said = phase, step, time.monotonic(), False

  def __enter__(self) -> 'Watchdog':
    if self._hang_s is not None:
      self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    self._ended.set()
    if self._thread.is_alive():
      self._thread.join()

  def _watch(self) -> None:
    assert self._hang_s is not None
    while not self._ended.wait(min(self._hang_s / 4, 10.0)):
      passed = time.monotonic() - self._since
      if passed >= self._hang_s and not self._said:
        self._said = True
        where = f'process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}'
        print(
          f'{where}: {passed:.0f} s in {self._phase} of step {self._step}; where its threads are:', file=self._out, flush=True
        )
        faulthandler.dump_traceback(self._out, all_threads=True)
