"""Int8 in a converted folder: a matrix is two arrays there, PATH/int8 and PATH/int8_scale; everything else is as published."""

from collections.abc import Mapping

import numpy as np

from ..nn.int8 import quantize, summed_axes
from ..nn.params import leaves

INT8 = 'int8'  # the --dtype, and what a manifest says
_DTYPES = {'int8': np.dtype(np.int8), 'int8_scale': np.dtype(np.float32)}  # no parameter of ours is called so

Axes = dict[str, tuple[int, ...]]  # of every matrix kept as int8: the axes of our array that are summed over


def int8_axes(spec: Mapping, dtype: str | None) -> Axes:
  """Empty unless dtype is int8."""
  found = {path: summed_axes(path, param) for path, param in leaves(spec)} if dtype == INT8 else {}
  return {path: axes for path, axes in found.items() if axes}


def stored_shapes(spec: Mapping, dtype: str | None) -> dict[str, tuple[int, ...]]:
  """The arrays of a folder converted to that dtype."""
  axes, shapes = int8_axes(spec, dtype), {}
  for path, param in leaves(spec):
    if path in axes:
      values, scale = pair_of(path)
      shapes[values] = param.shape
      shapes[scale] = tuple(1 if axis in axes[path] else size for axis, size in enumerate(param.shape))
    else:
      shapes[path] = param.shape
  return shapes


def pair_of(path: str) -> tuple[str, str]:
  """The two arrays of a matrix."""
  values, scale = (f'{path}/{name}' for name in _DTYPES)
  return values, scale


def matrix_of(path: str) -> str:
  """The parameter that an array belongs to."""
  return path.rpartition('/')[0] if store_as(path) else path


def store_as(path: str) -> np.dtype | None:
  """The dtype of an array of a pair; None for any other."""
  return _DTYPES.get(path.rpartition('/')[2])


def split(name: str, path: str, value: np.ndarray, axes: tuple[int, ...], stacked: int) -> dict[str, np.ndarray]:
  """The pair of one published tensor in our layout; `value` is without the stacked axes."""
  try:
    return dict(zip(pair_of(path), quantize(value, tuple(axis - stacked for axis in axes)), strict=True))
  except ValueError as error:
    raise ValueError(f'{name}: {error}') from error
