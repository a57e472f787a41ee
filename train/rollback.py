"""Going back to the newest checkpoint when step after step is skipped: from some parameters a run does not recover."""

from collections.abc import Callable

import jax.numpy as jnp

from .checkpoint import Restored
from .state import TrainState

TIMES = 3  # that a run goes back without taking a step in between, each time with other data


class Rollback:
  """after: skipped steps in a row that it takes; 0: never. restore: reads the newest checkpoint, None if there is none.

  What was seen of the data stays seen and the step count goes on, so that no step is logged or saved twice: parameters, optimiser
  and averages alone are those of the checkpoint. All processes count the same skipped steps and go back after the same one.
  """

  def __init__(self, after: int, restore: Callable[[], Restored | None]):
    self.after, self._restore = after, restore
    self._times, self._taken = 0, -1

  def is_due(self, skipped_in_a_row: int | None) -> bool:
    return bool(self.after) and (skipped_in_a_row or 0) >= self.after

  def may_save(self, skipped_in_a_row: int | None) -> bool:
    """Whether the last step was taken, as far as is known: a checkpoint of a run that is stuck is nothing to go back to."""
    return not self.after or skipped_in_a_row == 0

  def go_back(self, counts: TrainState) -> tuple[TrainState, int]:
    """(the state to go on with, the step of the checkpoint). counts: the present state without what is restored, whose memory is
    needed. Raises RuntimeError if there is no checkpoint, or going back did not help TIMES times."""
    restored = self._restore()
    what = f'{self.after} steps in a row were skipped up to step {int(counts.step)}'
    if restored is None:
      raise RuntimeError(f'{what}, and there is no checkpoint to go back to: lower the learning rate, or raise step.spike')
    to, taken = int(restored.state.step), int(counts.step) - int(counts.skipped)
    self._times, self._taken = (self._times + 1 if taken == self._taken else 1), taken
    if self._times > TIMES:
      raise RuntimeError(
        f'{what}, though the run went back {TIMES} times (to step {to}), with other data each time: '
        'lower the learning rate, raise step.spike, or go on from an older checkpoint'
      )
    state = restored.state
    return state.replace(
      step=counts.step, skipped=counts.skipped, frozen=counts.frozen, skipped_in_a_row=jnp.zeros_like(counts.skipped_in_a_row)
    ), to
