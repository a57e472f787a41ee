"""Long lists of tensor names, given in full but briefly: 6,144 expert names are one line.

`compress` loses nothing: the numbers of a pattern are printed as exact sets ('{0-41,43-47}'), each line with its count.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

Problems = Mapping[str, Sequence[str]]  # kind ('missing', 'of_another_shape'): names, or names with what is wrong

_NUMBER = re.compile(r'(?<![0-9])(0|[1-9][0-9]{0,17})(?![0-9])')  # no leading zeros, so that printing gives it back


def compress(names: Iterable[str]) -> list[str]:
  """The same distinct names, those that differ in numbers only folded: 'layers.{0-47}.mlp.gate.weight  (48)'."""
  groups: dict[tuple[str, ...], list[tuple[int, ...]]] = {}
  for name in names:
    pieces = _NUMBER.split(name)  # text, number, text, ...
    groups.setdefault(tuple(pieces[::2]), []).append(tuple(int(n) for n in pieces[1::2]))
  lines = []
  for texts, numbers in groups.items():
    for columns in _fold(sorted(numbers)):
      line = texts[0] + ''.join(_ranges(c) + text for c, text in zip(columns, texts[1:], strict=True))
      count = math.prod(len(c) for c in columns)
      lines.append(f'{line}  ({count})' if count > 1 else line)
  return lines


def _fold(rows: Sequence[tuple[int, ...]]) -> list[tuple[tuple[int, ...], ...]]:
  """Sorted rows of numbers as few products of sets: first numbers with equal remainders share one."""
  if not rows[0]:
    return [()]
  tails: dict[int, list[tuple[int, ...]]] = {}
  for first, *rest in rows:
    tails.setdefault(first, []).append(tuple(rest))
  firsts: dict[tuple, list[int]] = {}
  for first, rest in tails.items():
    firsts.setdefault(tuple(_fold(rest)), []).append(first)
  return [(tuple(numbers), *tail) for folded, numbers in firsts.items() for tail in folded]


def _ranges(numbers: Sequence[int]) -> str:
  """(0, 1, 2, 5) as '{0-2,5}', a single number as itself."""
  runs: list[list[int]] = []
  for n in numbers:
    if runs and n == runs[-1][1] + 1:
      runs[-1][1] = n
    else:
      runs.append([n, n])
  text = ','.join(str(a) if a == b else f'{a}-{b}' for a, b in runs)
  return text if len(numbers) == 1 else f'{{{text}}}'


def report(heading: str, **problems: Sequence[str]) -> None:
  """Raises ValueError listing every problem under its kind (`missing=`, `unknown=`, ...); returns if there is none."""
  if lines := problem_lines(problems):
    raise ValueError('\n'.join([heading, *lines]))


def problem_lines(problems: Problems) -> list[str]:
  """The lines of a report: each kind with its count, then the names."""
  lines = []
  for kind, names in problems.items():
    if names:
      lines += [f'  {len(names)} {kind.replace("_", " ")}:', *(f'    {line}' for line in compress(names))]
  return lines
