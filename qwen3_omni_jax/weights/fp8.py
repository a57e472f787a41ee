"""Published fp8 weights, seen as what they stand for: q * scale, with one scale for a block, a row, an expert or a tensor.

The scales of `X.weight` are `X.weight_scale_inv` (blocks of 128 x 128, as DeepSeek, Qwen and transformers write them) or
`X.weight_scale` (compressed-tensors, ModelOpt). Despite its name the first is a factor. In some checkpoints of Qwen3-Omni
it is the reciprocal: the values tell, since a factor over 1 would mean blocks with values over 448, the largest of e4m3.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from .safetensors import Header, Memory, Shard
from .view import FLOATS, View

QUANTISATION = ('quantization_config', 'compression_config')  # in config.json, or in a part of it
FP8 = (np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2))
SCALE_DTYPES = (*FLOATS, np.dtype(ml_dtypes.float8_e8m0fnu))
_SCALES = ('_scale_inv', '_scale')
_CACHE = ('q_scale', 'k_scale', 'v_scale')
_ACTIVATIONS = ('input_scale', 'activation_scale', 'output_scale', *_CACHE)
_BLOCK = (128, 128)
_ROWS = 256  # widened at once: what is read, its scales and the product stay in a core's cache
_SAMPLE = 16  # tensors of scales whose values are looked at
_OTHERS = {  # how the names of tensors end that other kinds of quantisation leave
  'GPTQ or AWQ': ('.qweight', '.qzeros', '.g_idx'),
  'bitsandbytes': ('.weight.absmax', '.weight.quant_map', '.SCB', '.weight_format'),
  'packed compressed-tensors': ('.weight_packed', '.weight_shape'),
  'ModelOpt NVFP4': ('.weight_scale_2',),
  'MXFP4': ('_proj_blocks', '_proj_scales'),
}


@dataclasses.dataclass(frozen=True)
class Scheme:
  """How a folder's fp8 weights are read. block: rows and columns of a scale. dtype: what they are widened to."""

  block: tuple[int, int] = _BLOCK
  dtype: np.dtype = np.dtype(ml_dtypes.bfloat16)
  reciprocal: bool = False  # whether *_scale_inv divide


PLAIN = Scheme()


@dataclasses.dataclass(frozen=True)
class Grid:
  """The scales of a matrix: blocks along rows and columns, and the rows and columns of a block. lead: one for each expert."""

  counts: tuple[int, int]
  block: tuple[int, int]
  lead: bool


def grid_of(shape: tuple[int, ...], scale: tuple[int, ...], block: tuple[int, int]) -> Grid | None:
  """How scales of that shape lie on a tensor of this; None if they do not fit."""
  padded = scale + (1,) * (len(shape) - len(scale))
  if len(shape) < 2 or len(padded) != len(shape) or padded[:-2] not in (shape[:-2], (1,) * (len(shape) - 2)):
    return None
  sizes = [_block(size, count, usual) for size, count, usual in zip(shape[-2:], padded[-2:], block, strict=True)]
  return None if 0 in sizes else Grid(padded[-2:], (sizes[0], sizes[1]), math.prod(padded[:-2]) > 1)


