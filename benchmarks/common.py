"""Shared by all benchmarks: the small checkpoint, timing of both sides in turns, and results with their circumstances."""

import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # for tests.reference

import numpy as np  # noqa: E402  (jax must see the platform first)


def small_checkpoint(folder: str | pathlib.Path, preset: str = 'small') -> pathlib.Path:
  """A random checkpoint, made once."""
  from qwen3_omni_jax.tools.tiny import make_checkpoint

  folder = pathlib.Path(folder)
  if not (folder / 'config.json').is_file():
    make_checkpoint(folder, preset)
  return folder


def side_by_side(ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> tuple[float, float]:
  """Median seconds of both, measured in turns so that other load hits both alike; one run of each beforehand.

  A function that returns a function is preparation only: what it returns is what is timed.
  """
  seconds: tuple[list[float], list[float]] = ([], [])
  for _ in range(repeats + 1):
    for side, run in zip(seconds, (ours, theirs), strict=True):
      started = time.perf_counter()
      rest = run()
      if callable(rest):
        started = time.perf_counter()
        rest()
      side.append(time.perf_counter() - started)
  return float(np.median(seconds[0][1:])), float(np.median(seconds[1][1:]))


def read_bandwidth() -> float:
  """Bytes per second read from memory by a sum over 400 MB, all threads, best of five."""
  import jax
  import jax.numpy as jnp

  x = jnp.ones(100_000_000, jnp.float32)
  total = jax.jit(jnp.sum)
  total(x).block_until_ready()
  best = min(_timed(lambda: total(x).block_until_ready()) for _ in range(5))
  return x.nbytes / best


def _timed(run: Callable[[], object]) -> float:
  started = time.perf_counter()
  run()
  return time.perf_counter() - started


class Clock:
  """Seconds since it was made, and what share of the processors other processes had meanwhile: a comparison made on a busy
  machine says so."""

  def __init__(self):
    self._started, self._busy, self._own = time.perf_counter(), _busy_s(), time.process_time()

  def read(self, helpers_s: float = 0.0) -> dict[str, float]:
    """helpers_s: processor seconds of this measurement's other processes."""
    seconds = time.perf_counter() - self._started
    others = _busy_s() - self._busy - (time.process_time() - self._own) - helpers_s
    return {'seconds': round(seconds, 3), 'others': round(max(others, 0.0) / (seconds * (os.cpu_count() or 1)), 3)}


def _busy_s() -> float:
  """Processor seconds of all processes since the machine was started."""
  user, nice, system, _, _, *rest = map(int, pathlib.Path('/proc/stat').read_text().split('\n')[0].split()[1:8])
  return (user + nice + system + sum(rest)) / os.sysconf('SC_CLK_TCK')


PACKAGES = ('qwen3_omni_jax', 'train', 'eval', 'tools', 'configs', 'examples', 'tests', 'benchmarks', 'pyproject.toml')
NOT_CODE = (':!benchmarks/results', ':!*.md')


def commit() -> str:
  """The commit of the code that runs, with '+changes' where files differ from it; results and documents do not count."""

  def git(*args: str) -> str:
    return subprocess.run(['git', *args], capture_output=True, text=True, cwd=ROOT).stdout.strip()

  if not (head := git('rev-parse', '--short', 'HEAD')):
    return 'unknown'
  return f'{head}+changes' if git('status', '--porcelain', '--', *PACKAGES, *NOT_CODE) else head


def circumstances() -> dict:
  """Command, hardware, versions, commit and date. Call it before anything is measured."""
  import jax

  cpu = next((line.split(':')[1].strip() for line in open('/proc/cpuinfo') if line.startswith('model name')), platform.machine())
  return {
    'command': 'python ' + ' '.join([os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]),
    'hardware': f'{os.cpu_count()} × {cpu}',
    'load_before': round(os.getloadavg()[0], 2),
    'jax': jax.__version__,
    'commit': commit(),
    'date': datetime.date.today().isoformat(),
  }


def save(name: str, result: dict, stage: str | None = None) -> bool:
  """Writes benchmarks/results/NAME.json, or says why not: only what one commit gave is a result.

  result: with its circumstances. Where the code had uncommitted changes when the run began, or has been changed since, the file
  is written to .cache/benchmarks. stage: of a benchmark in stages, whose other stages the file keeps. Returns whether it is a
  result.
  """
  begun, now = result['commit'], commit()
  clean = begun == now and '+' not in now and now != 'unknown'
  path = ROOT / ('benchmarks/results' if clean else '.cache/benchmarks') / f'{name}.json'
  path.parent.mkdir(parents=True, exist_ok=True)
  if stage is not None:
    result = (json.loads(path.read_text()) if path.exists() else {}) | {stage: result}
  path.write_text(json.dumps(result, indent=1) + '\n')
  print(f'written to {path.relative_to(ROOT)}')
  if not clean:
    print(f'NOT a result: the code was {begun} at the start and is {now} now. Commit it and run again', file=sys.stderr)
  return clean
