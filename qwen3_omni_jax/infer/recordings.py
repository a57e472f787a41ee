"""The recordings that a job of `codes` is about: sound files, or what the records of training say aloud."""

import glob
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

_RECORDS = ('.jsonl', '.ndjson')
_SOUNDS = ('audio', 'audio_url', 'input_audio')  # keys of a part of a message that is a sound, as training reads them


def find_recordings(patterns: Sequence[str], media_root: str | pathlib.Path | None = None) -> dict[str, pathlib.Path]:
  """{key: file} of every recording that paths and glob patterns name, each once, in their order.

  A JSON-lines file is read as records: an assistant's turn with `audio` (as a key of the turn, or a part of its content), or a
  record of `text` and `audio`; its key is the path as the record has it, looked for in media_root (default: the folder of the
  records). Any other file is a recording, whose key is its path as given, or from media_root on. What has `codes` already is left
  out. Whether a file is sound is found out later. Raises ValueError for records that cannot be read.
  """
  found: dict[str, pathlib.Path] = {}

  def add(key: str, file: pathlib.Path, where: str) -> None:
    if (before := found.setdefault(key, file)).absolute() != file.absolute():
      raise ValueError(f'{where}: {key} is {file} here and {before} before: give --media-root, or make the paths differ')

  for pattern in patterns:
    files = sorted(map(pathlib.Path, glob.glob(pattern, recursive=True))) or [pathlib.Path(pattern)]
    for file in files:
      if file.suffix in _RECORDS:
        for where, key in _of_records(file):
          add(key, pathlib.Path(media_root or file.parent) / key, where)
      elif file.is_dir():
        raise ValueError(f"{file}: a folder; name its files, as in '{file}/*.wav'")
      else:
        add(_key(file, media_root), file, str(file))
  if not found:
    raise ValueError(f'{", ".join(patterns)}: no recordings; expected sound files, or records in which an assistant has audio')
  return found


def _key(file: pathlib.Path, media_root: str | pathlib.Path | None) -> str:
  if media_root is None:
    return str(file)
  if not file.absolute().is_relative_to(root := pathlib.Path(media_root).absolute()):
    raise ValueError(f'{file}: not in {media_root}, from which its key would be told')
  return str(file.absolute().relative_to(root))


def _of_records(file: pathlib.Path) -> Iterator[tuple[str, str]]:
  """(where it stands, key) of each recording."""
  if not file.is_file():
    raise ValueError(f'{file}: no such file')
  with file.open('rb') as lines:
    for number, line in enumerate(lines, 1):
      where = f'{file}:{number}'
      if not line.strip():
        continue
      try:
        record = json.loads(line)
      except (ValueError, RecursionError) as error:
        raise ValueError(f'{where}: not valid JSON ({str(error)[:100]})') from error
      for audio in spoken(record):
        path = audio.get('path') or audio.get('url') if isinstance(audio, dict) else audio
        if not isinstance(path, str) or not path or path.startswith('data:'):
          raise ValueError(f'{where}: audio of an assistant is {type(audio).__name__}; expected the path of a file')
        yield where, path


def spoken(record: Any) -> Iterator[Any]:
  """What a record has as the model's own voice, and no codes of."""
  if not isinstance(record, dict):
    return
  if 'messages' not in record and 'text' in record:
    turns = [record]
  else:
    messages = record.get('messages')
    turns = [m for m in messages if isinstance(m, dict) and m.get('role') == 'assistant'] if isinstance(messages, list) else []
  for turn in turns:
    if turn.get('codes') is not None:
      continue
    if turn.get('audio') is not None:
      yield turn['audio']
    content = turn.get('content')
    for part in content if isinstance(content, list) else ():
      if isinstance(part, dict):
        yield from [part[key] for key in _SOUNDS if part.get(key) is not None][:1]
