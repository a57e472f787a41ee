"""One file of records, read by index: what all formats have in common."""

import abc
import json
import pathlib
from typing import Any

from .kept import OpenFile, Recent

MAX_RECORD_BYTES = 2**30  # of one record as stored: what a worker may have to hold
STRETCH = 1024


class Shard(abc.ABC):
  """One file of records: how many, where each lies, each one's name for messages, and the raw record itself.

  `locate` needs the index, `read` does not: a copy for a worker process has none (`index`), and opens the files itself.
  """

  grouped = False  # whether records are read by groups

  def __init__(self, path: pathlib.Path):
    self.path = path
    self.files, self.groups = Recent(1), Recent(1)  # those of its source, once it has one

  @abc.abstractmethod
  def __len__(self) -> int: ...

  @abc.abstractmethod
  def locate(self, index: int) -> Any:
    """Where a record lies, in a few plain numbers and words."""

  @abc.abstractmethod
  def read(self, where: Any, name: str) -> dict[str, Any]:
    """The raw record there. name: for messages."""

  def name(self, index: int) -> str:
    return f'{self.path.name}:{index}'

  def group_sizes(self) -> list[int]:
    """Records of each group that is read at once; where records are read alone, of stretches of the file."""
    whole, rest = divmod(len(self), STRETCH)
    return [STRETCH] * whole + [rest] * (rest > 0)

  def __getstate__(self) -> dict[str, Any]:
    return {key: value for key, value in vars(self).items() if key not in ('index', 'file')}

  def _json(self, data: bytes, name: str) -> dict[str, Any]:
    try:
      record = json.loads(data)
    except (ValueError, RecursionError) as e:
      raise ValueError(f'{name}: not valid JSON ({str(e)[:100]})') from e
    if not isinstance(record, dict):
      raise ValueError(f'{name}: expected a JSON object, found {type(record).__name__}')
    return record

  def _span(self, begin: int, size: int, name: str) -> bytes:
    if size > MAX_RECORD_BYTES:
      raise ValueError(f'{name}: {size} bytes; the limit of a record is {MAX_RECORD_BYTES}')
    data = self.files.get(self.path, lambda: OpenFile(self.path)).read(begin, size)
    if len(data) != size:
      raise ValueError(f'{name}: the file ends inside it; has it changed since the run began?')
    return data
