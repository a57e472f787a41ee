"""Saving and restoring: weights, optimiser, position in the data, step and configuration in one checkpoint, written by Orbax.

    RUN/checkpoints/STEP/params     the parts (audio, vision, thinker, talker, code_predictor) with a trainable parameter, whole
                         ema        averages of the trainable parameters, if step.ema
                         router_bias  of expert selection, if loss.bias_update (router_bias.py)
                         lora       LoRA's matrices
                         optimiser  moments by name: adam/mu/PATH, adam/nu/PATH, adam/count, …
                         state      step, skipped
                         data       position in the data, over all processes
                         config     the run's resolved configuration

A complete checkpoint appears whole (by a rename, in buckets by a marker); the next process removes what a killed one had begun.
Parts that are frozen as a whole are not saved: they come from the model's folder.
"""

import dataclasses
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from qwen3_omni_jax.weights.originals import small_files

from .agreement import Outcome, agree_over_processes, merge_over_processes
from .checkpoint_items import Leaves, changes, from_items, plan_restore, to_items
from .config import Recipe
from .config_file import to_data
from .optimiser import moments_by_name
from .router_bias import PATH
from .state import Roles, TrainState, build_optimiser, flatten, unflatten

log = logging.getLogger(__name__)
ARRAYS = ('params', 'lora', 'optimiser', 'ema', 'router_bias', 'state')
# What tensorstore and Orbax say of files that are lost, cut short or have another checksum, and of nothing else. Damaged metadata
# raises JSONDecodeError, a lost file of it FileNotFoundError.
_DAMAGE = re.compile(r'^(DATA_LOSS|NOT_FOUND|OUT_OF_RANGE)\b|^FAILED_PRECONDITION.*(Invalid JSON|compressed|decoding)')


@dataclasses.dataclass(frozen=True)
class Restored:
  """data: the position in the data. changed: settings that differ from those it was saved with. notes: what begins anew."""

  state: TrainState
  data: dict[str, Any]
  changed: tuple[str, ...]
  notes: tuple[str, ...]


class Checkpoints:
  """The checkpoints of one run. keep: how many of the newest; keep_every: besides, those of steps that it divides; best: besides,
  so many of the lowest held-out loss, of those that have one."""

  def __init__(self, folder: epath.Path, *, keep: int = 2, keep_every: int | None = None, best: int = 0):
    self.folder = epath.Path(folder)
    policies = ocp.checkpoint_managers
    loss: Any = lambda metrics: metrics['loss']
    kept: list[Any] = [policies.LatestN(keep)]
    if keep_every is not None:
      kept.append(policies.EveryNSteps(keep_every))
    if best:
      kept.append(policies.BestN(get_metric_fn=loss, reverse=True, n=best, keep_checkpoints_without_metrics=False))
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policies.AnyPreservationPolicy(kept),
      best_fn=loss if best else None,  # without it Orbax writes no metrics
      create=True,
      cleanup_tmp_directories=True,
      enable_async_checkpointing=True,
    )
    handlers: dict[str, Any] = {item: ocp.StandardCheckpointHandler() for item in ARRAYS}
    handlers |= {item: ocp.JsonCheckpointHandler() for item in ('data', 'config')}
    self._manager = ocp.CheckpointManager(
      _absolute(self.folder), item_names=tuple(handlers), item_handlers=handlers, options=options
    )

  def describe(self, model: epath.Path, describe_config: Callable[[bytes], bytes] | None = None) -> None:
    """Puts the model's config.json, tokenizer and other small files beside the checkpoints, so that each can be exported.

    describe_config: what config.json becomes, where the run changes it."""
    if jax.process_index() == 0:
      for name, path in small_files(model).items():
        if not (self.folder / name).exists():
          data = path.read_bytes()
          (self.folder / name).write_bytes(describe_config(data) if describe_config and name == 'config.json' else data)

  def save(
    self, state: TrainState, roles: Roles, data: dict[str, Any], config: dict[str, Any], loss: float | None = None
  ) -> None:
    """Starts to save; returns when the state may be changed. data: merged over processes. loss: on held-out data, if known."""
    items: dict[str, Any] = {item: ocp.args.StandardSave(unflatten(leaves)) for item, leaves in to_items(state, roles).items()}
    items |= {'data': ocp.args.JsonSave(data), 'config': ocp.args.JsonSave(config)}
    metrics = None if loss is None else {'loss': loss}
    self._manager.save(int(state.step), args=ocp.args.Composite(**items), metrics=metrics, force=True)

  def wait(self) -> None:
    """Waits until checkpoints that were started are on disk."""
    self._manager.wait_until_finished()

  def steps(self) -> list[int]:
    """The newest first."""
    return sorted(self._manager.all_steps(), reverse=True)

  def restore(self, like: TrainState, roles: Roles, recipe: Recipe) -> Restored | None:
    """The newest checkpoint that can be read; None if there is none at all.

    like: shapes, dtypes and shardings; frozen leaves that no checkpoint holds are left as they are in it. A damaged checkpoint is
    named, set aside once an older one was read, and that one used, on all processes alike. Raises ConfigurationChanged for a
    checkpoint that does not fit the recipe; ValueError if all are damaged; and whatever else keeps this process or another from
    reading, which says nothing about the checkpoint: nothing is set aside then.
    """
    damaged: list[int] = []
    for step in merge_over_processes(self.steps(), self._common):
      place, restored, error = self.folder / str(step), None, None
      try:
        restored = self._read(place, like, roles, recipe)
      except Exception as caught:
        error = caught
      outcome = agree_over_processes(judge(error))
      if outcome is Outcome.FAILED:
        raise error or RuntimeError(f'{place}: another process could not read it; its own log says why')
      if outcome is Outcome.DAMAGED:
        log.warning('checkpoint %s is damaged (%s); falling back to the one before it', place, _reason(error))
        damaged.append(step)
        continue
      for bad in damaged:
        self._set_aside(bad)
      return restored
    if damaged:
      raise ValueError(f'{self.folder}: all of {", ".join(map(str, damaged))} are damaged; remove the folder to begin anew')
    return None

  def _common(self, seen: Sequence[Sequence[int]]) -> list[int]:
    """The steps that every process sees, the newest first."""
    common = set.intersection(*map(set, seen))
    if not common and any(seen):
      text = '; '.join(f'process {i}: {", ".join(map(str, steps)) or "none"}' for i, steps in enumerate(seen))
      raise ValueError(f'{self.folder}: processes see different checkpoints ({text}); out= must be one folder for all hosts')
    return sorted(common, reverse=True)

  def _read(self, place: epath.Path, like: TrainState, roles: Roles, recipe: Recipe) -> Restored:
    """Without a barrier, so that a process that fails here keeps no other waiting."""
    read_json = lambda item: ocp.JsonCheckpointHandler().restore(place / item)
    stored = {item: _leaves_of(place / item) for item in ARRAYS if (place / item).exists()}
    changed = changes(read_json('config'), json.loads(json.dumps(to_data(recipe))))
    as_stored = lambda path, p: stored['params'][path].dtype if path in stored.get('params', {}) else p.dtype
    frozen = {path: jax.ShapeDtypeStruct(p.shape, as_stored(path, p), sharding=p.sharding) for path, p in like.frozen.items()}
    like = like.replace(frozen=frozen)
    plan = plan_restore(to_items(like, roles), stored, changed, recipe.optimiser.restart, str(place))
    items = {item: _read_leaves(place / item, leaves) for item, leaves in plan.read.items()}
    trainable = {path: {**items.get('params', {}), **items.get('lora', {})}[path] for path in like.trainable}
    if plan.anew:
      items['optimiser'] = items.get('optimiser', {}) | _first_moments(like, trainable, roles, recipe, plan.anew)
    if plan.averages:
      items['ema'] = items.get('ema', {}) | {path: trainable[path].copy() for path in plan.averages}
    if (bias := like.router_bias) is not None and 'router_bias' not in items:
      items['router_bias'] = {PATH: jax.jit(lambda: jnp.zeros(bias.shape), out_shardings=bias.sharding)()}
    return Restored(from_items(like, items), dict(read_json('data')), tuple(changed), plan.notes)

  def _set_aside(self, step: int) -> None:
    """A damaged checkpoint makes room for the one that will be written at the same step."""
    if jax.process_index() == 0:
      (self.folder / str(step)).rename(self.folder / f'damaged-{step}')
    merge_over_processes(step, len)  # all wait
    self._manager.reload()

  def close(self) -> None:
    self.wait()
    self._manager.close()


