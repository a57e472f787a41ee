"""Indices of large files, saved and used again while the files are the same."""

import io
import logging
import os
import pathlib
import socket
import zipfile
from collections.abc import Callable

import numpy as np
import xxhash
from etils import epath

log = logging.getLogger(__name__)

_VERSION = 1
Arrays = dict[str, np.ndarray]


def saved_index(path: pathlib.Path, folder: epath.Path | None, build: Callable[[], Arrays]) -> Arrays:
  """The arrays that `build` makes of a file: from `folder` if it has them for this path, size and time of change, else built, and
  put there. None: built. A folder that cannot be written to, or a damaged index, costs time alone."""
  if folder is None:
    return build()
  status = path.stat()
  stamp = np.array([_VERSION, status.st_size, status.st_mtime_ns], np.int64)
  file = folder / f'{path.name[:60]}-{xxhash.xxh3_64_hexdigest(str(path.absolute()).encode())}.npz'
  if (arrays := _read(file, stamp)) is not None:
    return arrays
  arrays = build()
  try:
    _write(file, arrays | {'stamp': stamp})
  except OSError as error:
    log.warning('%s: the index of %s is not saved (%s)', file, path, error)
  return arrays


def _read(file: epath.Path, stamp: np.ndarray) -> Arrays | None:
  try:
    with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as found:
      arrays = {name: found[name] for name in found.files}
  except FileNotFoundError:
    return None
  except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
    log.warning('%s: not readable (%s); built anew', file, error)
    return None
  return arrays if np.array_equal(arrays.pop('stamp', None), stamp) else None


def _write(file: epath.Path, arrays: Arrays) -> None:
  file.parent.mkdir(parents=True, exist_ok=True)
  out = io.BytesIO()
  np.savez(out, allow_pickle=False, **arrays)
  if '://' in str(file):  # an object appears whole
    file.write_bytes(out.getvalue())
    return
  part = file.parent / f'{file.name}.{socket.gethostname()}-{os.getpid()}.part'
  part.write_bytes(out.getvalue())
  part.replace(file)  # processes may write the same one at the same time
