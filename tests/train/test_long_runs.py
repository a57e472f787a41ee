"""Small forms of tests.train.crash and tests.train.overfit, which CI runs; the large ones are run by hand (docs/training.md)."""

import pytest

from tests.conftest import CACHE
from tests.train.crash import crash
from tests.train.crash_processes import crash_processes
from tests.train.overfit import BOUND, overfit

pytestmark = pytest.mark.slow


def test_a_run_killed_three_times_is_the_undisturbed_one_to_the_bit(tiny_folder, tmp_path):
  seen = crash(tiny_folder, tmp_path, kills=2, terms=1, seed=3, cache=CACHE)
  assert seen['kills'] == 2 and seen['terms'] == 1


def test_two_processes_killed_three_times_are_an_undisturbed_run_to_the_bit(tiny_folder, tmp_path):
  seen = crash_processes(tiny_folder, tmp_path, kills=2, terms=1, steps=15, seed=3)
  assert sum(seen['kills'].values()) == 2 and sum(seen['terms'].values()) == 1


def test_everything_trained_learns_its_records_by_heart(tiny_folder, tmp_path):
  learnt = overfit('s2_general', tiny_folder, tmp_path, lr=3e-3, steps=120, kinds=('text', 'image'))
  assert learnt['largest_of_last_10_losses'] < BOUND and not learnt['frozen_that_changed']
  assert learnt['first_loss'] > 20 * BOUND
