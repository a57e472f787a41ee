"""Pictures in: every format to the right pixels, the reference's sizes, and its patch rows."""

import io

import numpy as np
import pytest
from PIL import Image
from qwen3_omni_jax.tools.sample_media import shapes

from qwen3_omni_jax.media.image import ImageSettings, image_patches, load_image, patch_rows, smart_resize
from qwen3_omni_jax.media.resample import resize
from qwen3_omni_jax.media.source import Limits

SETTINGS = ImageSettings(min_pixels=3136, max_pixels=12_845_056, patch=16, mean=(0.5,) * 3, std=(0.5,) * 3)


def encoded(image: Image.Image, kind: str = 'PNG', **options) -> bytes:
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


@pytest.fixture(scope='module')
def theirs():
  """The reference's image processor for given settings."""
  from tests.reference import prepare_torchvision

  prepare_torchvision()
  import transformers

  def make(settings: ImageSettings):
    return transformers.Qwen2VLImageProcessor(
      patch_size=settings.patch,
      merge_size=settings.merge,
      temporal_patch_size=settings.temporal_patch,
      image_mean=list(settings.mean),
      image_std=list(settings.std),
      size={'shortest_edge': settings.min_pixels, 'longest_edge': settings.max_pixels},
    )

  return make


@pytest.mark.parametrize('kind', ['PNG', 'BMP', 'TIFF', 'PPM', 'GIF', 'TGA', 'QOI'])
def test_lossless_formats_keep_every_pixel(kind):
  picture = shapes(20, 33, 0.4)
  picture[...] = picture // 64 * 64  # few colours, so that a GIF holds them all
  np.testing.assert_array_equal(load_image(encoded(Image.fromarray(picture), kind)), picture)


@pytest.mark.parametrize('kind', ['JPEG', 'WEBP', 'JPEG2000', 'AVIF'])
def test_lossy_formats_come_close(kind):
  picture = shapes(64, 96, 0.4)
  got = load_image(
    encoded(Image.fromarray(picture), kind, quality=95) if kind != 'JPEG2000' else encoded(Image.fromarray(picture), kind)
  )
  assert got.shape == picture.shape and np.abs(got.astype(int) - picture).mean() < 5


def test_every_pixel_layout_becomes_rgb():
  picture = shapes(12, 17, 0.4)
  image = Image.fromarray(picture)
  np.testing.assert_array_equal(load_image(image), picture)
  np.testing.assert_array_equal(load_image(picture), picture)
  for mode in ('1', 'L', 'LA', 'P', 'CMYK'):
    converted = image.convert(mode)
    want = np.array(converted.convert('RGB'))
    np.testing.assert_array_equal(load_image(converted), want)
    np.testing.assert_array_equal(load_image(encoded(converted, 'TIFF')), want)


def test_16_bit_grey_is_scaled_and_unknown_ranges_are_refused():
  grey = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
  want = np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=-1)
  for kind in ('PNG', 'TIFF'):
    np.testing.assert_array_equal(load_image(encoded(Image.fromarray(grey), kind)), want)
  with pytest.raises(ValueError, match='bytes: 32-bit pixels'):
    load_image(encoded(Image.fromarray(grey.astype(np.float32)), 'TIFF'))


