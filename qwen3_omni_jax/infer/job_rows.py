"""Input of a batch job: JSON lines or Parquet files as numbered rows, each checked by itself.

A row is `{"custom_id": …, "body": {"messages": […], …}}` as in the OpenAI batch form, the same without `body`, or a bare list of
messages. The offsets of rows and duplicate ids are determined once and saved in the output folder, so that any process can
read any row.
"""

import dataclasses
import glob
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..media.processor import MEDIA, check_media
from .prepare import Row, RowError

_PROMPT = ('tools', 'fps', 'media', 'audio_in_video', 'enable_thinking')
_SETTINGS = ('temperature', 'top_k', 'top_p', 'repetition_penalty', 'seed', 'max_frames', 'speaker')
_LIMITS = ('max_new_tokens', 'max_completion_tokens', 'max_tokens')
_KNOWN = {'messages', 'model', 'modalities', 'audio', 'speech', *_PROMPT, *_SETTINGS, *_LIMITS}
_AROUND = {'custom_id', 'id', 'method', 'url', 'body'}


def input_files(patterns: Sequence[str]) -> list[pathlib.Path]:
  """The files that paths and glob patterns name, sorted. Raises ValueError if one names nothing."""
  files: list[pathlib.Path] = []
  for pattern in patterns:
    found = sorted(pathlib.Path(p) for p in glob.glob(pattern)) or [pathlib.Path(pattern)]
    if missing := [str(p) for p in found if not p.is_file()]:
      raise ValueError(f'{missing[0]}: no such input file')
    files += found
  if bad := [str(f) for f in files if f.suffix not in ('.jsonl', '.json', '.ndjson', '.parquet')]:
    raise ValueError(f'{bad[0]}: expected .jsonl or .parquet')
  if len(set(files)) != len(files):
    raise ValueError('an input file is named twice')
  return files


@dataclasses.dataclass
class Index:
  """Where rows are. starts: first row of each file, and the total; offsets: byte of each JSON line ('.parquet': number in the
  file); twice: rows whose custom_id an earlier row has."""

  files: list[pathlib.Path]
  starts: np.ndarray
  offsets: np.ndarray
  twice: set[int]

  @property
  def total(self) -> int:
    return int(self.starts[-1])

  @classmethod
  def of(cls, files: list[pathlib.Path]) -> 'Index':
    """Reads every file once."""
    starts, offsets, twice, seen = [0], [], [], set()
    for file in files:
      for offset, name in _ids(file):
        if name is not None:
          if name in seen:
            twice.append(len(offsets))
          seen.add(name)
        offsets.append(offset)
      starts.append(len(offsets))
    return cls(files, np.array(starts), np.array(offsets, np.int64), set(twice))

  def save(self, path: pathlib.Path) -> None:
    with path.open('wb') as file:
      np.savez(file, starts=self.starts, offsets=self.offsets, twice=np.array(sorted(self.twice), np.int64))

  @classmethod
  def load(cls, path: pathlib.Path, files: list[pathlib.Path]) -> 'Index':
    with np.load(path, allow_pickle=False) as data:
      return cls(files, data['starts'], data['offsets'], set(data['twice'].tolist()))

  def read(self, first: int, end: int) -> Iterator[tuple[int, Any]]:
    """(number, contents) of rows first .. end: bytes of a JSON line, or an object of a Parquet row."""
    for f, file in enumerate(self.files):
      here = range(max(first, int(self.starts[f])), min(end, int(self.starts[f + 1])))
      if not here:
        continue
      if file.suffix == '.parquet':
        yield from zip(here, _parquet_rows(file, here.start - int(self.starts[f]), len(here)), strict=True)
      else:
        with file.open('rb') as lines:
          for number in here:
            lines.seek(self.offsets[number])
            yield number, lines.readline()


def _ids(file: pathlib.Path) -> Iterator[tuple[int, str | None]]:
  if file.suffix == '.parquet':
    parquet = _parquet(file)
    if 'custom_id' in parquet.schema_arrow.names:
      ids = (str(v) for b in parquet.iter_batches(columns=['custom_id']) for v in b.column(0).to_pylist())
      yield from enumerate(ids)
    else:
      yield from ((i, None) for i in range(parquet.metadata.num_rows))
    return
  offset = 0
  with file.open('rb') as lines:
    for line in lines:
      if line.strip():
        yield offset, _id_of(line)
      offset += len(line)


def _id_of(line: bytes) -> str | None:
  if b'"custom_id"' not in line and b'"id"' not in line:
    return None
  try:
    data = json.loads(line)
  except (ValueError, RecursionError):
    return None  # the row itself will say so
  name = data.get('custom_id', data.get('id')) if isinstance(data, dict) else None
  return name if isinstance(name, str) else None


def _parquet(file: pathlib.Path):
  try:
    import pyarrow.parquet
  except ImportError as e:
    raise ValueError(f"{file}: reading Parquet needs pyarrow: pip install 'qwen3-omni-jax[eval]', or give JSON lines") from e
  try:
    return pyarrow.parquet.ParquetFile(file)
  except (OSError, ValueError) as e:
    raise ValueError(f'{file}: not a Parquet file ({e})') from e


