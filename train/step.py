"""One step of training: a pure function (state, batch) -> (state, metrics)."""

import functools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from qwen3_omni_jax.config import OmniConfig
from qwen3_omni_jax.infer.collate import Media
from qwen3_omni_jax.shapes import Array, Params
from qwen3_omni_jax.sharding import batch_axes, current_mesh, length_axis, partition

from .batch import KINDS, TrainBatch
from .config import Recipe, Step
from .optimiser import make_schedule
from .router_bias import take_back, update_bias
from .speech_loss import joint_sums, total_weights
from .speech_metrics import speech_metrics
from .state import Roles, TrainState, assign_roles, build_optimiser, merge_params, state_shardings
from .thinker_loss import Metrics, count_sums, thinker_sums

EMBEDDINGS = ('thinker/embed', 'talker/embed', 'code_predictor/embed')
NORM_WEIGHT = 0.02  # of a step in the running mean of the gradient's norm: of about the last 50


def loss_sums(
  trainable: dict[str, Array],
  frozen: dict[str, Array],
  batch: TrainBatch,
  totals: Metrics | None = None,
  key: Array | None = None,
  *,
  cfg: OmniConfig,
  recipe: Recipe,
  roles: Roles,
) -> tuple[Array, Metrics]:
  """(the loss times the total weight of the batch's targets, sums for the metrics).

  Divided by the sum of weights over all microbatches this is the mean over tokens, however the tokens are divided into
  microbatches; the router's losses are means over microbatches weighted by their targets. With recipe.speech the loss is a sum of
  such means, divided already: by `totals`, of the whole step (speech_loss.total_weights; None: of this batch); key: see there.
  """
  params = merge_params(trainable, frozen, roles)
  if recipe.speech is None:
    total, metrics, _ = thinker_sums(params, batch, cfg=cfg, recipe=recipe)
  else:
    totals = total_weights(batch, cfg) if totals is None else totals
    learns = roles.learns('audio', 'vision', 'thinker')
    total, metrics = joint_sums(params, batch, totals, key, cfg=cfg, recipe=recipe, thinker_learns=learns)
  return total, metrics | count_sums(batch) | {'total': total}


def make_step(cfg: OmniConfig, recipe: Recipe) -> Callable[[TrainState, TrainBatch], tuple[TrainState, Metrics]]:
  """The step as a pure function. With recipe.step.accumulate = M > 1, every array of the batch has M in front: microbatches.

  Metrics are scalars: loss (mean over weighted targets, with the router's losses), cross_entropy, balance, router_z, busiest
  (load of the busiest expert, 1 = balanced), lost and lost_share (of the pairs of token and expert), router_bias (the largest, if
  there are any), grad_norm (before clipping), rate (share of the highest), skipped (steps so far) and skipped_in_a_row, tokens,
  weight, cross_entropy and weight by kind of record, and by source those, records and tokens.
  """
  roles = assign_roles(cfg, recipe)
  optimiser, schedule = build_optimiser(recipe, roles), make_schedule(recipe.optimiser, recipe.steps)
  sums_fn = functools.partial(loss_sums, cfg=cfg, recipe=recipe, roles=roles)

  def step(state: TrainState, batch: TrainBatch) -> tuple[TrainState, Metrics]:
    grads, sums = _gradients(sums_fn, state, batch, cfg, recipe, roles)
    weight = jnp.where(sums['weight'] > 0, sums['weight'], 1) if recipe.speech is None else jnp.float32(1)
    grads = jax.tree.map(lambda g: g.astype(jnp.float32) / weight, grads)
    grads = {path: roles.only_trained_rows(path, g) for path, g in grads.items()}
    grad_norm = optax.tree.norm(grads)
    with jax.numpy_dtype_promotion('standard'):  # optax is not written for strict promotion
      found: Any = optimiser.update(grads, state.optimiser, state.trainable, step=state.step)
      updates, moments = found
      updates = {path: roles.only_trained_rows(path, u, -0.0) for path, u in updates.items()}  # x + -0.0 is x, for -0.0 too
      trainable = optax.apply_updates(state.trainable, updates)
      rate = jnp.float32(schedule(state.step))
    bias = update_bias(state.router_bias, sums.get('pairs'), state.step, recipe)
    ema = update_ema(state.ema, trainable, recipe.step.ema)
    new = state.replace(trainable=trainable, optimiser=moments, ema=ema, router_bias=bias)
    state = take_unless_bad(state, new, grad_norm, sums['total'], recipe.step)
    state = state.replace(step=state.step + 1, router_bias=take_back(state.router_bias, state.step, recipe))
    return state, _metrics(sums, weight, grad_norm, rate, state)

  return step