def _block(size: int, count: int, usual: int) -> int:
  """How many of `size` rows one of `count` scales is for: of the usual size, or equal ones; 0 if they do not fit."""
  if count == 1:
    return max(1, size)
  if -(-size // usual) == count:
    return usual
  return size // count if count and size % count == 0 else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaled(View):
  """An fp8 tensor, or a part of a fused one, read as q * scale in the scheme's dtype. The product is made in float32."""

  scheme: Scheme
  scales: View

  @property
  def dtype(self) -> np.dtype:
    return self.scheme.dtype

  @property
  def grid(self) -> Grid | None:
    return grid_of(self.shard.shape(self.name), self.scales.shape, self.scheme.block)

  @property
  def stored(self) -> tuple[str, int]:
    """The dtype in the file, and bytes with a share of the scales."""
    dtype, size = self.shard.dtype(self.name), math.prod(self.shape)
    share = self.scales.stored[1] * size // max(1, math.prod(self.shard.shape(self.name)))
    return dtype.name, size * dtype.itemsize + share

  def read(self, rows: slice | None = None, memory: Memory | None = None) -> np.ndarray:
    """As View.read, widened."""
    q = super().read(rows)
    size = q.size * self.dtype.itemsize
    out = (np.empty(size, np.uint8) if memory is None else memory(size)).view(self.dtype).reshape(q.shape)
    if not q.size:
      return out
    grid, shard = self.grid, self.scales.shard
    assert grid is not None and isinstance(shard, Shard)
    expert = [p for p in self.part if isinstance(p, int)]
    first = sum(p.start for p in (*self.part, rows) if isinstance(p, slice))
    scale = shard.read(self.scales.name, tuple(expert) if grid.lead else ()).astype(np.float32).reshape(grid.counts)
    values = np.arange(256, dtype=np.uint8).view(q.dtype).astype(np.float32)  # looked up: numpy casts fp8 one by one
    for start in range(0, len(q), _ROWS):
      piece = np.take(values, q[start : start + _ROWS].view(np.uint8))
      factor = np.take(scale, (np.arange(len(piece)) + (first + start)) // grid.block[0], axis=0)
      if grid.counts[1] > 1:
        factor = np.repeat(factor, grid.block[1], axis=1)[:, : piece.shape[1]]
      (np.divide if self.scheme.reciprocal and self.scales.name.endswith('_inv') else np.multiply)(piece, factor, out=piece)
      out[start : start + len(piece)] = piece
    return out


def scheme_of(config: pathlib.Path, tensors: Mapping[str, Header], dtype: np.dtype | None) -> Scheme:
  """How the fp8 weights of these tensors are read. dtype: what to widen them to; None for what config.json says, or bfloat16.

  Raises ValueError for other kinds of quantisation, naming the tensors, and for scales that could mean either.
  """
  data = json.loads(config.read_text(encoding='utf-8'))
  thinker = data.get('thinker_config') or {}
  places = [place for place in (data, thinker, thinker.get('text_config') or {}) if isinstance(place, dict)]
  found = [place.get(key) for key in QUANTISATION for place in places]
  quantised = next((value for value in found if isinstance(value, dict)), {})
  _refuse_others(config.parent, tensors, quantised.get('quant_method'))
  declared = [place.get(key) for place in places for key in ('dtype', 'torch_dtype')]
  floats = {known.name: known for known in FLOATS}
  default = next((floats[name] for name in declared if isinstance(name, str) and name in floats), PLAIN.dtype)
  return Scheme(_block_of(quantised), dtype or default, _are_reciprocals(config.parent, tensors))


def scale_of(name: str, tensors: Mapping[str, Header]) -> str | None:
  """The tensor with the scales of this one, if it is fp8 and they are there."""
  if tensors[name].dtype(name) not in FP8:
    return None
  return next((name + end for end in _SCALES if name + end in tensors), None)


def is_of_activations(name: str, tensors: Mapping[str, Header]) -> bool:
  """Whether the tensor is a scale of what goes through an fp8 layer or into the cache: weights that are widened do without."""
  module, _, last = name.rpartition('.')
  weights = [f'{module}.weight'] if last in _ACTIVATIONS else []
  weights += [f'{module}.{last[0]}_proj.weight'] if last in _CACHE else []
  weights += [name.removesuffix(f'_{end}') for end in _ACTIVATIONS if last.endswith(f'_{end}')]
  return any(weight in tensors and tensors[weight].dtype(weight) in FP8 for weight in weights)


def _block_of(quantised: dict[str, Any]) -> tuple[int, int]:
  groups = quantised.get('config_groups')
  weights = [group.get('weights') for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []
  declared = [quantised.get('weight_block_size'), *(w.get('block_structure') for w in weights if isinstance(w, dict))]
  for block in declared:
    if isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block):
      return block[0], block[1]
  return _BLOCK


def _are_reciprocals(folder: pathlib.Path, tensors: Mapping[str, Header]) -> bool:
  """Whether *_scale_inv of these shards divide."""
  names = [scale for name in tensors if (scale := scale_of(name, tensors)) and scale.endswith('_inv')]
  medians: dict[str, float] = {}
  for name in names[:: max(1, len(names) // _SAMPLE)]:
    shard = tensors[name]
    if isinstance(shard, Shard) and shard.dtype(name) in SCALE_DTYPES and math.prod(shard.shape(name)):
      medians[name] = float(np.median(shard.read(name).astype(np.float32)))
  over, under = ([name for name, value in medians.items() if (value > 1) is large] for large in (True, False))
  if over and under:
    raise ValueError(
      f'{folder}: {over[0]} is over 1 and {under[0]} is not: whether these scales multiply or divide cannot be told. '
      'Dequantise it with the tool that made it'
    )
  return bool(over)


def _refuse_others(folder: pathlib.Path, tensors: Mapping[str, Header], method: Any) -> None:
  """Raises ValueError for a checkpoint quantised in a way that is not read."""
  for kind, ends in _OTHERS.items():
    found = [name for name in tensors if name.endswith(ends) or (kind == 'bitsandbytes' and '.quant_state.bitsandbytes' in name)]
    if found:
      _refuse(folder, method or kind, found)
  integers = [name for name, shard in tensors.items() if f'{name}_scale' in tensors and shard.dtype(name).kind in 'iu']
  if integers:
    _refuse(folder, method or 'integers with scales', integers)


def _refuse(folder: pathlib.Path, method: Any, names: list[str]) -> None:
  raise ValueError(
    f'{folder}: quantised ({method}): {len(names)} tensors such as {names[0]}. Only fp8 with weight_scale_inv or weight_scale is '
    'read. Take the checkpoint that it was made from, or widen it with transformers: from_pretrained, model.dequantize(), '
    'save_pretrained'
  )
