"""An unfinished conversion: `TARGET.partial`, which holds the work and a journal of the tensors that are finished.

    TARGET.partial/journal   a line for what is being converted, then one for every finished tensor
    TARGET.partial/data/     becomes TARGET, in one rename, when everything in it is on disk

The order that makes it safe to be killed, or to lose power, at any moment: data is on disk (fsync) before the journal
says so, and the journal's first line is written when `data` is ready to be filled. So what the journal says is true, a
line that was cut does not count, and a journal without a first line means that nothing has begun.
"""

import json
import os
import pathlib
import shutil
import sys
import threading
from collections.abc import Iterable
from typing import Any

JOURNAL = 'journal'
DATA = 'data'
_FORMAT = 'qwen3_omni_jax conversion 1'
Identity = dict[str, Any]  # JSON values only: what is converted, from which files, with which options


class NoSpace(ValueError):
  """The disk is too full: says nothing against what is finished."""


class Work:
  """The place where a target is made. With another run's work for the same identity, it goes on from there.

  finished: {tensor: what was said of it}. begun: whether `data` has been set up (otherwise it is there, and empty).
  complete: the target was made by an earlier run that was killed while cleaning up; nothing is left to do.
  Raises ValueError if the target is not empty, `TARGET.partial` is something else, or another process works there.
  Use it as a context: a ValueError (the source is bad) removes the work; anything else (Ctrl-C, a full disk) leaves it.
  """

  def __init__(self, target: pathlib.Path, identity: Identity):
    self.target, self.folder, taken = _places(target, identity)
    self.data = self.folder / DATA
    self._identity = identity
    self._lock = threading.Lock()
    self.folder.mkdir(parents=True, exist_ok=True)
    self._file = (self.folder / JOURNAL).open('a+b')
    try:
      _lock(self._file)
    except BlockingIOError as error:
      self._file.close()
      raise ValueError(f'{self.folder}: another conversion is at work there') from error
    found, self.finished, end = read_journal(self.folder)
    self.complete = taken
    self.begun = taken or (found == identity and self.data.is_dir())
    if self.begun:
      self._file.truncate(end)  # cuts off half a line
      return
    if found is not None:
      print(f'{self.folder}: of {_difference(found, identity)}; begun anew', file=sys.stderr)
    self.finished = {}
    self._file.truncate(0)  # before the data goes, so that a journal never speaks of what is not there
    if self.data.exists():
      shutil.rmtree(self.data)
    self.data.mkdir()

  def begin(self) -> None:
    """Says that `data` is set up, once it is so on disk."""
    _sync(self.data)
    for folder in (self.folder, self.folder.parent):
      _sync_entries(folder)
    self._append([{'format': _FORMAT, **self._identity}])
    self.begun = True

  def add(self, finished: Iterable[tuple[str, Any]]) -> None:
    """Says that these tensors are on disk. From any thread."""
    entries = list(finished)
    with self._lock:
      self._append(entries)
      self.finished.update(entries)

  def finish(self) -> None:
    """Gives the work its name."""
    if not self.complete:
      _sync(self.data)
      self.target.parent.mkdir(parents=True, exist_ok=True)
      os.rename(self.data, self.target)  # replaces an empty folder
      _sync_entries(self.target.parent)
    shutil.rmtree(self.folder)

  def require_space(self, size: int) -> None:
    """Raises NoSpace if the disk does not have that many bytes."""
    _require_space(self.target, self.folder, size)

  def _append(self, lines: Iterable[Any]) -> None:
    self._file.write(b''.join(json.dumps(line, separators=(',', ':')).encode() + b'\n' for line in lines))
    self._file.flush()
    os.fsync(self._file.fileno())

  def __enter__(self) -> 'Work':
    return self

  def __exit__(self, kind, error, trace) -> None:
    self._file.close()
    useful = isinstance(error, NoSpace) and self.finished
    if isinstance(error, ValueError) and not useful and self.folder.exists():
      shutil.rmtree(self.folder)


def plan(target: pathlib.Path, identity: Identity, sizes: dict[str, int], shares: dict[str, int]) -> list[str]:
  """What `Work` would do, in words, without doing it. Raises ValueError where it would.

  sizes: bytes of each tensor. shares: bytes by part, to be shown.
  """
  target, folder, _ = _places(target, identity)
  found, finished, _ = read_journal(folder)
  left = {name: size for name, size in sizes.items() if not (found == identity and name in finished)}
  free = _require_space(target, folder, needed(left.values()))
  lines = [f'{target}: {len(sizes)} tensors, {sum(sizes.values()) / 1e9:.2f} GB']
  lines += [f'  {part}: {size / 1e9:.2f} GB' for part, size in shares.items()]
  if len(left) < len(sizes):
    lines.append(f'goes on in {folder}: {len(sizes) - len(left)} tensors are finished')
  lines.append(f'{needed(left.values()) / 1e9:.2f} GB to be written; the disk has {free / 1e9:.2f} GB free')
  return lines


