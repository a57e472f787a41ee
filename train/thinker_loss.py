"""What the Thinker's training sums over a batch: its losses, and counts for the metrics."""

import functools
from collections.abc import Mapping

import jax.numpy as jnp

from qwen3_omni_jax.config import OmniConfig
from qwen3_omni_jax.infer.collate import Media
from qwen3_omni_jax.models.audio_encoder import encode_audio
from qwen3_omni_jax.models.omni import join_features
from qwen3_omni_jax.models.thinker import Features, thinker_forward
from qwen3_omni_jax.models.vision_encoder import encode_vision
from qwen3_omni_jax.nn.expert_parallel import Dispatch
from qwen3_omni_jax.shapes import Array, Float, Params

from .batch import KINDS, TrainBatch
from .config import Loss, Recipe
from .losses import RouterSums, balance_loss, busiest_expert, router_sums, sums_by, token_losses, z_loss

Metrics = dict[str, Array]


def encode_media(params: Params, cfg: OmniConfig, media: Media, dtype, remat: str) -> Features:
  """Every group of media through its encoder, inside the step's program."""
  thinker = cfg.thinker
  audio = [
    encode_audio(params['audio'], thinker.audio, g.mel.astype(dtype), g.frames, g.conv_frames, g.segment, remat=remat)
    for g in media.audio
  ]
  visual = [
    encode_vision(
      params['vision'],
      thinker.vision,
      g.patches.astype(dtype),
      g.rows,
      g.cols,
      g.heights,
      g.widths,
      g.length,
      g.segment,
      remat=remat,
    )
    for g in media.visual
  ]
  return join_features(audio, visual, lanes=media.lanes)


def thinker_sums(
  params: Params, batch: TrainBatch, *, cfg: OmniConfig, recipe: Recipe, tap_layer: int | None = None
) -> tuple[Array, Metrics, Float[Array, 'B T D'] | None]:
  """(the Thinker's loss times the total weight of its targets, sums for the metrics, the tap for the Talker if asked for).

  The router's losses are means over the batch, weighted by its targets.
  """
  step_cfg, dtype = recipe.step, jnp.dtype(recipe.step.dtype)
  tokens = batch.tokens
  valid = tokens.segment != 0
  features = encode_media(params, cfg, batch.media, dtype, step_cfg.encoder_remat)
  out, sums = thinker_forward(
    params['thinker'],
    cfg.thinker,
    tokens,
    features,
    dtype=dtype,
    remat=step_cfg.remat,
    dispatch=Dispatch(buffer=step_cfg.buffer),
    router_dtype=jnp.float32,
    observe=functools.partial(router_sums, valid),
    tap_layer=tap_layer,
  )
  losses = token_losses(out.hidden, params['thinker']['head'].astype(dtype), batch.targets, recipe.loss.chunk)
  weighted = losses * batch.weights
  weight = batch.weights.sum()
  total = cross_entropy = weighted.sum()
  metrics = {
    'cross_entropy': cross_entropy,
    'weight': weight,
    'loss_by_kind': sums_by(weighted, batch.kind, len(KINDS)),
    'weight_by_kind': sums_by(batch.weights, batch.kind, len(KINDS)),
  }
  metrics |= by_source(batch, {'loss': weighted, 'weight': batch.weights})
  if sums is not None:
    text = cfg.thinker.text
    loss, router = router_losses(sums, weight, recipe.loss, text.router_aux_loss_coef, text.num_experts_per_tok)
    total = total + loss
    metrics |= router | {
      'pairs': sums.pairs,
      'routed': valid.sum().astype(jnp.float32) * (sums.lost.size * text.num_experts_per_tok),
    }
  return total, metrics, out.tap


def count_sums(batch: TrainBatch) -> Metrics:
  """Tokens, and tokens and records by source."""
  valid = batch.tokens.segment != 0
  begins = valid & (batch.tokens.positions[0] == 0)  # the first token of a record alone is at position 0
  return {'tokens': valid.sum()} | by_source(batch, {'tokens': valid, 'records': begins})


def by_source(batch: TrainBatch, of: Mapping[str, Array]) -> Metrics:
  """{'source/NAME/KEY': the sum over its tokens} of values 'B T' by key."""
  if batch.source is None:
    return {}
  sums = {key: sums_by(values, batch.source, len(batch.sources)) for key, values in of.items()}
  return {f'source/{name}/{key}': sums[key][i] for key in of for i, name in enumerate(batch.sources)}


def router_losses(sums: RouterSums, weight: Array, loss: Loss, coefficient: float, active: int) -> tuple[Array, Metrics]:
  """(the router's losses times the weight of the targets, sums for the metrics). coefficient: the checkpoint's own of the
  load-balance loss. active: experts of a token."""
  balance, z = balance_loss(sums, active, loss.balance_form), z_loss(sums)
  factor = coefficient if loss.balance is None else loss.balance
  metrics = {'balance': weight * balance, 'router_z': weight * z, 'busiest': weight * busiest_expert(sums)}
  return weight * (factor * balance + loss.z * z), metrics | {'lost': sums.lost.sum()}