def judge(error: Exception | None) -> Outcome:
  """What an error of reading says about the checkpoint: damaged only if storage said that bytes are lost or wrong."""
  if error is None:
    return Outcome.READ
  is_damage = lambda e: isinstance(e, (json.JSONDecodeError, FileNotFoundError)) or bool(_DAMAGE.search(str(e)))
  return Outcome.DAMAGED if any(map(is_damage, _causes(error))) else Outcome.FAILED


def _causes(error: BaseException | None) -> Iterator[BaseException]:
  """The error and what raised it; Orbax wraps those of tensorstore."""
  while error is not None:
    yield error
    error = error.__cause__ or error.__context__


def _reason(error: Exception | None) -> str:
  if error is None:
    return 'another process found so'
  lines = str(next((e for e in _causes(error) if _DAMAGE.search(str(e))), error)).strip().splitlines()
  return lines[0][:200] if lines else type(error).__name__


def _leaves_of(item: epath.Path) -> Leaves:
  """Shapes and dtypes by path, from metadata."""
  found = ocp.PyTreeCheckpointHandler().metadata(item)
  return flatten(getattr(found, 'tree', found))


def _read_leaves(item: epath.Path, wanted: Leaves) -> Leaves:
  """Arrays as `wanted` has their shapes, dtypes and shardings; what else the item holds is left alone."""
  tree = unflatten(wanted)
  how = ocp.args.PyTreeRestore(tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree), partial_restore=True)
  return flatten(ocp.PyTreeCheckpointHandler().restore(item, args=how))


def _first_moments(like: TrainState, trainable: Leaves, roles: Roles, recipe: Recipe, names: tuple[str, ...]) -> Leaves:
  """Those moments as they are before the first step."""
  some = lambda state: {name: leaf for name, leaf in moments_by_name(state).items() if name in names}
  init, shardings = build_optimiser(recipe, roles).init, {name: leaf.sharding for name, leaf in some(like.optimiser).items()}
  with jax.numpy_dtype_promotion('standard'):  # optax is not written for strict promotion
    return jax.jit(lambda params: some(init(params)), out_shardings=shardings)(trainable)


def _absolute(folder: epath.Path) -> epath.Path:
  return folder if '://' in str(folder) else folder.absolute()
