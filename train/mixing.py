"""Mixtures of sources by tokens: which source a lane reads from next.

Every source has an account of tokens in every lane. A record is paid from its source's account, and what it cost is shared out to
all accounts by weight; the source with the most on its account is next. So in each lane the tokens of a source differ from its
share by no more than about a record, however unlike the records of the sources are in length, and what is next depends on the
lane's own past alone: not on processes, threads or restarts.
"""

from collections.abc import Sequence

from .config import SourceConfig


class Mixture:
  """The accounts' rule for one lane. length: tokens of a row."""

  def __init__(self, sources: Sequence[SourceConfig], lane: int, lanes: int, length: int):
    self.sources, self.lane, self.lanes, self.length = sources, lane, lanes, length

  def begin(self) -> list[float]:
    """The accounts of a lane that has read nothing: as if it had read as many records of a row each as there are lanes before it.

    With equal accounts all lanes would read a rare source in the same batch.
    """
    accounts, weights = [0.0] * len(self.sources), self.weights(0)
    for _ in range(self.lane):
      source = self.choose(accounts, weights)
      assert source is not None  # DataConfig sees to it
      self.pay(accounts, weights, source, self.length)
    return accounts

  def weights(self, tokens: int) -> list[float]:
    """Of the sources, once this lane has read so many tokens."""
    return [source.weight_at(tokens * self.lanes) for source in self.sources]

  def choose(self, accounts: Sequence[float], weights: Sequence[float]) -> int | None:
    """The next source among those with a weight, the first of equals; None if there is none."""
    able = [i for i, weight in enumerate(weights) if weight > 0]
    return max(able, key=lambda i: (accounts[i], -i), default=None)

  def pay(self, accounts: list[float], weights: Sequence[float], source: int, tokens: int) -> None:
    """Books a record of the source that was chosen with these weights."""
    total = sum(weights)
    for i, weight in enumerate(weights):
      accounts[i] += tokens * weight / total
    accounts[source] -= tokens
