"""What a training state is worth: its loss on held-out data, and the model to ask questions of."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from qwen3_omni_jax.config import OmniConfig
from qwen3_omni_jax.infer.omni import Omni
from qwen3_omni_jax.infer.settings import GenerationDefaults
from qwen3_omni_jax.infer.voice import Voice
from qwen3_omni_jax.media.processor import Processor
from qwen3_omni_jax.nn.lora import is_lora
from qwen3_omni_jax.shapes import Params

from .batch import KINDS
from .config import Run
from .data import make_loader
from .feed import Feed
from .speech_metrics import speech_metrics
from .state import PARTS, SPEECH_PARTS, Roles, TrainState, merge_params
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
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), sums)
        total = jax.tree.map(np.add, total, wide) if total else wide
    finally:
      loader.close()
    return _losses(total, run)

  return evaluate


def _losses(total: dict[str, Any], run: Run) -> dict[str, float]:
  """Means of sums over batches. `loss`: of the text; in a run with the Talker what it minimises, but for the routers' losses."""
  losses = {}
  if 'cross_entropy' in total:
    losses['loss'] = float(total['cross_entropy'] / max(total['weight'], 1e-9))
    for kind, loss, weight in zip(KINDS, total['loss_by_kind'], total['weight_by_kind'], strict=True):
      if weight:
        losses[kind] = float(loss / weight)
  if run.speech is not None:
    speech = {name: float(value) for name, value in speech_metrics(total['speech']).items()}
    text = run.speech.text * losses.get('loss', 0.0)
    losses['loss'] = run.speech.codes * speech['speech/codes'] + run.speech.predictor * speech['speech/predictor'] + text
    losses |= speech
  return losses


def omni_of(
  state: TrainState,
  cfg: OmniConfig,
  roles: Roles,
  processor: Processor,
  model: pathlib.Path,
  dtype: str,
  vocoder: Params | None = None,
) -> Omni:
  """The model that the state holds: the averages of what is trained, where they are kept.

  vocoder: {'code2wav': …}, with which it speaks, of a state that has a Talker; None: without a Talker.
  What is trained is there a second time, in `dtype`; frozen parameters are the state's own. LoRA's changes are added where the
  weights are used, or now, where speech uses them. The next step takes the state's memory: use the model before it.
  """
  round_all = jax.jit(lambda trainable: {path: p.astype(dtype) for path, p in trainable.items()})
  trainable = round_all(state.trainable if state.ema is None else state.ema)
  params = merge_params(trainable, state.fixed, roles)
  parts = {part: params[part] for part in PARTS}
  if vocoder is not None:
    merge = jax.jit(lambda tree: jax.tree.map(lambda w: w.astype(dtype) if is_lora(w) else w, tree, is_leaf=is_lora))
    parts |= {part: merge(params[part]) for part in SPEECH_PARTS} | vocoder
  defaults = GenerationDefaults.from_folder(model, cfg.im_end_token_id)
  return Omni(cfg, parts, processor, defaults, dtype, Voice.from_folder(model))
