"""A folder in the published layout, seen through the table: every tensor matched, or an error that lists them all."""

import collections
import dataclasses
import pathlib
import sys
from collections.abc import Iterable, Mapping

import numpy as np

from ..codec_config import CodecConfig
from .codec_rows import unused_group
from .folder import ABSENT, Folder, read_folder
from .fp8 import FP8, PLAIN, SCALE_DTYPES, Scaled, Scheme, is_of_activations, scale_of, scheme_of
from .names import problem_lines, report
from .safetensors import Header, Shards, index_of, plan_shards
from .spelling import common_dtype, published_name, split
from .table import Config, published
from .view import FLOATS, View

_UNUSED = "of_the_codec's_own_decoder_and_of_its_training,_not_used"
_DIVIDED = 'divided_by_their_scales,_which_are_over_1'


@dataclasses.dataclass(frozen=True)
class Published:
  """views: of all that is there, by published name, known to the config or not. problems, notes: by kind, as Folder's."""

  folder: Folder
  cfg: Config
  views: dict[str, View]
  problems: dict[str, list[str]]
  notes: dict[str, list[str]]

  @property
  def tensors(self) -> dict[str, View]:
    """What the config asks for, in the table's order."""
    return {name: self.views[name] for name in published(self.cfg) if name in self.views}

  def original(self) -> Shards:
    """The files, without their values. Where they are not what is read (fp8, two copies of a tensor): such files as would hold
    it. The index is made anew where the folder's is wrong, or where there is none for several files."""
    views = self.tensors
    headers = dict(sorted((view.shard.path.name, view.shard) for view in views.values()))
    names = [name for header in headers.values() for name in header.names()]
    if any(isinstance(view, Scaled) for view in views.values()) or len(names) != len(set(names)):
      return plan_shards({name: (view.dtype, view.shape) for name, view in views.items()})
    return Shards(headers, self.folder.index or (index_of(headers) if len(headers) > 1 else None))


def open_published(folder: pathlib.Path, cfg: Config, dtype: np.dtype | None = None) -> Published:
  """A folder with exactly the tensors the config asks for. dtype: of fp8 weights when they are read; None: see fp8.scheme_of.

  Prints what the index has wrong. Raises ValueError with the full list of missing, unknown, repeated and mis-shaped tensors
  and of those that are not floating point.
  """
  found = survey(folder, cfg, dtype)
  if broken := found.problems.pop('broken'):
    raise ValueError('\n'.join(broken))
  report(f'{folder}: the weights do not match config.json', **found.problems)
  print_notes(folder, found.notes)
  return found


def print_notes(folder: pathlib.Path, notes: Mapping[str, list[str]]) -> None:
  """Prints notes, if there are any."""
  if notes:
    print('\n'.join([f'{folder}: read as the headers of its shards say', *problem_lines(notes)]), file=sys.stderr)


def survey(folder: pathlib.Path, cfg: Config, dtype: np.dtype | None = None) -> Published:
  """What a folder holds, and everything that is wrong, by kind. Raises ValueError as read_folder and scheme_of do."""
  found = read_folder(folder)
  scheme = scheme_of(folder / 'config.json', found.tensors, dtype)
  tensors, wanted, unused = found.tensors, published(cfg), []
  if isinstance(cfg, CodecConfig):
    tensors = {name: shard for name, shard in tensors.items() if unused_group(name, cfg) is None}
    unused = _groups(group for name in found.tensors if (group := unused_group(name, cfg)))
  views, repeated = views_of(tensors, scheme, of_codec=isinstance(cfg, CodecConfig))
  if not isinstance(cfg, CodecConfig) and cfg.talker is None:  # a folder may hold more parts than its config turns on
    views = {name: view for name, view in views.items() if not name.startswith(('talker.', 'code2wav.'))}
  unknown = [name for name in views if name not in wanted]
  aside = [name for name in unknown if views[name].shard.path.name in found.unlisted]
  missing = [name for name in wanted if name not in views]
  matched = [(name, views[name], tensor) for name, tensor in wanted.items() if name in views]
  notes = {**found.notes, 'not_of_this_model_and_not_in_the_index': aside, _UNUSED: unused, _DIVIDED: []}
  if scheme.reciprocal:
    notes[_DIVIDED] = [name for name, view, _ in matched if isinstance(view, Scaled)]
  problems = {
    **found.problems,
    'missing': missing,
    ABSENT: notes.pop(ABSENT, []) if missing else [],
    'unknown': [name for name in unknown if name not in aside],
    'present_twice': repeated,
    'of_another_shape': [
      f'{name}: found {list(view.shape)}, expected {list(tensor.shape)}'
      for name, view, tensor in matched
      if view.shape != tensor.shape
    ],
    'fp8_without_their_scales': [name for name, view, _ in matched if view.dtype in FP8],
    'fp8_with_scales_that_do_not_fit': [
      f'{name}: {list(view.shape)} with {list(view.scales.shape)} {view.scales.dtype}'
      for name, view, _ in matched
      if isinstance(view, Scaled) and (view.grid is None or view.scales.dtype not in SCALE_DTYPES)
    ],
    'not_floating_point': [f'{name}: {view.dtype}' for name, view, _ in matched if view.dtype not in (*FLOATS, *FP8)],
  }
  views = {name: view for name, view in views.items() if name not in aside}
  return Published(found, cfg, views, problems, {kind: names for kind, names in notes.items() if names})


def _groups(names: Iterable[str]) -> list[str]:
  return [f'{name}: {count} tensors' for name, count in collections.Counter(names).items()]


def views_of(
  tensors: Mapping[str, Header], scheme: Scheme = PLAIN, *, of_codec: bool = False
) -> tuple[dict[str, View], list[str]]:
  """Every tensor under its published name, and the names that two tensors claim. Scales are with what they are the scales of.

  of_codec: of a speech codec, which has one spelling.
  """
  alone = not of_codec and not any(name.startswith(('thinker.', 'talker.', 'code2wav.')) for name in tensors)
  scales = {name: scale for name in tensors if (scale := scale_of(name, tensors))}
  taken = set(scales.values())
  views: dict[str, View] = {}
  repeated = []
  for name, shard in tensors.items():
    if name in taken or is_of_activations(name, tensors):
      continue
    for known, part in split(published_name(name, alone), shard.shape(name)):
      if known in views:
        repeated.append(f'{known}: also in {name}')
      if scale := scales.get(name):
        views[known] = Scaled(shard, name, part, scheme=scheme, scales=View(tensors[scale], scale))
      else:
        views[known] = View(shard, name, part)
  return views, repeated


def stored_dtypes(views: Mapping[str, View], cfg: Config) -> dict[str, np.dtype]:
  """The dtype of each of our arrays, by path: the smallest that holds all the tensors stacked in it exactly."""
  found: dict[str, set[np.dtype]] = {}
  for name, tensor in published(cfg).items():
    found.setdefault(tensor.row.ours, set()).add(views[name].dtype)
  return {path: common_dtype(dtypes) for path, dtypes in found.items()}
