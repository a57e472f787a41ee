"""Files of training records: JSONL, Parquet, WebDataset tar and ArrayRecord, read by index.

A source is an indexed set of raw records (dicts as in the files; `records` interprets them). The index stays in the process that
opened the source; worker processes get places of records, and open the files themselves.
"""

import bisect
import dataclasses
import glob
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from .contents import contents_fingerprint
from .kept import Recent
from .saved_index import Arrays, saved_index
from .shard import Shard
from .tar import WebDataset

_BLOCK = 2**24
_OPEN_FILES = 64


class JsonLines(Shard):
  """One JSON object a line. Blank lines count for nothing; a record's id is its line number. 8 bytes of index a line."""

  def __init__(self, path: pathlib.Path, indices: epath.Path | None = None):
    super().__init__(path)
    self.index = saved_index(path, indices, lambda: _lines(path))
    blank = self.index['blank']
    self.size = len(self.index['edges']) - 1 - len(blank)
    self.before = blank - np.arange(len(blank))  # records before each blank line

  def __len__(self) -> int:
    return self.size

  def __getstate__(self) -> dict[str, Any]:
    return super().__getstate__() | {'before': None}

  def _line(self, index: int) -> int:
    return index + int(np.searchsorted(self.before, index, side='right'))

  def locate(self, index: int) -> tuple[int, int]:
    line = self._line(index)
    begin, end = self.index['edges'][line : line + 2].tolist()
    return begin, end - begin

  def read(self, where: tuple[int, int], name: str) -> dict[str, Any]:
    return self._json(self._span(*where, name), name)

  def name(self, index: int) -> str:
    return f'{self.path.name}:{self._line(index) + 1}'


def _lines(path: pathlib.Path) -> Arrays:
  """edges: where lines begin, and the end. blank: numbers of empty lines."""
  begins = [np.zeros(1, np.int64)]
  with path.open('rb') as file:
    offset = 0
    while block := file.read(_BLOCK):
      begins.append(np.flatnonzero(np.frombuffer(block, np.uint8) == 10) + (offset + 1))
      offset += len(block)
  edges = np.unique(np.concatenate([*begins, np.array([offset])]))
  return {'edges': edges, 'blank': np.flatnonzero(np.diff(edges) == 1)}  # a line of one byte is its own line break


class Parquet(Shard):
  """One record a row. Columns that are null are absent. A row group is read at once, and the last ones are kept."""

  grouped = True

  def __init__(self, path: pathlib.Path, indices: epath.Path | None = None):
    super().__init__(path)
    meta = self._open().metadata
    self.index = np.cumsum([meta.row_group(i).num_rows for i in range(meta.num_row_groups)]).tolist()

  def _open(self):
    import pyarrow
    import pyarrow.parquet

    try:
      return pyarrow.parquet.ParquetFile(self.path)
    except (pyarrow.ArrowException, OSError) as e:
      raise ValueError(f'{self.path}: not a Parquet file ({str(e)[:200]})') from e

  def __len__(self) -> int:
    return self.index[-1] if self.index else 0

  def group_sizes(self) -> list[int]:
    return np.diff([0, *self.index]).tolist()

  def locate(self, index: int) -> tuple[int, int]:
    """(row group, row in it)."""
    group = bisect.bisect_right(self.index, index)
    return group, index - (self.index[group - 1] if group else 0)

  def read(self, where: tuple[int, int], name: str) -> dict[str, Any]:
    group, row = where
    table = self.groups.get((self.path, group), lambda: self.read_group(group))
    record = table.slice(row, 1).to_pylist()[0]
    return {key: value for key, value in record.items() if value is not None}

  def read_group(self, group: int):
    return self._open().read_row_group(group)


class ArrayRecord(Shard):
  """One JSON object a record; media by path or data: URL."""

  def __init__(self, path: pathlib.Path, indices: epath.Path | None = None):
    super().__init__(path)
    self.size = len(self._open())

  def _open(self):
    import grain

    if vars(self).get('file') is None:
      try:
        self.file = grain.sources.ArrayRecordDataSource([str(self.path)])
      except Exception as e:  # the library raises what its C++ half says
        raise ValueError(f'{self.path}: not an ArrayRecord file ({str(e)[:200]})') from e
    return self.file

  def __len__(self) -> int:
    return self.size

  def locate(self, index: int) -> int:
    return index

  def read(self, where: int, name: str) -> dict[str, Any]:
    return self._json(self._open()[where], name)


FORMATS: dict[str, type[JsonLines] | type[Parquet] | type[WebDataset] | type[ArrayRecord]] = {
  '.jsonl': JsonLines,
  '.ndjson': JsonLines,
  '.parquet': Parquet,
  '.tar': WebDataset,
  '.array_record': ArrayRecord,
  '.arrayrecord': ArrayRecord,
}


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a record of a source lies. shard: the file's number. where: in it. group: records with one number are read at once;
  None for those that are read alone."""

  shard: int
  where: Any
  name: str
  group: int | None = None


class Source:
  """Every record of one or more files, in the order of their names."""

  def __init__(self, shards: Sequence[Shard], pattern: str):
    self.shards = list(shards)
    self.pattern = pattern
    self.ends = np.cumsum([len(shard) for shard in shards]).tolist()
    self.files, self.groups = Recent(_OPEN_FILES), Recent(4)
    for shard in self.shards:
      shard.files, shard.groups = self.files, self.groups

  def __len__(self) -> int:
    return self.ends[-1]

  def locate(self, index: int) -> Place:
    number = bisect.bisect_right(self.ends, index)
    shard, at = self.shards[number], index - (self.ends[number - 1] if number else 0)
    where = shard.locate(at)
    group = hash((number, where[0])) if shard.grouped else None
    return Place(number, where, shard.name(at), group)

  def read(self, place: Place) -> dict[str, Any]:
    """The raw record, as the file has it. Raises ValueError, OSError, or what its reader makes of a damaged file."""
    return self.shards[place.shard].read(place.where, place.name)

  @property
  def grouped(self) -> bool:
    """Whether records of any of the files are read by groups."""
    return any(shard.grouped for shard in self.shards)

  def group_sizes(self) -> np.ndarray:
    """Records of each group, in order."""
    return np.concatenate([np.array(shard.group_sizes(), np.int64) for shard in self.shards])

  def fingerprint(self) -> str:
    """Of the contents: the sizes of all files, and samples from all over them. Paths and times do not count."""
    return contents_fingerprint([shard.path for shard in self.shards])


def open_source(pattern: str | pathlib.Path, indices: str | epath.Path | pathlib.Path | None = None) -> Source:
  """The files that a path or a pattern with * names, by their endings. indices: a folder that keeps the indices of JSONL and tar
  files, to be used again. Raises ValueError if there are no files, or no records."""
  paths = [pathlib.Path(p) for p in sorted(glob.glob(str(pattern), recursive=True))]
  if not paths:
    raise ValueError(f'{pattern}: no such file')
  folder = None if indices is None else epath.Path(indices)
  shards = []
  for path in paths:
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
      raise ValueError(f'{path}: records are read from {", ".join(FORMATS)}')
    if not path.is_file():
      raise ValueError(f'{path}: not a file')
    shards.append(kind(path, folder))
  if not sum(map(len, shards)):
    raise ValueError(f'{pattern}: no records in it')
  return Source(shards, str(pattern))
