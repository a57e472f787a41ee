"""One-dimensional causal convolutions over 'B T C' arrays, each with the state that lets it continue a stream."""

from .params import Param, Spec


def causal_conv_spec(width: int, inputs: int, outputs: int) -> Spec:
  """A convolution of `width` taps. kernel 'K I O': published [O, I, K]."""
  return {
    'kernel': Param((width, inputs, outputs), ('conv_taps', 'conv_in', 'conv_out'), fan_in=width * inputs),
    'bias': Param((outputs,), ('conv_out',), 'zeros'),
  }


def depthwise_conv_spec(width: int, channels: int) -> Spec:
  """One filter of `width` taps per channel. kernel 'K C': published [C, 1, K]."""
  return {
    'kernel': Param((width, channels), ('conv_taps', 'conv_out'), fan_in=width),
    'bias': Param((channels,), ('conv_out',), 'zeros'),
  }


def upsample_conv_spec(width: int, inputs: int, outputs: int) -> Spec:
  """A transposed convolution of `width` taps. kernel 'I K O': published [I, O, K]."""
  return {
    'kernel': Param((inputs, width, outputs), ('conv_in', 'conv_taps', 'conv_out'), fan_in=2 * inputs),
    'bias': Param((outputs,), ('conv_out',), 'zeros'),
  }
