"""What a checkpoint holds by name, and whether that is what a run wants.

Everything is compared by name and shape before any array is read, so that a changed configuration is told from a damaged file.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from .optimiser import moment_name, moments_by_name
from .router_bias import PATH
from .state import LORA, Roles, TrainState

COUNTS = ('step', 'skipped', 'skipped_in_a_row', 'usual_norm')
Leaves = dict[str, Any]  # arrays, or their shapes, by path


def to_items(state: TrainState, roles: Roles) -> dict[str, Leaves]:
  """{item: its leaves by path} of a state of arrays or of shapes; items without leaves are left out.

  params: the parts with a trainable parameter, whole. lora: LoRA's matrices. optimiser: moments_by_name. ema: averages of the
  trainable parameters. router_bias: the bias of expert selection. state: counts.
  """
  every = {**state.frozen, **state.trainable}
  items = {
    'params': {path: p for path, p in every.items() if path.split('/')[0] in roles.trainable_parts},
    'lora': {path: p for path, p in state.trainable.items() if path.startswith(LORA)},
    'optimiser': moments_by_name(state.optimiser),
    'ema': dict(state.ema or {}),
    'router_bias': {} if state.router_bias is None else {PATH: state.router_bias},
    'state': {name: getattr(state, name) for name in COUNTS},
  }
  return {name: leaves for name, leaves in items.items() if leaves}


def from_items(like: TrainState, items: Mapping[str, Leaves]) -> TrainState:
  """The state of restored leaves; frozen parts that no checkpoint holds are like's own."""
  found = {**items.get('params', {}), **items.get('lora', {})}
  of_moment = lambda at, _: items['optimiser'][moment_name(at)]
  return like.replace(
    **items['state'],
    optimiser=jax.tree_util.tree_map_with_path(of_moment, like.optimiser),
    ema=None if like.ema is None else {path: items['ema'][path] for path in like.trainable},
    router_bias=None if like.router_bias is None else items['router_bias'][PATH],
    trainable={path: found[path] for path in like.trainable},
    frozen={path: found.get(path, p) for path, p in like.frozen.items()},
  )


@dataclasses.dataclass(frozen=True)
class Difference:
  """Of one item, by path. missing: wanted and not in the checkpoint. unwanted: the reverse. misshapen: with both shapes."""

  item: str
  missing: tuple[str, ...]
  unwanted: tuple[str, ...]
  misshapen: tuple[str, ...]

  def __bool__(self) -> bool:
    return bool(self.missing or self.unwanted or self.misshapen)

  @property
  def unlike(self) -> set[str]:
    """Leaves that are wanted and cannot be read."""
    return {*self.missing, *(text.split(':')[0] for text in self.misshapen)}

  def __str__(self) -> str:
    parts = [(self.missing, 'not in the checkpoint'), (self.unwanted, 'not in this run'), (self.misshapen, 'of another shape')]
    return f'{self.item}: ' + '; '.join(f'{len(names)} {what} ({_some(names)})' for names, what in parts if names)


def compare(item: str, wanted: Mapping[str, Any], stored: Mapping[str, Any]) -> Difference:
  """Leaves by path of what a run wants and of what a checkpoint says that it holds; each has a shape."""
  shapes = {path: (list(stored[path].shape), list(leaf.shape)) for path, leaf in wanted.items() if path in stored}
  return Difference(
    item,
    missing=tuple(path for path in wanted if path not in stored),
    unwanted=tuple(path for path in stored if path not in wanted),
    misshapen=tuple(f'{path}: {found}, expected {expected}' for path, (found, expected) in shapes.items() if found != expected),
  )


class ConfigurationChanged(ValueError):
  """The checkpoint is of a run with another configuration."""


@dataclasses.dataclass(frozen=True)
class Plan:
  """How a checkpoint is restored. read: leaves to read. anew: names of moments that begin anew. averages: paths whose averages
  begin at the parameters. notes: what to tell."""

  read: dict[str, Leaves]
  anew: tuple[str, ...]
  averages: tuple[str, ...]
  notes: tuple[str, ...]


