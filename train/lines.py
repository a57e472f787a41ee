"""A file of JSON lines that grows: in memory at first, then on disk at times that its owner chooses."""

import json
from collections.abc import Callable
from typing import Any

from etils import epath


class Lines:
  """Lines are appended to a file on disk; an object in a bucket cannot grow, so it is written whole each time."""

  def __init__(self, file: epath.Path):
    self.file = file
    self._in_bucket = '://' in str(file)
    self._before = ''  # what the object holds already
    self._new: list[str] = []

  def add(self, line: dict[str, Any]) -> None:
    self._new.append(json.dumps(line) + '\n')

  def write(self) -> None:
    """Puts everything that was added on disk, or into the bucket."""
    if not self._new:
      return
    text, self._new = ''.join(self._new), []
    if self._in_bucket:
      self._before += text
      self.file.write_text(self._before)
      return
    with self.file.open('a') as out:
      out.write(text)

  def keep(self, wanted: Callable[[str], bool]) -> None:
    """Removes lines of an earlier process from the file, all at once."""
    if not self.file.exists():
      return
    kept = ''.join(f'{line}\n' for line in self.file.read_text().splitlines() if wanted(line))
    if self._in_bucket:  # where a file is replaced as a whole or not at all
      self._before = kept
      self.file.write_text(kept)
      return
    part = self.file.with_suffix('.part')
    part.write_text(kept)
    part.replace(self.file)
