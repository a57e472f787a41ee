"""What a run trains, as `run` sees it.

A run is the same whatever it trains: it resumes, reads ahead, steps, measures, saves and exports. What differs is its task: whose
parameters, which batches, what a step does to them, and what is written in the end.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, Self

import jax

from qwen3_omni_jax.infer.omni import Omni

from .checkpoint import Checkpoints
from .config import Run
from .feed import Fed
from .state import Roles, TrainState


class Loader(Protocol):
  """Reads the batches of one process. A position is where it goes on after a batch."""

  def get_state(self) -> dict[str, Any]: ...

  def merge(self, states: Any) -> dict[str, Any]:
    """One position of those of all processes."""
    ...

  def close(self) -> None: ...


class Batches(Protocol):
  """Batches on the mesh, one for each step, endlessly."""

  @property
  def loader(self) -> Loader: ...

  def __iter__(self) -> Iterator[Fed]: ...

  def __next__(self) -> Fed: ...


class Task(Protocol):
  """One kind of training, of one run on one mesh. run: its configuration. roles: of all parameters.

  To make one raises ValueError for a configuration that does not go with the model.
  """

  @property
  def run(self) -> Run: ...

  @property
  def roles(self) -> Roles: ...

  def resolved(self, begun: dict[str, Any] | None) -> Self:
    """With the sizes of batches over all devices (geometry.resolve). Raises ValueError for such as the mesh cannot share out."""
    ...

  def describe(self, checkpoints: Checkpoints) -> None:
    """Puts beside the checkpoints what each of them needs to be exported."""
    ...

  def abstract_state(self) -> TrainState:
    """Shapes, dtypes and shardings."""
    ...

  def first_state(self) -> TrainState: ...

  def frozen_parts(self) -> dict[str, jax.Array]:
    """Parameters by path of the parts that are frozen as a whole, which no checkpoint holds."""
    ...

  def batches(self, position: dict[str, Any] | None) -> Batches:
    """From a position in the data on; None: their beginning."""
    ...

  def step(self) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """The compiled step; it takes the state's memory. Scalars of it: loss, grad_norm, skipped, skipped_in_a_row and more."""
    ...

  def evaluation(self) -> Callable[[TrainState], dict[str, float]] | None:
    """Losses on held-out data, `loss` among them; None where none are given."""
    ...

  def omni(self, state: TrainState) -> Omni:
    """The model that the state holds, to ask benchmarks of; in a run with the Talker, it speaks."""
    ...

  def finish(self, state: TrainState) -> None:
    """Writes the results of a complete run."""
    ...
