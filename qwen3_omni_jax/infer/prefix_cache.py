"""What has been computed once and may be asked for again: features of media, and pieces of prompts.

A piece is kept as its keys and values together with the tapped states that the Talker reads of it. Both stores are bounded and
forget what has not been used for longest. Keys are hashes of contents (see `prepare`), so an answer cannot depend on a hit.
"""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any


class Kept:
  """Values by key, up to a number of bytes."""

  def __init__(self, capacity_bytes: int, size_of: Callable[[Any], int]):
    self.capacity, self.size_of, self.bytes = capacity_bytes, size_of, 0
    self._values: collections.OrderedDict[bytes, Any] = collections.OrderedDict()

  def __contains__(self, key: bytes) -> bool:
    return key in self._values

  def get(self, key: bytes) -> Any:
    value = self._values.get(key)
    if value is not None:
      self._values.move_to_end(key)
    return value

  def put(self, key: bytes, value: Any) -> None:
    size = self.size_of(value)
    if key in self._values or size > self.capacity:
      return
    self._values[key] = value
    self.bytes += size
    while self.bytes > self.capacity:
      self.bytes -= self.size_of(self._values.popitem(last=False)[1])

  def clear(self) -> None:
    self._values.clear()
    self.bytes = 0


@dataclasses.dataclass(frozen=True)
class KeptPiece:
  """window: nn.cache.KVCache of 'L 1 K C H' arrays, on device. tap: 'C D' on the host, or None where nothing is read of it."""

  window: Any
  tap: Any


class Wanted:
  """How many rows still wait for a piece, and which pieces were asked for before: what is worth keeping.

  A piece that only one row has ever asked for is not kept: a copy of every prompt would cost more than it saves.
  """

  def __init__(self, remember: int = 100_000):
    self._waiting: collections.Counter[bytes] = collections.Counter()
    self._asked: collections.OrderedDict[bytes, None] = collections.OrderedDict()
    self._often: set[bytes] = set()
    self.remember = remember

  def ask(self, keys: list[bytes]) -> None:
    for key in keys:
      self._waiting[key] += 1
      if key in self._asked:
        self._often.add(key)
      self._asked[key] = None
      self._asked.move_to_end(key)
      if len(self._asked) > self.remember:
        forgotten = self._asked.popitem(last=False)[0]
        self._often.discard(forgotten)

  def served(self, key: bytes) -> None:
    self._waiting[key] -= 1
    if self._waiting[key] <= 0:
      del self._waiting[key]

  def others(self, key: bytes) -> bool:
    """Whether rows beside the asking one want the piece now."""
    return self._waiting[key] > 1

  def worth_keeping(self, key: bytes) -> bool:
    return key in self._often
