"""A folder in the published layout, seen through the table: every tensor matched, or an error that lists them all.

Three spellings are understood: the published one (a tensor per expert), the one transformers 5 keeps in memory (experts of a
layer fused, `language_model` in the names), and a Thinker saved alone (no `thinker.` in front).
"""

import dataclasses
import pathlib
import re

import numpy as np

from ..config import OmniConfig
from .safetensors import Shard, open_folder
from .table import published


@dataclasses.dataclass(frozen=True)
class View:
  """A published tensor: a tensor of a file, or a part of a fused one."""

  shard: Shard
  name: str
  part: tuple[int | slice, ...] = ()

  @property
  def shape(self) -> tuple[int, ...]:
    return _cut_shape(self.shard.shape(self.name), self.part)

  def read(self) -> np.ndarray:
    """The values, as a view of the file."""
    return self.shard.read(self.name)[self.part]


def _cut_shape(shape: tuple[int, ...], part: tuple[int | slice, ...]) -> tuple[int, ...]:
  return tuple(len(range(*p.indices(n))) for p, n in zip(part, shape, strict=False) if isinstance(p, slice)) + shape[len(part) :]


def open_published(folder: pathlib.Path, cfg: OmniConfig) -> dict[str, View]:
  """{published name: View} for exactly the tensors the config asks for.

  Raises ValueError with the full list of missing, unknown and mis-shaped tensors.
  """
  views = _views(open_folder(folder))
  wanted = published(cfg)
  if cfg.talker is None:  # a folder may hold more parts than its config turns on
    views = {name: view for name, view in views.items() if not name.startswith(('talker.', 'code2wav.'))}
  missing = [name for name in wanted if name not in views]
  unknown = [name for name in views if name not in wanted]
  shapes = [
    f'{name}: found {list(views[name].shape)}, expected {list(tensor.shape)}'
    for name, tensor in wanted.items()
    if name in views and views[name].shape != tensor.shape
  ]
  if missing or unknown or shapes:
    lines = [f'{folder}: the weights do not match config.json']
    for title, names in (('missing', missing), ('unknown', unknown), ('of another shape', shapes)):
      if names:
        lines += [f'  {len(names)} {title}:', *(f'    {line}' for line in compress(names))]
    raise ValueError('\n'.join(lines))
  return views


def _views(tensors: dict[str, Shard]) -> dict[str, View]:
  """Every tensor under its published name."""
  alone = not any(name.startswith('thinker.') for name in tensors)
  views: dict[str, View] = {}
  for name, shard in tensors.items():
    published_name = f'thinker.{name}' if alone else name
    published_name = published_name.replace('thinker.model.language_model.', 'thinker.model.')
    published_name = re.sub(r'^thinker\.model\.(audio_tower|visual)\.', r'thinker.\1.', published_name)
    fused = re.fullmatch(r'(.*\.experts)\.(gate_up_proj|down_proj)', published_name)
    shape = shard.shape(name)
    if fused is None or len(shape) != 3:
      views[published_name] = View(shard, name)
      continue
    for expert in range(shape[0]):
      if fused[2] == 'down_proj':
        views[f'{fused[1]}.{expert}.down_proj.weight'] = View(shard, name, (expert,))
      else:
        half = shape[1] // 2
        views[f'{fused[1]}.{expert}.gate_proj.weight'] = View(shard, name, (expert, slice(0, half)))
        views[f'{fused[1]}.{expert}.up_proj.weight'] = View(shard, name, (expert, slice(half, shape[1])))
  return views


def compress(names: list[str]) -> list[str]:
  """The same list with runs of equal names that differ in numbers only folded: 'layers.{0-47}.mlp.gate.weight'.

  A group is folded only if it is a full grid of its numbers, so nothing is hidden.
  """
  groups: dict[str, list[tuple[int, ...]]] = {}
  for name in names:
    groups.setdefault(re.sub(r'\d+', '{}', name), []).append(tuple(int(n) for n in re.findall(r'\d+', name)))
  lines = []
  for pattern, numbers in groups.items():
    columns = [sorted(set(column)) for column in zip(*numbers, strict=True)]
    full = len(numbers) == len(set(numbers)) == np.prod([len(c) for c in columns], dtype=np.int64)
    runs = all(c[-1] - c[0] == len(c) - 1 for c in columns)
    if len(numbers) > 1 and full and runs:
      ranges = [f'{{{c[0]}-{c[-1]}}}' if len(c) > 1 else str(c[0]) for c in columns]
      lines.append(pattern.format(*ranges) + f'  ({len(numbers)})')
    else:
      lines += [pattern.format(*n) for n in numbers]
  return lines
