"""AuT against the reference implementation, and its own laws: windows, padding, short clips, memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from encoder_reference import audio_pair as pair

from qwen3_omni_jax.config import AudioConfig
from qwen3_omni_jax.models.audio_encoder import AudioEncoder, audio_spec, encode_audio
from qwen3_omni_jax.nn.params import abstract_params, count

pytestmark = pytest.mark.quick_to_compile

TOLERANCE = 5e-5  # of the largest magnitude: float32 rounding through a few layers, summed in another order

CONFIGS = (
  AudioConfig(
    num_mel_bins=24,
    d_model=20,
    encoder_layers=3,
    encoder_attention_heads=4,
    encoder_ffn_dim=28,
    downsample_hidden_size=6,
    output_dim=14,
  ),
  AudioConfig(
    num_mel_bins=40,
    d_model=42,
    encoder_layers=2,
    encoder_attention_heads=6,
    encoder_ffn_dim=30,
    downsample_hidden_size=9,
    output_dim=22,
    n_window_infer=300,
  ),
)


def tokens(frames: int) -> int:
  """Tokens of a clip: halved three times, rounding up, chunk by chunk."""
  whole, rest = divmod(frames, 100)
  for _ in range(3):
    rest = (rest + 1) // 2
  return 13 * whole + rest


def windows_of(cfg: AudioConfig, clips: list[np.ndarray], chunks: int | None = None, windows: int = 0):
  """Clips 'F M' cut and padded: (mel, frames, conv_frames as the reference pads this call). windows: at least so many."""
  chunks = chunks or cfg.chunks_per_window
  conv_frames = min(100, max(map(len, clips)))
  step = 100 * cfg.chunks_per_window
  pieces = [clip[i : i + step] for clip in clips for i in range(0, len(clip), step)]
  pieces += [clips[0][:0]] * (windows - len(pieces))
  mel = np.stack([np.pad(piece, ((0, 100 * chunks - len(piece)), (0, 0))) for piece in pieces])
  return mel, np.array([len(p) for p in pieces], np.int32), np.full(len(pieces), conv_frames, np.int32)


@functools.partial(jax.jit, static_argnames=('cfg', 'remat', 'windows_at_once'))
def encode(params, cfg, mel, frames, conv_frames, remat=False, windows_at_once=None):
  return encode_audio(params, cfg, mel, frames, conv_frames, remat=remat, windows_at_once=windows_at_once)


def valid_rows(features, frames) -> np.ndarray:
  return np.concatenate([np.asarray(rows, np.float32)[: tokens(n)] for rows, n in zip(features, frames, strict=True)])


def clips_of(cfg: AudioConfig, *lengths: int) -> list[np.ndarray]:
  rng = np.random.default_rng(sum(lengths))
  return [rng.normal(size=(n, cfg.num_mel_bins)).astype(np.float32) for n in lengths]


def reference(cfg: AudioConfig, clips: list[np.ndarray]) -> np.ndarray:
  module, _ = pair(cfg)
  with torch.no_grad():
    out = module(torch.tensor(np.concatenate(clips).T), torch.tensor([len(c) for c in clips]))
  return out.last_hidden_state.numpy()


def assert_equals_reference(cfg: AudioConfig, clips: list[np.ndarray], given):
  mel, frames, conv_frames = given
  ours = valid_rows(encode(pair(cfg)[1], cfg, mel, frames, conv_frames), frames)
  theirs = reference(cfg, clips)
  assert ours.shape == theirs.shape == (sum(map(tokens, map(len, clips))), cfg.output_dim)
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * np.abs(theirs).max())


@pytest.mark.parametrize('cfg', CONFIGS)
@pytest.mark.parametrize('lengths', [(1637,), (337, 800, 101), (5, 250)], ids=str)
def test_clips_of_any_length_equal_the_reference(cfg, lengths):
  """More than one window with a remainder; exactly one window; several clips; a very short one beside a longer one."""
  clips = clips_of(cfg, *lengths)
  assert_equals_reference(cfg, clips, windows_of(cfg, clips, windows=6))


@pytest.mark.parametrize('cfg', CONFIGS)
@pytest.mark.parametrize('lengths', [(37,), (40,), (1,), (99,), (37, 22)], ids=str)
def test_clips_below_a_second_equal_the_reference(cfg, lengths):
  clips = clips_of(cfg, *lengths)
  assert_equals_reference(cfg, clips, windows_of(cfg, clips, chunks=1, windows=2))


def test_a_short_clip_is_encoded_differently_beside_a_longer_one():
  """The reference's convolutions see its padding. 37 frames: odd at the first level, so the border shows."""
  cfg = CONFIGS[0]
  clip, longer = clips_of(cfg, 37, 120)
  mel, frames, _ = windows_of(cfg, [clip], chunks=1)
  alone, beside = (valid_rows(encode(pair(cfg)[1], cfg, mel, frames, np.full(1, width, np.int32)), frames) for width in (37, 100))
  theirs_alone, theirs_beside = reference(cfg, [clip]), reference(cfg, [clip, longer])[: tokens(37)]
  scale = np.abs(theirs_alone).max()
  assert np.abs(theirs_alone - theirs_beside).max() > 100 * TOLERANCE * scale
  np.testing.assert_allclose(alone, theirs_alone, rtol=0, atol=TOLERANCE * scale)
  np.testing.assert_allclose(beside, theirs_beside, rtol=0, atol=TOLERANCE * scale)


