"""When a run saves, when it goes back, and what it says when it hangs."""

import time

import jax.numpy as jnp
import pytest
from qwen3_omni_jax.train import save_times
from qwen3_omni_jax.train.checkpoint import Restored
from qwen3_omni_jax.train.config import Saving
from qwen3_omni_jax.train.rollback import Rollback
from qwen3_omni_jax.train.save_times import SaveTimes
from qwen3_omni_jax.train.state import TrainState
from qwen3_omni_jax.train.watchdog import Watchdog


def saves(saving: Saving, step_s, steps: int, first: int = 0) -> list[int]:
  """Steps after which a run saves. step_s: of each step, by its number."""
  now = [0.0]
  times, found = SaveTimes(saving, first, lambda: now[0]), []
  for step in range(first + 1, steps + 1):
    now[0] += step_s(step)
    if times.due(step):
      found.append(step)
      times.saved(step)
  return found


def test_a_run_saves_every_so_many_steps():
  assert saves(Saving(every=4), lambda _: 100.0, 13) == [4, 8, 12]


def test_a_run_saves_when_the_minutes_have_passed_whatever_a_step_takes():
  """Two minutes are 12 steps of 10 s, and 6 of 20 s once that was noticed. The first interval also begins with the run."""
  saving = Saving(every=1000, minutes=2.0)
  assert saves(saving, lambda _: 10.0, 40) == [12, 24, 36]
  assert saves(saving, lambda step: 10.0 if step <= 24 else 20.0, 50) == [12, 24, 36, 42, 48]
  assert saves(saving, lambda _: 10.0, 140, first=100) == [112, 124, 136]
  assert saves(Saving(every=15, minutes=2.0), lambda _: 10.0, 40) == [12, 15, 27, 30]


def test_the_first_process_says_what_a_step_takes(monkeypatch):
  """All processes must save after the same step, however their own clocks go."""
  monkeypatch.setattr(save_times, 'merge_over_processes', lambda own, merge: merge([5.0 if own else own, own]))
  found = saves(Saving(every=1000, minutes=1.0), lambda _: 10.0, 60)
  assert [b - a for a, b in zip(found[1:], found[2:], strict=False)] == [12] * (len(found) - 2) and len(found) >= 4


def counts(step: int, mark: float = 0.0, taken: int = 0) -> TrainState:
  number = jnp.int32(step)
  return TrainState(number, {'a': jnp.float32(mark)}, {}, {}, None, number - taken, number, jnp.float32(mark))


def test_a_run_goes_back_to_its_parameters_and_on_with_its_count():
  rollback = Rollback(3, lambda: Restored(counts(10, mark=7.0), {'at': 10}, (), ()))
  assert [rollback.is_due(n) for n in (0, 2, 3, 4)] == [False, False, True, True] and not Rollback(0, lambda: None).is_due(9)
  state, to = rollback.go_back(counts(25).replace(trainable={}))
  assert to == 10 and state.step == 25 and state.skipped == 25 and state.skipped_in_a_row == 0
  assert state.trainable['a'] == 7.0 and state.usual_norm == 7.0


def test_a_run_that_is_stuck_does_not_save():
  """None: the first step after it went back is not known yet."""
  assert [Rollback(3, lambda: None).may_save(n) for n in (0, 1, None)] == [True, False, False]
  assert all(Rollback(0, lambda: None).may_save(n) for n in (0, 1, None))


def test_a_run_that_does_not_recover_ends():
  rollback = Rollback(3, lambda: Restored(counts(10), {}, (), ()))
  for step in (14, 17):
    rollback.go_back(counts(step, taken=11))
  for step in (20, 23, 26):  # a step was taken in between
    rollback.go_back(counts(step, taken=12))
  with pytest.raises(RuntimeError, match='up to step 29, though the run went back 3 times'):
    rollback.go_back(counts(29, taken=12))
  with pytest.raises(RuntimeError, match='no checkpoint to go back to'):
    Rollback(3, lambda: None).go_back(counts(5))


@pytest.mark.parametrize('hangs', [True, False])
def test_a_phase_that_takes_too_long_is_named_with_host_and_stacks(tmp_path, hangs):
  with (tmp_path / 'said').open('w+') as out:
    with Watchdog(0.2, out) as watchdog:
      watchdog.enter('input', 6)
      for _ in range(10):
        if not hangs:
          watchdog.enter('step', 7)
        time.sleep(0.06)
    out.seek(0)
    text = out.read()
  if hangs:
    assert text.count('process 0 of 1 on ') == 1 and 's in input of step 6' in text and 'test_watching.py' in text
  else:
    assert not text