def needed(sizes: Iterable[int]) -> int:
  """Bytes of disk for tensors of these sizes: 2 % more, for what is not values."""
  return round(1.02 * sum(sizes))


def _places(target: pathlib.Path, identity: Identity) -> tuple[pathlib.Path, pathlib.Path, bool]:
  """The target, its TARGET.partial, and whether it is there, made by a run for this identity that could not clean up."""
  shown, target = target, target.resolve()  # of a link to an empty folder, the work belongs on that folder's disk
  folder = target.with_name(target.name + '.partial')
  made = folder.exists()
  if made and not _is_ours(folder):
    raise ValueError(f'{folder}: in the way, and not an unfinished conversion; move it or give another target')
  taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
  if taken and not (made and not (folder / DATA).exists() and read_journal(folder)[0] == identity):
    raise ValueError(f'{shown}: not empty; give a new folder')
  return target, folder, taken


def _require_space(target: pathlib.Path, folder: pathlib.Path, size: int) -> int:
  """Free bytes, at least that many."""
  while not folder.exists():
    folder = folder.parent
  free = shutil.disk_usage(folder).free
  if free < size:
    raise NoSpace(f'{target}: takes {size / 1e9:.1f} GB more, the disk has {free / 1e9:.1f} GB free')
  return free


def read_journal(folder: pathlib.Path) -> tuple[Identity | None, dict[str, Any], int]:
  """(what is converted there, {finished tensor: what was said of it}, bytes of whole lines) of a TARGET.partial.

  None if nothing has begun.
  """
  try:
    data = (folder / JOURNAL).read_bytes()
  except FileNotFoundError:
    return None, {}, 0
  identity, finished, end = None, {}, 0
  for line in data.splitlines(keepends=True):
    try:
      value = json.loads(line)
    except ValueError:
      break
    if not line.endswith(b'\n'):
      break
    if identity is None:
      if not isinstance(value, dict) or value.pop('format', None) != _FORMAT:
        break
      identity = value
    else:
      finished[value[0]] = value[1]
    end += len(line)
  return identity, finished, end


def is_unfinished(folder: pathlib.Path) -> bool:
  """Whether this is the TARGET.partial of a conversion, or the data in it."""
  return (folder / JOURNAL).is_file() or (folder.name == DATA and (folder.parent / JOURNAL).is_file())


def refuse_unfinished(folder: pathlib.Path) -> None:
  if is_unfinished(folder):
    raise ValueError(f'{folder}: the conversion did not finish; run it again and it will go on')


def files_of(folder: pathlib.Path) -> dict[str, list[int]]:
  """{file: [size, time of change]} of a source: enough to notice that it is another one. Hidden folders are left out."""
  found: dict[str, list[int]] = {}
  if '://' in str(folder):  # a checkpoint of training, which does not change
    return {str(folder): []}
  for root, folders, files in os.walk(folder):
    folders[:] = sorted(name for name in folders if not name.startswith('.'))
    for name in sorted(files):
      path = pathlib.Path(root, name)
      if path.is_file():
        found[str(path.relative_to(folder))] = [path.stat().st_size, path.stat().st_mtime_ns]
  return found


def _sync(folder: pathlib.Path) -> None:
  """Returns when every file below is on disk: the large ones have been since they were written, and cost nothing."""
  for root, _, files in os.walk(folder):
    for name in files:
      with open(os.path.join(root, name), 'rb') as file:
        os.fsync(file.fileno())
    _sync_entries(pathlib.Path(root))


def _sync_entries(folder: pathlib.Path) -> None:
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _is_ours(partial: pathlib.Path) -> bool:
  """Whether this is what an earlier conversion left behind, and may be removed."""
  if not partial.is_dir():
    return False
  names = {path.name for path in partial.iterdir()}
  if JOURNAL not in names or not (partial / JOURNAL).is_file():
    return not names
  start = f'{{"format":"{_FORMAT}"'.encode()
  found = (partial / JOURNAL).read_bytes()[: len(start)]
  return names <= {JOURNAL, DATA} and found == start[: len(found)]


def _difference(found: Identity, wanted: Identity) -> str:
  changed = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
  return 'another conversion (' + ', '.join(changed) + ' differ)'


def _lock(file) -> None:
  """Raises BlockingIOError if another process holds it. The lock goes with the process, however that ends."""
  import fcntl  # not on every system that loads weights

  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    raise
  except OSError:
    pass  # some network file systems have no locks; one process at a time is then up to the user
