"""Images: any file to pixels, pixels to a size that fits the patches, resized pixels to patch rows."""

import dataclasses
import io
import math
import pathlib
import re
import struct
import warnings
from typing import Any

import numpy as np

from .content import content_of
from .resample import resize
from .source import Limits, name_of, read_bytes

MAX_ASPECT = 200
# Picture formats by Pillow's names. Left out: those that run other programs (EPS, WMF) and those that are no pictures.
FORMATS = (
  'PNG',
  'JPEG',
  'WEBP',
  'GIF',
  'BMP',
  'DIB',
  'TIFF',
  'AVIF',
  'JPEG2000',
  'PPM',
  'TGA',
  'ICO',
  'PCX',
  'SGI',
  'QOI',
  'PSD',
  'DDS',
  'ICNS',
)


_FIXED = {'rescale_factor': 1 / 255, 'resample': 3}  # 3: bicubic
_SWITCHES = ('do_resize', 'do_rescale', 'do_normalize', 'do_convert_rgb')
_READ = {
  'size',
  'min_pixels',
  'max_pixels',
  'patch_size',
  'temporal_patch_size',
  'merge_size',
  'image_mean',
  'image_std',
  *_SWITCHES,
  *_FIXED,
}


@dataclasses.dataclass(frozen=True)
class ImageSettings:
  """How pixels become patches, from the checkpoint's preprocessor_config.json. Defaults are the reference's class defaults."""

  min_pixels: int = 56 * 56
  max_pixels: int = 28 * 28 * 1280
  video_min_pixels: int = 128 * 32 * 32  # of one frame; the reference's processor sets these, no file does
  video_max_pixels: int = 768 * 32 * 32
  patch: int = 14
  temporal_patch: int = 2
  merge: int = 2
  mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
  std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
  ignored: tuple[str, ...] = ()  # keys of the file that say nothing about pixels and patches

  @classmethod
  def from_dict(cls, data: dict[str, Any], where: str = 'preprocessor_config.json') -> 'ImageSettings':
    """Reads the image keys; those of audio (feature_size, hop_length, …) are constants here and are checked by the processor."""
    size = data.get('size') or {}
    if not isinstance(size, dict):
      raise ValueError(f"{where}: size {size!r}; expected {{'shortest_edge': pixels, 'longest_edge': pixels}}")
    values = {
      'min_pixels': data.get('min_pixels', size.get('shortest_edge', size.get('min_pixels'))),
      'max_pixels': data.get('max_pixels', size.get('longest_edge', size.get('max_pixels'))),
      'patch': data.get('patch_size'),
      'temporal_patch': data.get('temporal_patch_size'),
      'merge': data.get('merge_size'),
      'mean': data.get('image_mean'),
      'std': data.get('image_std'),
    }
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if v is not None}
    try:
      settings = cls(**values)
      valid = (
        all(
          type(getattr(settings, k)) is int and getattr(settings, k) > 0
          for k in ('min_pixels', 'max_pixels', 'patch', 'temporal_patch', 'merge')
        )
        and all(len(v) == 3 for v in (settings.mean, settings.std))
        and all(type(x) in (int, float) and math.isfinite(x) for x in (*settings.mean, *settings.std))
        and all(x > 0 for x in settings.std)
        and settings.min_pixels <= settings.max_pixels
      )
    except TypeError:
      valid = False
    if not valid:
      raise ValueError(f'{where}: impossible image settings {values}')
    for switch in _SWITCHES:
      if data.get(switch, True) is False:
        raise ValueError(f'{where}: {switch} is false; only true is implemented')
    for key, only in _FIXED.items():
      value = data.get(key, only)
      if type(value) not in (int, float) or not math.isclose(value, only, rel_tol=1e-6):
        raise ValueError(f'{where}: {key} {value!r}; only {only} is implemented')
    return dataclasses.replace(settings, ignored=tuple(sorted(set(data) - _READ)))

  @property
  def factor(self) -> int:
    """Sides are multiples of this (32)."""
    return self.patch * self.merge


def load_image(source: Any, limits: Limits | None = None, root: pathlib.Path | None = None) -> np.ndarray:
  """uint8 'H W 3' pixels, upright.

  source: a path, data: URL, bytes, a Pillow image, or a uint8 array 'H W 3'. The EXIF orientation is applied, as the reference's
  loader does; of an animation the first picture counts. Departures: what is transparent lies on white, as in the published
  utilities (the reference shows the hidden colour); 16-bit grey is scaled to 8 bits (the reference clips nearly all of it to
  white). Too many pixels are refused before they are decoded.
  """
  from PIL import Image, ImageOps

  limits = limits or Limits()
  name = name_of(source)
  if isinstance(source, np.ndarray):
    if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
      raise ValueError(f'{name}: image array of dtype {source.dtype}; expected uint8 of shape (height, width, 3)')
    _check_pixels(source.shape[1], source.shape[0], name, limits)
    return source
  data = None if isinstance(source, Image.Image) else read_bytes(source, limits, root)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # Pillow's own bomb and metadata warnings: the limit below decides
      image = source if data is None else _open(data)
      width, height = image.size
      _check_pixels(width, height, name, limits)
      return _rgb(ImageOps.exif_transpose(image), image.format, name)
  except (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    MemoryError,
    EOFError,
    ZeroDivisionError,
    AttributeError,
    Image.DecompressionBombError,
    RuntimeError,
    struct.error,
  ) as e:
    if isinstance(e, ValueError) and str(e).startswith(name):
      raise
    content = '' if data is None else content_of(data)
    found = f'; its content is {content}' if content else ''
    raise ValueError(f'{name}: not readable as an image ({type(e).__name__}: {_reason(e)}){found}') from e