def _gradients(
  sums_fn, state: TrainState, batch: TrainBatch, cfg: OmniConfig, recipe: Recipe, roles: Roles
) -> tuple[dict[str, Array], Metrics]:
  """Of the weighted sum of losses, with the sums of the metrics."""
  params = compute_params(state.trainable, jnp.dtype(recipe.step.dtype))
  gradient = jax.value_and_grad(sums_fn, has_aux=True)
  totals = key = None
  if recipe.speech is not None:
    totals, key = total_weights(batch, cfg), step_key(recipe, state.step)
  if recipe.step.accumulate == 1:
    (_, sums), grads = gradient(params, state.fixed, shard_batch(batch), totals, key)
    return grads, sums

  def accumulate(total, inputs):
    micro, number = inputs
    own = None if key is None else jax.random.fold_in(key, number)
    (_, sums), grads = gradient(params, state.fixed, shard_batch(micro), totals, own)
    return {path: _shard_like_param(total[path] + g.astype(jnp.float32), path, roles) for path, g in grads.items()}, sums

  zeros = {path: _shard_like_param(jnp.zeros(p.shape, jnp.float32), path, roles) for path, p in params.items()}
  grads, sums = jax.lax.scan(accumulate, zeros, (batch, jnp.arange(recipe.step.accumulate)))
  return grads, jax.tree.map(lambda x: x.sum(axis=0), sums)


def step_key(recipe: Recipe, step: Array) -> Array:
  """Of a step's choice of frames: the same whenever the run comes by it."""
  return jax.random.fold_in(jax.random.fold_in(jax.random.key(recipe.seed), zlib.crc32(b'frames')), step)


def compute_params(trainable: dict[str, Array], dtype) -> dict[str, Array]:
  """The trainable parameters as the networks take them: rounded before they are gathered, which halves the traffic.

  Tables of embeddings stay float32, so that the gradients of a token that occurs thousands of times are summed in float32
  (256 ones summed in bfloat16 are 256, and so are 4,096); their rows are rounded once they are looked up. So do the routers,
  whose logits are computed in float32.
  """
  keep = lambda path: path in EMBEDDINGS or path.endswith('/router')
  return {path: p if keep(path) else p.astype(dtype) for path, p in trainable.items()}


def _shard_like_param(x: Array, path: str, roles: Roles) -> Array:
  """Shards a sum of gradients as its parameter; the partitioner would keep it whole on every device."""
  mesh = current_mesh()
  return x if mesh is None else jax.lax.with_sharding_constraint(x, partition(roles.specs[path].axes, mesh))


def shard_batch(batch: TrainBatch) -> TrainBatch:
  """The batch sharded by rows (of tokens and of media) on the current mesh."""
  mesh = current_mesh()
  return batch if mesh is None else jax.lax.with_sharding_constraint(batch, batch_specs(batch, mesh))


def batch_specs(batch: Any, mesh, stacked: bool = False) -> Any:
  """A PartitionSpec for every array of a TrainBatch (arrays or shapes): rows over the batch axes, tokens also by length.
  stacked: with microbatches in front."""
  lead = (None,) if stacked else ()
  shape = lambda x: x.shape[len(lead) :]
  rows = lambda x: PartitionSpec(*lead, batch_axes(shape(x)[0], mesh) or None)
  tokens = lambda x: PartitionSpec(*lead, batch_axes(shape(x)[-2], mesh) or None, length_axis(shape(x)[-1], mesh))
  specs = jax.tree.map(tokens, batch.replace(media=Media(), speech=None))
  place = PartitionSpec(*lead, None, *tokens(batch.tokens.ids)[len(lead) :])
  speech = jax.tree.map(rows, batch.speech)
  if speech is not None:
    speech = speech.replace(positions=PartitionSpec(*lead, None, *speech.text[len(lead) :]))
  return specs.replace(media=jax.tree.map(rows, batch.media), tokens=specs.tokens.replace(positions=place), speech=speech)


def update_ema(ema: Params | None, trainable: Params, decay: float) -> Any:
  """The averages after a step; None if there are none. (optax.ema averages updates, not parameters.)"""
  return None if ema is None else optax.incremental_update(trainable, ema, 1 - decay)


