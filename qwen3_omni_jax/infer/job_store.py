"""Output of a batch job: blocks of rows. One process at a time works on a block, and each is finished exactly once.

    OUT/manifest.json            settings of the job, written before its first row
    OUT/index.npz                offsets of the input's rows
    OUT/rows/part-00012.open     an unfinished block: a line for each finished row, in any order
    OUT/rows/part-00012.jsonl    a finished block: all its rows, in order
    OUT/audio/part-00012/…       its sound (or part-00012.tar)
    OUT/timings/part-00012.jsonl when its rows were finished, by which process

A block is claimed by a lock on one byte of OUT/claims, which the system releases when the process dies. The audio of a row is
in place before its line is written, and a line counts only with its line break; so a kill loses at most the rows in flight, and
no row is written twice.
"""

import fcntl
import io
import json
import os
import pathlib
import shutil
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np


class Store:
  """The blocks of a job, seen from one process."""

  def __init__(self, out: pathlib.Path, total: int, block_rows: int, tar: bool = False):
    self.out, self.total, self.block_rows, self.tar = out, total, block_rows, tar
    self.blocks = -(-total // block_rows)
    for folder in ('rows', 'timings'):
      (out / folder).mkdir(parents=True, exist_ok=True)
    self._claims = os.open(out / 'claims', os.O_RDWR | os.O_CREAT, 0o644)
    self._files: dict[int, int] = {}
    self._left: dict[int, int] = {}

  def close(self) -> None:
    """Gives up every claim."""
    for file in self._files.values():
      os.close(file)
    self._files.clear()
    os.close(self._claims)

  def rows_of(self, block: int) -> range:
    return range(block * self.block_rows, min(self.total, (block + 1) * self.block_rows))

  def path(self, block: int, ending: str = 'jsonl', folder: str = 'rows') -> pathlib.Path:
    return self.out / folder / f'part-{block:05d}.{ending}'

  def complete(self, block: int) -> bool:
    return self.path(block).exists()

  # ---- claims

  def lock(self, byte: int, wait: bool = False) -> bool:
    try:
      fcntl.lockf(self._claims, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, byte)
    except (BlockingIOError, PermissionError):
      return False
    return True

  def unlock(self, byte: int) -> None:
    fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, byte)

  def claim(self, block: int, retry_failed: bool = False) -> set[int] | None:
    """Rows of the block that are finished already; None if it is complete or another process has it."""
    if (self.complete(block) and not retry_failed) or not self.lock(block + 1):
      return None
    if self.complete(block) and not (retry_failed and self._reopen(block)):
      self.unlock(block + 1)
      return None
    path = self.path(block, 'open')
    done = {row['row'] for row in self._lines(path, mend=True)}
    _mend(self.path(block, 'jsonl', 'timings'))
    self._files[block] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    self._left[block] = len(self.rows_of(block)) - len(done)
    if not self._left[block]:
      self._finish(block)
    return done

  def _reopen(self, block: int) -> bool:
    """A finished block in work again without its error rows; False if it has none."""
    rows = list(self._lines(self.path(block)))
    good = [row for row in rows if 'error' not in row]
    if len(good) == len(rows):
      return False
    archive = self.path(block, 'tar', 'audio')
    if self.tar and archive.exists():
      with tarfile.open(archive) as tar:
        tar.extractall(self.audio_folder(block), filter='data')
    self._replace(self.path(block, 'open'), good)
    self.path(block).unlink()
    return True

  # ---- rows

  def append(self, row: int, line: dict[str, Any], timing: dict[str, Any]) -> None:
    """A finished row; with the last one of its block, the block."""
    block = row // self.block_rows
    with self.path(block, 'jsonl', 'timings').open('a', encoding='utf-8') as file:
      file.write(json.dumps({'row': row, **timing}) + '\n')
    os.write(self._files[block], _dump(line))
    self._left[block] -= 1
    if not self._left[block]:
      self._finish(block)

  def _finish(self, block: int) -> None:
    """In order, once and for all."""
    rows = sorted(self._lines(self.path(block, 'open')), key=lambda row: row['row'])
    assert [row['row'] for row in rows] == list(self.rows_of(block)), f'block {block}: rows are missing or doubled'
    if self.tar:
      self._pack(block)
    self._replace(self.path(block), rows)
    os.close(self._files.pop(block))
    self.path(block, 'open').unlink()
    if self.tar:
      shutil.rmtree(self.audio_folder(block), ignore_errors=True)
    self.unlock(block + 1)

  def _replace(self, path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    partial = path.with_name(path.name + '.partial')
    with partial.open('wb') as file:
      file.writelines(map(_dump, rows))
      file.flush()
      os.fsync(file.fileno())
    partial.rename(path)

  def _lines(self, path: pathlib.Path, mend: bool = False) -> Iterator[dict[str, Any]]:
    """Rows of a file; what follows its last line break was cut by a kill and does not count (mend: is removed)."""
    if mend:
      _mend(path)
    if path.exists():
      data = path.read_bytes()
      yield from map(json.loads, data[: data.rfind(b'\n') + 1].split(b'\n')[:-1])

  # ---- sound

  def audio_folder(self, block: int) -> pathlib.Path:
    return self.out / 'audio' / f'part-{block:05d}'

  def put_audio(self, row: int, samples: np.ndarray, rate_hz: int, form: str) -> dict[str, str]:
    """16-bit sound of a row, complete when this returns; where it is found, for the row's line."""
    import soundfile

    block, name = row // self.block_rows, f'{row:08d}.{form}'
    folder = self.audio_folder(block)
    folder.mkdir(parents=True, exist_ok=True)
    data = io.BytesIO()
    soundfile.write(data, samples, rate_hz, 'PCM_16', format=form.upper())
    partial = folder / f'{name}.partial'
    partial.write_bytes(data.getvalue())
    partial.rename(folder / name)
    if self.tar:
      return {'path': f'audio/part-{block:05d}.tar', 'member': name}
    return {'path': f'audio/part-{block:05d}/{name}'}

  def read_audio(self, found: dict[str, str]) -> bytes:
    """The file that `put_audio` told of."""
    if 'member' not in found:
      return (self.out / found['path']).read_bytes()
    with tarfile.open(self.out / found['path']) as tar:
      file = tar.extractfile(found['member'])
      assert file is not None
      return file.read()

  def _pack(self, block: int) -> None:
    """The sound of a block as one archive whose bytes depend on nothing but its files."""
    folder, archive = self.audio_folder(block), self.path(block, 'tar', 'audio')
    if not folder.exists():
      return
    partial = archive.with_name(archive.name + '.partial')
    with tarfile.open(partial, 'w') as tar:
      for file in sorted(p for p in folder.iterdir() if p.suffix != '.partial'):
        entry = tarfile.TarInfo(file.name)
        entry.size = file.stat().st_size
        with file.open('rb') as contents:
          tar.addfile(entry, contents)
    partial.rename(archive)

  # ---- the whole

  def results(self) -> Iterator[dict[str, Any]]:
    """Rows of all complete blocks, in order."""
    for block in range(self.blocks):
      yield from self._lines(self.path(block))

  def timings(self) -> dict[int, dict[str, Any]]:
    """The last word on every row."""
    found: dict[int, dict[str, Any]] = {}
    for block in range(self.blocks):
      for timing in self._lines(self.path(block, 'jsonl', 'timings')):
        found[timing['row']] = timing
    return found

  def incomplete(self) -> list[int]:
    return [block for block in range(self.blocks) if not self.complete(block)]

  def tidy(self) -> None:
    """Removes what a kill between finishing a block and cleaning up after it has left."""
    for block in range(self.blocks):
      if self.complete(block):
        self.path(block, 'open').unlink(missing_ok=True)
        if self.tar:
          shutil.rmtree(self.audio_folder(block), ignore_errors=True)
        elif self.audio_folder(block).exists():
          for file in self.audio_folder(block).glob('*.partial'):
            file.unlink()


def _mend(path: pathlib.Path) -> None:
  """Takes away what follows the last line break."""
  if path.exists():
    data = path.read_bytes()
    if (whole := data.rfind(b'\n') + 1) < len(data):
      os.truncate(path, whole)


def _dump(row: dict[str, Any]) -> bytes:
  return json.dumps(row, ensure_ascii=False).encode('utf-8', 'backslashreplace') + b'\n'
