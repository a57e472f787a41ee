"""What a training state is worth: its loss on held-out data, and the model to ask questions of."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from qwen3_omni_jax.config import OmniConfig
from qwen3_omni_jax.infer.omni import Omni
from qwen3_omni_jax.infer.settings import GenerationDefaults
from qwen3_omni_jax.media.processor import Processor

from .batch import KINDS
from .config import Run
from .data import make_loader
from .feed import Feed
from .state import Roles, TrainState, merge_params
from .step import eval_sums


def held_out_losses(
  run: Run, cfg: OmniConfig, processor: Processor, mesh, shard: int, shards: int, indices
) -> Callable[[TrainState], dict[str, float]] | None:
  """state -> losses on held-out data; None if none are given."""
  if run.evaluate is None:
    return None
  evaluation, sums_of = run.evaluate, jax.jit(eval_sums(cfg, run))
  make_loader(
    evaluation.data, processor, shard, shards, indices=indices
  ).close()  # what is wrong with the data is said before the first step

  def evaluate(state: TrainState) -> dict[str, float]:
    loader = make_loader(evaluation.data, processor, shard, shards, indices=indices)
    total: dict[str, Any] = {}
    try:
      for _, fed in zip(range(evaluation.batches), Feed(loader, 1, mesh, shards), strict=False):
        with jax.set_mesh(mesh):
          sums = jax.device_get(sums_of(state, fed.batch))
        total = {name: total.get(name, 0) + np.asarray(value, np.float64) for name, value in sums.items()}
    finally:
      loader.close()
    losses = {'loss': float(total['cross_entropy'] / max(total['weight'], 1e-9))}
    for kind, loss, weight in zip(KINDS, total['loss_by_kind'], total['weight_by_kind'], strict=True):
      if weight:
        losses[kind] = float(loss / weight)
    return losses

  return evaluate


def omni_of(state: TrainState, cfg: OmniConfig, roles: Roles, processor: Processor, model: pathlib.Path, dtype: str) -> Omni:
  """The model that the state holds, without a Talker: the averages of what is trained, where they are kept.

  What is trained is there a second time, in `dtype`; frozen parameters are the state's own. LoRA's changes are added where the
  weights are used. The next step takes the state's memory: use the model before it.
  """
  round_all = jax.jit(lambda trainable: {path: p.astype(dtype) for path, p in trainable.items()})
  trainable = round_all(state.trainable if state.ema is None else state.ema)
  params = merge_params(trainable, state.frozen, roles)
  return Omni(cfg, params, processor, GenerationDefaults.from_folder(model, cfg.im_end_token_id), dtype)
