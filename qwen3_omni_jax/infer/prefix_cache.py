"""Caches of the batch engine: encoded media, and keys and values of prompt pieces that several rows begin with.

A piece is cached as its keys and values together with the tapped states that the Talker reads of it. The stores are bounded in
bytes and evict what was least recently used. Keys are hashes of contents (see `prepare`), so an answer cannot depend on a hit.
"""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any


class LruStore:
  """A least-recently-used cache that is bounded in bytes."""

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
class CachedPiece:
  """window: nn.cache.KVCache of 'L 1 K C H' arrays, on device. tap: 'C D' on the host, or None where nothing is read of it."""

  window: Any
  tap: Any


class PieceDemand:
  """How many rows still need each piece, and which pieces were needed by an earlier row: these are worth caching.

  A piece that only one row has ever needed is not cached: a copy of every prompt would cost more than it saves.
  """

  def __init__(self, remember: int = 100_000):
    self._waiting: collections.Counter[bytes] = collections.Counter()
    self._seen: collections.OrderedDict[bytes, None] = collections.OrderedDict()
    self._repeated: set[bytes] = set()
    self.remember = remember

  def request(self, keys: list[bytes]) -> None:
    for key in keys:
      self._waiting[key] += 1
      if key in self._seen:
        self._repeated.add(key)
      self._seen[key] = None
      self._seen.move_to_end(key)
      if len(self._seen) > self.remember:
        forgotten = self._seen.popitem(last=False)[0]
        self._repeated.discard(forgotten)

  def served(self, key: bytes) -> None:
    self._waiting[key] -= 1
    if self._waiting[key] <= 0:
      del self._waiting[key]

  def shared(self, key: bytes) -> bool:
    """Whether more than one row needs the piece now."""
    return self._waiting[key] > 1

  def worth_caching(self, key: bytes) -> bool:
    return key in self._repeated
