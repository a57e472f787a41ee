"""The one table between published tensor names and our parameter tree.

A row says: our array, the published name(s) it comes from, and the layout change as an einops pattern. `{L}`, `{E}`,
`{Q}` in a published name are numbers counted out over our leading axes, in order: the published checkpoint has one
tensor per layer and expert, we have one stacked array. Import, export, and every check of names and shapes derive from
these rows.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterator

import einops
import numpy as np

from ..codec_config import CodecConfig
from ..config import OmniConfig
from ..models.codec_encoder import codec_spec
from ..models.omni import omni_spec
from ..nn.params import Param, Spec, leaves
from .codec_rows import codec_rows
from .rows import TRANSPOSED, Row, attention, conv, linear, norm, swiglu


def _decoder(ours: str, theirs: str, moe: bool, shared: bool = False) -> list[Row]:
  rows = [
    Row(f'{ours}/attn_norm', f'{theirs}.input_layernorm.weight'),
    *attention(f'{ours}/attn', f'{theirs}.self_attn'),
    Row(f'{ours}/attn/q_norm', f'{theirs}.self_attn.q_norm.weight'),
    Row(f'{ours}/attn/k_norm', f'{theirs}.self_attn.k_norm.weight'),
    Row(f'{ours}/mlp_norm', f'{theirs}.post_attention_layernorm.weight'),
  ]
  if not moe:
    return rows + swiglu(f'{ours}/mlp', f'{theirs}.mlp')
  rows.append(Row(f'{ours}/moe/router', f'{theirs}.mlp.gate.weight', TRANSPOSED))
  rows += swiglu(f'{ours}/moe/experts', f'{theirs}.mlp.experts.{{E}}')
  if shared:
    rows += swiglu(f'{ours}/moe/shared', f'{theirs}.mlp.shared_expert')
    rows.append(Row(f'{ours}/moe/shared_gate', f'{theirs}.mlp.shared_expert_gate.weight', '1 D -> D'))
  return rows


def _audio() -> list[Row]:
  ours, theirs = 'audio', 'thinker.audio_tower'
  layer, their_layer = f'{ours}/layers', f'{theirs}.layers.{{L}}'
  rows = []
  for i in (1, 2, 3):
    rows += [
      Row(f'{ours}/conv{i}/kernel', f'{theirs}.conv2d{i}.weight', 'O I M T -> M T I O'),
      Row(f'{ours}/conv{i}/bias', f'{theirs}.conv2d{i}.bias'),
    ]
  rows.append(Row(f'{ours}/conv_out/kernel', f'{theirs}.conv_out.weight', 'D (C M) -> C M D'))
  rows += norm(f'{layer}/attn_norm', f'{their_layer}.self_attn_layer_norm')
  for n in 'qkv':
    rows += [
      Row(f'{layer}/attn/{n}/kernel', f'{their_layer}.self_attn.{n}_proj.weight', '(N H) D -> D N H'),
      Row(f'{layer}/attn/{n}/bias', f'{their_layer}.self_attn.{n}_proj.bias', '(N H) -> N H'),
    ]
  return rows + [
    Row(f'{layer}/attn/o/kernel', f'{their_layer}.self_attn.out_proj.weight', 'D (N H) -> N H D'),
    Row(f'{layer}/attn/o/bias', f'{their_layer}.self_attn.out_proj.bias'),
    *norm(f'{layer}/mlp_norm', f'{their_layer}.final_layer_norm'),
    *linear(f'{layer}/mlp/up', f'{their_layer}.fc1'),
    *linear(f'{layer}/mlp/down', f'{their_layer}.fc2'),
    *norm(f'{ours}/norm', f'{theirs}.ln_post'),
    *linear(f'{ours}/proj1', f'{theirs}.proj1'),
    *linear(f'{ours}/proj2', f'{theirs}.proj2'),
  ]


def _vision(deepstack: bool) -> list[Row]:
  ours, theirs = 'vision', 'thinker.visual'
  layer, block = f'{ours}/layers', f'{theirs}.blocks.{{L}}'

  def merger(ours, theirs):
    return [
      *norm(f'{ours}/norm', f'{theirs}.ln_q'),
      *linear(f'{ours}/up', f'{theirs}.mlp.0'),
      *linear(f'{ours}/down', f'{theirs}.mlp.2'),
    ]

  return [
    Row(f'{ours}/patch/kernel', f'{theirs}.patch_embed.proj.weight', 'D C T P Q -> (C T P Q) D'),
    Row(f'{ours}/patch/bias', f'{theirs}.patch_embed.proj.bias'),
    Row(f'{ours}/positions', f'{theirs}.pos_embed.weight', 'P D -> P D'),
    *norm(f'{layer}/attn_norm', f'{block}.norm1'),
    Row(f'{layer}/attn/qkv/kernel', f'{block}.attn.qkv.weight', '(three N H) D -> D three N H'),
    Row(f'{layer}/attn/qkv/bias', f'{block}.attn.qkv.bias', '(three N H) -> three N H'),
    Row(f'{layer}/attn/o/kernel', f'{block}.attn.proj.weight', 'D (N H) -> N H D'),
    Row(f'{layer}/attn/o/bias', f'{block}.attn.proj.bias'),
    *norm(f'{layer}/mlp_norm', f'{block}.norm2'),
    *linear(f'{layer}/mlp/up', f'{block}.mlp.linear_fc1'),
    *linear(f'{layer}/mlp/down', f'{block}.mlp.linear_fc2'),
    *merger(f'{ours}/merger', f'{theirs}.merger'),
    *(merger(f'{ours}/deepstack', f'{theirs}.merger_list.{{L}}') if deepstack else []),
  ]


def _talker() -> list[Row]:
  rows = [
    Row('talker/embed', 'talker.model.codec_embedding.weight', 'V D -> V D'),
    *_decoder('talker/layers', 'talker.model.layers.{L}', moe=True, shared=True),
    Row('talker/norm', 'talker.model.norm.weight'),
    Row('talker/head', 'talker.codec_head.weight', TRANSPOSED),
  ]
  for name in ('text_projection', 'hidden_projection'):
    for i in (1, 2):
      rows += linear(f'talker/{name}/fc{i}', f'talker.{name}.linear_fc{i}')
  return rows


def _code_predictor() -> list[Row]:
  theirs = 'talker.code_predictor'
  return [
    Row('code_predictor/embed', f'{theirs}.model.codec_embedding.{{Q}}.weight', 'V D -> V D'),
    Row('code_predictor/head', f'{theirs}.lm_head.{{Q}}.weight', TRANSPOSED),
    *_decoder('code_predictor/layers', f'{theirs}.model.layers.{{L}}', moe=False),
    Row('code_predictor/norm', f'{theirs}.model.norm.weight'),
  ]


def _code2wav(upsamples: int, blocks: int) -> list[Row]:
  layer, their_layer = 'code2wav/layers', 'code2wav.pre_transformer.layers.{L}'

  def snake(ours, theirs):
    return [Row(f'{ours}/{name}', f'{theirs}.{name}') for name in ('alpha', 'beta')]

  upsampling = 'I O T -> I T O'
  rows = [
    Row('code2wav/embed', 'code2wav.code_embedding.weight', 'V D -> V D'),
    Row(f'{layer}/attn_norm', f'{their_layer}.input_layernorm.weight'),
    *attention(f'{layer}/attn', f'{their_layer}.self_attn'),
    Row(f'{layer}/attn_scale', f'{their_layer}.self_attn_layer_scale.scale'),
    Row(f'{layer}/mlp_norm', f'{their_layer}.post_attention_layernorm.weight'),
    *swiglu(f'{layer}/mlp', f'{their_layer}.mlp'),
    Row(f'{layer}/mlp_scale', f'{their_layer}.mlp_layer_scale.scale'),
    Row('code2wav/norm', 'code2wav.pre_transformer.norm.weight'),
  ]
  for i in range(upsamples):
    ours, theirs = f'code2wav/upsample/{i}', f'code2wav.upsample.{i}'
    rows += [
      *conv(f'{ours}/up', f'{theirs}.0', upsampling),
      *conv(f'{ours}/depthwise', f'{theirs}.1.dwconv', 'C 1 T -> T C'),
      *norm(f'{ours}/norm', f'{theirs}.1.norm'),
      *linear(f'{ours}/fc1', f'{theirs}.1.pwconv1'),
      *linear(f'{ours}/fc2', f'{theirs}.1.pwconv2'),
      Row(f'{ours}/gamma', f'{theirs}.1.gamma'),
    ]
  rows += conv('code2wav/conv_in', 'code2wav.decoder.0')
  for i in range(blocks):
    ours, theirs = f'code2wav/blocks/{i}', f'code2wav.decoder.{i + 1}.block'
    rows += [*snake(f'{ours}/act', f'{theirs}.0'), *conv(f'{ours}/up', f'{theirs}.1', upsampling)]
    for u in range(3):
      unit, their_unit = f'{ours}/units/{u}', f'{theirs}.{u + 2}'
      for n in (1, 2):
        rows += [*snake(f'{unit}/act{n}', f'{their_unit}.act{n}'), *conv(f'{unit}/conv{n}', f'{their_unit}.conv{n}')]
  rows += snake('code2wav/act_out', f'code2wav.decoder.{blocks + 1}')
  return rows + conv('code2wav/conv_out', f'code2wav.decoder.{blocks + 2}')


Config = OmniConfig | CodecConfig  # of what the table knows


def spec_of(cfg: Config) -> Spec:
  """The whole parameter tree of a checkpoint, by part."""
  return {'codec': codec_spec(cfg)} if isinstance(cfg, CodecConfig) else omni_spec(cfg)


@functools.cache
def table(cfg: Config) -> tuple[Row, ...]:
  """Every row of a checkpoint with this config."""
  if isinstance(cfg, CodecConfig):
    return tuple(codec_rows(cfg))
  rows = [
    Row('thinker/embed', 'thinker.model.embed_tokens.weight', 'V D -> V D'),
    *_decoder('thinker/layers', 'thinker.model.layers.{L}', moe=bool(cfg.thinker.text.num_experts)),
    Row('thinker/norm', 'thinker.model.norm.weight'),
    Row('thinker/head', 'thinker.lm_head.weight', TRANSPOSED),
    *_audio(),
    *_vision(bool(cfg.thinker.vision.deepstack_visual_indexes)),
  ]
  if cfg.talker is not None and cfg.code2wav is not None:
    rows += [*_talker(), *_code_predictor()]
    rows += _code2wav(len(cfg.code2wav.upsampling_ratios), len(cfg.code2wav.upsample_rates))
  return tuple(rows)


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One published tensor: where it goes. index: into the leading (stacked) axes of our array."""

  name: str
  row: Row
  index: tuple[int, ...]
  shape: tuple[int, ...]
  sizes: tuple[tuple[str, int], ...]

  def to_ours(self, array: np.ndarray) -> np.ndarray:
    """In our layout, without the stacked axes."""
    return einops.rearrange(array, self.row.layout, **dict(self.sizes))

  def to_theirs(self, array: np.ndarray) -> np.ndarray:
    """From our layout (stacked axes already indexed away)."""
    theirs, ours = self.row.layout.split(' -> ')
    return einops.rearrange(array, f'{ours} -> {theirs}', **dict(self.sizes))

  def part(self, inner: tuple[slice, ...]) -> tuple[slice, 'Tensor', tuple[slice, ...]]:
    """What to read for a part of our array, given by a slice per axis (the stacked ones left out).

    Returns rows of the published tensor's first axis (the smallest contiguous range with all of the part), the tensor that
    these rows are by themselves, and the slices of it, in our layout, that make up the part.
    """
    first, others, axis = _first_axis(self.row.layout)
    if axis is None:
      return slice(0, self.shape[0]), self, inner
    sizes, taken = dict(self.sizes), inner[axis]
    if taken == slice(0, sizes[first]):
      return slice(0, self.shape[0]), self, inner
    each = math.prod(sizes[letter] for letter in others)
    rows = slice(taken.start * each, taken.stop * each)
    sizes[first] = taken.stop - taken.start
    alone = dataclasses.replace(self, shape=(rows.stop - rows.start, *self.shape[1:]), sizes=tuple(sizes.items()))
    return rows, alone, (*inner[:axis], slice(None), *inner[axis + 1 :])


