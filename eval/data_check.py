"""Checks a benchmark's files before the model answers anything."""

import collections
import dataclasses
from collections.abc import Sequence

from .benchmark import Benchmark, Item
from .read import missing


@dataclasses.dataclass(frozen=True)
class Check:
  """found, expected: items (expected None: no count is published). lost: missing media by item."""

  found: int
  expected: int | None
  lost: dict[str, list[str]]

  @property
  def complete(self) -> bool:
    return self.found == (self.expected or self.found) and not self.lost

  def describe(self, name: str, *, counts: bool = True) -> list[str]:
    """One line for each thing that is wrong; none if all is there. counts: fewer items than released are wrong too."""
    lines = []
    if counts and self.expected is not None and self.found != self.expected:
      lines.append(f'{name}: {self.found} items, the released split has {self.expected}')
    if self.lost:
      paths = [p for all_of_item in self.lost.values() for p in all_of_item]
      more = f' and {len(paths) - 5} more' if len(paths) > 5 else ''
      lines.append(f'{name}: {len(self.lost)} items lack media: {", ".join(paths[:5])}{more}')
    return lines


def check(benchmark: Benchmark, items: Sequence[Item]) -> Check:
  """Counts and missing media. Raises ValueError where ids repeat: replies are kept by id."""
  counts = collections.Counter(item.id for item in items)
  repeated = [key for key, number in counts.items() if number > 1]
  if repeated:
    raise ValueError(f'{benchmark.name}: {len(repeated)} ids occur more than once: {", ".join(repeated[:5])}')
  lost = {item.id: paths for item in items if (paths := missing(item))}
  return Check(len(items), benchmark.expected, lost)
