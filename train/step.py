"""One step of training: a pure function (state, batch) -> (state, metrics)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from qwen3_omni_jax.config import OmniConfig
from qwen3_omni_jax.infer.collate import Media
from qwen3_omni_jax.models.audio_encoder import encode_audio
from qwen3_omni_jax.models.omni import join_features
from qwen3_omni_jax.models.thinker import Features, thinker_forward
from qwen3_omni_jax.models.vision_encoder import encode_vision
from qwen3_omni_jax.nn.expert_parallel import Dispatch
from qwen3_omni_jax.shapes import Array, Params
from qwen3_omni_jax.sharding import batch_axes, current_mesh, length_axis, partition

from .batch import KINDS, TrainBatch
from .config import Recipe
from .losses import balance_loss, busiest_expert, by_kind, router_sums, token_losses, z_loss
from .optimiser import direction, norm, rate
from .state import Roles, TrainState, assemble, roles, state_shardings

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
  return join_features(audio, visual)


def loss_sums(
  trained: dict[str, Array], frozen: dict[str, Array], batch: TrainBatch, *, cfg: OmniConfig, recipe: Recipe, who: Roles
) -> tuple[Array, Metrics]:
  """(what is minimised, times the weight of the batch's targets; sums for the metrics). Divided by the sum of weights over all
  microbatches this is the mean over tokens, however the tokens were shared out; the router's losses are means over microbatches
  weighted by their targets."""
  how, dtype = recipe.step, jnp.dtype(recipe.step.dtype)
  params = assemble(trained, frozen, who)
  tokens = batch.tokens
  valid = tokens.segment != 0
  features = encode_media(params, cfg, batch.media, dtype, how.encoder_remat)
  out, sums = thinker_forward(
    params['thinker'],
    cfg.thinker,
    tokens,
    features,
    dtype=dtype,
    remat=how.remat,
    dispatch=Dispatch(buffer=how.buffer),
    observe=functools.partial(router_sums, valid),
  )
  losses = token_losses(out.hidden, params['thinker']['head'].astype(dtype), batch.targets, recipe.loss.chunk)
  weighted = losses * batch.weights
  weight = batch.weights.sum()
  total = cross_entropy = weighted.sum()
  metrics = {
    'cross_entropy': cross_entropy,
    'weight': weight,
    'tokens': valid.sum(),
    'loss_by_kind': by_kind(weighted, batch.kind),
    'weight_by_kind': by_kind(batch.weights, batch.kind),
  }
  if sums is not None:
    balance, z = balance_loss(sums, cfg.thinker.text.num_experts_per_tok), z_loss(sums)
    factor = cfg.thinker.text.router_aux_loss_coef if recipe.loss.balance is None else recipe.loss.balance
    total = total + weight * (factor * balance + recipe.loss.z * z)
    busiest = busiest_expert(sums)
    metrics |= {'balance': weight * balance, 'router_z': weight * z, 'busiest': weight * busiest, 'lost': sums.lost.sum()}
  return total, metrics | {'total': total}


def make_step(cfg: OmniConfig, recipe: Recipe) -> Callable[[TrainState, TrainBatch], tuple[TrainState, Metrics]]:
  """The step as a pure function. With recipe.step.accumulate = M > 1, every array of the batch has M in front: microbatches.

  Metrics are scalars: loss (mean over weighted targets, with the router's losses), cross_entropy, balance, router_z, busiest
  (load of the busiest expert, 1 = balanced), lost, grad_norm (before clipping), rate (share of the highest), skipped (steps so
  far), tokens, weight, and cross_entropy and weight by kind of record.
  """
  who = roles(cfg, recipe)
  towards = direction(recipe.optimiser, who.trained_specs)
  sums_of = functools.partial(loss_sums, cfg=cfg, recipe=recipe, who=who)

  def step(state: TrainState, batch: TrainBatch) -> tuple[TrainState, Metrics]:
    grads, sums = _gradients(sums_of, state, batch, recipe, who)
    weight = jnp.where(sums['weight'] > 0, sums['weight'], 1)
    grads = jax.tree.map(lambda g: g.astype(jnp.float32) / weight, grads)
    size = norm(grads)
    clipped = _clip(grads, size, recipe.optimiser.clip)
    directions: Any
    with jax.numpy_dtype_promotion('standard'):  # optax is not written for strict promotion
      directions, optimiser = towards.update(clipped, state.optimiser, state.trained)
    share = rate(recipe.optimiser, recipe.steps, state.step)
    trained = {path: moved(state.trained[path], directions[path], share, path, who) for path in state.trained}
    new, old = (trained, optimiser, _averaged(state.ema, trained, recipe.step.ema)), (state.trained, state.optimiser, state.ema)
    skipped = state.skipped
    if recipe.step.skip_nonfinite:
      fine = jnp.isfinite(size) & jnp.isfinite(sums['total'])
      new = jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, old)
      skipped = skipped + jnp.where(fine, 0, 1)
    trained, optimiser, ema = new
    state = state.replace(step=state.step + 1, trained=trained, optimiser=optimiser, ema=ema, skipped=skipped)
    return state, _metrics(sums, weight, size, share, skipped)

  return step


def _gradients(sums_of, state: TrainState, batch: TrainBatch, recipe: Recipe, who: Roles) -> tuple[dict[str, Array], Metrics]:
  """Of the weighted sum of losses, with the sums of the metrics."""
  dtype = jnp.dtype(recipe.step.dtype)
  compute = {path: p.astype(dtype) for path, p in state.trained.items()}  # rounded before they are gathered: half the traffic
  gradient = jax.value_and_grad(sums_of, has_aux=True)
  if recipe.step.accumulate == 1:
    (_, sums), grads = gradient(compute, state.frozen, shard_batch(batch))
    return grads, sums

  def one(total, micro):
    (_, sums), grads = gradient(compute, state.frozen, shard_batch(micro))
    return {path: _held(total[path] + g.astype(jnp.float32), path, who) for path, g in grads.items()}, sums

  zeros = {path: _held(jnp.zeros(p.shape, jnp.float32), path, who) for path, p in compute.items()}
  grads, sums = jax.lax.scan(one, zeros, batch)
  return grads, jax.tree.map(lambda x: x.sum(axis=0), sums)


def _held(x: Array, path: str, who: Roles) -> Array:
  """Sums of gradients lie as their parameters do; the partitioner would keep them whole on every device."""
  mesh = current_mesh()
  return x if mesh is None else jax.lax.with_sharding_constraint(x, partition(who.specs[path].axes, mesh))


def shard_batch(batch: TrainBatch) -> TrainBatch:
  """The batch held by rows (of tokens and of media) on the mesh in force."""
  mesh = current_mesh()
  return batch if mesh is None else jax.lax.with_sharding_constraint(batch, batch_specs(batch, mesh))


def batch_specs(batch: Any, mesh, stacked: bool = False) -> Any:
  """A PartitionSpec for every array of a TrainBatch (arrays or shapes): rows over the batch axes, tokens also by length.
  stacked: with microbatches in front."""
  lead = (None,) if stacked else ()
  shape = lambda x: x.shape[len(lead) :]
  rows = lambda x: PartitionSpec(*lead, batch_axes(shape(x)[0], mesh) or None)
  tokens = lambda x: PartitionSpec(*lead, batch_axes(shape(x)[-2], mesh) or None, length_axis(shape(x)[-1], mesh))
  specs = jax.tree.map(tokens, batch.replace(media=Media()))
  place = PartitionSpec(*lead, None, *tokens(batch.tokens.ids)[len(lead) :])
  return specs.replace(media=jax.tree.map(rows, batch.media), tokens=specs.tokens.replace(positions=place))


def _clip(grads: dict[str, Array], size: Array, largest: float) -> dict[str, Array]:
  if not largest:
    return grads
  factor = jnp.minimum(1.0, largest / jnp.maximum(size, 1e-12))
  return {path: g * factor for path, g in grads.items()}


def moved(p: Array, towards: Array, share: Array, path: str, who: Roles) -> Array:
  part = who.trained[path]
  decay = part.weight_decay if who.specs[path].init == 'normal' else 0.0  # matrices alone
  return p - share * part.lr * (towards.astype(jnp.float32) + decay * p)


def _averaged(ema, trained, decay: float):
  return None if ema is None else {path: decay * ema[path] + (1 - decay) * p for path, p in trained.items()}


def _metrics(sums: Metrics, weight: Array, size: Array, share: Array, skipped: Array) -> Metrics:
  means = {name: sums[name] / weight for name in ('total', 'cross_entropy', 'balance', 'router_z', 'busiest') if name in sums}
  metrics = {'loss': means.pop('total'), **means, 'grad_norm': size, 'rate': share, 'skipped': skipped}
  metrics |= {name: sums[name] for name in ('lost', 'tokens', 'weight') if name in sums}
  for i, kind in enumerate(KINDS):
    metrics[f'weight/{kind}'] = sums['weight_by_kind'][i]
    metrics[f'cross_entropy/{kind}'] = sums['loss_by_kind'][i] / jnp.maximum(sums['weight_by_kind'][i], 1e-9)
  return metrics


def compiled_step(
  cfg: OmniConfig, recipe: Recipe, mesh, compiler_options: dict[str, Any] | None = None
) -> Callable[[TrainState, TrainBatch], tuple[TrainState, Metrics]]:
  """The step jitted for a mesh: the state's layout kept, its memory reused."""
  out = (state_shardings(cfg, recipe, mesh), NamedSharding(mesh, PartitionSpec()))
  run = jax.jit(make_step(cfg, recipe), donate_argnums=0, out_shardings=out, compiler_options=compiler_options)

  @functools.wraps(run)
  def step(state, batch):
    with jax.set_mesh(mesh):
      return run(state, batch)

  return step


def eval_sums(cfg: OmniConfig, recipe: Recipe) -> Callable[[TrainState, TrainBatch], Metrics]:
  """(state, batch) -> sums of cross-entropy and weights, in all and by kind, of the averaged weights where they are kept."""
  who = roles(cfg, recipe)

  def run(state: TrainState, batch: TrainBatch) -> Metrics:
    trained = state.trained if state.ema is None else state.ema
    compute = {path: p.astype(jnp.dtype(recipe.step.dtype)) for path, p in trained.items()}
    _, sums = loss_sums(compute, state.frozen, shard_batch(batch), cfg=cfg, recipe=recipe, who=who)
    return {name: sums[name] for name in ('cross_entropy', 'weight', 'loss_by_kind', 'weight_by_kind')}

  return run
