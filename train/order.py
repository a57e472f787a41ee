"""Which record is the k-th of a lane: a shuffle that is a function, so that any place in it can be gone to at once."""

from collections.abc import Sequence

import numpy as np


class RecordOrder:
  """The records of one lane out of `size` that all lanes share: shuffled anew for each epoch, dealt to the lanes in turn.

  [k] is the index of the lane's k-th record, None after the last epoch.
  """

  def __init__(self, size: int, lane: int, lanes: int, seed: Sequence[int], shuffle: bool, epochs: int | None):
    self.size, self.lane, self.lanes, self.shuffle, self.epochs = size, lane, lanes, shuffle, epochs
    self.seed = tuple(seed)

  def __getitem__(self, k: int) -> int | None:
    epoch, at = divmod(self.lane + k * self.lanes, self.size)
    if self.epochs is not None and epoch >= self.epochs:
      return None
    if not self.shuffle or self.size == 1:
      return at
    from grain.experimental import index_shuffle

    seed = int(np.random.SeedSequence((*self.seed, epoch)).generate_state(1)[0])
    return index_shuffle(at, max_index=self.size - 1, seed=seed, rounds=4)
