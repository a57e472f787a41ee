"""Where the time of a run goes, over restarts, by a clock that the tests turn."""

import json
import os
import time

import jax
import jax.numpy as jnp
import pytest
from etils import epath
from qwen3_omni_jax.train.goodput import HEARTBEAT_S, PHASES, Compiles, Goodput, process_start

IMPORTED = time.time()
STEP_S, INPUT_S, SAVE_S, START_S = 40.0, 5.0, 7.0, 60.0


class Process:
  """A process of a run that saves every third step; each is longer than a heartbeat. begun and now: of its clock."""

  def __init__(self, file, begun: float, step: int = 0):
    self.now = begun
    self.time = Goodput(file, begun, lambda: self.now)
    self.time.resume(step)
    self.passes('restart', START_S)
    self.step = step

  def passes(self, phase: str, seconds: float) -> None:
    self.now += seconds
    self.time.spent(phase)

  def steps(self, number: int, skipped: bool = False) -> 'Process':
    for _ in range(number):
      self.step += 1
      self.passes('input', INPUT_S)
      self.passes('step', STEP_S)
      self.time.done(skipped=skipped)
      if self.step % 3 == 0 and not skipped:
        self.time.saved(self.step)
        self.passes('checkpoint', SAVE_S)
    return self


@pytest.fixture
def file(tmp_path):
  return epath.Path(tmp_path / 'goodput.json')


def test_a_killed_run_counts_on_and_loses_the_steps_after_its_checkpoint(file):
  """Killed after step 5, 11 s into the next, started 100 s later from checkpoint 3, killed and started again from there."""
  assert STEP_S > HEARTBEAT_S
  first = Process(file, 1000.0).steps(5)
  second = Process(file, first.now + 111.0, 3).steps(1)
  third = Process(file, second.now, 3).steps(3)
  found = third.time
  assert found.lost_steps == 2 + 1
  assert found.seconds == {
    'restart': 3 * START_S,
    'compile': 0.0,
    'input': 9 * INPUT_S,
    'step': 6 * STEP_S,
    'checkpoint': 2 * SAVE_S,
    'evaluation': 0.0,
    'other': 0.0,
    'lost': 3 * STEP_S,
    'down': 111.0,
  }
  assert sum(found.seconds.values()) == pytest.approx(third.now - 1000.0)
  assert found.share == pytest.approx(6 * STEP_S / (third.now - 1000.0))
  assert f'goodput {found.share:.1%} of {third.now - 1000:.1f} s: step 240.0 s' in found.summary()
  assert found.summary().endswith('; 3 steps lost')


def test_a_run_killed_before_its_first_checkpoint_lost_all_it_did(file):
  first = Process(file, 0.0).steps(2)
  second = Process(file, first.now + 10.0)
  assert (second.time.lost_steps, second.time.seconds['step'], second.time.seconds['lost']) == (2, 0.0, 2 * STEP_S)
  assert second.time.scalars()['goodput'] == 0 and second.time.scalars()['time/down'] == 10


def test_a_run_that_ended_with_a_checkpoint_lost_nothing(file):
  first = Process(file, 0.0).steps(3)
  first.time.write()
  second = Process(file, first.now, 3).steps(3).time
  assert (second.lost_steps, second.seconds['step'], second.seconds['down']) == (0, 6 * STEP_S, 0.0)


def test_a_run_that_falls_back_to_an_older_checkpoint_loses_more(file):
  first = Process(file, 0.0).steps(7)
  assert Process(file, first.now, 3).time.lost_steps == 4


def test_steps_that_were_skipped_or_given_up_by_going_back_do_not_count(file):
  run = Process(file, 0.0).steps(4).steps(2, skipped=True)
  assert (run.time.lost_steps, run.time.seconds['step'], run.time.seconds['lost']) == (2, 4 * STEP_S, 2 * STEP_S)
  run.passes('other', 3.0)
  run.time.go_back(3)
  assert run.time.lost_steps == 3
  run.steps(1, skipped=True).time.go_back(3)  # those before were counted as lost already
  assert run.time.lost_steps == 4 and run.time.seconds['lost'] == 4 * STEP_S
  assert sum(run.time.seconds.values()) == run.now


def test_of_a_run_of_an_earlier_version_nothing_is_known_before_now(file):
  found = Process(file, 50.0, 3).steps(1)
  assert found.time.lost_steps == 0 and sum(found.time.seconds.values()) == found.now - 50.0
  file.write_text('{"at": 1')
  assert Process(file, 0.0, 3).time.lost_steps == 0
  assert {phase for phase, seconds in json.loads(file.read_text())['seconds'].items() if seconds == 0} == set(PHASES)


def test_a_process_knows_when_it_was_started_and_what_it_compiles():
  if os.path.exists('/proc/uptime'):
    assert IMPORTED - 3600 < process_start() < IMPORTED
  double, x = jax.jit(lambda x: x * 2 + 1), jnp.ones(7)
  with Compiles() as compiles:
    double(x)
    assert compiles.number == 1
    double(x)
    assert compiles.number == 1
  jax.jit(lambda x: x * 3)(x)
  assert compiles.number == 1
