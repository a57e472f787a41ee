"""WebDataset: tar files whose members share a name up to the first dot."""

import array
import pathlib
import tarfile
from typing import Any

import numpy as np
from etils import epath

from .saved_index import Arrays, saved_index
from .shard import Shard

MAX_MEMBERS = 20_000_000  # of one tar file: some 0.5 GB of index, and several times that while it is built

Where = tuple[str, tuple[tuple[str, int, int], ...]]  # key, (rest of the name, begin, size) of each member


class WebDataset(Shard):
  """key.json is the record, beside its media.

  A medium of the record that names a member (`0.wav` of key.0.wav, or the whole name) is that member; media the record does
  not list at all are its members of that kind, in order of their names. What names the recording of an answer stays: its codes
  are elsewhere.

  The index takes some 10 to 20 bytes a member, and the keys.
  """

  KINDS = {
    'images': ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.gif'),
    'audios': ('.wav', '.flac', '.mp3', '.ogg', '.opus', '.m4a'),
    'videos': ('.mp4', '.webm', '.mkv', '.mov', '.avi'),
  }

  def __init__(self, path: pathlib.Path, indices: epath.Path | None = None):
    super().__init__(path)
    self.index = saved_index(path, indices, lambda: _index(path))

  def __len__(self) -> int:
    return len(self.index['first']) - 1

  def locate(self, index: int) -> Where:
    table = self.index
    members = []
    for i in range(int(table['first'][index]), int(table['first'][index + 1])):
      rest = _text(table['rests'], table['rest_ends'], int(table['rest'][i]))
      members.append((rest, int(table['block'][i]) * tarfile.BLOCKSIZE, int(table['size'][i])))
    return self._key(index), tuple(sorted(members))

  def read(self, where: Where, name: str) -> dict[str, Any]:
    key, members = where
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

    holders, answers = (record, *_messages(record)), {named.get(name) for name in _answers(record)}
    for field, ends in self.KINDS.items():
      if field in record:
        record[field] = resolve(record[field])
      elif not any(map(_parts, holders)):
        found = [rest for rest in spans if f'.{rest}'.lower().endswith(ends) and rest not in answers]
        if found:
          record[field] = [read(rest) for rest in sorted(found)]
    for holder in holders:
      kinds = ('image', 'video') if _is_answer(holder) else ('image', 'audio', 'video')
      for part in _parts(holder):
        part |= {kind: resolve(part[kind]) for kind in kinds if kind in part}
    return record

  def name(self, index: int) -> str:
    return f'{self.path.name}:{self._key(index)}'

  def _key(self, index: int) -> str:
    return _text(self.index['keys'], self.index['key_ends'], index)


def _index(path: pathlib.Path) -> Arrays:
  """Of the members, grouped by key: block (where the contents begin, in tar blocks), size, rest (which rest of the name). first:
  the first member of each key. keys, rests: UTF-8 in a row, and where each ends."""
  keys: dict[str, int] = {}
  rests: dict[str, int] = {}
  key, rest, block, size = (array.array('q') for _ in range(4))
  try:
    with tarfile.open(path, 'r:') as tar:
      while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
        if not member.isreg() or member.issparse():
          continue
        if len(key) >= MAX_MEMBERS:
          raise ValueError(f'{path}: more than {MAX_MEMBERS} members; cut it into several files')
        folder, _, base = member.name.rpartition('/')
        stem, _, end = base.partition('.')
        key.append(keys.setdefault(f'{folder}/{stem}' if folder else stem, len(keys)))
        rest.append(rests.setdefault(end, len(rests)))
        block.append(member.offset_data // tarfile.BLOCKSIZE)
        size.append(member.size)
  except (tarfile.TarError, OSError) as e:
    raise ValueError(f'{path}: not an uncompressed tar file ({str(e)[:200]})') from e
  number = np.frombuffer(key, np.int64) if len(key) else np.zeros(0, np.int64)
  order = np.argsort(number, kind='stable')
  column = lambda values: _small(np.array(values, np.int64)[order])
  first = np.concatenate([[0], np.cumsum(np.bincount(number, minlength=len(keys)))])
  return {
    **{'first': _small(first), 'block': column(block), 'size': column(size), 'rest': column(rest)},
    **dict(zip(('keys', 'key_ends'), _texts(keys), strict=True)),
    **dict(zip(('rests', 'rest_ends'), _texts(rests), strict=True)),
  }


def _small(values: np.ndarray) -> np.ndarray:
  """In the smallest unsigned type that holds them all."""
  return values.astype(np.min_scalar_type(int(values.max(initial=0))))


def _texts(texts) -> tuple[np.ndarray, np.ndarray]:
  encoded = [text.encode('utf-8', 'surrogateescape') for text in texts]
  ends = np.cumsum(np.array([0, *map(len, encoded)], np.int64))
  return np.frombuffer(b''.join(encoded), np.uint8), _small(ends)


def _text(texts: np.ndarray, ends: np.ndarray, index: int) -> str:
  return texts[int(ends[index]) : int(ends[index + 1])].tobytes().decode('utf-8', 'surrogateescape')


def _messages(record: dict[str, Any]) -> list[dict[str, Any]]:
  messages = record.get('messages')
  return [m for m in messages if isinstance(m, dict)] if isinstance(messages, list) else []


def _is_answer(message: dict[str, Any]) -> bool:
  return message.get('role') == 'assistant'


def _answers(record: dict[str, Any]) -> set[str]:
  """Names of the recordings of answers, and of a text read aloud."""
  answers = [m for m in _messages(record) if _is_answer(m)]
  parts = [part for m in answers for part in _parts(m)]
  return {x['audio'] for x in (record, *answers, *parts) if isinstance(x.get('audio'), str)}


def _parts(holder: dict[str, Any]) -> list[dict[str, Any]]:
  """The parts of the content of a message or of a document."""
  content = holder.get('content')
  return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