@functools.cache
def published(cfg: Config) -> dict[str, Tensor]:
  """Every tensor of the published layout, by name. Fails if table and networks disagree."""
  spec = dict(leaves(spec_of(cfg)))
  patch = {}
  if isinstance(cfg, OmniConfig):
    vision = cfg.thinker.vision
    patch = {'C': vision.in_channels, 'T': vision.temporal_patch_size, 'P': vision.patch_size, 'Q': vision.patch_size}
  tensors: dict[str, Tensor] = {}
  for row in table(cfg):
    param = spec.pop(row.ours)
    sizes = _sizes(row, param, patch if row.ours == 'vision/patch/kernel' else {})
    theirs = row.layout.split(' -> ')[0]
    shape = tuple(math.prod(sizes.get(n, 1) for n in re.findall(r'\w+', dim)) for dim in _dims(theirs))
    used = tuple((n, size) for n, size in sizes.items() if n in re.findall(r'\w+', row.layout))
    for index in itertools.product(*(range(n) for n in param.shape[: len(row.counters)])):
      name = row.theirs.format(**dict(zip(row.counters, index, strict=True)))
      tensors[name] = Tensor(name, row, index, shape, used)
  assert not spec, f'parameters without a row in the table: {sorted(spec)}'
  return tensors


_TILE = 64, 1024  # elements along the fastest axis of what is written, and of what is read: both stay in a core's cache


