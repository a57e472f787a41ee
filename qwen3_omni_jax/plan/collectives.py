"""Bytes that a compiled program sends between devices, by kind of collective and mesh axis, read from its optimised HLO.

A count is what one device receives in one run of the program. The body of a loop is counted for every iteration, if their
number is known; otherwise (decoding until all rows are done) once.
"""

import collections
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

_BYTES = {
  'pred': 1,
  's8': 1,
  'u8': 1,
  's16': 2,
  'u16': 2,
  'bf16': 2,
  'f16': 2,
  's32': 4,
  'u32': 4,
  'f32': 4,
  's64': 8,
  'u64': 8,
  'f64': 8,
}
_KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'ragged-all-to-all', 'collective-permute')
_OPERATION = re.compile(rf'= (?P<result>.*?) (?P<kind>{"|".join(sorted(_KINDS, key=len, reverse=True))})(?P<start>-start)?\(')
_CALLED = re.compile(r'(?:body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_TURNS = re.compile(r'known_trip_count["\s:{]+n["\s:]+(\d+)')


def collectives(hlo: str, axes: Mapping[str, int]) -> dict[str, dict[str, float]]:
  """{kind: {axes of the mesh, joined by '+': bytes received by one device}}. axes: size of each mesh axis, in mesh order."""
  bodies, entry = _computations(hlo)
  times: dict[str, float] = collections.defaultdict(float)
  times[entry] = 1.0
  for name in _callers_first(bodies, entry):
    for line in bodies[name]:
      turns = _turns(line, bodies) if ' while(' in line else 1
      for called in _called(line):
        if called in bodies:
          times[called] += times[name] * turns
  # By channel: what is overlapped with a loop of matmuls is written several times. Channel 1 is that of all that were given none.
  sent: dict[Any, tuple[str, str, float]] = {}
  for name, lines in bodies.items():
    for number, line in enumerate(lines):
      if times[name] and (found := _OPERATION.search(line)):
        group, along = _groups(line, axes)
        channel = re.search(r'channel_id=(\d+)', line)
        key = channel[1] if channel and channel[1] != '1' else (name, number)
        scattered = found['kind'] == 'all-reduce' and _scattered(line, lines)
        size = times[name] * _received(found, group, _operand(found, lines)) / (2 if scattered else 1)
        if group > 1 and size > sent.get(key, ('', '', 0.0))[2]:
          sent[key] = 'reduce-scatter' if scattered else found['kind'], along, size
  totals: dict[str, dict[str, float]] = {}
  for kind, along, size in sent.values():
    totals.setdefault(kind, {}).setdefault(along, 0.0)
    totals[kind][along] += size
  return totals


def _turns(line: str, bodies: Mapping[str, list[str]]) -> int:
  """Of a loop that counts up to a constant; 1 if that cannot be seen."""
  if found := _TURNS.search(line):
    return int(found[1])
  condition = re.search(r'condition=%?([\w.\-]+)', line)
  lines = bodies.get(condition[1], []) if condition else []
  limits = [int(found[1]) for text in lines if (found := re.search(r' constant\((\d+)\)', text))]
  return limits[0] if len(limits) == 1 and any('direction=LT' in text for text in lines) else 1


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
  bodies: dict[str, list[str]] = {}
  entry, name = '', ''
  for line in hlo.splitlines():
    if not line.startswith(' ') and (found := re.match(r'(ENTRY )?%?([\w.\-]+) .*\{\s*$', line)) and '->' in line:
      name = found[2]
      bodies[name] = []
      entry = name if found[1] else entry
    elif name and line.startswith(' '):
      bodies[name].append(line)
  return bodies, entry


def _called(line: str) -> list[str]:
  branches = [name.strip().lstrip('%') for found in _BRANCHES.findall(line) for name in found.split(',')]
  return _CALLED.findall(line) + branches


def _callers_first(bodies: Mapping[str, list[str]], entry: str) -> list[str]:
  order: list[str] = []
  seen: set[str] = set()

  def visit(name: str):
    if name in bodies and name not in seen:
      seen.add(name)
      for line in bodies[name]:
        for called in _called(line):
          visit(called)
      order.append(name)

  visit(entry)
  return order[::-1]


def _scattered(line: str, lines: list[str]) -> bool:
  """Whether a computation does nothing with an all-reduce but give each device its part: so libtpu writes a reduce-scatter, as a
  fusion named all-reduce-scatter."""
  name = line.split(' = ')[0].split()[-1]
  return any('ROOT' in text and f' dynamic-slice({name},' in text for text in lines)


def _operand(found: re.Match, lines: list[str]) -> str:
  """How the same computation defines an operation's first operand."""
  name = re.match(r'%?([\w.\-]+)', found.string[found.end() :])
  return next((line for line in lines if name and re.match(rf'\s*%?{re.escape(name[1])} = ', line)), '')


def _received(found: re.Match, group: int, operand: str) -> float:
  """Bytes that one device receives. The result of an all-gather is the whole, that of a reduce-scatter one part."""
  kind, others = found['kind'], (group - 1) / group
  sizes = _sizes(found['result'])
  if not sizes:
    return 0.0
  if kind == 'ragged-all-to-all':  # what is sent, room to receive: of balanced tokens as many arrive as the smaller one holds
    size = min([*sizes[:2], *_sizes(operand.partition(' = ')[2])[:1]])
  elif found['start']:  # (operand, result, …): the larger one of a gather is the whole
    size = max(sizes)
  else:
    size = sum(sizes)  # several arrays in one operation
  return {
    'all-gather': size * others,
    'all-reduce': 2 * size * others,
    'reduce-scatter': size * (group - 1),
    'collective-permute': float(size),
  }.get(kind, size * others)


def _sizes(text: str) -> list[int]:
  """Bytes of the arrays whose shapes are written there."""
  shapes = re.findall(r'\b([a-z]+\d*)\[([\d,]*)\]', text)
  return [math.prod(map(int, dims.split(',') if dims else ())) * _BYTES.get(dtype, 4) for dtype, dims in shapes]


def _groups(line: str, axes: Mapping[str, int]) -> tuple[int, str]:
  """(devices in a group, the mesh axes along which they differ)."""
  if found := re.search(r'source_target_pairs=\{\{(\d+),(\d+)\}', line):
    pairs = re.findall(r'\{(\d+),(\d+)\}', line[found.start() :])
    return 2, _axes_of(np.array([list(map(int, pair)) for pair in pairs]), axes)
  if found := re.search(r'replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', line):
    dims = list(map(int, found[3].split(',')))
    ids = np.arange(math.prod(dims)).reshape(dims)
    if found[4]:
      ids = ids.transpose(list(map(int, found[4].split(','))))
    groups = ids.reshape(int(found[1]), int(found[2]))
    return groups.shape[1], _axes_of(groups, axes)
  if found := re.search(r'replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}', line):
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
    inside = [name for name in sizes if f"'{name}'" in found[2]]
    ids = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
    order = [i for i, name in enumerate(sizes) if name not in inside] + [i for i, name in enumerate(sizes) if name in inside]
    groups = ids.transpose(order).reshape(-1, math.prod(sizes[name] for name in inside))
    return groups.shape[1], _axes_of(groups, axes)
  if found := re.search(r'replica_groups=\{(\{[\d,{}]+\})\}', line):
    groups = np.array([list(map(int, group.split(','))) for group in re.findall(r'\{([\d,]+)\}', found[1])])
    return groups.shape[1], _axes_of(groups, axes)
  total = math.prod(axes.values())
  return total, _axes_of(np.arange(total)[None], axes)


def _axes_of(groups: np.ndarray, axes: Mapping[str, int]) -> str:
  total = math.prod(axes.values())
  places = np.stack(np.unravel_index(groups % total, tuple(axes.values())), axis=-1)
  differ = (places != places[:, :1]).any(axis=(0, 1))
  return '+'.join(name for name, far in zip(axes, differ, strict=True) if far) or 'none'
