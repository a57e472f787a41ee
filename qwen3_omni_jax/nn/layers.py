"""Norms, projections and feed-forward blocks: free functions of (x, parameters), with the specs of their parameters."""

import jax
import jax.numpy as jnp

from ..shapes import Array, Float, Params
from .params import Param, Spec


def rms_norm(x: Float[Array, '*b D'], scale: Float[Array, ' D'], eps: float) -> Float[Array, '*b D']:
  """RMS norm. Normalised in float32, rounded to x.dtype, *then* scaled: the reference's order, visible in bf16."""
  x32 = x.astype(jnp.float32)
  normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
  return normed.astype(x.dtype) * scale.astype(x.dtype)


def layer_norm(x: Float[Array, '*b D'], p: Params, eps: float) -> Float[Array, '*b D']:
  """Layer norm with scale and bias, in float32."""
  x32 = x.astype(jnp.float32)
  centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
  normed = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
  return (normed * p['scale'].astype(jnp.float32) + p['bias'].astype(jnp.float32)).astype(x.dtype)


def layer_norm_spec(width: int, axis: str = 'embed') -> Spec:
  return {'scale': Param((width,), (axis,), 'ones'), 'bias': Param((width,), (axis,), 'zeros')}


def linear(x: Float[Array, '*b I'], p: Params) -> Float[Array, '*b O']:
  """x @ kernel (+ bias if the spec has one)."""
  y = jnp.einsum('...i,io->...o', x, p['kernel'].astype(x.dtype))
  return y + p['bias'].astype(x.dtype) if 'bias' in p else y


def linear_spec(inputs: int, outputs: int, axes: tuple[str, str], bias: bool = True) -> Spec:
  spec: Spec = {'kernel': Param((inputs, outputs), axes, fan_in=inputs)}
  if bias:
    spec['bias'] = Param((outputs,), axes[1:], 'zeros')
  return spec


def gelu(x: Array) -> Array:
  """Exact (erf) GELU."""
  return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: Array) -> Array:
  """The tanh approximation of GELU."""
  return jax.nn.gelu(x, approximate=True)


def swiglu(x: Float[Array, '*b D'], p: Params) -> Float[Array, '*b D']:
  """down(silu(gate(x)) * up(x)), no biases."""
  gate = jnp.einsum('...d,df->...f', x, p['gate'].astype(x.dtype))
  up = jnp.einsum('...d,df->...f', x, p['up'].astype(x.dtype))
  return jnp.einsum('...f,fd->...d', jax.nn.silu(gate) * up, p['down'].astype(x.dtype))


def swiglu_spec(width: int, ffn: int) -> Spec:
  return {
    'gate': Param((width, ffn), ('embed', 'mlp'), fan_in=width),
    'up': Param((width, ffn), ('embed', 'mlp'), fan_in=width),
    'down': Param((ffn, width), ('mlp', 'embed'), fan_in=ffn),
  }
