"""Which record is the k-th of a lane: shuffles that are functions, so that any place in them can be gone to at once."""

import abc
import dataclasses
from collections.abc import Sequence

import numpy as np

WINDOW = 4  # row groups that a lane reads at the same time


@dataclasses.dataclass(frozen=True)
class Dealing:
  """How records are dealt to lanes. seed: words. epochs: None for without end."""

  lanes: int
  seed: tuple[int, ...]
  shuffle: bool
  epochs: int | None


class Order(abc.ABC):
  """[k] is the index of a lane's k-th record; None behind the last epoch."""

  @abc.abstractmethod
  def __getitem__(self, k: int) -> int | None: ...


class RecordOrder(Order):
  """All records shuffled anew for each epoch, and dealt to the lanes in turn."""

  def __init__(self, size: int, lane: int, dealing: Dealing):
    self.size, self.lane, self.dealing = size, lane, dealing

  def __getitem__(self, k: int) -> int | None:
    epoch, at = divmod(self.lane + k * self.dealing.lanes, self.size)
    if self.dealing.epochs is not None and epoch >= self.dealing.epochs:
      return None
    if not self.dealing.shuffle or self.size == 1:
      return at
    from grain.experimental import index_shuffle

    seed = int(np.random.SeedSequence((*self.dealing.seed, epoch)).generate_state(1)[0])
    return index_shuffle(at, max_index=self.size - 1, seed=seed, rounds=4)


class Pieces:
  """Row groups, cut where there are fewer than lanes: what is dealt instead of records where a group is read at once."""

  def __init__(self, group_sizes: Sequence[int], lanes: int):
    sizes = np.asarray(group_sizes, np.int64)
    sizes = sizes[sizes > 0]
    cuts = -(-lanes // max(len(sizes), 1))
    ends = np.cumsum(sizes)
    edges = (ends - sizes)[:, None] + sizes[:, None] * np.arange(cuts) // cuts
    edges = np.unique(np.append(edges, ends[-1]))
    self.begins, self.sizes = edges[:-1], np.diff(edges)

  def __len__(self) -> int:
    return len(self.sizes)


class GroupOrder(Order):
  """Row groups shuffled anew for each epoch and dealt to the lanes in turn; a lane's groups are shuffled together, WINDOW at a
  time. So each group is read by one lane, once an epoch. (A lane's epoch ends when its own groups do.)"""

  def __init__(self, pieces: Pieces, lane: int, dealing: Dealing):
    """Raises ValueError if there are fewer pieces than lanes."""
    if len(pieces) < dealing.lanes:
      raise ValueError(f'{len(pieces)} pieces for {dealing.lanes} lanes')
    self.pieces, self.lane, self.dealing = pieces, lane, dealing
    self._begins = [0]  # number of the first record of each epoch known so far
    self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None
    self._window: tuple[tuple[int, int], np.ndarray] | None = None

  def __getitem__(self, k: int) -> int | None:
    epoch = int(np.searchsorted(self._begins, k, side='right')) - 1
    while epoch == len(self._begins) - 1:  # as long as its end is not known
      if epoch == self.dealing.epochs:
        return None
      self._begins.append(self._begins[-1] + int(self._pieces_of(epoch)[1][-1]))
      epoch = int(np.searchsorted(self._begins, k, side='right')) - 1
    at = k - self._begins[epoch]
    window = int(np.searchsorted(self._window_ends(epoch), at, side='right'))
    begin = int(self._window_ends(epoch)[window - 1]) if window else 0
    return int(self._records_of(epoch, window)[at - begin])

  def _rng(self, *words: int) -> np.random.Generator:
    return np.random.default_rng((*self.dealing.seed, *words))

  def _pieces_of(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """(numbers of the lane's pieces, in order, and where each ends in the lane's epoch)."""
    if self._epoch is None or self._epoch[0] != epoch:
      own = self._rng(epoch).permutation(len(self.pieces))[self.lane :: self.dealing.lanes]
      self._epoch = (epoch, own, np.cumsum(self.pieces.sizes[own]))
    return self._epoch[1:]

  def _window_ends(self, epoch: int) -> np.ndarray:
    ends = self._pieces_of(epoch)[1]
    return np.append(ends[WINDOW - 1 :: WINDOW], ends[-1])

  def _records_of(self, epoch: int, window: int) -> np.ndarray:
    if self._window is None or self._window[0] != (epoch, window):
      own = self._pieces_of(epoch)[0][window * WINDOW : (window + 1) * WINDOW]
      records = np.concatenate([self.pieces.begins[i] + np.arange(int(self.pieces.sizes[i])) for i in own])
      self._window = ((epoch, window), self._rng(epoch, self.lane, window + 1).permutation(records))
    return self._window[1]
