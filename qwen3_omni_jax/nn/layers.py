"""Norms, projections and feed-forward blocks: free functions of (x, parameters), with the specs of their parameters.

What lies between two matmuls is computed in float32 and rounded once, to the dtype of the activations. XLA on CPU rounds after
every operation on bfloat16; torch and XLA on accelerators round once per kernel, which this equals or betters. There the casts
are part of a fused loop and cost no memory traffic.
"""

import jax
import jax.numpy as jnp

from ..shapes import Array, Float, Params
from .params import Param, Spec


def rms_norm(x: Float[Array, '*b D'], scale: Float[Array, ' D'], eps: float) -> Float[Array, '*b D']:
  """RMS norm. Scaled before it is rounded; the reference rounds before and after."""
  x32 = x.astype(jnp.float32)
  normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
  return (normed * scale.astype(jnp.float32)).astype(x.dtype)


def layer_norm(x: Float[Array, '*b D'], p: Params, eps: float) -> Float[Array, '*b D']:
  """Layer norm with scale and bias."""
  x32 = x.astype(jnp.float32)
  centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
  normed = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
  return (normed * p['scale'].astype(jnp.float32) + p['bias'].astype(jnp.float32)).astype(x.dtype)


def layer_norm_spec(width: int, axis: str = 'embed') -> Spec:
  return {'scale': Param((width,), (axis,), 'ones'), 'bias': Param((width,), (axis,), 'zeros')}


def linear(x: Float[Array, '*b I'], p: Params) -> Float[Array, '*b O']:
  """x @ kernel (+ bias if the spec has one)."""
  kernel = p['kernel'].astype(x.dtype)
  y = x.reshape(-1, x.shape[-1]) @ kernel  # of two matrices: then XLA on CPU adds the bias before it rounds
  y = add(y, p['bias']) if 'bias' in p else y
  return y.reshape(*x.shape[:-1], kernel.shape[-1])


def linear_spec(inputs: int, outputs: int, axes: tuple[str, str], bias: bool = True) -> Spec:
  spec: Spec = {'kernel': Param((inputs, outputs), axes, fan_in=inputs)}
  if bias:
    spec['bias'] = Param((outputs,), axes[1:], 'zeros')
  return spec


def add(x: Array, *terms: Array) -> Array:
  """x plus all terms, in x's dtype."""
  return sum((y.astype(jnp.float32) for y in terms), start=x.astype(jnp.float32)).astype(x.dtype)


def gelu(x: Array) -> Array:
  """Exact (erf) GELU."""
  return jax.nn.gelu(x.astype(jnp.float32), approximate=False).astype(x.dtype)


def gelu_tanh(x: Array) -> Array:
  """The tanh approximation of GELU."""
  return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)


def silu(x: Array) -> Array:
  """x * sigmoid(x)."""
  return jax.nn.silu(x.astype(jnp.float32)).astype(x.dtype)


def silu_gate(gate: Array, up: Array) -> Array:
  """silu(gate) * up."""
  return (jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)).astype(gate.dtype)


def swiglu(x: Float[Array, '*b D'], p: Params) -> Float[Array, '*b D']:
  """down(silu(gate(x)) * up(x)), no biases."""
  gate = jnp.einsum('...d,df->...f', x, p['gate'].astype(x.dtype))
  up = jnp.einsum('...d,df->...f', x, p['up'].astype(x.dtype))
  return jnp.einsum('...f,fd->...d', silu_gate(gate, up), p['down'].astype(x.dtype))


def swiglu_spec(width: int, ffn: int) -> Spec:
  return {
    'gate': Param((width, ffn), ('embed', 'mlp'), fan_in=width),
    'up': Param((width, ffn), ('embed', 'mlp'), fan_in=width),
    'down': Param((ffn, width), ('mlp', 'embed'), fan_in=ffn),
  }
