"""Files of training records: JSONL, Parquet, WebDataset tar and ArrayRecord, read by index.

A source is an indexed set of raw records (dicts as in the files; `records` interprets them). Opening builds the index once;
then a source can be sent to worker processes, which open the files themselves.
"""

import abc
import bisect
import glob
import json
import pathlib
import tarfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from .contents import contents_fingerprint

MAX_RECORD_BYTES = 2**30  # of one record as stored: what a worker may have to hold
MAX_MEMBERS = 20_000_000  # of one tar file; the index takes some 230 bytes of memory for each
_BLOCK = 2**24


class Shard(abc.ABC):
  """One file of records: how many, each one's name for messages, and the raw record itself."""

  def __init__(self, path: pathlib.Path):
    self.path = path

  @abc.abstractmethod
  def __len__(self) -> int: ...

  @abc.abstractmethod
  def read(self, index: int) -> dict[str, Any]: ...

  def name(self, index: int) -> str:
    return f'{self.path.name}:{index}'

  def __getstate__(self) -> dict[str, Any]:
    """Without open files and caches: a worker process opens its own."""
    return {key: value for key, value in vars(self).items() if key not in ('file', 'group')}

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
    with self.path.open('rb') as file:  # opened for each record: threads share nothing, and it costs microseconds
      file.seek(begin)
      data = file.read(size)
    if len(data) != size:
      raise ValueError(f'{name}: the file ends inside it; has it changed since the run began?')
    return data


class JsonLines(Shard):
  """One JSON object a line. Blank lines count for nothing; a record's id is its line number."""

  def __init__(self, path: pathlib.Path):
    super().__init__(path)
    begins = [0]
    with path.open('rb') as file:
      offset = 0
      while block := file.read(_BLOCK):
        begins += (np.flatnonzero(np.frombuffer(block, np.uint8) == 10) + offset + 1).tolist()
        offset += len(block)
    edges = np.unique(np.array([*begins, offset], np.int64))
    self.lines = np.flatnonzero(np.diff(edges) > 1)  # a line of one byte is its own line break
    self.edges = edges

  def __len__(self) -> int:
    return len(self.lines)

  def read(self, index: int) -> dict[str, Any]:
    line = int(self.lines[index])
    begin, end = self.edges[line : line + 2].tolist()
    return self._json(self._span(begin, end - begin, self.name(index)), self.name(index))

  def name(self, index: int) -> str:
    return f'{self.path.name}:{int(self.lines[index]) + 1}'


class Parquet(Shard):
  """One record a row. Columns that are null are absent; a row group is read at once, and the last one kept."""

  def __init__(self, path: pathlib.Path):
    super().__init__(path)
    meta = self._open().metadata
    self.ends = np.cumsum([meta.row_group(i).num_rows for i in range(meta.num_row_groups)]).tolist()

  def _open(self):
    import pyarrow
    import pyarrow.parquet

    try:
      return pyarrow.parquet.ParquetFile(self.path)
    except (pyarrow.ArrowException, OSError) as e:
      raise ValueError(f'{self.path}: not a Parquet file ({str(e)[:200]})') from e

  def __len__(self) -> int:
    return self.ends[-1] if self.ends else 0

  def read(self, index: int) -> dict[str, Any]:
    group = bisect.bisect_right(self.ends, index)
    kept = vars(self).get('group')  # (number, table): replaced as one value, so threads may race
    if kept is None or kept[0] != group:
      kept = (group, self._open().read_row_group(group))
      self.group = kept
    row = index - (self.ends[group - 1] if group else 0)
    record = kept[1].slice(row, 1).to_pylist()[0]
    return {key: value for key, value in record.items() if value is not None}


class ArrayRecord(Shard):
  """One JSON object a record; media by path or data: URL."""

  def __init__(self, path: pathlib.Path):
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

  def read(self, index: int) -> dict[str, Any]:
    return self._json(self._open()[index], self.name(index))


