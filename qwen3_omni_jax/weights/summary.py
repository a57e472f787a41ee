"""What is in a checkpoint folder, told without reading its weights."""

import dataclasses
import math
import pathlib
from collections.abc import Iterable

from .names import compress
from .opened import Opened, Piece, open_checkpoint
from .store import part_of
from .table import published
from .view import View
from .work import JOURNAL, is_unfinished, read_journal

_NAMED = ('captioner', 'thinking')  # variants with the same parts and config


@dataclasses.dataclass
class Amount:
  """tensors are published ones, whatever the layout."""

  tensors: int = 0
  parameters: int = 0
  bytes: int = 0

  def add(self, tensor: View | Piece) -> None:
    self.tensors += 1
    self.parameters += math.prod(tensor.shape)
    self.bytes += tensor.stored[1]


@dataclasses.dataclass(frozen=True)
class Unfinished:
  """How far a conversion got, as its journal tells; weights/work.py. tree: the tensors that are finished."""

  folder: str
  conversion: str
  parts: list[str]
  dtype: str | None
  finished: int
  tensors: int
  tree: list[str]
  complete: bool = False


@dataclasses.dataclass(frozen=True)
class Summary:
  """problems: {kind: names}, empty lists left out; unknown and missing tensors are among them. notes: the same, of what does no
  harm to the weights, such as a wrong index."""

  folder: str
  kind: str
  layout: str
  variant: str
  parts: dict[str, Amount]
  dtypes: dict[str, Amount]
  total: Amount
  problems: dict[str, list[str]]
  tree: list[str]
  notes: dict[str, list[str]] = dataclasses.field(default_factory=dict)
  complete: bool = True


def summarise(folder: str | pathlib.Path) -> Summary | Unfinished:
  """What a checkpoint folder holds, or how far the conversion in a TARGET.partial got.

  Raises ValueError only if the folder is no checkpoint at all, or without a valid config.json."""
  if is_unfinished(pathlib.Path(folder)):
    return _unfinished(pathlib.Path(folder))
  opened = open_checkpoint(folder, strict=False)
  wanted = published(opened.cfg)
  parts: dict[str, Amount] = {part: Amount() for part in opened.parts}
  dtypes: dict[str, Amount] = {}
  total = Amount()
  everything: dict[str, View | Piece] = {**opened.tensors, **opened.unknown}
  for name, tensor in everything.items():
    part = part_of(wanted[name].row.ours) if name in wanted else 'unknown'
    for amount in (parts.setdefault(part, Amount()), dtypes.setdefault(tensor.stored[0], Amount()), total):
      amount.add(tensor)
  return Summary(
    folder=str(folder),
    kind=opened.kind,
    layout=_layout(opened),
    variant=_variant(opened),
    parts=parts,
    dtypes=dtypes,
    total=total,
    problems={kind: list(names) for kind, names in opened.problems.items() if names},
    tree=compress(f'{name}: {list(tensor.shape)} {tensor.stored[0]}' for name, tensor in everything.items()),
    notes={kind: list(names) for kind, names in opened.notes.items()},
  )


def _unfinished(folder: pathlib.Path) -> Unfinished:
  identity, finished, _ = read_journal(folder if (folder / JOURNAL).is_file() else folder.parent)
  recorded = identity or {}  # nothing, of a conversion that was stopped before its first tensor
  return Unfinished(
    folder=str(folder),
    conversion=recorded.get('conversion', 'unknown'),
    parts=recorded.get('parts', []),
    dtype=recorded.get('dtype'),
    finished=len(finished),
    tensors=recorded.get('tensors', 0),
    tree=compress(finished),
  )


def _layout(opened: Opened) -> str:
  if opened.kind != 'published':
    return 'one array per parameter, layers and experts stacked'
  views: Iterable[View] = [view for view in opened.tensors.values() if isinstance(view, View)]
  experts = {bool(view.part) for view in views if '.mlp.experts.' in view.name}
  layouts = {frozenset(): 'no experts', frozenset({False}): 'a tensor per expert', frozenset({True}): 'experts fused'}
  layout = layouts.get(frozenset(experts), 'some experts fused, some not')
  alone = any(not view.name.startswith(('thinker.', 'talker.', 'code2wav.')) for view in views)
  return f'{layout}, a Thinker saved alone' if alone else layout


def _variant(opened: Opened) -> str:
  """Thinking and Captioner have equal configs and parts: only what the folder or its README is called tells them apart."""
  if opened.cfg.talker is not None:
    return 'instruct'
  readme = opened.folder / 'README.md'
  heading = readme.read_text(encoding='utf-8', errors='replace')[:4000].lower() if readme.is_file() else ''
  for text in (opened.folder.resolve().name.lower(), heading):
    named = [name for name in _NAMED if name in text]
    if len(named) == 1:
      return named[0]
  return 'thinking or captioner'