def test_exif_orientation_is_applied_as_in_the_references_loader():
  from tests.reference import prepare_torchvision

  prepare_torchvision()
  from transformers.image_utils import load_image as reference_loader

  image = Image.fromarray(shapes(20, 30, 0.1))
  for orientation in range(1, 9):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, exif=exif.tobytes())
    want = np.array(reference_loader(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(load_image(data), want)
    assert want.shape[:2] == ((20, 30) if orientation < 5 else (30, 20))


def test_limits_hold_before_decoding():
  bomb = encoded(Image.new('1', (20_000, 20_000)))
  assert len(bomb) < 100_000  # stands for 1.2 GB of pixels
  with pytest.raises(ValueError, match=f'{len(bomb)} bytes'):
    load_image(bomb)
  small = Limits(image_pixels=100)
  for source in (np.zeros((20, 6, 3), np.uint8), Image.new('RGB', (6, 20)), encoded(Image.new('RGB', (6, 20)))):
    with pytest.raises(ValueError, match='6×20 pixels; the limit is 100'):
      load_image(source, small)


@pytest.mark.parametrize(
  'source',
  [
    np.zeros((4, 4)),
    np.zeros((4, 4, 3)),
    np.zeros((4, 4, 4), np.uint8),
    np.zeros((0, 4, 3), np.uint8),
    np.zeros((4, 4), np.uint8),
  ],
)
def test_other_arrays_are_refused(source):
  with pytest.raises(ValueError, match='expected uint8 of shape'):
    load_image(source)


def test_formats_that_run_programs_are_not_pictures():
  eps = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n'
  with pytest.raises(ValueError, match=f'{len(eps)} bytes: not readable as an image'):
    load_image(eps)


def test_sizes_are_the_references():
  from tests.reference import prepare_torchvision

  prepare_torchvision()
  from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as reference

  rng = np.random.default_rng(0)
  sides = np.exp(rng.uniform(0, np.log(12_000), (5000, 2))).astype(int) + 1
  compared = 0
  for h, w in [(16, 16), (48, 80), (15, 300), (112, 16), *sides.tolist()]:
    for low, high in ((3136, 12_845_056), (131_072, 786_432)):
      if max(h, w) / min(h, w) > 200:
        with pytest.raises(ValueError, match=f'{w}×{h} pixels'):
          smart_resize(h, w, 32, low, high)
        continue
      want = reference(h, w, 32, low, high)
      if min(want) == 0:  # the reference goes on with an empty picture
        with pytest.raises(ValueError, match='too narrow'):
          smart_resize(h, w, 32, low, high)
        continue
      assert smart_resize(h, w, 32, low, high) == want
      compared += 1
  assert compared > 8000
  assert smart_resize(90, 120, 32, 131_072, 786_432) == (320, 448)


@pytest.mark.parametrize('size', [(200, 300), (97, 61), (512, 512), (40, 900), (31, 33), (1200, 1600)])
def test_patches_equal_the_reference(theirs, size):
  rng = np.random.default_rng(0)
  picture = np.clip(shapes(*size, 0.3) + rng.integers(-20, 20, (*size, 3)), 0, 255).astype(np.uint8)
  patches, grid = image_patches(picture, SETTINGS)
  want = theirs(SETTINGS)(images=[picture], return_tensors='np')
  assert list(grid) == want['image_grid_thw'][0].tolist()
  assert patches.dtype == np.float32 and patches.shape == want['pixel_values'].shape == (np.prod(grid), 1536)
  np.testing.assert_allclose(patches, want['pixel_values'], atol=1e-6)  # the 8-bit values are equal; the division rounds


@pytest.mark.parametrize('kind', ['noise', 'black and white'])
def test_resizing_is_torchvisions_to_the_bit(kind):
  from tests.reference import prepare_torchvision

  prepare_torchvision()
  import torch
  from torchvision.transforms.v2 import functional as torchvision

  rng = np.random.default_rng(0)
  for _ in range(60):
    h, w, height, width = np.exp(rng.uniform(0, np.log(500), 4)).astype(int).tolist()
    pixels = rng.integers(0, 256, (h, w, 3), np.uint8)
    pixels = pixels if kind == 'noise' else np.where(pixels > 127, np.uint8(255), np.uint8(0))
    theirs = torchvision.resize(
      torch.from_numpy(pixels).permute(2, 0, 1)[None], [height, width], torchvision.InterpolationMode.BICUBIC, antialias=True
    )
    np.testing.assert_array_equal(resize(pixels, height, width), theirs[0].permute(1, 2, 0).numpy())


def test_normalisation_reads_the_file_and_is_exact_without_a_resize(theirs):
  """CLIP's mean and std differ by channel: a swapped channel or patch axis cannot pass."""
  settings = ImageSettings(patch=16, min_pixels=1024, max_pixels=10**6)
  picture = np.random.default_rng(0).integers(0, 256, (96, 160, 3), np.uint8)
  patches, grid = image_patches(picture, settings)
  assert grid == (1, 6, 10)
  np.testing.assert_allclose(patches, theirs(settings)(images=[picture], return_tensors='np')['pixel_values'], atol=1e-6)


def test_patch_rows_come_in_merge_blocks():
  frames = np.zeros((4, 64, 96, 3), np.uint8)
  t, y, x = np.mgrid[:4, :64, :96]
  frames[..., 0], frames[..., 1], frames[..., 2] = t // 2, y // 16, x // 16
  rows, grid = patch_rows(frames, ImageSettings(patch=16, mean=(0, 0, 0), std=(1 / 255,) * 3))
  assert grid == (2, 4, 6)
  at = np.rint(rows.reshape(48, 3, 2, 16, 16)[:, :, 0, 0, 0]).astype(int).tolist()  # (frame pair, row, column) of each patch
  assert at[:6] == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [0, 0, 2], [0, 0, 3]]
  assert at[24] == [1, 0, 0]


def test_settings_come_from_the_file():
  published = {
    'min_pixels': 3136,
    'max_pixels': 12_845_056,
    'patch_size': 16,
    'temporal_patch_size': 2,
    'merge_size': 2,
    'image_mean': [0.5] * 3,
    'image_std': [0.5] * 3,
    'feature_size': 128,
    'hop_length': 160,
  }
  settings = ImageSettings.from_dict(published)
  assert settings.ignored == ('feature_size', 'hop_length')
  assert (settings.factor, settings.mean, settings.min_pixels) == (32, (0.5,) * 3, 3136)
  by_size = {'size': {'shortest_edge': 3136, 'longest_edge': 12_845_056}, 'rescale_factor': 1 / 255, 'resample': 3}
  assert ImageSettings.from_dict(by_size).max_pixels == 12_845_056
  silent = ImageSettings.from_dict({})
  assert silent.mean == (0.48145466, 0.4578275, 0.40821073) and silent.ignored == ()  # the class's own: CLIP's


@pytest.mark.parametrize(
  'key, value',
  [
    ('patch_size', 0),
    ('patch_size', '16'),
    ('merge_size', True),
    ('image_mean', [0.5]),
    ('image_std', [0.5, 0.0, 0.5]),
    ('image_std', 0.5),
    ('image_mean', [float('nan')] * 3),
    ('min_pixels', 10**9),
    ('size', 7),
    ('do_resize', False),
    ('do_normalize', False),
    ('rescale_factor', 1.0),
    ('resample', 2),
    ('temporal_patch_size', -2),
  ],
)
def test_impossible_settings_name_the_file(key, value):
  with pytest.raises(ValueError, match='folder/p.json: '):
    ImageSettings.from_dict({key: value}, 'folder/p.json')
