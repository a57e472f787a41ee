"""The vision encoder: patches of images and video frames to features, with deepstack levels from intermediate layers.

Attention is within a frame, so a video is its frames: each a row of the batch, or several of them in one row, separated by
segments. Patches come in merge-block order (the four patches that become one feature are neighbours).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ..config import VisionConfig
from ..nn import rope
from ..nn.attention import attention
from ..nn.layers import add, gelu, gelu_tanh, layer_norm, layer_norm_spec, linear, linear_spec
from ..nn.params import Param, Spec, declare, stack
from ..nn.remat import rematerialised
from ..shapes import Array, Float, Int, Params
from ..sharding import everywhere, shard_items

NORM_EPS = 1e-6  # of every layer norm; fixed in the reference


def vision_spec(cfg: VisionConfig) -> Spec:
  """Parameters. `merger` makes the features, `deepstack` (stacked by level) the levels added inside the Thinker."""
  D, N, H, F = cfg.hidden_size, cfg.num_heads, cfg.head_dim, cfg.intermediate_size
  layer: Spec = {
    'attn_norm': layer_norm_spec(D),
    'attn': {
      'qkv': {
        'kernel': Param((D, 3, N, H), ('embed', 'qkv', 'heads', 'head_dim'), fan_in=D),
        'bias': Param((3, N, H), ('qkv', 'heads', 'head_dim'), 'zeros'),
      },
      'o': {
        'kernel': Param((N, H, D), ('heads', 'head_dim', 'embed'), fan_in=D),
        'bias': Param((D,), ('embed',), 'zeros'),
      },
    },
    'mlp_norm': layer_norm_spec(D),
    'mlp': {'up': linear_spec(D, F, ('embed', 'mlp')), 'down': linear_spec(F, D, ('mlp', 'embed'))},
  }
  spec: Spec = {
    'patch': linear_spec(cfg.patch_dim, D, ('patch', 'embed')),
    'positions': Param((cfg.num_position_embeddings, D), ('positions', 'embed'), fan_in=D),
    'layers': stack(cfg.depth, layer),
    'merger': _merger_spec(cfg, D),
  }
  if cfg.deepstack_visual_indexes:
    spec['deepstack'] = stack(len(cfg.deepstack_visual_indexes), _merger_spec(cfg, D * cfg.spatial_merge_size**2))
  return spec


def _merger_spec(cfg: VisionConfig, normed: int) -> Spec:
  merged = cfg.hidden_size * cfg.spatial_merge_size**2
  return {
    'norm': layer_norm_spec(normed),
    'up': linear_spec(merged, merged, ('embed', 'mlp')),
    'down': linear_spec(merged, cfg.out_hidden_size, ('mlp', 'embed')),
  }


def encode_vision(
  params: Params,
  cfg: VisionConfig,
  patches: Float[Array, 'R P C'],
  rows: Int[Array, 'R P'],
  cols: Int[Array, 'R P'],
  heights: Int[Array, ' R'] | Int[Array, 'R P'],
  widths: Int[Array, ' R'] | Int[Array, 'R P'],
  length: Int[Array, ' R'],
  segment: Int[Array, 'R P'] | None = None,
  *,
  remat: bool | str = False,
) -> tuple[Float[Array, 'R S D'], Float[Array, 'I R S D']]:
  """(features, deepstack levels) of R rows, S = P/4; a row's first length/4 features are valid, the rest is padding.

  A frame is an image, or two successive pictures of a video. patches: flattened (channel, time, height, width) as the
  processor makes them. rows, cols: coordinates of each patch in its frame's grid of heights x widths patches. length:
  valid patches of a row, 0 for an unused one. segment: where frames share a row, the number of each patch's frame, from 1
  (0 = padding); heights and widths are then given for each patch.
  """
  (R, P, _), D = patches.shape, cfg.hidden_size
  group = cfg.spatial_merge_size**2
  if P % group:
    raise ValueError(f'{P} patches per frame: expected a multiple of {group}; pad the frames')
  if segment is None:
    segment = (jnp.arange(P) < length[:, None]).astype(jnp.int32)
  # Half of the rotated pairs turn with the row, half with the column.
  angle = jnp.concatenate([rope.angles(at, cfg.head_dim // 2, cfg.rope_theta) for at in (rows, cols)], axis=-1)
  x = linear(patches, params['patch'])
  x = shard_items(add(x, position_embedding(params['positions'], cfg.grid_side, rows, cols, heights, widths)))
  levels = len(cfg.deepstack_visual_indexes)
  # Every layer writes its output to the slot of the next deepstack level, where the level's own layer writes last;
  # layers after the last level write to a spare slot.
  slots = np.searchsorted(cfg.deepstack_visual_indexes, np.arange(cfg.depth)).astype(np.int32)

  def layer(carry, inputs):
    x, taps = carry
    p, slot = inputs
    a, normed = p['attn'], layer_norm(x, p['attn_norm'], NORM_EPS)
    # One plain matmul, split afterwards: half the time of an einsum to 'A R P N H' on CPU.
    qkv = linear(normed, {'kernel': a['qkv']['kernel'].astype(x.dtype).reshape(D, -1), 'bias': a['qkv']['bias'].reshape(-1)})
    q, k, v = (y.reshape(R, P, cfg.num_heads, cfg.head_dim) for y in jnp.split(qkv, 3, axis=-1))
    q, k = rope.rotate(q, angle), rope.rotate(k, angle)
    out = attention(q, k, v, q_segment=segment, k_segment=segment)
    x = add(x, jnp.einsum('RPNH,NHD->RPD', out, a['o']['kernel'].astype(x.dtype)), a['o']['bias'])
    y = linear(gelu_tanh(linear(layer_norm(x, p['mlp_norm'], NORM_EPS), p['mlp']['up'])), p['mlp']['down'])
    x = shard_items(add(x, y))
    return (x, jax.lax.dynamic_update_index_in_dim(taps, x, slot, 0)), None

  step = rematerialised(layer, remat)
  taps = jnp.zeros((levels + 1, *x.shape), x.dtype)
  (x, taps), _ = jax.lax.scan(step, (x, taps), (params['layers'], jnp.asarray(slots)))

  features = _merge(layer_norm(x, params['merger']['norm'], NORM_EPS).reshape(R, P // group, -1), params['merger'])
  if not levels:
    return features, jnp.zeros((0, *features.shape), x.dtype)
  # Unlike the last merger, those of the deepstack levels normalise the four patches together.
  merge = lambda x, p: _merge(layer_norm(x, p['norm'], NORM_EPS), p)
  return features, jax.vmap(merge)(taps[:levels].reshape(levels, R, P // group, -1), params['deepstack'])


def _merge(x: Float[Array, 'R S D'], p: Params) -> Float[Array, 'R S O']:
  return shard_items(linear(gelu(linear(shard_items(x), p['up'])), p['down']))


def position_embedding(
  table: Float[Array, 'X D'],
  side: int,
  rows: Int[Array, 'R P'],
  cols: Int[Array, 'R P'],
  heights: Int[Array, ' R'] | Int[Array, 'R P'],
  widths: Int[Array, ' R'] | Int[Array, 'R P'],
) -> Float[Array, 'R P D']:
  """The learned side x side grid stretched over each frame, corner on corner, and read off bilinearly. float32."""

  def taps(at, size):
    size = size[:, None] if size.ndim == 1 else size
    place = at.astype(jnp.float32) * (side - 1) / jnp.maximum(size - 1, 1).astype(jnp.float32)
    low = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, side - 1)
    part = place - low.astype(jnp.float32)
    return (low, 1 - part), (jnp.minimum(low + 1, side - 1), part)

  table = everywhere(table).astype(jnp.float32)
  corners = [
    shard_items(jnp.take(table, row * side + col, axis=0)) * (row_part * col_part)[..., None]
    for row, row_part in taps(rows, heights)
    for col, col_part in taps(cols, widths)
  ]
  return corners[0] + corners[1] + corners[2] + corners[3]


class VisionEncoder(nn.Module):
  """The vision encoder as a Flax module; arguments and results of encode_vision."""

  cfg: VisionConfig
  dtype: jnp.dtype = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, patches: Float[Array, 'R P C'], rows, cols, heights, widths, length, segment=None):
    params = declare(self, vision_spec(self.cfg))
    patches = patches.astype(self.dtype)
    return encode_vision(params, self.cfg, patches, rows, cols, heights, widths, length, segment, remat=self.remat)
