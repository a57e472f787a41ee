"""Traces of a few steps with jax's profiler, of all processes and of the same steps."""

import pathlib
import sys
import time
from collections.abc import Callable

import jax

TRACED_STEPS = 3
LOOK_S = 5.0  # between two looks at what other processes ask for
_KEY = 'qwen3_omni_jax/trace'


class Board:
  """Where a process writes for all to see from which step to trace: the key-value store of jax's coordination service. Messages
  between hosts; no device takes part. A process alone keeps it to itself."""

  def __init__(self):
    self._own = ''

  def write(self, text: str) -> None:
    if jax.process_count() == 1:
      self._own = text
    else:
      self._client().key_value_set(_KEY, text, allow_overwrite=True)

  def read(self) -> str:
    """Empty if nothing was written."""
    if jax.process_count() == 1:
      return self._own
    return dict(self._client().key_value_dir_get(_KEY.rpartition('/')[0])).get(_KEY, '')

  @staticmethod
  def _client():
    from jax._src import distributed  # jax's only way to the store, which Orbax takes too

    client = distributed.global_state.client
    assert client is not None  # several processes have joined
    return client


class Profiler:
  """Call it before each step: it traces from step `at` on, and when a process asked for it (SIGUSR1).

  What is asked for is steps some seconds ahead, by when all have looked; one that looks too late begins at once. Every process
  writes to a folder of its own, PLACE/process-N. Use it as a context.
  """

  def __init__(
    self, place: pathlib.Path, at: int | None, board: Board | None = None, clock: Callable[[], float] = time.monotonic
  ):
    self._place, self._folder = place, place / f'process-{jax.process_index()}'
    self._board, self._clock = board or Board(), clock
    self._read = self._board.read()  # of an earlier run of these processes
    self._looked, self._looked_before = clock(), 0  # when, and before which step
    self._step_s = LOOK_S
    self._starts = [] if at is None else [at]
    self._first = True
    self._until: int | None = None

  def __call__(self, step: int, ask: bool = False) -> None:
    """step: how many are done. ask: all processes for a trace."""
    if self._first:
      self._first, self._looked_before = False, step
      self._starts = [start for start in self._starts if start >= step]  # a run that goes on does not trace again
    if self._until is not None and step >= self._until:
      self._stop()
    if ask or self._clock() - self._looked >= LOOK_S:
      self._look(step, ask)
    if self._until is None and any(start <= step for start in self._starts):
      self._starts = [start for start in self._starts if start > step]
      self._until = step + TRACED_STEPS
      jax.profiler.start_trace(str(self._folder))

  def _look(self, step: int, ask: bool) -> None:
    """At what was asked for; with `ask`, after asking."""
    now = self._clock()
    if step > self._looked_before:
      self._step_s = (now - self._looked) / (step - self._looked_before)
    self._looked, self._looked_before = now, step
    if ask:
      ahead = 2 + int(2 * LOOK_S / max(self._step_s, 1e-3)) if jax.process_count() > 1 else 0
      self._board.write(f'{step + ahead} {time.time_ns()}')  # the time tells a request from an earlier one for the same step
    text = self._board.read()
    if text != self._read:
      self._read = text
      self._starts.append(int(text.split()[0]))

  def _stop(self) -> None:
    self._until = None
    jax.profiler.stop_trace()
    if jax.process_index() == 0:
      print(f'{self._place}: trace of {TRACED_STEPS} steps, a folder for each process', file=sys.stderr, flush=True)

  def __enter__(self) -> 'Profiler':
    return self

  def __exit__(self, *_) -> None:
    if self._until is not None:
      self._stop()
