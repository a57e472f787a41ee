"""SnakeBeta, the activation of convolutions that make sound, with a gradient of its own.

The derivatives are written out: the polynomial is computed once for all three, and its sums over time read an array instead of
computing it again (benchmarks/code2wav_gradient.py).
"""

import jax
import jax.numpy as jnp
import numpy as np

from ..shapes import Array, Float


@jax.custom_vjp
def snake_beta(x: Float[Array, 'B T C'], alpha: Float[Array, ' C'], beta: Float[Array, ' C']) -> Float[Array, 'B T C']:
  """x + sin(x e^alpha)^2 / (e^beta + 1e-9), in float32.

  The sine is squared, so its sign, and with it the quadrant, is of no interest: the angle is reduced to [-pi/2, pi/2]
  and a polynomial (Taylor to the 11th power, error below 6e-8 there) takes over. On CPU this is seven times faster than
  jnp.sin.
  """
  x32 = x.astype(jnp.float32)
  angle = _reduced(x32 * jnp.exp(alpha.astype(jnp.float32)))
  square = angle * angle
  series = _sine_series(square)
  sine_squared = square * series * series
  return (x32 + sine_squared / _divisor(beta)).astype(x.dtype)


def _reduced(angle: Float[Array, '...']) -> Float[Array, '...']:
  """The angle less a multiple of pi, in [-pi/2, pi/2]."""
  turns = jnp.round(angle * np.float32(1 / np.pi))
  return (angle - turns * np.float32(3.140625)) - turns * np.float32(np.pi - 3.140625)  # pi in two parts: exact products


def _sine_series(square: Float[Array, '...']) -> Float[Array, '...']:
  """sin(a) / a of a^2."""
  series = 1.0
  for n in (110, 72, 42, 20, 6):
    series = 1.0 - square * np.float32(1 / n) * series
  return series  # pyright: ignore[reportReturnType]


def _cosine(square: Float[Array, '...']) -> Float[Array, '...']:
  """cos(a) of a^2."""
  series = 1.0
  for n in (132, 90, 56, 30, 12, 2):
    series = 1.0 - square * np.float32(1 / n) * series
  return series  # pyright: ignore[reportReturnType]


def _divisor(beta: Float[Array, ' C']) -> Float[Array, ' C']:
  return jnp.exp(beta.astype(jnp.float32)) + 1e-9


def _forward(x, alpha, beta):
  return snake_beta(x, alpha, beta), (x, alpha, beta)


def _backward(saved, g):
  x, alpha, beta = saved
  x32, g32 = x.astype(jnp.float32), g.astype(jnp.float32)
  frequency, divisor = jnp.exp(alpha.astype(jnp.float32)), _divisor(beta)
  angle = _reduced(x32 * frequency)
  square = angle * angle
  sine = angle * _sine_series(square)
  slope = 2.0 * sine * _cosine(square)  # of sin(a)^2; the sign that was left out cancels
  to_x = g32 * (1.0 + slope * (frequency / divisor))
  to_angle, to_share = _channel_sums(g32 * slope * x32), _channel_sums(g32 * sine * sine)
  to_alpha = to_angle * frequency / divisor
  to_beta = -to_share * (divisor - 1e-9) / (divisor * divisor)
  return to_x.astype(x.dtype), to_alpha.astype(alpha.dtype), to_beta.astype(beta.dtype)


snake_beta.defvjp(_forward, _backward)


def _channel_sums(x: Float[Array, 'B T C']) -> Float[Array, ' C']:
  """The sum over all rows and times, as a product with ones of an array that is computed first. XLA on CPU would compute it again
  inside the sum, and sums over all but the last axis slowly."""
  rows = jax.lax.optimization_barrier(x.reshape(-1, x.shape[-1]))
  return jnp.einsum('N,NC->C', jnp.ones(rows.shape[0], rows.dtype), rows, precision='highest')
