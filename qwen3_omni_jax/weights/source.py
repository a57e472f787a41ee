"""A folder in the published layout, seen through the table: every tensor matched, or an error that lists them all."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from ..config import OmniConfig
from .names import report
from .safetensors import Header, Memory, Shard, open_folder, survey_folder
from .spelling import common_dtype, published_name, split
from .table import published

FLOATS = (np.dtype(np.float64), np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


@dataclasses.dataclass(frozen=True)
class View:
  """A published tensor: a tensor of a file, or a part of a fused one."""

  shard: Header  # a Shard wherever values are read
  name: str
  part: tuple[int | slice, ...] = ()

  @property
  def shape(self) -> tuple[int, ...]:
    shape = self.shard.shape(self.name)
    cut = [len(range(*p.indices(n))) for p, n in zip(self.part, shape, strict=False) if isinstance(p, slice)]
    return (*cut, *shape[len(self.part) :])

  @property
  def dtype(self) -> np.dtype:
    return self.shard.dtype(self.name)

  @property
  def stored(self) -> tuple[str, int]:
    """Name of the dtype, and bytes."""
    return self.dtype.name, math.prod(self.shape) * self.dtype.itemsize

  def read(self, rows: slice | None = None, memory: Memory | None = None) -> np.ndarray:
    """The values, or some rows of the first axis; only their bytes are read, into `memory` if given."""
    shard = self.shard
    assert isinstance(shard, Shard)
    if rows is None:
      return shard.read(self.name, self.part, memory)
    *outer, last = self.part or (None,)
    if isinstance(last, slice):
      return shard.read(self.name, (*outer, slice(last.start + rows.start, last.start + rows.stop)), memory)
    return shard.read(self.name, (*self.part, rows), memory)


def open_published(folder: pathlib.Path, cfg: OmniConfig) -> dict[str, View]:
  """{published name: View} for exactly the tensors the config asks for.

  Raises ValueError with the full list of missing, unknown, repeated and mis-shaped tensors and of those that are not
  floating point (a quantised checkpoint).
  """
  views, problems = _matched(open_folder(folder), cfg)
  report(f'{folder}: the weights do not match config.json', **problems)
  return {name: views[name] for name in published(cfg)}


def survey(folder: pathlib.Path, cfg: OmniConfig) -> tuple[dict[str, View], dict[str, list[str]]]:
  """{published name: View} of all there is, known to the config or not, and everything that is wrong, by kind."""
  found, problems = survey_folder(folder)
  views, more = _matched(found, cfg)
  return views, {**problems, **more}


def _matched(found: dict[str, Shard], cfg: OmniConfig) -> tuple[dict[str, View], dict[str, list[str]]]:
  """Every tensor under its published name, and the mismatches with the config by kind."""
  views, repeated = views_of(found)
  wanted = published(cfg)
  if cfg.talker is None:  # a folder may hold more parts than its config turns on
    views = {name: view for name, view in views.items() if not name.startswith(('talker.', 'code2wav.'))}
  matched = [(name, views[name], tensor) for name, tensor in wanted.items() if name in views]
  return views, {
    'missing': [name for name in wanted if name not in views],
    'unknown': [name for name in views if name not in wanted],
    'present_twice': repeated,
    'of_another_shape': [
      f'{name}: found {list(view.shape)}, expected {list(tensor.shape)}'
      for name, view, tensor in matched
      if view.shape != tensor.shape
    ],
    'not_floating_point': [f'{name}: {view.dtype}' for name, view, _ in matched if view.dtype not in FLOATS],
  }


def views_of(tensors: Mapping[str, Header]) -> tuple[dict[str, View], list[str]]:
  """Every tensor under its published name, and the names that two tensors claim."""
  alone = not any(name.startswith(('thinker.', 'talker.', 'code2wav.')) for name in tensors)
  views: dict[str, View] = {}
  repeated = []
  for name, shard in tensors.items():
    for known, part in split(published_name(name, alone), shard.shape(name)):
      if known in views:
        repeated.append(f'{known}: also in {name}')
      views[known] = View(shard, name, part)
  return views, repeated


def stored_dtypes(views: dict[str, View], cfg: OmniConfig) -> dict[str, np.dtype]:
  """The dtype of each of our arrays, by path: the smallest that holds all the tensors stacked in it exactly."""
  found: dict[str, set[np.dtype]] = {}
  for name, tensor in published(cfg).items():
    found.setdefault(tensor.row.ours, set()).add(views[name].dtype)
  return {path: common_dtype(dtypes) for path, dtypes in found.items()}
