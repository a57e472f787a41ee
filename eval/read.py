"""Released files as records: JSON, JSON lines, TSV, Parquet; and media that are read only when a conversation is answered."""

import csv
import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .benchmark import Item


@dataclasses.dataclass(frozen=True)
class Cell:
  """An embedded file in a Parquet table: one row of a column of {'bytes', 'path'} or of bytes."""

  path: pathlib.Path
  column: str
  row: int

  def read(self) -> bytes:
    table, start = _row_group(self.path, self.column, self.row)
    value = table[self.row - start].as_py()
    data = value.get('bytes') if isinstance(value, dict) else value
    if not isinstance(data, bytes):
      raise ValueError(f'{self.path}: row {self.row} of {self.column} holds no file')
    return data


@dataclasses.dataclass(frozen=True)
class Segment:
  """A part of a long sound file, in seconds."""

  path: pathlib.Path
  begin_s: float
  end_s: float

  def read(self) -> tuple[Any, int]:
    import soundfile

    with soundfile.SoundFile(self.path) as file:
      file.seek(round(self.begin_s * file.samplerate))
      samples = file.read(round((self.end_s - self.begin_s) * file.samplerate), dtype='float32')
      return samples, file.samplerate


@functools.lru_cache(maxsize=4)
def _row_group(path: pathlib.Path, column: str, row: int):
  import pyarrow.parquet as pq

  with pq.ParquetFile(path) as file:
    start = 0
    for group in range(file.num_row_groups):
      rows = file.metadata.row_group(group).num_rows
      if row < start + rows:
        return file.read_row_group(group, columns=[column]).column(0), start
      start += rows
  raise ValueError(f'{path}: no row {row}')


def parquet(paths: Iterable[pathlib.Path]) -> Iterator[dict[str, Any]]:
  """Records of Parquet files; columns of embedded files become `Cell`."""
  import pyarrow as pa
  import pyarrow.parquet as pq

  for path in sorted(paths):
    with pq.ParquetFile(path) as file:
      schema = file.schema_arrow
      embedded = [
        f.name
        for f in schema
        if pa.types.is_binary(f.type) or (pa.types.is_struct(f.type) and f.type.get_field_index('bytes') >= 0)
      ]
      rows = file.read(columns=[name for name in schema.names if name not in embedded]).to_pylist()
    for i, row in enumerate(rows):
      yield {**row, **{name: Cell(path, name, i) for name in embedded}}


def json_file(path: pathlib.Path) -> Any:
  """A JSON file's value."""
  try:
    return json.loads(_present(path).read_text(encoding='utf-8'))
  except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as e:
    raise ValueError(f'{path}: not valid JSON ({e})') from e


def json_lines(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  """Records of a JSON lines file."""
  with _present(path).open(encoding='utf-8') as file:
    for number, line in enumerate(file, 1):
      if not line.strip():
        continue
      try:
        record = json.loads(line)
      except (json.JSONDecodeError, RecursionError) as e:
        raise ValueError(f'{path}: line {number} is not valid JSON ({e})') from e
      if not isinstance(record, dict):
        raise ValueError(f'{path}: line {number}: expected an object, found {type(record).__name__}')
      yield record


def tsv(path: pathlib.Path, columns: list[str] | None = None, quoted: bool = False) -> Iterator[dict[str, str]]:
  """Records of a tab-separated file with a header, or with the given columns. quoted: as spreadsheets write it."""
  csv.field_size_limit(2**27)  # pictures in base64
  with _present(path).open(encoding='utf-8', newline='') as file:
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    yield from csv.DictReader(file, fieldnames=columns, delimiter='\t', quoting=quoting)


def one_of(folder: pathlib.Path, *patterns: str) -> list[pathlib.Path]:
  """Files of the first pattern that any file matches. Raises ValueError naming all patterns."""
  for pattern in patterns:
    if found := sorted(folder.glob(pattern)):
      return found
  raise ValueError(f'{folder}: nothing named {" or ".join(patterns)}; see docs/evaluation.md for the files expected here')


def field(record: Mapping[str, Any], *names: str, where: str = 'record') -> Any:
  """The first of these fields that the record has."""
  for name in names:
    if record.get(name) is not None:
      return record[name]
  raise ValueError(f'{where}: no field {" or ".join(names)}; found {", ".join(map(str, record))}')


def _present(path: pathlib.Path) -> pathlib.Path:
  if not path.is_file():
    raise ValueError(f'{path}: no such file; see docs/evaluation.md for the files expected there')
  return path


def media(item: Item) -> list[tuple[str, Any]]:
  """(kind, source) of every medium of an item."""
  parts = [p for m in item.messages if isinstance(m['content'], list) for p in m['content'] if p['type'] != 'text']
  return [(p['type'], p[p['type']]) for p in parts]


def missing(item: Item) -> list[str]:
  """Paths of an item's media that are not there."""
  paths = [getattr(source, 'path', source) for _, source in media(item)]
  return [str(p) for p in paths if isinstance(p, (str, pathlib.Path)) and not pathlib.Path(p).is_file()]


def with_media(item: Item) -> list[dict[str, Any]]:
  """The item's conversation with embedded media read."""

  def part(p: dict[str, Any]) -> dict[str, Any]:
    source = p.get(p['type'])
    if isinstance(source, (Cell, Segment)):
      return {**p, p['type']: source.read()}
    return {**p, p['type']: str(source)} if isinstance(source, pathlib.Path) else p

  return [m if isinstance(m['content'], str) else {**m, 'content': [part(p) for p in m['content']]} for m in item.messages]
