"""Saving and restoring: weights, optimiser, position in the data, step and configuration in one checkpoint, written by Orbax.

    RUN/checkpoints/STEP/params   the parts (audio, vision, thinker) with a trainable parameter, whole: what `convert to-hf` takes
                         state    step, optimiser, averages, LoRA's matrices
                         data     position in the data, over all processes
                         config   the run's resolved configuration

A complete checkpoint appears by a rename; the next process removes what a killed one had begun. Parts that are frozen as a
whole are not saved: they come from the model's folder.
"""

import json
import logging
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from qwen3_omni_jax.weights.originals import small_files

from .state import LORA, Roles, TrainState, flatten, unflatten

log = logging.getLogger(__name__)
ITEMS = ('params', 'state', 'data', 'config')


class Checkpoints:
  """The checkpoints of one run. keep: how many of the newest; keep_every: besides, those of steps that it divides."""

  def __init__(self, folder: pathlib.Path, *, keep: int = 2, keep_every: int | None = None):
    self.folder = folder
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep, keep_period=keep_every, create=True, cleanup_tmp_directories=True, enable_async_checkpointing=True
    )
    handlers = {
      'params': ocp.StandardCheckpointHandler(),
      'state': ocp.StandardCheckpointHandler(),
      'data': ocp.JsonCheckpointHandler(),
      'config': ocp.JsonCheckpointHandler(),
    }
    self._manager = ocp.CheckpointManager(folder.absolute(), item_names=ITEMS, item_handlers=handlers, options=options)

  def describe(self, model: pathlib.Path) -> None:
    """Puts the model's config.json, tokenizer and other small files beside the checkpoints, so that each can be exported."""
    if jax.process_index() == 0:
      for name, path in small_files(model).items():
        if not (self.folder / name).exists():
          shutil.copyfile(path, self.folder / name)

  def save(self, state: TrainState, roles: Roles, data: dict[str, Any], config: dict[str, Any]) -> None:
    """Starts to save; returns when the state may be changed. data: of this process's loader alone or merged."""
    params, rest = _split(state, roles)
    items = ocp.args.Composite(
      params=ocp.args.StandardSave(params),
      state=ocp.args.StandardSave(rest),
      data=ocp.args.JsonSave(data),
      config=ocp.args.JsonSave(config),
    )
    self._manager.save(int(state.step), args=items, force=True)

  def wait(self) -> None:
    """Waits until checkpoints that were started are on disk."""
    self._manager.wait_until_finished()

  def steps(self) -> list[int]:
    """The newest first."""
    return sorted(self._manager.all_steps(), reverse=True)

  def frozen_dtypes(self) -> dict[str, Any]:
    """Of the parameters in the newest checkpoint that says so, by path."""
    for step in self.steps():
      try:
        found = self._manager.item_metadata(step)['params']
        return {path: leaf.dtype for path, leaf in flatten(getattr(found, 'tree', found)).items()}
      except Exception:  # a damaged one: restore tells
        continue
    return {}

  def restore(self, like: TrainState, roles: Roles) -> tuple[TrainState, dict[str, Any], dict[str, Any]] | None:
    """(state, data, config) of the newest checkpoint that can be read; None if there is none at all.

    like: shapes, dtypes and shardings; frozen parts that no checkpoint holds are taken from it as they are. A checkpoint that is
    damaged is named, set aside, and the one before it used. Raises ValueError if all of them are damaged.
    """
    failed = []
    for step in self.steps():
      params, rest = _split(like, roles)
      items = ocp.args.Composite(
        params=ocp.args.StandardRestore(params),
        state=ocp.args.StandardRestore(rest),
        data=ocp.args.JsonRestore(),
        config=ocp.args.JsonRestore(),
      )
      try:
        found = self._manager.restore(step, args=items)
      except Exception as error:  # whatever Orbax and its storage make of cut or lost files
        failed.append(step)
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        log.warning('checkpoint %s is damaged (%s); falling back to the one before it', self.folder / str(step), reason)
        continue
      for bad in failed:
        self._set_aside(bad)
      return _joined(like, found['params'], found['state']), found['data'], found['config']
    if failed:
      raise ValueError(f'{self.folder}: all of {", ".join(map(str, failed))} are damaged; remove the folder to begin anew')
    return None

  def _set_aside(self, step: int) -> None:
    """A damaged checkpoint makes room for the one that will be written at the same step."""
    if jax.process_index() == 0:
      place = self.folder / str(step)
      place.rename(place.with_name(f'damaged-{step}'))
    if jax.process_count() > 1:
      from jax.experimental import multihost_utils

      multihost_utils.sync_global_devices(f'set aside {step}')
    self._manager.reload()

  def close(self) -> None:
    self.wait()
    self._manager.close()


def _split(state: TrainState, roles: Roles) -> tuple[dict, dict]:
  """What `params` and `state` hold. Orbax refuses an empty tree, so LoRA alone saves a single zero as its params."""
  every = {**state.frozen, **state.trainable}
  params = {path: p for path, p in every.items() if path.split('/')[0] in roles.trainable_parts}
  lora = {path: p for path, p in state.trainable.items() if path.startswith(LORA)}
  rest = {
    'step': state.step,
    'skipped': state.skipped,
    'lora': lora,
    'optimiser': dict(enumerate_leaves(state.optimiser)),
    'ema': state.ema or {},
  }
  rest = {name: value for name, value in rest.items() if not isinstance(value, dict) or value}
  return unflatten(params) or {'none': state.step}, rest


def enumerate_leaves(tree: Any):
  """('12', leaf) in order: names that do not depend on how the optimiser's classes are called."""
  return ((str(i), leaf) for i, leaf in enumerate(jax.tree.leaves(tree)))


def _joined(like: TrainState, params: dict, rest: dict) -> TrainState:
  """The state as it was saved, with the frozen parts of `like` that were not."""
  found = flatten(params) | rest.get('lora', {})
  leaves, structure = jax.tree.flatten(like.optimiser)
  optimiser = jax.tree.unflatten(structure, [rest['optimiser'][str(i)] for i in range(len(leaves))])
  return like.replace(
    step=rest['step'],
    skipped=rest['skipped'],
    optimiser=optimiser,
    ema=rest.get('ema') if like.ema is not None else None,
    trainable={path: found[path] for path in like.trainable},
    frozen={path: found.get(path, p) for path, p in like.frozen.items()},
  )


def merged_over_processes(data: dict[str, Any], merge) -> dict[str, Any]:
  """merge(the states of all processes); the same on each."""
  if jax.process_count() == 1:
    return merge([data])
  from jax.experimental import multihost_utils

  text = np.frombuffer(json.dumps(data).encode(), np.uint8)
  sizes = np.asarray(multihost_utils.process_allgather(jnp.int32(len(text))))
  padded = np.zeros(int(sizes.max()), np.uint8)
  padded[: len(text)] = text
  every = np.asarray(multihost_utils.process_allgather(padded))
  return merge([json.loads(bytes(row[:size])) for row, size in zip(every, sizes, strict=True)])
