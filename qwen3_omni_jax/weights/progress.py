"""How far long work is: bytes, speed and remaining time."""

import sys
import threading
import time


class Progress:
  """One line rewritten on a terminal, a line every ten seconds elsewhere. May be told from any thread.

  total: bytes in all. done: bytes that an earlier run has finished; they count as there, but not for the speed.
  shown: False says nothing.
  """

  def __init__(self, total: int, done: int, shown: bool):
    self.shown = shown
    self.total, self.bytes, self.before, self.started = total, done, done, time.monotonic()
    self.live = sys.stderr.isatty()
    self._every = 0.2 if self.live else 10
    self._next = self.started + self._every
    self._lock = threading.Lock()

  def add(self, size: int) -> None:
    with self._lock:
      self.bytes += size
      now = time.monotonic()
      if now < self._next or not self.shown:
        return
      self._next = now + self._every
      speed = max(self.bytes - self.before, 1) / (now - self.started)
      line = (
        f'{self.bytes / 1e9:.2f} of {self.total / 1e9:.2f} GB, {speed / 1e6:.0f} MB/s, '
        f'{(self.total - self.bytes) / speed:.0f} s left'
      )
      print(f'\r{line}   ' if self.live else line, end='' if self.live else '\n', file=sys.stderr, flush=True)

  def end(self) -> None:
    """Leaves the line of a terminal, where `done` has nothing to say."""
    if self.shown and self.live:
      print(file=sys.stderr)

  def done(self, what: object) -> None:
    if not self.shown:
      return
    seconds = max(time.monotonic() - self.started, 1e-9)
    size, start = self.bytes - self.before, '\r' if self.live else ''
    earlier = f', {self.before / 1e9:.2f} GB by an earlier run' if self.before else ''
    print(f'{start}{what}: {size / 1e9:.2f} GB in {seconds:.1f} s ({size / 1e6 / seconds:.0f} MB/s){earlier}   ')
