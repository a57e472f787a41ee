"""Weight-only int8: matrices kept as bytes with a scale per output channel, widened where they are used.

Half the memory, not faster (measured on a GPU). Activations, norms, biases, routers, embeddings, convolutions, the
code predictor and the vocoder stay as they are. For inference only: rounding has no gradient.
"""

import math

import flax.struct
import jax.numpy as jnp
import numpy as np

from ..shapes import Array
from .params import Param

PARTS = ('audio', 'vision', 'thinker', 'talker')
_MATRICES = ('q', 'k', 'v', 'o', 'gate', 'up', 'down', 'kernel', 'head')
STACKED = ('layers', 'expert')
_BLOCK = 2**22  # values rounded at once


class Int8(flax.struct.PyTreeNode):
  """A matrix as values * scale. scale: float32, of the matrix's rank, size 1 along the axes that are summed over."""

  values: Array
  scale: Array

  def astype(self, dtype) -> Array:
    """The matrix in `dtype`, as the modules ask every weight for before they multiply."""
    return (self.values.astype(jnp.float32) * self.scale).astype(dtype)

  @property
  def shape(self) -> tuple[int, ...]:
    return self.values.shape


def is_int8(x) -> bool:
  return isinstance(x, Int8)


def summed_axes(path: str, param: Param) -> tuple[int, ...]:
  """The axes a matrix is contracted over, () for an array that is not kept as int8. path: 'thinker/layers/attn/q'."""
  return matrix_axes(path, param) if path.split('/')[0] in PARTS else ()


def matrix_axes(path: str, param: Param) -> tuple[int, ...]:
  """The axes a linear layer's matrix is contracted over, of any part; () for what is none, as the code predictor's heads."""
  if path.split('/')[-1] not in _MATRICES or 'conv_taps' in param.axes or 'codebook' in param.axes:
    return ()
  first = next(i for i, axis in enumerate(param.axes) if axis not in STACKED)
  last = next(i for i in range(first, len(param.shape)) if math.prod(param.shape[first : i + 1]) == param.fan_in)
  return tuple(range(first, last + 1))


def quantize(array: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
  """(int8 values, float32 scale): symmetric, rounded to nearest; a channel of zeros has scale 0.

  axes: those summed over. Works through blocks of outputs, so that little more than the result is in memory.
  Raises ValueError for values that are not finite.
  """
  outputs = max((axis for axis in range(array.ndim) if axis not in axes), key=lambda axis: array.shape[axis])
  step = max(1, _BLOCK * array.shape[outputs] // max(array.size, 1))
  values = np.empty(array.shape, np.int8)
  scale = np.empty([1 if axis in axes else size for axis, size in enumerate(array.shape)], np.float32)
  for start in range(0, array.shape[outputs], step):
    block = (slice(None),) * outputs + (slice(start, start + step),)
    part = np.asarray(array[block], np.float32)
    largest = np.abs(part).max(axis=axes, keepdims=True)
    if not np.isfinite(largest).all():
      raise ValueError('holds values that are not finite, and cannot be stored as int8')
    scale[block] = largest / np.float32(127)
    values[block] = np.rint(part / np.where(scale[block] == 0, np.float32(1), scale[block]))
  return values, scale


def dequantize(values: np.ndarray, scale: np.ndarray, dtype) -> np.ndarray:
  """The matrix that `quantize` stands for, in numpy; the same numbers as Int8.astype gives."""
  return (values.astype(np.float32) * scale).astype(dtype)
