"""What is transparent lies on white, in every format and mode; the hidden colour never shows."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from qwen3_omni_jax.media.image import load_image, on_white
from qwen3_omni_jax.media.video import load_video

WHITE, BLUE, RED = (255, 255, 255), (0, 0, 255), (255, 0, 0)


def hidden(alpha: int = 0) -> np.ndarray:
  """uint8 'H W 4': a blue square, and red under the given alpha around it."""
  out = np.zeros((32, 32, 4), np.uint8)
  out[...] = (*RED, alpha)
  out[8:24, 8:24] = (*BLUE, 255)
  return out


def flat(alpha: int = 0) -> np.ndarray:
  """The same as it is seen on white."""
  out = np.zeros((32, 32, 3), np.uint8)
  out[...] = (255, 255 - alpha, 255 - alpha)
  out[8:24, 8:24] = BLUE
  return out


def encoded(image: Image.Image, kind: str, **options) -> bytes:
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def as_the_utilities(image: Image.Image) -> np.ndarray:
  """to_rgb of qwen-vl-utils 0.0.14 and qwen-omni-utils 0.0.9."""
  white = Image.new('RGB', image.size, WHITE)
  white.paste(image, mask=image.split()[3])
  return np.array(white)


def test_every_alpha_is_mixed_as_the_utilities_do():
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (256, 300, 4), np.uint8)
  pixels[:, :256, 3] = np.arange(256)
  np.testing.assert_array_equal(on_white(pixels), as_the_utilities(Image.fromarray(pixels)))
  np.testing.assert_array_equal(load_image(Image.fromarray(pixels)), as_the_utilities(Image.fromarray(pixels)))


@pytest.mark.parametrize('kind', ['PNG', 'WEBP', 'TIFF', 'TGA', 'QOI', 'JPEG2000', 'ICO', 'DDS', 'SGI'])
@pytest.mark.parametrize('alpha', [0, 128])
def test_every_format_with_alpha(kind, alpha):
  options = {'lossless': True, 'exact': True} if kind == 'WEBP' else {'sizes': [(32, 32)]} if kind == 'ICO' else {}
  data = encoded(Image.fromarray(hidden(alpha)), kind, **options)
  np.testing.assert_array_equal(load_image(data), flat(alpha))
  other = hidden(alpha)
  other[..., 1][other[..., 3] < 255] = 255  # counterfactual: another colour shows as far as alpha lets it
  changed = load_image(encoded(Image.fromarray(other), kind, **options))
  assert np.array_equal(changed, flat(alpha)) == (alpha == 0)


def test_avif_with_alpha():
  got = load_image(encoded(Image.fromarray(hidden()), 'AVIF', quality=100))
  assert np.abs(got.astype(int) - flat()).mean() < 3 and (got[:4] > 250).all()


def test_palettes_grey_and_colour_keys():
  rgb = Image.fromarray(hidden()[..., :3])
  palette = rgb.convert('P')
  red = palette.getpixel((0, 0))
  table = bytes(0 if i == red else 255 for i in range(256))
  for kind, clear in (('PNG', red), ('PNG', table), ('GIF', red)):
    np.testing.assert_array_equal(load_image(encoded(palette, kind, transparency=clear)), flat())
  np.testing.assert_array_equal(load_image(encoded(rgb, 'PNG', transparency=RED)), flat())
  np.testing.assert_array_equal(load_image(encoded(rgb, 'PNG')), np.array(rgb))  # counterfactual: nothing is transparent
  grey = np.full((32, 32), 40, np.uint8)
  grey[8:24, 8:24] = 90
  seen = np.where(grey == 40, 255, 90).astype(np.uint8)[..., None].repeat(3, -1)
  np.testing.assert_array_equal(load_image(encoded(Image.fromarray(grey), 'PNG', transparency=40)), seen)
  with_alpha = Image.merge('LA', [Image.fromarray(grey), Image.fromarray(np.where(grey == 40, 0, 255).astype(np.uint8))])
  for kind in ('PNG', 'TIFF', 'WEBP'):
    options = {'lossless': True} if kind == 'WEBP' else {}
    np.testing.assert_array_equal(load_image(encoded(with_alpha, kind, **options)), seen)
  for mode, image in (('RGBa', Image.fromarray(hidden())), ('La', with_alpha)):  # premultiplied
    want = flat() if mode == 'RGBa' else seen
    np.testing.assert_array_equal(load_image(image.convert(mode)), want)


def png_16(pixels: np.ndarray, colour: int, key: tuple[int, ...] | None = None) -> bytes:
  """A PNG of 16-bit samples 'H W C'. colour: its type; key: the colour that is transparent."""

  def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))

  rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in pixels)
  header = chunk(b'IHDR', struct.pack('>IIBBBBB', pixels.shape[1], pixels.shape[0], 16, colour, 0, 0, 0))
  clear = b'' if key is None else chunk(b'tRNS', struct.pack(f'>{len(key)}H', *key))
  return b'\x89PNG\r\n\x1a\n' + header + clear + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')


def test_16_bits():
  deep = hidden().astype(np.uint16) * 257
  np.testing.assert_array_equal(load_image(png_16(deep, 6)), flat())
  np.testing.assert_array_equal(load_image(png_16(deep[..., :3], 2)), hidden()[..., :3])
  grey = np.full((32, 32, 1), 0x2A01, np.uint16)
  grey[8:24, 8:24] = 0x2A02  # the same 8 bits: only the exact value is the key
  got = load_image(png_16(grey, 0, key=(0x2A01,)))
  np.testing.assert_array_equal(got[..., 0], np.where(grey[..., 0] == 0x2A01, 255, 0x2A))
  with_alpha = np.concatenate([grey, np.where(grey == 0x2A01, 0, 65_535).astype(np.uint16)], axis=-1)
  np.testing.assert_array_equal(load_image(png_16(with_alpha, 4)), got)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation_and_transparency_together(orientation):
  pixels = hidden()
  pixels[:4, :12] = (0, 255, 0, 255)  # a mark in one corner
  image = Image.fromarray(pixels)
  exif = Image.Exif()
  exif[0x0112] = orientation
  turned = [pixels, pixels[:, ::-1], pixels[::-1, ::-1], pixels[::-1]]
  turned += [p.transpose(1, 0, 2) for p in (pixels, pixels[::-1], pixels[::-1, ::-1], pixels[:, ::-1])]
  for kind in ('PNG', 'WEBP', 'TIFF'):
    options = {'lossless': True, 'exact': True} if kind == 'WEBP' else {}
    np.testing.assert_array_equal(
      load_image(encoded(image, kind, exif=exif.tobytes(), **options)), on_white(turned[orientation - 1])
    )


def test_the_first_picture_of_an_animation_counts():
  first, second = Image.fromarray(hidden()), Image.new('RGBA', (32, 32), (0, 255, 0, 255))
  for kind in ('GIF', 'PNG', 'WEBP'):
    options = {'lossless': True} if kind == 'WEBP' else {}
    data = encoded(first, kind, save_all=True, append_images=[second], duration=100, **options)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    np.testing.assert_array_equal(load_image(data), flat())


def test_frames_of_a_video_with_alpha():
  """A GIF is a video too; its delays are its times."""
  first, second = Image.fromarray(hidden()), Image.new('RGBA', (32, 32), (0, 255, 0, 255))
  data = encoded(first, 'GIF', save_all=True, append_images=[second], duration=[700, 300], disposal=2)
  clip = load_video(data, fps=4)
  assert clip.duration_s == pytest.approx(1.0)
  np.testing.assert_array_equal(clip.frames[0], flat())
  assert [frame[0, 0].tolist() == list(WHITE) for frame in clip.frames] == [True, True, True, False]


def test_the_hidden_colour_of_a_frame_does_not_show():
  """In a video that keeps its colours under alpha, as GIF does not."""
  import av

  out = io.BytesIO()
  with av.open(out, 'w', format='matroska') as container:
    stream = container.add_stream('ffv1', rate=10)
    stream.width, stream.height, stream.pix_fmt = 32, 32, 'bgra'
    for i, alpha in enumerate((0, 128, 255, 0)):
      frame = av.VideoFrame.from_ndarray(hidden(alpha), format='rgba')
      frame.pts = i
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  frames = load_video(out.getvalue(), fps=10).frames
  np.testing.assert_array_equal(frames, np.stack([flat(alpha) for alpha in (0, 128, 255, 0)]))
