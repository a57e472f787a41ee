"""The vision encoder against the reference implementation, and its own laws: frames, padding, deepstack, memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from encoder_reference import vision_pair

from qwen3_omni_jax.config import VisionConfig
from qwen3_omni_jax.models.vision_encoder import VisionEncoder, encode_vision, vision_spec
from qwen3_omni_jax.nn.params import abstract_params, count
from tests.arrays import params_of

pytestmark = pytest.mark.quick_to_compile

TOLERANCE = 5e-5  # of the largest magnitude: float32 rounding through a few layers, summed in another order

CONFIGS = (
  VisionConfig(
    depth=5,
    hidden_size=36,
    intermediate_size=50,
    num_heads=3,
    patch_size=4,
    out_hidden_size=22,
    num_position_embeddings=49,
    deepstack_visual_indexes=(0, 2, 3),
  ),
  VisionConfig(
    depth=4,
    hidden_size=40,
    intermediate_size=58,
    num_heads=2,
    in_channels=2,
    patch_size=6,
    temporal_patch_size=3,
    out_hidden_size=26,
    num_position_embeddings=121,
    deepstack_visual_indexes=(1, 3),
  ),
)


def coordinates(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
  """Row and column of every patch, merge block after merge block."""
  where = [
    (2 * block_row + r, 2 * block_col + c)
    for block_row in range(height // 2)
    for block_col in range(width // 2)
    for r in range(2)
    for c in range(2)
  ]
  rows, cols = np.array(where, np.int32).T
  return rows, cols


def frames_of(patches: np.ndarray, grids: list[tuple[int, int, int]], pad_to: int = 0, unused: int = 0):
  """Arguments of encode_vision: one row per frame of every (time, height, width) grid, padded; `unused` ones first."""
  frames = [(h, w) for t, h, w in grids for _ in range(t)]
  P = max(pad_to, max(h * w for h, w in frames))
  R = len(frames) + unused
  padded = np.zeros((R, P, patches.shape[1]), patches.dtype)
  rows, cols = np.zeros((2, R, P), np.int32)
  heights, widths, length = np.ones((3, R), np.int32) * [[2], [2], [0]]
  start = 0
  for i, (h, w) in enumerate(frames, unused):
    padded[i, : h * w] = patches[start : start + h * w]
    rows[i, : h * w], cols[i, : h * w] = coordinates(h, w)
    heights[i], widths[i], length[i] = h, w, h * w
    start += h * w
  return padded, rows, cols, *(x.astype(np.int32) for x in (heights, widths, length))


@functools.partial(jax.jit, static_argnames=('cfg', 'remat'))
def encode(params, cfg, patches, rows, cols, heights, widths, length, remat=False):
  return encode_vision(params, cfg, patches, rows, cols, heights, widths, length, remat=remat)


def valid_rows(features, length) -> np.ndarray:
  return np.concatenate([np.asarray(x, np.float32)[: n // 4] for x, n in zip(features, length, strict=True)])


def patches_of(cfg: VisionConfig, grids) -> np.ndarray:
  rng = np.random.default_rng(len(grids))
  return rng.normal(size=(sum(t * h * w for t, h, w in grids), cfg.patch_dim)).astype(np.float32)


def reference(cfg: VisionConfig, patches: np.ndarray, grids) -> list[np.ndarray]:
  """Features, then every deepstack level."""
  with torch.no_grad():
    out = vision_pair(cfg)[0](torch.tensor(patches), torch.tensor(grids))
  return [x.numpy() for x in (out.pooler_output, *out.deepstack_features)]


def assert_close(ours, theirs, tolerance=TOLERANCE, what=''):
  assert ours.shape == theirs.shape
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max(), err_msg=what)


GRIDS = {
  'one image': [(1, 4, 6)],
  'images of unlike size': [(1, 4, 10), (1, 8, 6)],
  'a video': [(3, 4, 6)],
  'images and videos': [(1, 2, 2), (2, 6, 4), (1, 2, 16), (3, 2, 4)],
}


@pytest.mark.parametrize('cfg', CONFIGS, ids=('a', 'b'))
@pytest.mark.parametrize('grids', GRIDS.values(), ids=GRIDS)
def test_features_and_every_deepstack_level_equal_the_reference(cfg, grids):
  patches = patches_of(cfg, grids)
  arguments = frames_of(patches, grids, pad_to=64, unused=7 - sum(t for t, _, _ in grids))
  features, deepstack = encode(vision_pair(cfg)[1], cfg, *arguments)
  theirs = reference(cfg, patches, grids)
  assert len(theirs) == 1 + len(deepstack) == 1 + len(cfg.deepstack_visual_indexes)
  for level, (a, b) in enumerate(zip((features, *deepstack), theirs, strict=True)):
    assert_close(valid_rows(a, arguments[-1]), b, what=f'deepstack level {level - 1}' if level else 'features')


def test_a_grid_larger_than_the_learned_one_equals_the_reference():
  """22 x 18 patches over a learned grid of 7 x 7."""
  cfg, grids = CONFIGS[0], [(1, 22, 18)]
  patches = patches_of(cfg, grids)
  features, _ = encode(vision_pair(cfg)[1], cfg, *frames_of(patches, grids))
  assert_close(valid_rows(features, [22 * 18]), reference(cfg, patches, grids)[0])


def test_a_frame_does_not_see_padding_or_other_frames():
  cfg, grids = CONFIGS[0], [(1, 4, 6), (1, 6, 4), (2, 2, 8)]
  params, patches = vision_pair(cfg)[1], patches_of(cfg, grids)
  arguments = frames_of(patches, grids)
  together, levels = (np.asarray(x) for x in encode(params, cfg, *arguments))
  alone, alone_levels = encode(params, cfg, *frames_of(patches[:24], grids[:1], pad_to=40, unused=2))
  assert np.isfinite(alone).all()
  assert_close(np.asarray(alone[2, :6]), together[0, :6], 1e-5)
  assert_close(np.asarray(alone_levels[:, 2, :6]), levels[:, 0, :6], 1e-5)


def test_swapping_rows_and_columns_changes_the_result():
  """Guards the two tests above: position embedding and RoPE do act, and differ by axis."""
  cfg, grids = CONFIGS[0], [(1, 4, 6)]
  patches, rows, cols, heights, widths, length = frames_of(patches_of(cfg, grids), grids)
  params = vision_pair(cfg)[1]
  features, _ = encode(params, cfg, patches, rows, cols, heights, widths, length)
  swapped, _ = encode(params, cfg, patches, cols, rows, widths, heights, length)
  assert np.abs(features - swapped).max() > 0.01 * np.abs(features).max()


def test_remat_gives_the_same_gradient():
  cfg, grids = CONFIGS[0], [(1, 4, 6), (2, 2, 4)]
  params, arguments = vision_pair(cfg)[1], frames_of(patches_of(cfg, grids), grids)

  def loss(params, remat):
    features, deepstack = encode(params, cfg, *arguments, remat=remat)
    return jnp.mean(jnp.square(features)) + jnp.mean(jnp.square(deepstack))

  plain, remat = (jax.jit(jax.grad(functools.partial(loss, remat=r)))(params) for r in (False, True))
  for (path, a), b in zip(jax.tree.leaves_with_path(plain), jax.tree.leaves(remat), strict=True):
    np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * np.abs(a).max() + 1e-7, err_msg=str(path))
    assert np.abs(a).max() > 0, path


def test_remat_keeps_one_activation_a_layer():
  """The deepstack slots ride along in the scan, but no layer's copy of them is kept for the backward pass."""

  def working_bytes(depth, levels):
    cfg = VisionConfig(
      depth=depth,
      hidden_size=64,
      intermediate_size=96,
      num_heads=4,
      patch_size=4,
      out_hidden_size=32,
      num_position_embeddings=49,
      deepstack_visual_indexes=tuple(range(levels)),
    )
    arguments = frames_of(patches_of(cfg, [(1, 32, 32)]), [(1, 32, 32)])
    loss = lambda params: sum(jnp.sum(x) for x in encode_vision(params, cfg, *arguments, remat=True))
    compiled = jax.jit(jax.grad(loss)).lower(abstract_params(vision_spec(cfg))).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  activation = 1024 * 64 * 4
  per_layer = (working_bytes(20, 3) - working_bytes(8, 3)) / 12
  assert per_layer < 1.5 * activation


