"""Batches wait ahead of need: in order, no more than asked for, with errors in their turn."""

import threading
import time

import pytest
from qwen3_omni_jax.train.feed import Prefetch


def counting(made: list, stop_at: int = 100, error: Exception | None = None):
  for i in range(stop_at):
    made.append(i)
    yield i
  if error is not None:
    raise error


def settled(made: list) -> int:
  """How many were made, once no more are."""
  number = -1
  while number != len(made):
    number = len(made)
    time.sleep(0.05)
  return number


def test_so_many_are_made_ahead_and_no_more():
  made: list[int] = []
  with Prefetch(counting(made), depth=2) as items:
    assert settled(made) == 2
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    assert settled(made) == 5


def test_errors_and_the_end_come_in_their_turn():
  with Prefetch(counting([], 2, ValueError('bad record'))) as items:
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ValueError, match='bad record'):
      next(items)
  assert list(Prefetch(counting([], 3))) == [0, 1, 2]


def test_closing_ends_the_thread_also_when_the_body_fails():
  before = threading.active_count()
  with pytest.raises(ZeroDivisionError), Prefetch(counting([])) as items:
    next(items)
    raise ZeroDivisionError
  assert threading.active_count() == before and list(items) == []