def plan_restore(
  wanted: Mapping[str, Leaves], stored: Mapping[str, Leaves], changed: Sequence[str], restart: bool, place: str
) -> Plan:
  """Compares what a run wants with what a checkpoint at `place` holds.

  changed: what differs in the configurations, for the error. restart: moments and averages that do not match begin anew.
  Raises ConfigurationChanged, naming the settings and the leaves; parameters must match in any case.
  """
  of = lambda item: compare(item, wanted.get(item, {}), stored.get(item, {}))
  cause = f'changed since: {"; ".join(changed)}' if changed else 'no setting that was saved differs: another version or model?'
  parameters = [difference for item in ('params', 'lora') if (difference := of(item))]
  if parameters:
    raise ConfigurationChanged(
      f'{place} holds other parameters than this run trains ({cause}). {". ".join(map(str, parameters))}. '
      'Give the configuration that it was written with, or begin a new run (another out=) from its export'
    )
  optimiser, ema = of('optimiser'), of('ema')
  both_average = 'ema' in wanted and 'ema' in stored
  if not restart and (optimiser or (both_average and ema)):
    differences = [optimiser, ema] if both_average else [optimiser]
    raise ConfigurationChanged(
      f'{place} holds the state of another optimiser than this run has ({cause}). {". ".join(str(d) for d in differences if d)}. '
      'Give the configuration that it was written with; or optimiser.restart=true, and what does not match begins anew'
    )
  anew = _begins_anew(wanted['optimiser'], optimiser.unlike)
  averages = tuple(path for path in wanted.get('ema', {}) if path in ema.unlike)
  bias = of('router_bias')
  skipped = {'optimiser': anew, 'ema': averages, 'router_bias': bias.unlike}
  read = {
    item: {path: leaf for path, leaf in leaves.items() if path not in skipped.get(item, ())} for item, leaves in wanted.items()
  }
  notes = []
  if anew:
    notes.append(f'{len(anew)} of {len(wanted["optimiser"])} moments begin anew ({_some(anew)})')
  if averages:
    notes.append(f'{len(averages)} averages begin at the parameters ({_some(averages)})')
  if 'ema' in stored and 'ema' not in wanted:
    notes.append('the averages in the checkpoint are not used: step.ema is 0')
  if bias.unlike:
    notes.append('the bias of expert selection begins at 0')
  if bias.unwanted:
    notes.append('the bias of expert selection in the checkpoint is not used: loss.bias_update is 0')
  return Plan({item: leaves for item, leaves in read.items() if leaves}, anew, averages, tuple(notes))


def _begins_anew(names: Mapping[str, Any], unlike: set[str]) -> tuple[str, ...]:
  """Moments that cannot be read, and the counts of those members of the chain of which no moment can."""
  is_count = lambda name: name.count('/') == 1  # MEMBER/count; a moment is MEMBER/MOMENT/PATH
  going_on = {name.split('/')[0] for name in names if not is_count(name) and name not in unlike}
  return tuple(name for name in names if name in unlike or (is_count(name) and name.split('/')[0] not in going_on))


def changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = '') -> list[str]:
  """'optimiser.name: adamw -> muon' for every setting in both configurations (plain data) that differs."""
  found = []
  for key in old.keys() & new.keys():
    before, after = old[key], new[key]
    if isinstance(before, Mapping) and isinstance(after, Mapping):
      found += changes(before, after, f'{prefix}{key}.')
    elif (texts := [json.dumps(value) for value in (before, after)])[0] != texts[1]:
      short = [text if len(text) <= 60 else f'{text[:57]}…' for text in texts]
      found.append(f'{prefix}{key}: {short[0]} -> {short[1]}')
  return sorted(found)


def _some(names: Sequence[str]) -> str:
  return ', '.join(names[:3]) + (', …' if len(names) > 3 else '')
