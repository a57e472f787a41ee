"""The KV cache: an explicit pytree, made by a function of the config, passed in and returned."""

import math

import flax.struct
import jax
import jax.numpy as jnp

from ..config import TextConfig
from ..shapes import Array, Float


class KVCache(flax.struct.PyTreeNode):
  """Keys and values of every layer, a head's slots side by side: attention reads them as they lie.

  Which slots are valid is the caller's to know (attention takes it as segment ids).
  """

  k: Float[Array, 'L B K S H']
  v: Float[Array, 'L B K S H']

  @property
  def slots(self) -> int:
    return self.k.shape[3]


def init_cache(cfg: TextConfig, batch: int, slots: int, dtype=jnp.bfloat16) -> KVCache:
  """An empty cache of `slots` token positions per row."""
  shape = (cfg.num_hidden_layers, batch, cfg.num_key_value_heads, slots, cfg.head_dim)
  return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def cache_bytes_per_token(cfg: TextConfig, dtype=jnp.bfloat16) -> int:
  """Bytes one token position takes, over all layers (98,304 for the released Thinker in bf16)."""
  cache = jax.eval_shape(lambda: init_cache(cfg, 1, 1, dtype))
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in (cache.k, cache.v))