def _parquet_rows(file: pathlib.Path, first: int, number: int) -> Iterator[Any]:
  parquet, at = _parquet(file), 0
  for group in range(parquet.num_row_groups):
    size = parquet.metadata.row_group(group).num_rows
    lo, hi = max(first - at, 0), min(first + number - at, size)
    if lo < hi:
      yield from map(_without_nulls, parquet.read_row_group(group).slice(lo, hi - lo).to_pylist())
    at += size


def _without_nulls(value: Any) -> Any:
  """Columns hold every key of every row; those without a value were not given."""
  if isinstance(value, dict):
    return {k: _without_nulls(v) for k, v in value.items() if v is not None}
  return [_without_nulls(v) for v in value] if isinstance(value, list) else value


def parse_row(contents: Any, number: int, where: str, defaults: Mapping[str, Any], speech: bool) -> Row:
  """A Row from a line or an object. Raises RowError ('json' or 'request'). defaults: settings of the job.

  A row without a custom_id is called `where`, the name of its place in the input.
  """
  data = contents
  if isinstance(data, (bytes, str)):
    try:
      data = json.loads(data)
    except (ValueError, RecursionError) as e:
      raise RowError('json', f'not valid JSON ({str(e)[:200]})') from e
  data = {'messages': data} if isinstance(data, list) else data
  if not isinstance(data, dict):
    raise RowError('request', f'expected an object or a list of messages, found {type(data).__name__}')
  name = data.get('custom_id', data.get('id', where))
  if not isinstance(name, str) or not name:
    raise RowError('request', f'custom_id: expected a string, found {str(name)[:40]!r}')
  body = data.get('body', {k: v for k, v in data.items() if k not in _AROUND})
  if isinstance(body, str):  # as Parquet files often keep it
    body = _json_inside(body, 'body')
  if not isinstance(body, dict):
    raise RowError('request', f'body: expected an object, found {type(body).__name__}')
  around = sorted(set(data) - _AROUND) if 'body' in data else []
  unknown = [str(k)[:40] for k in [*around, *sorted(set(body) - _KNOWN)]]
  if unknown:
    raise RowError('request', f'unknown keys {", ".join(unknown)}; known: {", ".join(sorted(_KNOWN))}')
  if 'messages' not in body:
    raise RowError('request', 'no messages')
  messages = _json_inside(body['messages'], 'messages') if isinstance(body['messages'], str) else body['messages']
  limits = [body[k] for k in _LIMITS if body.get(k) is not None]
  if len(limits) > 1:
    raise RowError('request', f'give one of {", ".join(_LIMITS)}')
  settings = {k: defaults.get(k) for k in (*_SETTINGS, 'max_new_tokens')} | {k: body[k] for k in _SETTINGS if k in body}
  if limits:
    settings['max_new_tokens'] = limits[0]
  audio = body.get('audio') or {}
  if isinstance(audio, dict) and audio.get('voice'):
    settings['speaker'] = audio['voice']
  if settings['speaker'] is not None and not isinstance(settings['speaker'], str):
    raise RowError('request', f'speaker: expected a name, found {str(settings["speaker"])[:40]!r}')
  prompt = {k: defaults[k] for k in _PROMPT if defaults.get(k) is not None} | {k: body[k] for k in _PROMPT if k in body}
  _check_prompt(prompt)
  return Row(id=name, messages=messages, speech=_speaks(body, speech), prompt=prompt, **settings)


def _check_prompt(prompt: dict[str, Any]) -> None:
  fps, tools = prompt.get('fps'), prompt.get('tools')
  if fps is not None and (isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps <= 1000):
    raise RowError('request', f'fps: expected a number above 0, found {str(fps)[:40]!r}')
  try:
    check_media(prompt.get('media') or MEDIA[0])
  except ValueError as e:
    raise RowError('request', str(e)) from e
  if tools is not None and not isinstance(tools, list):
    raise RowError('request', f'tools: expected a list, found {type(tools).__name__}')
  for key in ('audio_in_video', 'enable_thinking'):
    if prompt.get(key) is not None and not isinstance(prompt[key], bool):
      raise RowError('request', f'{key}: expected true or false, found {str(prompt[key])[:40]!r}')


def _speaks(body: dict[str, Any], default: bool) -> bool:
  """Whether a row is to be spoken: its own word, its modalities, or the job's."""
  own, modalities = body.get('speech'), body.get('modalities')
  if own is not None and not isinstance(own, bool):
    raise RowError('request', f'speech: expected true or false, found {str(own)[:40]!r}')
  if modalities is not None and (not isinstance(modalities, list) or not set(map(str, modalities)) <= {'text', 'audio'}):
    raise RowError('request', f'modalities: expected some of text and audio, found {str(modalities)[:40]!r}')
  if own is not None:
    return own
  return default if modalities is None else 'audio' in modalities


def _json_inside(text: str, what: str) -> Any:
  try:
    return json.loads(text)
  except (ValueError, RecursionError) as e:
    raise RowError('json', f'{what}: not valid JSON ({str(e)[:200]})') from e
