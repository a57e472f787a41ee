"""How gradients become updates: one optax chain, clip -> direction -> weight decay and learning rate of each part.

    parameter += -lr(part, step) * (direction + weight_decay(part) * parameter)

The rate follows the run's step count, which also counts skipped steps; the chain is told it (`update(..., step=)`). Apart from
moments and the counts of their bias correction the chain has no state, so what is saved does not depend on how parts are divided.

Non-finite and spiking steps are left out around the chain (step.py) and not by optax.apply_if_finite, which takes a non-finite
update after all once there were enough of them, sees neither the loss nor the averages, and knows no spikes.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import optax
from optax import contrib

from qwen3_omni_jax.nn.int8 import matrix_axes
from qwen3_omni_jax.nn.params import Param

from .config import Optimiser, Part

DISCRIMINATORS = 'discriminators/'
_MUON_RMS = 0.2  # of a step's entries, as Adam's are about; from "Muon is scalable for LLM training", section 2.2


def make_optimiser(
  cfg: Optimiser, steps: int, specs: Mapping[str, Param], parts: Mapping[str, Part]
) -> optax.GradientTransformationExtraArgs:
  """The optax chain; its `update` takes the run's step as `step`. specs, parts: of the trainable parameters, by path.

  Parameters under `discriminators/` are clipped by a norm of their own and have moments and a count of their own, so that they
  may learn in other steps than the rest.
  """
  rates = ('rate', _rates(cfg, steps, specs, parts))
  clip = optax.clip_by_global_norm(cfg.clip) if cfg.clip else optax.identity()
  judges = {path: path.startswith(DISCRIMINATORS) for path in specs}
  if not any(judges.values()):
    return optax.named_chain(('clip', clip), *_directions(cfg, specs), rates)
  others = {path: not judge for path, judge in judges.items()}
  clips = optax.chain(optax.masked(clip, others), optax.masked(clip, judges))
  adam = optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps, mu_dtype=cfg.dtype)
  of_others, of_judges = optax.masked(adam, others), optax.masked(adam, judges)
  return optax.named_chain(('clip', clips), ('adam', of_others), (DISCRIMINATORS[:-1], of_judges), rates)


def _directions(cfg: Optimiser, specs: Mapping[str, Param]) -> list[tuple[str, optax.GradientTransformation]]:
  """What has moments, by the name under which they are saved."""
  adam = optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps, mu_dtype=cfg.dtype)
  if cfg.name == 'adamw':
    return [('adam', adam)]
  if cfg.name == 'adafactor':
    return [('adafactor', optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)))]
  axes = {path: _matrix_axes(path, param) for path, param in specs.items()}
  scales = {path: _muon_scale(param, axes[path]) for path, param in specs.items()}
  hidden = lambda leaf: isinstance(leaf, optax.MaskedNode)
  dimensions: Any = lambda params: {path: p if hidden(p) else axes[path] for path, p in params.items()}
  scaled: Any = lambda updates, _: {path: u if hidden(u) else u * scales[path] for path, u in updates.items()}
  orthogonal = optax.chain(
    contrib.scale_by_muon(beta=cfg.b2, mu_dtype=cfg.dtype, weight_dimension_numbers=dimensions),
    optax.stateless(scaled),
  )
  return [
    ('adam', optax.masked(adam, {path: axes[path] is None for path in specs})),
    ('muon', optax.masked(orthogonal, {path: axes[path] is not None for path in specs})),
  ]


def _rates(
  cfg: Optimiser, steps: int, specs: Mapping[str, Param], parts: Mapping[str, Part]
) -> optax.GradientTransformationExtraArgs:
  """Weight decay of matrices (not of norms and biases) and the learning rate, by part."""
  numbers = {part: i for i, part in enumerate(dict.fromkeys(parts.values()))}
  decays = {path: specs[path].init == 'normal' and bool(part.weight_decay) for path, part in parts.items()}
  label = lambda part, decayed: f'{numbers[part]}{" decayed" if decayed else ""}'
  transforms = {}
  for part in numbers:
    rate = _scale_by_rate(make_schedule(cfg, steps, part), part.lr)
    transforms[label(part, False)] = rate
    transforms[label(part, True)] = optax.chain(optax.add_decayed_weights(part.weight_decay), rate)
  return optax.partition(transforms, {path: label(part, decays[path]) for path, part in parts.items()})


def _scale_by_rate(schedule: optax.Schedule, highest: float) -> optax.GradientTransformationExtraArgs:
  """Without a count of its own, unlike optax.scale_by_learning_rate."""

  def update(updates, state, params=None, *, step, **_):
    rate = -highest * schedule(step)
    return jax.tree.map(lambda u: rate * u, updates), state

  return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _matrix_axes(path: str, param: Param) -> Any:
  """What Muon makes orthogonal: matrices of layers. Embeddings, the head, norms, biases and convolutions go to Adam."""
  if path.startswith('lora/'):
    n = len(param.shape)
    return contrib.MuonDimensionNumbers((n - 2,), (n - 1,))
  inputs = matrix_axes(path, param)
  if not inputs or path.endswith('/head'):
    return None
  return contrib.MuonDimensionNumbers(inputs, tuple(range(inputs[-1] + 1, len(param.shape))))


def _muon_scale(param: Param, axes: Any) -> float:
  """An orthogonal matrix of rows x columns has entries of 1/sqrt(max(rows, columns)) in the mean."""
  if axes is None:
    return 1.0
  return _MUON_RMS * math.sqrt(max(math.prod(param.shape[a] for a in side) for side in (axes.reduction_axis, axes.output_axis)))


def make_schedule(cfg: Optimiser, steps: int, part: Part | None = None) -> optax.Schedule:
  """Learning rate at a step, as a share of the highest: up to 1 in `warmup` steps, then to `final` at the last of `steps`.

  part: what it says of its own schedule goes before what the optimiser says.
  """
  own = lambda name: getattr(cfg, name) if part is None or getattr(part, name) is None else getattr(part, name)
  kind, warmup, final = own('schedule'), own('warmup'), own('final')
  left = max(steps - warmup - 1, 1)
  if kind == 'cosine':
    after = optax.cosine_decay_schedule(1.0, left, alpha=final)
  elif kind == 'linear':
    after = optax.linear_schedule(1.0, final, left)
  elif kind == 'wsd':
    decay = min(max(round(own('decay') * steps), 1), left)
    after = optax.linear_schedule(1.0, final, decay, transition_begin=left - decay)
  else:
    after = optax.constant_schedule(1.0)
  if warmup < 2:  # the first step has the whole rate
    return optax.join_schedules([optax.constant_schedule(1.0), after], [warmup])
  return optax.join_schedules([optax.linear_schedule(1 / warmup, 1.0, warmup - 1), after], [warmup])


def moments_by_name(state: optax.OptState) -> dict[str, Any]:
  """{'adam/mu/PATH': leaf, 'adam/count': …} of a state of the chain (arrays, shapes or shardings).

  Names hold that of the chain's member, of the moment and of the parameter; not where they lie in optax's tuples.
  """
  named = {}
  for at, leaf in jax.tree_util.tree_leaves_with_path(state):
    name = moment_name(at)
    assert name not in named, name
    named[name] = leaf
  return named


def moment_name(at: tuple) -> str:
  """Of the leaf at a key path of the chain's state."""
  words = [str(key.key) if isinstance(key, jax.tree_util.DictKey) else getattr(key, 'name', '') for key in at]
  return '/'.join(word for word in words if word and not word.startswith('inner_state'))
