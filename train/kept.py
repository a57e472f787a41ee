"""What a process keeps open: files, and row groups that were read. Shared by its threads."""

import os
import pathlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any


class Recent:
  """The `size` values that were asked for last, each made once however many threads ask for it at the same time.

  A copy for another process is empty.
  """

  def __init__(self, size: int):
    self.size = size
    self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
    self._lock = threading.Lock()

  def __reduce__(self):
    return Recent, (self.size,)

  def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
    with self._lock:
      entry = self._entries.setdefault(key, _Entry())
      self._entries.move_to_end(key)
      while len(self._entries) > self.size:
        self._entries.popitem(last=False)
    with entry.lock:
      if not entry.made:
        entry.value, entry.made = make(), True
      return entry.value


class _Entry:
  def __init__(self):
    self.lock, self.made, self.value = threading.Lock(), False, None


class OpenFile:
  """A file open for reading at any place by any thread; closed once nothing refers to it."""

  def __init__(self, path: pathlib.Path):
    self._number = os.open(path, os.O_RDONLY)

  def read(self, begin: int, size: int) -> bytes:
    """Fewer bytes only where the file ends."""
    parts = []
    while size > 0 and (part := os.pread(self._number, size, begin)):
      parts.append(part)
      begin, size = begin + len(part), size - len(part)
    return b''.join(parts)

  def __del__(self):
    if hasattr(self, '_number'):
      os.close(self._number)
