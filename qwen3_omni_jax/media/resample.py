"""Bicubic resizing as torchvision does it for the reference: of 8-bit pictures bit for bit, in float32 but for its last bits.

Pillow's is nearly the same, but its weights are finer and the order of its two passes depends on the sizes: values then differ
by one level, seldom two. Integers leave no room for that: each pass is a sparse matrix of 16-bit weights, exact in 32 bits.
Source: PyTorch's UpSampleKernel with antialias (compute_index_ranges_int16_weights for uint8, compute_index_ranges_weights for
float32; cubic filter with a = -0.5).
"""

import functools
from collections.abc import Callable

import numpy as np


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
  """uint8 'height width C' of uint8 pixels 'H W C'. Rows first, then columns; between the two, values are rounded to 8 bits."""
  return _resize(pixels, height, width, _pass)


def resize_float(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
  """float32 'height width C' of 'H W C' with values 0 to 255: neither rounded nor clipped, so that edges overshoot."""
  return _resize(
    pixels.astype(np.float32, copy=False), height, width, lambda values, size: _float_weights(len(values), size) @ values
  )


def _resize(pixels: np.ndarray, height: int, width: int, one_pass: Callable[[np.ndarray, int], np.ndarray]) -> np.ndarray:
  H, W, C = pixels.shape
  if width != W:
    columns = np.ascontiguousarray(pixels.transpose(1, 0, 2)).reshape(W, H * C)
    pixels = one_pass(columns, width).reshape(width, H, C).transpose(1, 0, 2)
  if height != H:
    rows = np.ascontiguousarray(pixels).reshape(H, width * C)
    pixels = one_pass(rows, height).reshape(height, width, C)
  return np.ascontiguousarray(pixels)


def _pass(values: np.ndarray, size: int) -> np.ndarray:
  """uint8 'size N' from uint8 'S N': the first axis resized."""
  matrix, bits = _weights(len(values), size)
  out = np.empty((size, values.shape[1]), np.uint8)
  for start in range(0, values.shape[1], _BLOCK):
    sums = matrix @ values[:, start : start + _BLOCK].astype(np.int32)
    sums += 1 << (bits - 1)
    sums >>= bits
    out[:, start : start + _BLOCK] = np.clip(sums, 0, 255, out=sums)
  return out


_BLOCK = 4096  # columns at once, so that the 32-bit values stay in the processor's cache


@functools.lru_cache(maxsize=64)
def _weights(source: int, target: int):
  """(sparse int32 matrix 'target source', binary digits of the weights)."""
  weights, kept, build = _taps(source, target, np.float64)
  bits = 0  # as many as the largest weight allows in 16 bits
  while bits < 22 and int(0.5 + weights.max() * (1 << (bits + 1))) < 1 << 15:
    bits += 1
  return build(np.trunc(weights * (1 << bits) + np.copysign(0.5, weights)).astype(np.int32)[kept]), bits


@functools.lru_cache(maxsize=64)
def _float_weights(source: int, target: int):
  """Sparse float32 matrix 'target source'."""
  weights, kept, build = _taps(source, target, np.float32)
  return build(weights[kept])


def _taps(source: int, target: int, real: type):
  """(weights 'target taps', which of them count, what makes the sparse matrix of those). real: the precision of centres."""
  import scipy.sparse

  scale = real(source) / real(target)
  support = real(2) * max(scale, real(1))  # the filter reaches 2 pixels of the smaller picture
  centre = (float(scale) * (np.arange(target) + 0.5)).astype(real)
  first = np.maximum(((centre - support).astype(np.float64) + 0.5).astype(np.int64), 0)
  count = np.minimum(((centre + support).astype(np.float64) + 0.5).astype(np.int64), source) - first
  tap = np.arange(count.max())
  kept = tap < count[:, None]
  distance = ((tap + first[:, None]).astype(real) - centre[:, None]).astype(np.float64) + 0.5
  weights = _cubic((distance * float(real(1) / max(scale, real(1)))).astype(real)).astype(real)
  weights[~kept] = 0.0
  weights /= weights.sum(axis=1, keepdims=True, dtype=real)
  columns = (first[:, None] + tap)[kept].astype(np.int32)
  offsets = np.concatenate([[0], np.cumsum(count)]).astype(np.int32)
  return weights, kept, lambda values: scipy.sparse.csr_matrix((values, columns, offsets), shape=(target, source))


def _cubic(x: np.ndarray) -> np.ndarray:
  x, a = np.abs(x), -0.5
  near = ((a + 2) * x - (a + 3)) * x * x + 1
  far = (((x - 5) * x + 8) * x - 4) * a
  return np.where(x < 1, near, np.where(x < 2, far, 0.0))
