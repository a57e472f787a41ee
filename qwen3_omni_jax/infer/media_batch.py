"""Encodes audio windows and frames of many requests: items of one shape share a call.

Lanes are encoded one after another on arrays of their own: results do not depend on other lanes, and unused lanes cost nothing.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ..config import ThinkerConfig
from ..models.audio_encoder import encode_audio
from ..models.vision_encoder import encode_vision
from ..shapes import Params
from ..sharding import follow_params
from .collate import AudioWindows, VisualFrames, patch_coordinates
from .prepare import Item


@follow_params
@functools.partial(jax.jit, static_argnames=('cfg', 'dtype'))
def encode_audio_lanes(params: Params, cfg: ThinkerConfig, group: AudioWindows, dtype):
  def one(_, lane):
    lane = jax.tree.map(lambda a: a[None], lane)
    run = lambda lane: encode_audio(params, cfg.audio, lane.mel.astype(dtype), lane.frames, lane.conv_frames)[0]
    shape = jax.eval_shape(run, lane)
    return None, jax.lax.cond(lane.frames[0] > 0, run, lambda _: jnp.zeros(shape.shape, shape.dtype), lane)

  return jax.lax.scan(one, None, group)[1]


@follow_params
@functools.partial(jax.jit, static_argnames=('cfg', 'dtype'))
def encode_visual_lanes(params: Params, cfg: ThinkerConfig, group: VisualFrames, dtype):
  def one(_, lane):
    lane = jax.tree.map(lambda a: a[None], lane)

    def run(lane):
      out, deep = encode_vision(
        params, cfg.vision, lane.patches.astype(dtype), lane.rows, lane.cols, lane.heights, lane.widths, lane.length
      )
      return jnp.concatenate([out[0][None], deep[:, 0]])

    shape = jax.eval_shape(run, lane)
    return None, jax.lax.cond(lane.length[0] > 0, run, lambda _: jnp.zeros(shape.shape, shape.dtype), lane)

  return jax.lax.scan(one, None, group)[1]


def encode_items(params: Params, cfg: ThinkerConfig, items: Sequence[Item], lanes: int, dtype) -> dict[bytes, np.ndarray]:
  """Features of items of one kind and shape, at most `lanes`: for each key 'J n D', [0] the input, [1:] deepstack levels
  (of pictures)."""
  first = items[0]
  if first.kind == 'audio':
    frames = first.shape * cfg.audio.chunk_frames
    group = AudioWindows(
      np.zeros((lanes, frames, cfg.audio.num_mel_bins), np.float32),
      np.zeros(lanes, np.int32),
      np.full(lanes, cfg.audio.chunk_frames, np.int32),
    )
    for i, item in enumerate(items):
      mel, short = item.payload
      group.mel[i, : len(mel)], group.frames[i], group.conv_frames[i] = mel, len(mel), short
    out = np.asarray(encode_audio_lanes(params['audio'], cfg, group, dtype))[:, None]
  else:
    P, merge = first.shape, cfg.vision.spatial_merge_size
    group = VisualFrames(
      np.zeros((lanes, P, cfg.vision.patch_dim), np.float32),
      np.zeros((lanes, P), np.int32),
      np.zeros((lanes, P), np.int32),
      np.full(lanes, merge, np.int32),
      np.full(lanes, merge, np.int32),
      np.zeros(lanes, np.int32),
    )
    for i, item in enumerate(items):
      patches, h, w = item.payload
      n = len(patches)
      group.patches[i, :n] = patches
      group.rows[i, :n], group.cols[i, :n] = patch_coordinates(h, w, merge)
      group.heights[i], group.widths[i], group.length[i] = h, w, n
    out = np.asarray(encode_visual_lanes(params['vision'], cfg, group, dtype))
  return {item.key: np.ascontiguousarray(out[i, :, : item.tokens]) for i, item in enumerate(items)}
