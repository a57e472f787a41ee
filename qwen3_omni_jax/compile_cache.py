"""Compiled programs, kept on disk for the next run: where, how many, and for which machine.

Which folder: what a command's `--compile-cache` says, else QWEN3_OMNI_COMPILE_CACHE, else jax's own setting
(JAX_COMPILATION_CACHE_DIR), else the user's cache folder. 'off' keeps nothing.
"""

import argparse
import hashlib
import os
import pathlib
import platform
import time

VARIABLE = 'QWEN3_OMNI_COMPILE_CACHE'
LIMIT_BYTES = 4 * 2**30  # of all programs of one kind of machine; those not used for longest go first
KEPT_DAYS = 30  # without being used. jax reads all times of use when it writes, so many small old files would cost time


def add_argument(parser: argparse._ActionsContainer) -> None:
  parser.add_argument(
    '--compile-cache',
    metavar='DIR',
    help=f"folder of compiled programs, for a faster next start; 'off': keep none (default: {VARIABLE}, else the user's cache)",
  )


def keep_programs(choice: str | None = None, processes: int = 1) -> str:
  """Sets jax's compilation cache by the rule above, and returns in words where programs are kept; '' if nowhere.

  choice: a folder, a URL as in gs://bucket/programs, or 'off'. Several processes that are one program keep none unless a folder
  is named, since each must find what the first has written. A folder has a part for each kind of processor: XLA compiles for one.
  Raises ValueError for a named folder that cannot be written.
  """
  import jax

  choice = choice or os.environ.get(VARIABLE)
  if choice == 'off':
    jax.config.update('jax_enable_compilation_cache', False)
    return ''
  if not choice:
    if not jax.config.values['jax_enable_compilation_cache']:
      return ''
    if folder := jax.config.values['jax_compilation_cache_dir']:
      return _kept_in(folder)
    if processes > 1:
      return ''
  if choice and '://' in choice:
    folder = f'{choice.rstrip("/")}/{machine()}'
  else:
    base = pathlib.Path(choice).expanduser().absolute() if choice else default_folder()
    try:
      folder = str(_prepared(base / machine(), shared=bool(choice)))
    except OSError as e:
      problem = f'{base}: {e.strerror or e}'
      if choice:
        raise ValueError(f'compiled programs cannot be kept in {problem}; name another folder, or off') from e
      return f'compiled programs are not kept ({problem})'
    if 'JAX_COMPILATION_CACHE_MAX_SIZE' not in os.environ:
      jax.config.update('jax_compilation_cache_max_size', LIMIT_BYTES)
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)  # dozens of small programs are a second of a start
  jax.config.update('jax_compilation_cache_dir', folder)
  return _kept_in(folder)


def default_folder() -> pathlib.Path:
  """Below the user's cache folder."""
  base = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
  return pathlib.Path(base) / 'qwen3_omni_jax' / 'programs'


def machine() -> str:
  """A name for this kind of processor: programs compiled for one need not run on another, nor give the same bits."""
  fields = ('vendor_id', 'cpu family', 'model', 'flags', 'CPU implementer', 'CPU architecture', 'CPU part', 'Features')
  facts = [platform.machine(), platform.processor()]
  try:
    with open('/proc/cpuinfo', encoding='utf-8') as file:
      for line in file:
        if not line.strip():  # the first processor's facts end here; the others are like it
          break
        name, _, value = line.partition(':')
        if name.strip() in fields:
          facts.append(f'{name.strip()}: {" ".join(sorted(value.split()))}')
  except OSError:  # not Linux
    pass
  return f'{platform.machine()}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:8]}'


def _prepared(folder: pathlib.Path, shared: bool) -> pathlib.Path:
  """The folder, made, writable, and without half-written entries. OSError if it is not ours alone: programs in it are run."""
  folder.mkdir(mode=0o777 if shared else 0o700, parents=True, exist_ok=True)
  found = folder.stat()
  if not shared and hasattr(os, 'geteuid') and (found.st_uid != os.geteuid() or found.st_mode & 0o022):
    raise OSError('others may write there, and what is in it is run as a program')
  if not os.access(folder, os.W_OK | os.X_OK):
    raise OSError('cannot be written')
  _tidy(folder)
  return folder


def _tidy(folder: pathlib.Path) -> None:
  """Removes programs not used for long, and those whose writer was killed: jax notes the time of use last, and needs it."""
  import filelock

  oldest = time.time() - KEPT_DAYS * 86_400
  try:
    with filelock.FileLock(folder / '.lockfile', timeout=2):  # jax's own lock
      used = {entry.name: entry.stat().st_mtime for entry in os.scandir(folder) if entry.name.endswith('-atime')}
      for program in folder.glob('*-cache'):
        noted = f'{program.name.removesuffix("-cache")}-atime'
        if used.get(noted, 0.0) < oldest:
          program.unlink(missing_ok=True)
          (folder / noted).unlink(missing_ok=True)
  except filelock.Timeout:
    pass  # others are at work there; the next start tidies


def _kept_in(folder: str) -> str:
  home = os.path.expanduser('~')
  return f'compiled programs: {"~" + folder[len(home) :] if folder.startswith(home + os.sep) else folder}'
