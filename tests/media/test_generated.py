"""1,000 generated media, each beside the same content in its plainest encoding: same tokens, positions, grids, mel and pixels.

Seeded, so a failure can be repeated: the message names the medium's number and what was drawn for it.
"""

import collections
import io

import numpy as np
import pytest
import soundfile
from PIL import Image

from qwen3_omni_jax.media.image import on_white
from qwen3_omni_jax.media.processor import Processor
from tests.media.made import picture, tone, video
from tests.media.test_transparency import png_16

IMAGES, SOUNDS, VIDEOS = 400, 300, 300
pytestmark = pytest.mark.slow


def alike(processor: Processor, kind: str, odd, plain, what: str, mel: float = 1e-4, **options) -> None:
  row, want = (
    processor([{'role': 'user', 'content': [{'type': kind, kind: m}, 'What is it?']}], **options) for m in (odd, plain)
  )
  np.testing.assert_array_equal(row.ids, want.ids, what)
  np.testing.assert_allclose(row.positions, want.positions, rtol=1e-5, atol=0.02, err_msg=what)  # a millisecond of 13 a second
  assert [v.grid for v in row.visuals] == [v.grid for v in want.visuals], what
  for ours, theirs in zip(row.visuals, want.visuals, strict=True):
    np.testing.assert_array_equal(ours.patches, theirs.patches, what)
  for ours, theirs in zip(row.audios, want.audios, strict=True):
    assert ours.mel.shape == theirs.mel.shape and np.abs(ours.mel - theirs.mel).mean() <= mel, what


def drawn_pixels(rng: np.random.Generator, alpha: str) -> np.ndarray:
  """uint8 'H W 4' of soft colours, with an alpha that is whole, all or nothing, or anything."""
  h, w = rng.integers(24, 90, 2)
  small = Image.fromarray(rng.integers(0, 256, (4, 5, 4), np.uint8), 'RGBA')
  pixels = np.array(small.resize((int(w), int(h)), Image.Resampling.BILINEAR))
  pixels[..., 3] = {'whole': 255, 'any': pixels[..., 3], 'binary': np.where(pixels[..., 3] > 127, 255, 0)}[alpha]
  return pixels


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
  flips = [pixels, pixels[:, ::-1], pixels[::-1, ::-1], pixels[::-1]]
  flips += [p.swapaxes(0, 1) for p in (pixels, pixels[::-1], pixels[::-1, ::-1], pixels[:, ::-1])]
  return np.ascontiguousarray(flips[orientation - 1])


def drawn_image(rng: np.random.Generator) -> tuple[str, bytes, np.ndarray]:
  """(what it is, the file, its pixels on white)."""
  kind = str(rng.choice(['PNG', 'WEBP', 'TIFF', 'TGA', 'QOI', 'JPEG2000', 'SGI', 'PNG 16', 'PNG palette', 'GIF', 'grey', 'CMYK']))
  alpha = str(rng.choice(['whole', 'any', 'binary'])) if kind not in ('PNG palette', 'GIF', 'CMYK') else 'binary'
  orientation = int(rng.integers(1, 9)) if kind in ('PNG', 'WEBP', 'TIFF') else 1
  pixels, file, options = drawn_pixels(rng, alpha), io.BytesIO(), {}
  if orientation > 1:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options['exif'] = exif.tobytes()
  if kind == 'PNG 16':
    file.write(png_16(pixels.astype(np.uint16) * 257, 6))
    want = on_white(pixels)
  elif kind == 'grey':
    grey = Image.fromarray(pixels[..., 0])
    image = Image.merge('LA', [grey, Image.fromarray(pixels[..., 3])])
    image.save(file, str(rng.choice(['PNG', 'TIFF'])))
    want = on_white(np.array(image.convert('RGBA')))
  elif kind == 'CMYK':
    image = Image.fromarray(pixels[..., :3]).convert('CMYK')
    image.save(file, 'TIFF')
    want = np.array(image.convert('RGB'))
  elif kind in ('PNG palette', 'GIF'):
    levels = pixels[..., :3] // 86 * 86  # 27 colours
    image = Image.fromarray(levels).convert('P', palette=Image.Palette.ADAPTIVE, colors=40)
    clear = image.getpixel((0, 0))
    image.save(file, kind[:3], transparency=clear)
    colour = np.array(image.convert('RGB'))
    want = np.where((np.array(image) == clear)[..., None], 255, colour).astype(np.uint8)
  else:
    options |= {'lossless': True, 'exact': True} if kind == 'WEBP' else {}
    Image.fromarray(pixels).save(file, kind, **options)
    want = turned(on_white(pixels), orientation)
  return f'{kind}, alpha {alpha}, orientation {orientation}', file.getvalue(), want


def test_images(small_processor):
  rng, counts = np.random.default_rng(0), collections.Counter()
  for i in range(IMAGES):
    what, data, plain = drawn_image(rng)
    alike(small_processor, 'image', data, plain, f'image {i}: {what}')
    counts[what.split(',')[0]] += 1
  print(f'{IMAGES} images:', dict(counts))
  assert len(counts) == 12 and min(counts.values()) >= 15


# A step of each encoding. A silent bin of the mel holds nothing else, so only the mean of all is compared.
SUBTYPES = {'PCM_16': 2.0**-15, 'PCM_24': 2.0**-23, 'FLOAT': 2.0**-24, 'PCM_U8': 2.0**-7, 'ULAW': 2.0**-5}