def _open(data: bytes) -> Any:
  from PIL import Image

  Image.init()  # the plugins; AVIF and JPEG 2000 are not in every build
  return Image.open(io.BytesIO(data), formats=[f for f in FORMATS if f in Image.OPEN])


def _rgb(image: Any, encoding: str | None, name: str) -> np.ndarray:
  if image.mode.startswith('I;16') or (image.mode == 'I' and encoding in ('PNG', 'PPM')):  # 16 bits
    values = np.asarray(image).astype(np.int32)
    grey = (values >> 8).astype(np.uint8)
    clear = image.info.get('transparency')  # one grey of the 65,536 stands for nothing
    if isinstance(clear, int):
      grey[values == clear] = 255
    return np.repeat(grey[..., None], 3, axis=-1)
  if image.mode in ('I', 'F'):
    raise ValueError(f'{name}: 32-bit pixels of no known range; convert them to 8 bits')
  if image.has_transparency_data:
    image = image.convert('LA') if image.mode == 'La' else image  # premultiplied
    return on_white(np.array(image.convert('RGBA')))
  return np.array(image.convert('RGB'))


def on_white(pixels: np.ndarray) -> np.ndarray:
  """uint8 'H W 3' of uint8 'H W 4' with alpha, laid on white. To the bit what Pillow's paste makes of it, and so the published
  utilities."""
  alpha = pixels[..., 3:].astype(np.int32)
  mixed = pixels[..., :3] * alpha + 255 * (255 - alpha) + 128
  return (((mixed >> 8) + mixed) >> 8).astype(np.uint8)


def _reason(error: BaseException) -> str:
  return re.sub(r' <_io.BytesIO object at \w+>', '', str(error))[:200]


def _check_pixels(width: int, height: int, name: str, limits: Limits) -> None:
  if width * height > limits.image_pixels:
    raise ValueError(f'{name}: {width}×{height} pixels; the limit is {limits.image_pixels} in all')


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
  """(height, width) as multiples of `factor`, near the original, with the number of pixels within limits.

  Rounding is to even, as in the reference. A side far below `factor` can round to 0 there, and only the minimum of pixels
  rescues it; here too, and what is still 0 is an error.
  """
  if max(height, width) / max(min(height, width), 1) > MAX_ASPECT:
    raise ValueError(f'{width}×{height} pixels: one side is over {MAX_ASPECT} times the other; crop it')
  h, w = round(height / factor) * factor, round(width / factor) * factor
  if h * w > max_pixels:
    shrink = math.sqrt(height * width / max_pixels)
    h = max(factor, math.floor(height / shrink / factor) * factor)
    w = max(factor, math.floor(width / shrink / factor) * factor)
  elif h * w < min_pixels:
    grow = math.sqrt(min_pixels / (height * width))
    h = math.ceil(height * grow / factor) * factor
    w = math.ceil(width * grow / factor) * factor
  if not h or not w:
    raise ValueError(f'{width}×{height} pixels: too narrow for patches of {factor} pixels; enlarge or crop it')
  return h, w


def image_patches(
  pixels: np.ndarray, settings: ImageSettings, size: tuple[int, int] | None = None, raw: bool = False
) -> tuple[np.ndarray, tuple[int, int, int]]:
  """(patch rows float32 'P 1536', grid (1, rows, columns)) of one image, resized to `size`, or to fit. raw: as raw_rows."""
  height, width, _ = pixels.shape
  size = size or smart_resize(height, width, settings.factor, settings.min_pixels, settings.max_pixels)
  pair = np.repeat(resize(pixels, *size)[None], settings.temporal_patch, axis=0)
  return raw_rows(pair, settings) if raw else patch_rows(pair, settings)


def patch_rows(frames: np.ndarray, settings: ImageSettings) -> tuple[np.ndarray, tuple[int, int, int]]:
  """(patch rows float32 'P 1536', grid) of frames 'T H W 3' of fitting size, T a multiple of the temporal patch.

  Rows are in merge-block order: the 2×2 patches that become one feature are neighbours. A row is (channel, time, y, x).
  """
  rows, grid = raw_rows(frames, settings)  # ordered while still bytes: a long video is gigabytes
  out = np.empty(rows.shape, np.float32)
  normalise_rows(rows, settings, out)
  return out, grid


def raw_rows(frames: np.ndarray, settings: ImageSettings) -> tuple[np.ndarray, tuple[int, int, int]]:
  """As patch_rows, of the pixels' own type and values: a quarter of the memory."""
  T, H, W, C = frames.shape
  t, h, w = T // settings.temporal_patch, H // settings.patch, W // settings.patch
  m, p = settings.merge, settings.patch
  blocks = frames.reshape(t, settings.temporal_patch, h // m, m, p, w // m, m, p, C)
  # t, h/m, w/m, m, m, C, T, p, p
  return np.ascontiguousarray(blocks.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)).reshape(t * h * w, -1), (t, h, w)


def normalise_rows(rows: np.ndarray, settings: ImageSettings, out: np.ndarray) -> None:
  """Writes raw rows 'P 1536' into out, float32: less the mean, over the deviation of the channel."""
  mean = np.asarray(settings.mean, np.float32) * np.float32(255)
  std = np.asarray(settings.std, np.float32) * np.float32(255)
  values = out.reshape(len(rows), len(mean), -1)
  np.subtract(rows.reshape(values.shape), mean[:, None], out=values, dtype=np.float32)
  np.divide(values, std[:, None], out=values)
