"""What processes tell one another outside the step: small values, gathered so that all of them decide alike."""

import enum
import json
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

T = TypeVar('T')


class Outcome(enum.IntEnum):
  """Of reading a checkpoint. The worst that any process met is what all of them act on."""

  READ = 0
  DAMAGED = 1
  FAILED = 2  # for a reason that says nothing about the checkpoint: out of memory, a mount that is gone, a mistake


def agree(outcomes: Sequence[Outcome]) -> Outcome:
  """What all processes take for the outcome: one that could not read is no reason for others to give a checkpoint up."""
  return max(outcomes)


def agree_over_processes(outcome: Outcome) -> Outcome:
  """The same on every process; each must call it."""
  return agree([Outcome(value) for value in merge_over_processes(int(outcome), list)])


def merge_over_processes(value: Any, merge: Callable[[Sequence[Any]], T]) -> T:
  """merge(the values of all processes, in their order); the same on each. value: what JSON can hold."""
  if jax.process_count() == 1:
    return merge([value])
  from jax.experimental import multihost_utils

  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = np.asarray(multihost_utils.process_allgather(jnp.int32(len(text))))
  padded = np.zeros(int(sizes.max()), np.uint8)
  padded[: len(text)] = text
  every = np.asarray(multihost_utils.process_allgather(padded))
  return merge([json.loads(bytes(row[:size])) for row, size in zip(every, sizes, strict=True)])


def run_on_first(work: Callable[[], None], poll_s: float = 5.0) -> None:
  """Runs `work` on the first process alone; every process calls this, and all return when it is done.

  The others do not wait in a barrier, which kills a process after some minutes (jax's own at the end of a program after five):
  all meet every poll_s seconds to hear whether the first is done. Raises what work raised there, RuntimeError on the others.
  """
  if jax.process_count() == 1:
    return work()
  caught: list[BaseException] = []

  def run() -> None:
    try:
      work()
    except BaseException as error:  # is raised below
      caught.append(error)

  writer = threading.Thread(target=run, name='first process')
  if jax.process_index() == 0:
    writer.start()
  status = 'at work'
  while status == 'at work':
    if jax.process_index() == 0:
      writer.join(poll_s)
      status = 'at work' if writer.is_alive() else 'failed' if caught else 'done'
    status = merge_over_processes(status, lambda every: every[0])
  if status == 'failed':
    raise caught[0] if caught else RuntimeError('the first process failed; its own log says why')