def test_compile_time_work_is_flat_in_depth():
  """Layers are scanned: the program of 24 layers is the program of 6."""

  def instructions(depth):
    cfg = VisionConfig(
      depth=depth,
      hidden_size=24,
      intermediate_size=28,
      num_heads=2,
      patch_size=4,
      out_hidden_size=20,
      num_position_embeddings=49,
      deepstack_visual_indexes=(1, 3, 5),
    )
    arguments = frames_of(patches_of(cfg, [(1, 4, 6)]), [(1, 4, 6)])
    return encode.lower(abstract_params(vision_spec(cfg)), cfg, *arguments).as_text().count('\n')

  assert instructions(24) == instructions(6)


def test_bfloat16_stays_near_float32():
  cfg, grids = CONFIGS[1], [(1, 6, 10)]
  params = vision_pair(cfg)[1]
  patches, *rest = frames_of(patches_of(cfg, grids), grids)
  exact = encode(params, cfg, patches, *rest)
  rounded = encode(params, cfg, patches.astype(jnp.bfloat16), *rest)
  for a, b in zip(rounded, exact, strict=True):
    assert a.dtype == jnp.bfloat16
    # bf16 keeps 8 bits (0.4 %); some ten roundings in a row stay well below 5 % on average.
    assert 0 < np.linalg.norm(a.astype(jnp.float32) - b) / np.linalg.norm(b) < 0.05


