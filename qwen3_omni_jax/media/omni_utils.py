"""Frames, sizes and pixels as the published utilities (qwen-omni-utils 0.0.9) choose them: the setting `media='utils'`.

They run before the processor and know nothing of it: pictures and frames are resized to multiples of 28 pixels within bounds of
their own, and the processor then resizes once more, to multiples of 32. Names below are ours; what is computed is theirs.
"""

import math

import numpy as np

from .image import MAX_ASPECT, ImageSettings, patch_rows, smart_resize
from .keys import NO_KEYS, MediaKeys
from .resample import resize_float
from .sizes import frame_limit
from .source import Limits

FACTOR = 28
LISTED_FACTOR = 56  # of the pictures of a list that stands for a video, which are resized twice
IMAGE_TOKENS = (4, 16_384)  # bounds of a picture, in squares of FACTOR pixels
FRAME_TOKENS = (128, 768)  # of a frame
VIDEO_TOKENS = 128_000 * 0.9  # of all pairs of frames together


def frame_indices(first: int, last: int, count: int) -> np.ndarray:
  """Indices of `count` frames from `first` to `last`, both among them."""
  return np.rint(_linspace(first, last, count)).astype(np.int64)


def _linspace(first: int, last: int, count: int) -> np.ndarray:
  """torch.linspace in float32: counted from the first value in the lower half and from the last one in the upper, each value
  rounded once. Which of two frames is nearer hangs on these roundings."""
  step = float(np.float32(last - first) / np.float32(max(count - 1, 1)))
  k = np.arange(count)
  return np.where(k < count // 2, first + step * k, last - step * k[::-1]).astype(np.float32)


def fitted(height: int, width: int, factor: int, low: float, high: float) -> tuple[int, int]:
  """(height, width) in multiples of `factor` near the original, its pixels within bounds. Not quite the processor's rule: a side
  is never rounded to 0, but may be shrunk to 0, which is an error."""
  if low > high:
    raise ValueError(f'min_pixels {low:g} is above max_pixels {high:g}')
  if max(height, width) / min(height, width) > MAX_ASPECT:
    raise ValueError(f'{width}×{height} pixels: one side is over {MAX_ASPECT} times the other; crop it')
  h, w = (max(factor, round(side / factor) * factor) for side in (height, width))
  if h * w > high:
    shrink = math.sqrt(height * width / high)
    h, w = (math.floor(side / shrink / factor) * factor for side in (height, width))
  elif h * w < low:
    grow = math.sqrt(low / (height * width))
    h, w = (math.ceil(side * grow / factor) * factor for side in (height, width))
  if not h or not w:
    raise ValueError(f'{width}×{height} pixels within {high:g}: no room for patches of {factor} pixels; raise max_pixels')
  return h, w


def image_size(height: int, width: int, keys: MediaKeys = NO_KEYS, factor: int = FACTOR) -> tuple[int, int]:
  """(height, width) of a picture."""
  low, high = (tokens * factor**2 for tokens in IMAGE_TOKENS)
  if keys.size is not None:
    return fitted(*keys.size, factor, low, high)
  return fitted(height, width, factor, keys.min_pixels or low, keys.max_pixels or high)


def frame_size(height: int, width: int, frames: int, keys: MediaKeys = NO_KEYS) -> tuple[int, int]:
  """(height, width) of each of a video's frames: the more frames, the smaller."""
  if keys.size is not None:
    return image_size(height, width, keys)
  low = keys.min_pixels or FRAME_TOKENS[0] * FACTOR**2
  total = keys.total_pixels or VIDEO_TOKENS * FACTOR**2
  return fitted(height, width, FACTOR, low, frame_limit(frames, low, FRAME_TOKENS[1] * FACTOR**2, total, keys))


def resized_image(pixels: np.ndarray, keys: MediaKeys, limits: Limits, factor: int = FACTOR) -> np.ndarray:
  """A picture, uint8 'H W 3', in its size; by Pillow, as theirs."""
  from PIL import Image

  height, width, _ = pixels.shape
  height, width = image_size(height, width, keys, factor)
  if height * width > limits.image_pixels:
    raise ValueError(f'resized to {width}×{height} pixels; the limit is {limits.image_pixels} in all: lower min_pixels')
  return np.asarray(Image.fromarray(pixels).resize((width, height)))


def resized_frame(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
  """uint8 'height width 3' of a frame: resized in float32 and rounded."""
  if pixels.shape[:2] == (height, width):
    return pixels
  return np.rint(np.clip(resize_float(pixels, height, width), 0, 255)).astype(np.uint8)


def video_patches(frames: np.ndarray, settings: ImageSettings) -> tuple[np.ndarray, tuple[int, int, int]]:
  """(patch rows float32 'P 1536', grid) of frames as above, an even number: the processor's resize, which for their float32
  frames neither rounds nor clips. Pair by pair: a long video's frames in float32 would be gigabytes."""
  t, step = len(frames) // settings.temporal_patch, settings.temporal_patch
  _, height, width, _ = frames.shape
  h, w = smart_resize(height, width, settings.factor, settings.video_min_pixels, settings.video_max_pixels)
  rows, columns = h // settings.patch, w // settings.patch
  out = np.empty((t, rows * columns, settings.patch**2 * 3 * step), np.float32)
  for i in range(t):
    pair = np.stack([resize_float(frame, h, w) for frame in frames[i * step : (i + 1) * step]])
    out[i] = patch_rows(pair, settings)[0]
  return out.reshape(t * rows * columns, -1), (t, rows, columns)
