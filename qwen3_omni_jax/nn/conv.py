"""One-dimensional causal convolutions over 'B T C' arrays.

Each takes the *tail* of what came before in the stream (zeros at its beginning) and gives the tail for what comes
after, so that a sequence may be convolved whole or in chunks of any size with the same result.
"""

import jax
import jax.numpy as jnp

from ..shapes import Array, Float, Params
from .params import Param, Spec


def causal_conv_spec(width: int, inputs: int, outputs: int, bias: bool = True) -> Spec:
  """A convolution of `width` taps. kernel 'K I O': published [O, I, K]."""
  spec: Spec = {'kernel': Param((width, inputs, outputs), ('conv_taps', 'conv_in', 'conv_out'), fan_in=width * inputs)}
  if bias:
    spec['bias'] = Param((outputs,), ('conv_out',), 'zeros')
  return spec


def causal_conv(
  x: Float[Array, 'B T I'], p: Params, tail: Float[Array, 'B P I'], dilation: int = 1, stride: int = 1
) -> tuple[Float[Array, 'B T2 O'], Float[Array, 'B P I']]:
  """Every stride-th sum over taps of x[t - dilation * tap], from t = stride - 1 on; T2 = T / stride, which must divide T.

  tail: the P = (taps - 1) * dilation + 1 - stride inputs before x.
  """
  joined = jnp.concatenate([tail.astype(x.dtype), x], axis=1)
  y = jax.lax.conv_general_dilated(
    joined,
    p['kernel'].astype(x.dtype),
    (stride,),
    'VALID',
    rhs_dilation=(dilation,),
    dimension_numbers=('NWC', 'WIO', 'NWC'),
  )
  return y + p['bias'].astype(x.dtype) if 'bias' in p else y, joined[:, x.shape[1] :]


def depthwise_conv_spec(width: int, channels: int) -> Spec:
  """One filter of `width` taps per channel. kernel 'K C': published [C, 1, K]."""
  return {
    'kernel': Param((width, channels), ('conv_taps', 'conv_out'), fan_in=width),
    'bias': Param((channels,), ('conv_out',), 'zeros'),
  }


def depthwise_conv(
  x: Float[Array, 'B T C'], p: Params, tail: Float[Array, 'B P C']
) -> tuple[Float[Array, 'B T C'], Float[Array, 'B P C']]:
  """causal_conv of every channel by itself: a sum of shifted products, which fuses into one loop on every backend."""
  joined = jnp.concatenate([tail.astype(x.dtype), x], axis=1)
  kernel = p['kernel'].astype(x.dtype)
  y = sum(joined[:, i : i + x.shape[1]] * kernel[i] for i in range(kernel.shape[0]))
  return y + p['bias'].astype(x.dtype), joined[:, x.shape[1] :]


def upsample_conv_spec(width: int, inputs: int, outputs: int) -> Spec:
  """A transposed convolution of `width` taps. kernel 'I K O': published [I, O, K]."""
  return {
    'kernel': Param((inputs, width, outputs), ('conv_in', 'conv_taps', 'conv_out'), fan_in=2 * inputs),
    'bias': Param((outputs,), ('conv_out',), 'zeros'),
  }


def upsample_conv(x: Float[Array, 'B T I'], p: Params) -> Float[Array, 'B TR O']:
  """Transposed convolution whose stride R is its kernel's width: every input makes R outputs by itself."""
  y = jnp.einsum('BTI,IRO->BTRO', x, p['kernel'].astype(x.dtype)) + p['bias'].astype(x.dtype)
  return y.reshape(x.shape[0], -1, y.shape[-1])


def overlap_upsample_conv(
  x: Float[Array, 'B T I'], p: Params, tail: Float[Array, 'B 1 I']
) -> tuple[Float[Array, 'B TR O'], Float[Array, 'B 1 I']]:
  """Transposed convolution whose kernel is two strides R wide: the R outputs at an input sum its own first half of the
  kernel and the second half of the input before it. tail: that input before x.

  The reference computes T + 1 such groups of R (the second half of the last input is one more) and cuts the first and
  the last off. So the R outputs at the very first input of a stream are not part of its result; the caller must ignore
  them.
  """
  joined = jnp.concatenate([tail.astype(x.dtype), x], axis=1)
  B, _, inputs = x.shape
  kernel = p['kernel'].astype(x.dtype).reshape(inputs, 2, -1, p['bias'].shape[0])
  halves = jnp.einsum('BTI,IZRO->BTZRO', joined, kernel)
  y = halves[:, 1:, 0] + halves[:, :-1, 1] + p['bias'].astype(x.dtype)
  return y.reshape(B, -1, y.shape[-1]), joined[:, -1:]
