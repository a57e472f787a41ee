"""Bicubic resizing of 8-bit pictures, bit for bit as torchvision does it for the reference.

Pillow's is nearly the same, but its weights are finer and the order of its two passes depends on the sizes: values then differ
by one level, seldom two. Integers leave no room for that: each pass is a sparse matrix of 16-bit weights, exact in 32 bits.
Source: PyTorch's UpSampleKernel with antialias on uint8 (compute_index_ranges_int16_weights, cubic filter with a = -0.5).
"""

import functools

import numpy as np


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
  """uint8 'height width C' of uint8 pixels 'H W C'. Rows first, then columns; between the two, values are rounded to 8 bits."""
  H, W, C = pixels.shape
  if width != W:
    columns = np.ascontiguousarray(pixels.transpose(1, 0, 2)).reshape(W, H * C)
    pixels = _pass(columns, width).reshape(width, H, C).transpose(1, 0, 2)
  if height != H:
    rows = np.ascontiguousarray(pixels).reshape(H, width * C)
    pixels = _pass(rows, height).reshape(height, width, C)
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
  import scipy.sparse

  scale = source / target
  support = 2.0 * max(scale, 1.0)  # the filter reaches 2 pixels of the smaller picture
  centre = scale * (np.arange(target) + 0.5)
  first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
  count = np.minimum((centre + support + 0.5).astype(np.int64), source) - first
  tap = np.arange(count.max())
  weights = _cubic((tap + first[:, None] - centre[:, None] + 0.5) / max(scale, 1.0))
  weights[tap >= count[:, None]] = 0.0
  weights /= weights.sum(axis=1, keepdims=True)
  bits = 0  # as many as the largest weight allows in 16 bits
  while bits < 22 and int(0.5 + weights.max() * (1 << (bits + 1))) < 1 << 15:
    bits += 1
  whole = np.trunc(weights * (1 << bits) + np.copysign(0.5, weights)).astype(np.int32)
  kept = tap < count[:, None]
  columns = (first[:, None] + tap)[kept].astype(np.int32)
  offsets = np.concatenate([[0], np.cumsum(count)]).astype(np.int32)
  return scipy.sparse.csr_matrix((whole[kept], columns, offsets), shape=(target, source)), bits


def _cubic(x: np.ndarray) -> np.ndarray:
  x, a = np.abs(x), -0.5
  near = ((a + 2) * x - (a + 3)) * x * x + 1
  far = (((x - 5) * x + 8) * x - 4) * a
  return np.where(x < 1, near, np.where(x < 2, far, 0.0))