def test_without_deepstack_there_are_no_levels():
  cfg = VisionConfig(
    depth=2,
    hidden_size=24,
    intermediate_size=28,
    num_heads=2,
    patch_size=4,
    out_hidden_size=20,
    num_position_embeddings=49,
    deepstack_visual_indexes=(),
  )
  grids = [(1, 4, 6)]
  params = params_of(vision_spec(cfg))
  features, deepstack = encode(params, cfg, *frames_of(patches_of(cfg, grids), grids))
  assert features.shape == (1, 6, 20) and deepstack.shape == (0, 1, 6, 20)


def test_module_declares_the_spec_and_gives_the_function():
  cfg, grids = CONFIGS[0], [(1, 4, 6)]
  arguments = frames_of(patches_of(cfg, grids), grids)
  declared = jax.eval_shape(VisionEncoder(cfg).init, jax.random.key(0), *arguments)['params']
  assert jax.tree.map(jnp.shape, declared) == jax.tree.map(jnp.shape, abstract_params(vision_spec(cfg)))
  params = vision_pair(cfg)[1]
  features, deepstack = jax.jit(VisionEncoder(cfg).apply)({'params': params}, *arguments)
  expected, expected_levels = encode(params, cfg, *arguments)
  np.testing.assert_array_equal(features, expected)
  np.testing.assert_array_equal(deepstack, expected_levels)


def test_published_size():
  assert count(vision_spec(VisionConfig(out_hidden_size=2048))) == 538_631_408


def test_patches_that_do_not_fill_merge_blocks_are_refused():
  with pytest.raises(ValueError, match='6 patches per frame: expected a multiple of 4'):
    encode_vision({}, CONFIGS[0], jnp.zeros((1, 6, 96)), *([jnp.zeros((1, 6), int)] * 2), *([jnp.ones(1, int)] * 3))