def drawn_sound(rng: np.random.Generator) -> tuple[str, bytes, tuple[np.ndarray, int], float]:
  """(what it is, the file, its mean channel as an array with its rate, the error of a sample)."""
  kind, subtype = [
    *[('WAV', s) for s in SUBTYPES],
    *[(k, s) for k in ('FLAC', 'W64', 'AIFF', 'RF64', 'CAF', 'AU') for s in ('PCM_16', 'PCM_24')],
  ][rng.integers(len(SUBTYPES) + 12)]
  rate = int(rng.choice([8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000]))
  channels = int(rng.choice([1, 1, 2, 3, 6]))
  t = np.arange(round(rng.uniform(0.2, 1.5) * rate)) / rate
  hz = rng.uniform(100, 3000, channels)
  samples = rng.uniform(0.1, 0.9) * np.sin(2 * np.pi * hz * t[:, None]) * rng.uniform(0.2, 1, channels)
  samples = samples.astype(np.float32) + rng.normal(0, 0.01, samples.shape).astype(np.float32)
  file = io.BytesIO()
  soundfile.write(file, samples, rate, format=kind, subtype=subtype)
  data = file.getvalue() + (bytes(int(rng.integers(1, 400))) if kind == 'WAV' and rng.random() < 0.3 else b'')
  return f'{kind} {subtype}, {rate} Hz, {channels} channels', data, (samples.mean(1), rate), SUBTYPES[subtype]


def test_sounds(small_processor):
  from qwen3_omni_jax.media.audio import load_audio

  rng, counts = np.random.default_rng(1), collections.Counter()
  for i in range(SOUNDS):
    what, data, plain, error = drawn_sound(rng)
    got, want = load_audio(data), load_audio(plain)
    assert len(got) == len(want) and np.abs(got - want).max() < 2 * error + 1e-6, f'sound {i}: {what}'
    alike(small_processor, 'audio', data, plain, f'sound {i}: {what}', mel=1e-3 + 20 * error)
    counts[what.split()[0]] += 1
  print(f'{SOUNDS} sounds:', dict(counts))
  assert len(counts) == 7 and min(counts.values()) >= 15


def drawn_video(rng: np.random.Generator) -> tuple[str, bytes, bytes, bool, float]:
  """(what it is, the file, the same as a plain one, is its sound heard, how late its pictures are)."""
  kind = str(rng.choice(['matroska', 'mov', 'nut']))
  count, step = int(rng.integers(2, 16)), 0.1
  spacing = rng.choice([1, 1, 1, 2, 7, 13], count) if rng.random() < 0.7 else np.ones(count, int)
  spacing[-1] = 1 if kind == 'nut' else spacing[-1]  # NUT cannot say how long the last picture is shown
  spacing[0] += 4 if spacing.sum() < 4 else 0  # a plain film of fewer frames than the least number is not filled up
  starts = np.r_[0, np.cumsum(spacing[:-1])]
  total = int(starts[-1] + spacing[-1])
  pictures = [picture(int(rng.integers(0, 50))) for _ in range(count)]
  zero = float(rng.choice([0.0, 0.0, 3.0, -2.0] if kind == 'nut' else [0.0, 0.0, 3.0]))
  heard = bool(rng.random() < 0.6)
  late_sound, late_pictures = ((0.0, 0.0), (float(rng.choice([0.5, 1.2])), 0.0), (0.0, float(rng.choice([0.5, 1.2]))))[
    rng.integers(3) if heard else 0
  ]
  sound = tone(rng.uniform(0.5, 2.5), rng.uniform(200, 2000)) if heard else None
  odd = video(
    pictures,
    kind=kind,
    times_s=[step * s for s in starts],
    start_s=zero + late_pictures,
    last_s=step * spacing[-1],
    sound=sound,
    sound_start_s=zero + late_sound,
  )
  held = [pictures[np.searchsorted(starts, i, 'right') - 1] for i in range(total)]
  silence = np.zeros(round(late_sound * 16_000), np.float32)
  plain = video(held, sound=None if sound is None else np.r_[silence, sound])
  return f'{kind}, {len(set(spacing))} spacings, zero {zero}, {late_sound=}, {late_pictures=}', odd, plain, heard, late_pictures


def test_videos(small_processor):
  """Late pictures are compared one position axis apart: their tokens stand later among the sound's."""
  rng, counts = np.random.default_rng(2), collections.Counter()
  token = small_processor.cfg.thinker.video_token_id
  for i in range(VIDEOS):
    what, odd, plain, heard, late = drawn_video(rng)
    what = f'video {i}: {what}'
    fps = float(rng.choice([0.7, 1, 2, 3, 5]))
    if late:
      alike(small_processor, 'video', odd, plain, what, fps=fps, audio_in_video=False)
      rows = [
        small_processor([{'role': 'user', 'content': [{'type': 'video', 'video': m}]}], fps=fps, audio_in_video=True)
        for m in (odd, plain)
      ]
      np.testing.assert_array_equal(np.sort(rows[0].ids), np.sort(rows[1].ids), what)
      times = [row.positions[0, row.ids == token] for row in rows]
      np.testing.assert_allclose(times[0] - times[1], 13 * late, atol=0.03, err_msg=what)
      np.testing.assert_allclose(rows[0].audios[0].mel, rows[1].audios[0].mel, atol=1e-4, err_msg=what)
    else:
      alike(small_processor, 'video', odd, plain, what, fps=fps, audio_in_video=heard)
    counts[what.split()[2].strip(',') + (', late pictures' if late else '')] += 1
  print(f'{VIDEOS} videos:', dict(counts))
  assert len(counts) == 6 and min(counts.values()) >= 10
