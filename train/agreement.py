"""What processes tell one another outside the step: small values, gathered so that all of them decide alike."""

import enum
import json
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
