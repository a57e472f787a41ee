"""Rotary position embedding: ordinary, multimodal (three axes, interleaved) and two-dimensional.

Angles are float32 whatever the activations are: positions reach tens of thousands and may be fractional (video time), and bf16
rounds 257 to 256.
"""

import jax.numpy as jnp
import numpy as np

from ..shapes import Array, Float


def frequencies(head_dim: int, theta: float) -> np.ndarray:
  """theta ** (-2k/head_dim) for k = 0 .. head_dim/2, float32."""
  return (1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim))).astype(np.float32)


def angles(positions: Array, head_dim: int, theta: float) -> Float[Array, '*b H2']:
  """Angle of each frequency at each position (any leading shape), float32."""
  return positions[..., None].astype(jnp.float32) * frequencies(head_dim, theta)


def mrope_angles(
  positions: Float[Array, '3 B T'], head_dim: int, theta: float, sections: tuple[int, ...]
) -> Float[Array, 'B T H2']:
  """Angles from (time, height, width) positions.

  Frequencies are dealt out in turn, t h w t h w …, until height and width have their section; the rest stays with time.
  The reference interleaves like this whatever the config's `interleaved` flags say.
  """
  axis = np.zeros(head_dim // 2, np.int32)
  for a in (1, 2):
    axis[a : 3 * sections[a] : 3] = a
  per_axis = angles(positions, head_dim, theta)  # 3 B T H2
  return jnp.where(axis == 1, per_axis[1], jnp.where(axis == 2, per_axis[2], per_axis[0]))


def rotate(x: Float[Array, 'B T N H'], angle: Float[Array, 'B T H2']) -> Float[Array, 'B T N H']:
  """x with its two halves rotated against each other, in float32. The reference does so in its vision encoder; in its language
  models it rounds cos, sin and every product to x.dtype."""
  cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
  left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)
