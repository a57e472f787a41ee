"""How gradients become updates: optax gives the direction, each parameter's part its learning rate and weight decay.

    parameter -= lr(part, step) * (update + weight_decay(part) * parameter)

The learning rate is applied here, not by optax, so that it follows the run's step count also when a step was skipped, and so that
one optimiser state serves parts with different rates.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from qwen3_omni_jax.nn.int8 import summed_axes
from qwen3_omni_jax.nn.params import Param
from qwen3_omni_jax.shapes import Array, Float, Int

from .config import Optimiser

_MUON_RMS = 0.2  # of a step's entries, as Adam's are about; from "Muon is scalable for LLM training", section 2.2


def make_transform(cfg: Optimiser, specs: Mapping[str, Param]) -> optax.GradientTransformation:
  """The optax transformation, without the learning rate. specs: of the trainable parameters, by path."""
  adam = optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps, mu_dtype=cfg.dtype)
  if cfg.name == 'adamw':
    return adam
  if cfg.name == 'adafactor':
    return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
  if cfg.name != 'muon':
    raise ValueError(f'optimiser.name {cfg.name!r}: expected adamw, adafactor or muon')
  axes = {path: _matrix_axes(path, param) for path, param in specs.items()}
  labels = {path: 'adam' if axes[path] is None else 'muon' for path in specs}
  scales = {path: _muon_scale(param, axes[path]) for path, param in specs.items()}
  masked = lambda leaf: isinstance(leaf, optax.MaskedNode)
  dimensions: Any = lambda params: {path: p if masked(p) else axes[path] for path, p in params.items()}
  scaled: Any = lambda updates, _: {path: u if masked(u) else u * scales[path] for path, u in updates.items()}
  orthogonal = optax.chain(
    contrib.scale_by_muon(beta=cfg.b2, mu_dtype=cfg.dtype, weight_dimension_numbers=dimensions),
    optax.stateless(scaled),
  )
  return optax.partition({'adam': adam, 'muon': orthogonal}, labels)


def _matrix_axes(path: str, param: Param) -> Any:
  """What Muon makes orthogonal: matrices of layers. Embeddings, the head, norms, biases and convolutions go to Adam."""
  if path.startswith('lora/'):
    n = len(param.shape)
    return contrib.MuonDimensionNumbers((n - 2,), (n - 1,))
  inputs = summed_axes(path, param)
  if not inputs or path.endswith('/head'):
    return None
  return contrib.MuonDimensionNumbers(inputs, tuple(range(inputs[-1] + 1, len(param.shape))))


def _muon_scale(param: Param, axes: Any) -> float:
  """An orthogonal matrix of rows x columns has entries of 1/sqrt(max(rows, columns)) in the mean."""
  if axes is None:
    return 1.0
  return _MUON_RMS * math.sqrt(max(math.prod(param.shape[a] for a in side) for side in (axes.reduction_axis, axes.output_axis)))


def lr_factor(cfg: Optimiser, steps: int, step: Int[Array, '']) -> Float[Array, '']:
  """Learning rate at a step, as a share of the highest: up to 1 in `warmup` steps, then down to `final` at the last."""
  at = step.astype(jnp.float32)
  warm = jnp.minimum((at + 1) / max(cfg.warmup, 1), 1.0)
  done = jnp.clip((at - cfg.warmup) / max(steps - cfg.warmup - 1, 1), 0.0, 1.0)
  if cfg.schedule == 'cosine':
    left = 0.5 * (1 + jnp.cos(jnp.pi * done))
  elif cfg.schedule == 'linear':
    left = 1 - done
  elif cfg.schedule == 'constant':
    return warm
  else:
    raise ValueError(f'optimiser.schedule {cfg.schedule!r}: expected cosine, linear or constant')
  return warm * (cfg.final + (1 - cfg.final) * left)


def global_norm(tree) -> Float[Array, '']:
  """Square root of the sum of all squares, float32."""
  return jnp.sqrt(sum(jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(tree)))
