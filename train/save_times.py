"""After which steps a run saves: every so many, and every so many minutes."""

import time
from collections.abc import Callable

from .agreement import merge_over_processes
from .config import Saving

_MEASURED = 10  # steps of a run after which its first interval in minutes becomes one in steps


class SaveTimes:
  """due(step) is the same on all processes without their talking at each step: minutes become a number of steps, agreed upon with
  every checkpoint from the first process's clock."""

  def __init__(self, saving: Saving, step: int, clock: Callable[[], float] = time.monotonic):
    """step: that the run begins or goes on after."""
    self._saving, self._clock = saving, clock
    self._measure_at = step + _MEASURED
    self._next: int | None = None
    self._since, self._at = step, clock()

  def due(self, step: int) -> bool:
    """Whether to save after this step. To be asked once after each."""
    if self._saving.minutes is not None and step == self._measure_at:
      self._plan(step, self._clock() - self._at)
    return step % self._saving.every == 0 or step == self._next

  def saved(self, step: int) -> None:
    """A checkpoint of this step was begun: the minutes count from here."""
    if self._saving.minutes is not None and step > self._since:
      self._plan(step, 0.0)
    self._since, self._at, self._measure_at = step, self._clock(), -1

  def _plan(self, step: int, passed_s: float) -> None:
    assert self._saving.minutes is not None
    step_s = merge_over_processes((self._clock() - self._at) / (step - self._since), lambda every: every[0])
    passed_s = merge_over_processes(passed_s, lambda every: every[0])
    self._next = step + max(1, int((self._saving.minutes * 60 - passed_s) / max(step_s, 1e-9)))
