"""Balance of experts without a loss (arXiv 2408.15664; DeepSeek-V3, section 2.1.2): a bias of every expert of every layer.

It is added to the router's probabilities where experts are selected, and nowhere else: outputs are weighted by the probabilities
alone. After each step it goes up by `loss.bias_update` for experts that got fewer pairs of token and expert than the mean, and
down for those that got more. The published layout has no place for it. So it is held from the share `loss.bias_until` of the
steps on and taken back linearly to 0 at the last one: the model that a complete run leaves is exact without it.
"""

import jax.numpy as jnp

from qwen3_omni_jax.config import OmniConfig
from qwen3_omni_jax.shapes import Array, Float, Int

from .config import Recipe

PATH = 'thinker/layers/moe/router_bias'  # of nn.moe's parameters, in the Thinker's stacked layers


def bias_shape(cfg: OmniConfig, recipe: Recipe) -> tuple[int, int] | None:
  """Layers and experts; None if the recipe has no bias. Raises ValueError for a model without experts."""
  if not recipe.loss.bias_update:
    return None
  text = cfg.thinker.text
  if not text.num_experts:
    raise ValueError('loss.bias_update: this model has no experts to balance; leave it out')
  return text.num_hidden_layers, text.num_experts


def update_bias(
  bias: Float[Array, 'L E'] | None, pairs: Float[Array, 'L E'] | None, step: Int[Array, ''], recipe: Recipe
) -> Float[Array, 'L E'] | None:
  """The bias after a step that was taken. pairs: of every expert in all of the step. step: how many there were before it."""
  if bias is None:
    return None
  if pairs is None:
    raise ValueError('loss.bias_update: the Thinker does not learn from these data; leave it out')
  rate = jnp.where(step < _until(recipe), jnp.float32(recipe.loss.bias_update), 0)
  return bias + rate * jnp.sign(pairs.mean(axis=-1, keepdims=True) - pairs)


def take_back(bias: Float[Array, 'L E'] | None, step: Int[Array, ''], recipe: Recipe) -> Float[Array, 'L E'] | None:
  """The bias after any step, a skipped one too, which is one of those that are left. step: how many there were before it."""
  if bias is None:
    return None
  left = jnp.maximum(recipe.steps - step, 1).astype(jnp.float32)
  return bias * jnp.where(step < _until(recipe), 1, jnp.maximum(left - 1, 0) / left)


def _until(recipe: Recipe) -> int:
  return round(recipe.loss.bias_until * recipe.steps)
