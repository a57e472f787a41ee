"""The position in the data: of each lane, plain JSON in a checkpoint, and the data that it belongs to."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

from .codes import Codes
from .config import DataConfig
from .sources import Source

log = logging.getLogger(__name__)

VERSION = 2
# What order and packing do not depend on. Sources are compared one by one, without their paths: files may be moved.
_MAY_CHANGE = {'sources', 'max_bad', 'workers', 'threads', 'prefetch_batches', 'restart'}
_SOURCE_MAY_CHANGE = {'path', 'media_root', 'name', 'codes', 'speaker'}  # codes, speaker: compared where there is room for speech
_OF_SPEECH = {'speech_rows', 'speech_length'}


@dataclasses.dataclass
class Counts:
  """Of one source in one lane. records, tokens: put into batches; bad: records that were skipped."""

  records: int = 0
  tokens: int = 0
  bad: int = 0


@dataclasses.dataclass
class LaneState:
  """taken: records read from each stream. accounts, tokens: of the mixture (mixing.py), and all tokens read. counts: of each
  source. waiting: (stream, number in it, piece) of what is not packed yet, in order of arrival."""

  taken: list[int]
  accounts: list[float]
  counts: list[Counts]
  tokens: int = 0
  waiting: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)

  @property
  def bad(self) -> int:
    return sum(count.bad for count in self.counts)

  def to_json(self) -> dict[str, Any]:
    return {
      'taken': list(self.taken),
      'accounts': list(self.accounts),
      'tokens': self.tokens,
      'counts': [[c.records, c.tokens, c.bad] for c in self.counts],
      'waiting': [list(key) for key in self.waiting],
    }

  @classmethod
  def from_json(cls, data: dict[str, Any]) -> 'LaneState':
    counts, waiting = [Counts(*c) for c in data['counts']], [(s, r, p) for s, r, p in data['waiting']]
    return cls(list(data['taken']), list(data['accounts']), counts, data['tokens'], waiting)


def fingerprint(cfg: DataConfig, sources: Sequence[Source], codes: Sequence[Codes | None]) -> dict[str, Any]:
  """Everything that the order of the records, what is in them and their packing depend on. codes: of each source."""
  ignored = _MAY_CHANGE if cfg.speech_rows else _MAY_CHANGE | _OF_SPEECH
  out: dict[str, Any] = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg) if f.name not in ignored}
  for i, (source, files) in enumerate(zip(cfg.sources, sources, strict=True)):
    same = {k: v for k, v in dataclasses.asdict(source).items() if k not in _SOURCE_MAY_CHANGE}
    if cfg.speech_rows:
      own = codes[i]
      same |= {'speaker': source.speaker, 'codes': None if own is None else own.fingerprint()}
    lists = {'ignore': list(source.ignore), 'schedule': [[p.tokens, p.weight] for p in source.schedule]}
    out[f'sources[{i}]'] = same | lists | {'records': len(files), 'contents': files.fingerprint()}
  return out


def saved_lanes(state: dict[str, Any] | None, current: dict[str, Any], restart: bool) -> dict[str, Any] | None:
  """The lanes of a saved state; None if the data begin: without a state, or with other data if `restart` allows it.

  Raises ValueError naming what has changed.
  """
  if state is None:
    return None
  changed = changes(state, current)
  if not changed:
    return state['lanes']
  if restart:
    log.warning('the data begin anew (data.restart): %s', '; '.join(changed))
    return None
  raise ValueError(
    'the data are not those the state was saved with: ' + '; '.join(changed) + '. data.restart=true begins these data from their '
    'first record and keeps the model and the optimiser'
  )


def changes(state: dict[str, Any], current: dict[str, Any]) -> list[str]:
  """What differs between the data of a state and the fingerprint of others."""
  if state.get('version') != VERSION:
    return [f'the state is of version {state.get("version")!r}, and this program reads version {VERSION}']
  found = []
  for key in sorted({*state['config'], *current}):
    saved, now = state['config'].get(key), current.get(key)
    if saved == now:
      continue
    if not (isinstance(saved, dict) and isinstance(now, dict)):
      found.append(f'{key} was {saved!r}, is {now!r}')
    else:
      inner = (name for name in sorted({*saved, *now}) if saved.get(name) != now.get(name))
      found += [f'{key}.{name} was {saved.get(name)!r}, is {now.get(name)!r}' for name in inner]
  return found


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """The state of the whole run from those of its processes."""
  return states[0] | {'lanes': {lane: value for state in states for lane, value in state['lanes'].items()}}


def bad_and_read(state: dict[str, Any]) -> tuple[int, int]:
  """(bad records, records read) of all lanes of a state."""
  lanes = state['lanes'].values()
  return sum(count[2] for lane in lanes for count in lane['counts']), sum(sum(lane['taken']) for lane in lanes)
