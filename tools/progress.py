"""A line that says how far a job has come."""

import sys
import time
from collections.abc import Callable


def progress_line() -> Callable[[Callable[[float], str]], None]:
  """Called as often as there is news, with what makes the line of the seconds since the start. On a terminal the line is written
  over, twice a second at most; elsewhere it is a plain line every half minute."""
  started = last = time.monotonic()
  terminal = sys.stderr.isatty()

  def report(line: Callable[[float], str]) -> None:
    nonlocal last
    now = time.monotonic()
    if now - last < (0.5 if terminal else 30):
      return
    last = now
    text = line(now - started)
    print(f'\r{text}   ' if terminal else text, end='' if terminal else '\n', file=sys.stderr, flush=True)

  return report