class WebDataset(Shard):
  """A tar file whose members share a name up to the first dot: key.json with the record, and its media.

  A medium of the record that names a member (`0.wav` of key.0.wav, or the whole name) is that member; media the record does
  not list at all are its members of that kind, in order of their names.
  """

  KINDS = {
    'images': ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.gif'),
    'audios': ('.wav', '.flac', '.mp3', '.ogg', '.opus', '.m4a'),
    'videos': ('.mp4', '.webm', '.mkv', '.mov', '.avi'),
  }

  def __init__(self, path: pathlib.Path):
    super().__init__(path)
    samples: dict[str, list[tuple[str, int, int]]] = {}
    number = 0
    try:
      with tarfile.open(path, 'r:') as tar:
        while (member := tar.next()) is not None:
          tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
          if not member.isreg() or member.issparse():
            continue
          number += 1
          if number > MAX_MEMBERS:
            raise ValueError(f'{path}: more than {MAX_MEMBERS} members; cut it into several files')
          folder, _, base = member.name.rpartition('/')
          key, _, rest = base.partition('.')
          samples.setdefault(f'{folder}/{key}' if folder else key, []).append((rest, member.offset_data, member.size))
    except (tarfile.TarError, OSError) as e:
      raise ValueError(f'{path}: not an uncompressed tar file ({str(e)[:200]})') from e
    self.keys = list(samples)
    self.members = list(samples.values())

  def __len__(self) -> int:
    return len(self.keys)

  def read(self, index: int) -> dict[str, Any]:
    key, members, name = self.keys[index], sorted(self.members[index]), self.name(index)
    spans = {rest: (begin, size) for rest, begin, size in members}
    if 'json' not in spans:
      raise ValueError(f'{name}: no {key}.json in it, only {", ".join(spans) or "nothing"}')
    read = lambda rest: self._span(*spans[rest], f'{name}.{rest}')
    record = self._json(read('json'), f'{name}.json')
    named = {f'{key.rpartition("/")[2]}.{rest}': rest for rest in spans} | {rest: rest for rest in spans}

    def resolve(value):
      if isinstance(value, list):
        return [resolve(item) for item in value]
      if isinstance(value, dict):
        return value | {key: resolve(value[key]) for key in ('path', 'image', 'audio', 'video') if key in value}
      return read(named[value]) if isinstance(value, str) and named.get(value, 'json') != 'json' else value

    for field, ends in self.KINDS.items():
      if field in record:
        record[field] = resolve(record[field])
      elif not _parts(record):
        found = [rest for rest in spans if f'.{rest}'.lower().endswith(ends)]
        if found:
          record[field] = [read(rest) for rest in sorted(found)]
    for part in _parts(record):
      part |= {kind: resolve(part[kind]) for kind in ('image', 'audio', 'video') if kind in part}
    return record

  def name(self, index: int) -> str:
    return f'{self.path.name}:{self.keys[index]}'


def _parts(record: dict[str, Any]) -> list[dict[str, Any]]:
  """The content parts of a record, wherever it has them."""
  messages = record.get('messages')
  contents = [m.get('content') for m in messages if isinstance(m, dict)] if isinstance(messages, list) else []
  return [
    part
    for content in (*contents, record.get('content'))
    if isinstance(content, list)
    for part in content
    if isinstance(part, dict)
  ]


FORMATS: dict[str, type[Shard]] = {
  '.jsonl': JsonLines,
  '.ndjson': JsonLines,
  '.parquet': Parquet,
  '.tar': WebDataset,
  '.array_record': ArrayRecord,
  '.arrayrecord': ArrayRecord,
}


class Source:
  """Every record of one or more files, in the order of their names."""

  def __init__(self, shards: Sequence[Shard], pattern: str):
    self.shards = list(shards)
    self.pattern = pattern
    self.ends = np.cumsum([len(shard) for shard in shards]).tolist()

  def __len__(self) -> int:
    return self.ends[-1]

  def read(self, index: int) -> dict[str, Any]:
    """The raw record, as the file has it. Raises ValueError, OSError, or what its reader makes of a damaged file."""
    shard, at = self._place(index)
    return shard.read(at)

  def name(self, index: int) -> str:
    """The record's id, for messages and logs."""
    shard, at = self._place(index)
    return shard.name(at)

  def fingerprint(self) -> str:
    """Of the contents: the sizes of all files, and samples from all over them. Paths and times do not count."""
    return contents_fingerprint([shard.path for shard in self.shards])

  def _place(self, index: int) -> tuple[Shard, int]:
    number = bisect.bisect_right(self.ends, index)
    return self.shards[number], index - (self.ends[number - 1] if number else 0)


def open_source(pattern: str | pathlib.Path) -> Source:
  """The files that a path or a pattern with * names, by their endings. Raises ValueError if there are none, or no records."""
  paths = [pathlib.Path(p) for p in sorted(glob.glob(str(pattern), recursive=True))]
  if not paths:
    raise ValueError(f'{pattern}: no such file')
  shards = []
  for path in paths:
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
      raise ValueError(f'{path}: records are read from {", ".join(FORMATS)}')
    if not path.is_file():
      raise ValueError(f'{path}: not a file')
    shards.append(kind(path))
  if not sum(map(len, shards)):
    raise ValueError(f'{pattern}: no records in it')
  return Source(shards, str(pattern))