def take_unless_bad(old: TrainState, new: TrainState, grad_norm: Array, total: Array, step_cfg: Step) -> TrainState:
  """`new`, or `old` if the step was bad: its loss or gradient not finite, or the gradient's norm a spike."""
  if not step_cfg.skip_nonfinite and not step_cfg.spike:
    return new
  bad = jnp.zeros((), bool)
  if step_cfg.skip_nonfinite:
    bad |= ~(jnp.isfinite(grad_norm) & jnp.isfinite(total))
  if step_cfg.spike:
    bad |= (old.usual_norm > 0) & ~(grad_norm <= step_cfg.spike * old.usual_norm)
  mean = jnp.where(old.usual_norm > 0, (1 - NORM_WEIGHT) * old.usual_norm + NORM_WEIGHT * grad_norm, grad_norm)
  new = new.replace(usual_norm=mean, skipped_in_a_row=jnp.zeros_like(old.skipped_in_a_row))
  old = old.replace(skipped=old.skipped + 1, skipped_in_a_row=old.skipped_in_a_row + 1)
  choose = lambda a, b: jnp.where(bad, a, b)
  frozen = new.frozen  # which no step changes
  return jax.tree.map(choose, old.replace(frozen={}), new.replace(frozen={})).replace(frozen=frozen)


def _metrics(sums: Metrics, weight: Array, grad_norm: Array, rate: Array, state: TrainState) -> Metrics:
  """weight: by which the loss is yet to be divided."""
  metrics = {'loss': sums['total'] / weight, 'grad_norm': grad_norm, 'rate': rate}
  if 'weight' in sums:
    of_text = jnp.where(sums['weight'] > 0, sums['weight'], 1)
    metrics |= {name: sums[name] / of_text for name in ('cross_entropy', 'balance', 'router_z', 'busiest') if name in sums}
  metrics |= {'skipped': state.skipped, 'skipped_in_a_row': state.skipped_in_a_row}
  metrics |= {name: sums[name] for name in ('lost', 'tokens', 'weight') if name in sums}
  if 'lost' in sums:
    metrics['lost_share'] = sums['lost'].astype(jnp.float32) / jnp.maximum(sums['routed'], 1)
  if state.router_bias is not None:
    metrics['router_bias'] = jnp.abs(state.router_bias).max()
  for i, kind in enumerate(KINDS if 'weight_by_kind' in sums else ()):
    metrics[f'weight/{kind}'] = sums['weight_by_kind'][i]
    metrics[f'cross_entropy/{kind}'] = sums['loss_by_kind'][i] / jnp.maximum(sums['weight_by_kind'][i], 1e-9)
  if 'speech' in sums:
    metrics |= speech_metrics(sums['speech'])
  for name, value in sums.items():
    source, _, key = name.rpartition('/')
    if key == 'loss':
      metrics[f'{source}/cross_entropy'] = value / jnp.maximum(sums[f'{source}/weight'], 1e-9)
    elif source:
      metrics[name] = value
  return metrics


def jitted_step(cfg: OmniConfig, recipe: Recipe, mesh) -> Any:
  """The step jitted for a mesh: the state's layout kept, its memory reused. step.xla goes to the compiler."""
  out = (state_shardings(cfg, recipe, mesh), NamedSharding(mesh, PartitionSpec()))
  return jax.jit(make_step(cfg, recipe), donate_argnums=0, out_shardings=out, compiler_options=recipe.step.compiler_options)


def compiled_step(cfg: OmniConfig, recipe: Recipe, mesh) -> Callable[[TrainState, TrainBatch], tuple[TrainState, Metrics]]:
  """jitted_step with the mesh set around each call."""
  run = jitted_step(cfg, recipe, mesh)

  @functools.wraps(run)
  def step(state, batch):
    with jax.set_mesh(mesh):
      return run(state, batch)

  return step


def eval_sums(cfg: OmniConfig, recipe: Recipe) -> Callable[[TrainState, TrainBatch], Metrics]:
  """(state, batch) -> sums of cross-entropy and weights, in all and by kind, and of speech (all frames of it), of the averaged
  weights where they are kept."""
  roles = assign_roles(cfg, recipe)

  def run(state: TrainState, batch: TrainBatch) -> Metrics:
    trainable = state.trainable if state.ema is None else state.ema
    params = compute_params(trainable, jnp.dtype(recipe.step.dtype))
    _, sums = loss_sums(params, state.fixed, shard_batch(batch), cfg=cfg, recipe=recipe, roles=roles)
    return {name: sums[name] for name in ('cross_entropy', 'weight', 'loss_by_kind', 'weight_by_kind', 'speech') if name in sums}

  return run