def test_padding_of_window_and_batch_changes_nothing():
  cfg = CONFIGS[0]
  _, params = pair(cfg)
  clips = clips_of(cfg, 230)
  mel, frames, conv = windows_of(cfg, clips, chunks=3)
  tight = valid_rows(encode(params, cfg, mel, frames, conv), frames)
  mel, frames, conv = windows_of(cfg, clips, chunks=8)
  unused = np.zeros_like(mel)
  padded = encode(params, cfg, np.concatenate([unused, mel]), np.array([0, 230], np.int32), np.full(2, 100, np.int32))
  assert np.isfinite(padded).all()
  np.testing.assert_allclose(np.asarray(padded[1])[: tokens(230)], tight, rtol=0, atol=1e-5 * np.abs(tight).max())


def test_result_does_not_depend_on_how_many_windows_are_convolved_together():
  cfg = CONFIGS[1]
  _, params = pair(cfg)
  given = windows_of(cfg, clips_of(cfg, 1637))  # six windows
  one, four, all_ = (np.asarray(encode(params, cfg, *given, windows_at_once=n)) for n in (1, 4, 6))
  np.testing.assert_allclose(one, all_, rtol=0, atol=1e-5 * np.abs(all_).max())
  np.testing.assert_allclose(four, all_, rtol=0, atol=1e-5 * np.abs(all_).max())


def test_remat_gives_the_same_gradient():
  cfg = CONFIGS[0]
  _, params = pair(cfg)
  given = windows_of(cfg, clips_of(cfg, 130), chunks=2)

  def loss(params, remat):
    return jnp.mean(jnp.square(encode(params, cfg, *given, remat=remat)))

  plain, remat = (jax.jit(jax.grad(functools.partial(loss, remat=r)))(params) for r in (False, True))
  for (path, a), b in zip(jax.tree.leaves_with_path(plain), jax.tree.leaves(remat), strict=True):
    np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * np.abs(a).max() + 1e-7, err_msg=str(path))
    if path[-2:] != (jax.tree_util.DictKey('k'), jax.tree_util.DictKey('bias')):  # softmax does not see a key's bias
      assert np.abs(a).max() > 0, path


def test_bfloat16_stays_near_float32():
  cfg = CONFIGS[0]
  _, params = pair(cfg)
  mel, frames, conv = windows_of(cfg, clips_of(cfg, 430))
  exact = valid_rows(encode(params, cfg, mel, frames, conv), frames)
  rounded = encode(params, cfg, mel.astype(jnp.bfloat16), frames, conv)
  assert rounded.dtype == jnp.bfloat16
  # bf16 keeps 8 bits (0.4 %); some ten roundings in a row stay well below 5 % on average.
  error = np.linalg.norm(valid_rows(rounded, frames) - exact) / np.linalg.norm(exact)
  assert 0 < error < 0.05


def test_module_declares_the_spec_and_gives_the_function():
  cfg = CONFIGS[0]
  given = windows_of(cfg, clips_of(cfg, 37), chunks=1)
  module = AudioEncoder(cfg)
  declared = jax.eval_shape(module.init, jax.random.key(0), *given)['params']
  assert jax.tree.map(jnp.shape, declared) == jax.tree.map(jnp.shape, abstract_params(audio_spec(cfg)))
  _, params = pair(cfg)
  np.testing.assert_array_equal(jax.jit(module.apply)({'params': params}, *given), encode(params, cfg, *given))


def test_published_size():
  assert count(audio_spec(AudioConfig(output_dim=2048))) == 647_927_168


def test_memory_is_linear_in_the_clip():
  """Forty minutes (300 windows) need a little over ten times what four minutes need, not a hundred times."""
  cfg = AudioConfig(
    output_dim=2048, encoder_layers=2, d_model=160, encoder_attention_heads=4, encoder_ffn_dim=640, downsample_hidden_size=60
  )
  params = abstract_params(audio_spec(cfg))

  def working_bytes(windows):
    shaped = jax.ShapeDtypeStruct
    arguments = shaped((windows, 800, 128), jnp.float32), shaped((windows,), jnp.int32), shaped((windows,), jnp.int32)
    return encode.lower(params, cfg, *arguments).compile().memory_analysis().temp_size_in_bytes

  short, long = working_bytes(30), working_bytes(300)
  assert long < 11 * short
  assert long < 300 * 3e6  # the convolutions alone would take 8 MB a window if all windows were convolved together


def test_windows_of_another_length_are_refused():
  cfg = CONFIGS[1]
  for frames in (150, 400):
    with pytest.raises(ValueError, match=f'{frames} frames: expected a multiple of 100 of at most 300'):
      encode_audio({}, cfg, jnp.zeros((1, frames, 40)), jnp.array([5]), jnp.array([100]))