def copy_into(out: np.ndarray, value: np.ndarray) -> None:
  """out[...] = value, either of which may be a transposed view; converts the dtype.

  Goes through a transpose in tiles: row by row, one of the two sides misses the cache with every element (250 MB/s at
  the released sizes, where this gives 2,500).
  """
  if out.dtype == value.dtype:  # numpy copies its own integers faster than a dtype it does not know
    out, value = (a.view(f'u{a.itemsize}') for a in (out, value))
  here, there = _fastest(out), _fastest(value)
  if here == there:
    out[...] = value
    return
  for i in range(0, out.shape[here], _TILE[0]):
    for j in range(0, out.shape[there], _TILE[1]):
      tile: list[slice] = [slice(None)] * out.ndim
      tile[here], tile[there] = slice(i, i + _TILE[0]), slice(j, j + _TILE[1])
      out[tuple(tile)] = value[tuple(tile)]


def _fastest(array: np.ndarray) -> int:
  """The axis along which elements lie closest together."""
  strides = [abs(stride) if size > 1 else np.inf for stride, size in zip(array.strides, array.shape, strict=True)]
  return int(np.argmin(strides)) if strides else 0


@functools.cache
def _first_axis(layout: str) -> tuple[str, list[str], int | None]:
  """The first letter of the published tensor's first axis, those beside it, and our axis of that letter alone, if any."""
  theirs, ours = (_dims(side) for side in layout.split(' -> '))
  first, *others = re.findall(r'\w+', theirs[0])
  return first, others, ours.index(first) if first in ours else None


def _dims(side: str) -> list[str]:
  return re.findall(r'\([^)]*\)|\w+', side)


def _sizes(row: Row, param: Param, given: dict[str, int]) -> dict[str, int]:
  """The size of every letter of a layout, read off our array's shape."""
  dims = _dims(row.layout.split(' -> ')[1])
  shape = param.shape[len(row.counters) :]
  assert len(dims) == len(shape), f'{row.ours}: layout {row.layout} does not fit shape {shape}'
  sizes = dict(given)
  sizes.update({dim: size for dim, size in zip(dims, shape, strict=True) if not dim.startswith('(')})
  return sizes


def published_shapes(cfg: Config) -> dict[str, tuple[int, ...]]:
  """Name and shape of every tensor of the published layout."""
  return {name: tensor.shape for name, tensor in published(cfg).items()}


def export(params, cfg: Config) -> Iterator[tuple[str, np.ndarray]]:
  """(published name, array) of every tensor; params: nested dict of arrays."""
  for tensor in published(cfg).values():
    node = params
    for key in tensor.row.ours.split('/'):
      node = node[key]
    yield tensor.name, tensor.to_theirs(np.asarray(node[tensor.index]))
