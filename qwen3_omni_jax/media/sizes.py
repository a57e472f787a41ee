"""The size of a picture or frame that the processor alone resizes: what the message asks for, within the checkpoint's limits."""

from .image import ImageSettings, smart_resize
from .keys import NO_KEYS, MediaKeys


def image_size(height: int, width: int, settings: ImageSettings, keys: MediaKeys = NO_KEYS) -> tuple[int, int]:
  """(height, width) of a picture, in multiples of the settings' factor."""
  low, high = settings.min_pixels, settings.max_pixels
  return _size(height, width, settings.factor, keys, low, high, keys.max_pixels)


def frame_size(height: int, width: int, frames: int, settings: ImageSettings, keys: MediaKeys = NO_KEYS) -> tuple[int, int]:
  """(height, width) of each of a video's frames. A total of pixels counts only where the message gives one."""
  low, high = settings.video_min_pixels, settings.video_max_pixels
  most = keys.max_pixels
  if keys.total_pixels is not None:
    most = frame_limit(frames, keys.min_pixels or low, high, keys.total_pixels, keys)
  return _size(height, width, settings.factor, keys, low, high, most)


def frame_limit(frames: int, low: float, high: float, total: float, keys: MediaKeys) -> float:
  """The most pixels of a frame: its share of the pixels of all pairs, `low` at least and `high` at most; or less if the message
  says so. Source: fetch_video of the published utilities."""
  share = max(min(high, total / frames * 2), int(low * 1.05))
  return share if keys.max_pixels is None else min(keys.max_pixels, share)


def _size(height: int, width: int, factor: int, keys: MediaKeys, low: int, high: int, most: float | None) -> tuple[int, int]:
  if keys.size is not None:
    return smart_resize(*keys.size, factor, low, high)
  within = lambda pixels, default: default if pixels is None else min(max(pixels, low), high)
  asked = smart_resize(height, width, factor, within(keys.min_pixels, low), within(most, high))
  return smart_resize(*asked, factor, low, high)  # where a bound that was asked for is the limit itself, the limit holds
