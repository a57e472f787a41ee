"""Do two checkpoint folders, of either kind, hold the same weights? Tensor by tensor, in the memory of a few tensors."""

import contextlib
import dataclasses
import math
import pathlib
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .config_diff import changes
from .numerics import outputs
from .opened import Opened, open_checkpoint
from .progress import Progress

WORKERS = 4
LARGE_BYTES = 128 * 2**20  # of larger tensors (embeddings, heads) one pair is in memory at a time
_BLOCK = 2**20  # values compared at once


@dataclasses.dataclass(frozen=True)
class Difference:
  """How far B's values are from A's. relative: max_abs over the largest magnitude in either tensor.

  Where one is infinite or not a number and the other is not the same, both are infinite. They are 0 where only the sign
  of a zero or the bits of a NaN differ.
  """

  name: str
  differing: int
  size: int
  max_abs: float
  relative: float


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What a comparison found: the folders agree if there are no problems.

  problems: {kind: names, or names with what is wrong}. dtypes: tensors stored in another dtype, a problem only without
  rtol. differences: tensors whose values are not equal, allowed or not, the worst first. outputs: of the networks in
  turn, equal ones too; None if they were not asked for, or could not be compared. notes: as problems, of no harm.
  """

  tensors: int
  values: int
  rtol: float | None
  problems: dict[str, list[str]]
  dtypes: list[str]
  differences: list[Difference]
  outputs: list[Difference] | None
  notes: dict[str, list[str]] = dataclasses.field(default_factory=dict)

  @property
  def agree(self) -> bool:
    return not self.problems


def verify(
  a: str | pathlib.Path,
  b: str | pathlib.Path,
  *,
  rtol: float | None = None,
  numerics: bool = False,
  numerics_rtol: float | None = None,
  progress: bool = False,
) -> Verdict:
  """Compares names, shapes, dtypes, values, and what config.json means.

  rtol: None wants the same bits; else a tensor may be off by this much of its largest magnitude, and have another dtype.
  numerics: run a short forward pass of every network from both too; numerics_rtol is its tolerance, by default rtol.
  Raises ValueError only where a folder cannot be opened at all.
  """
  for name, value in (('rtol', rtol), ('numerics_rtol', numerics_rtol)):
    if value is not None and not 0 <= value < math.inf:
      raise ValueError(f'{name} {value}: expected 0 or more')
  left, right = open_checkpoint(a, strict=False), open_checkpoint(b, strict=False)
  for opened in (left, right):
    if numerics and opened.kind == 'orbax':
      raise ValueError(f'{opened.folder}: a checkpoint of Orbax alone has no forward pass; compare without numerics')
  problems, notes = (
    {f'{kind}_in_{side}': list(names) for side, found in zip('AB', both, strict=True) for kind, names in found.items()}
    for both in ((left.problems, right.problems), (left.notes, right.notes))
  )
  in_a, in_b = ({**opened.tensors, **opened.unknown} for opened in (left, right))
  common = [name for name in in_a if name in in_b]
  problems |= {
    'only_in_A': [name for name in in_a if name not in in_b and name not in right.missing],  # those have been told
    'only_in_B': [name for name in in_b if name not in in_a and name not in left.missing],
    'of_different_shapes': [
      f'{name}: {list(in_a[name].shape)} and {list(in_b[name].shape)}' for name in common if in_a[name].shape != in_b[name].shape
    ],
  }
  same_tree = not any(problems.values())
  dtypes = [f'{name}: {in_a[name].dtype} and {in_b[name].dtype}' for name in common if in_a[name].dtype != in_b[name].dtype]
  problems['of_different_dtypes'] = dtypes if rtol is None else []
  problems['different_in_config'] = [str(change) for change in changes(left.cfg, right.cfg)]
  values = {name: math.prod(in_a[name].shape) for name in common if in_a[name].shape == in_b[name].shape}
  sizes = {name: number * in_a[name].dtype.itemsize for name, number in values.items()}
  found, problems['damaged'] = _compare_all(sizes, left, right, progress)
  problems['of_different_values'] = [d.name for d in found if not _allowed(d, rtol)]
  ran = None
  if numerics and same_tree and not problems['damaged']:
    runs = zip(*(outputs(opened.folder, opened.parts) for opened in (left, right)), strict=True)
    ran = [difference(name, x, y) for (name, x), (_, y) in runs]
    problems['of_different_outputs'] = [d.name for d in ran if not _allowed(d, rtol if numerics_rtol is None else numerics_rtol)]
  problems = {kind: names for kind, names in problems.items() if names}
  return Verdict(len(values), sum(values.values()), rtol, problems, dtypes, found, ran, notes)


def _allowed(d: Difference, rtol: float | None) -> bool:
  return d.differing == 0 or (rtol is not None and d.relative <= rtol)


def _compare_all(sizes: dict[str, int], left: Opened, right: Opened, progress: bool) -> tuple[list[Difference], list[str]]:
  """Differences of the tensors that are not equal, the worst first, and what is wrong with those that cannot be read.

  sizes: bytes of each tensor to compare.
  """
  large, damaged, report = threading.Lock(), [], Progress(sum(sizes.values()), 0, progress)

  def compare(name: str) -> Difference | None:
    with large if sizes[name] > LARGE_BYTES else contextlib.nullcontext():
      values = []
      for opened in (left, right):
        try:
          values.append(opened.read(name) if name in opened.tensors else opened.unknown[name].read())
        except ValueError as error:
          damaged.append(str(error))
      report.add(sizes[name])
      return difference(name, *values) if len(values) == 2 else None

  with ThreadPoolExecutor(WORKERS) as pool:
    found = [d for d in pool.map(compare, sizes) if d is not None and d.differing]
  report.end()
  return sorted(found, key=lambda d: (-d.relative, -d.differing, d.name)), sorted(damaged)


def difference(name: str, a: np.ndarray, b: np.ndarray) -> Difference:
  """a and b have the same shape. Of the same dtype, values that differ are those whose bits do."""
  differing, furthest, largest = 0, 0.0, 0.0
  blocks = [slice(start, start + _BLOCK) for start in range(0, a.size, _BLOCK)]
  a_flat, b_flat, bits = a.reshape(-1), b.reshape(-1), np.dtype(f'u{a.itemsize}')
  if a.dtype == b.dtype and all(np.array_equal(a_flat[block].view(bits), b_flat[block].view(bits)) for block in blocks):
    return Difference(name, 0, a.size, 0.0, 0.0)
  for block in blocks:
    x, y = a_flat[block].astype(np.float64), b_flat[block].astype(np.float64)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    unequal = a_flat[block].view(bits) != b_flat[block].view(bits) if a.dtype == b.dtype else ~same
    differing += int(np.count_nonzero(unequal))
    with np.errstate(invalid='ignore'):
      distance = np.abs(x - y)
    distance[np.isnan(distance)] = np.inf
    distance[same] = 0
    furthest = max(furthest, float(distance.max(initial=0)))
    largest = max(largest, _magnitude(x), _magnitude(y))
  relative = furthest / largest if furthest and largest else furthest and math.inf
  return Difference(name, differing, a.size, furthest, relative)


def _magnitude(x: np.ndarray) -> float:
  """The largest finite magnitude."""
  return float(np.abs(x[np.isfinite(x)]).max(initial=0))
