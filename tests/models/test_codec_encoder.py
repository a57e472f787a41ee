"""The codec encoder against transformers' MimiModel, and the laws of its batches and streams."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from qwen3_omni_jax.models import codec_encoder, quantizer
from qwen3_omni_jax.weights.codec import load_codec
from tests.models.codec_reference import OTHER_RATES, PUBLISHED_RATES, saved_codec

pytestmark = pytest.mark.quick_to_compile

TOLERANCE = 1e-5  # relative to the largest value of a stage, float32; measured 2e-6
MARGIN = 1e-4  # nearest and second nearest entry closer than this: a near tie, which the order of sums may decide


@dataclasses.dataclass
class Pair:
  """The same weights in the reference and in ours."""

  reference: object
  params: dict
  cfg: object

  @functools.cached_property
  def step(self):
    return jax.jit(lambda wave, samples, state: codec_encoder.encode_step(self.params, self.cfg, wave, samples, state))

  @functools.cached_property
  def latents(self):
    return jax.jit(lambda wave, length: codec_encoder.encode_latents(self.params, self.cfg, wave, length))

  @functools.cached_property
  def codes(self):
    return jax.jit(lambda latents: quantizer.quantise(self.params['quantizer'], self.cfg, latents))


@pytest.fixture(scope='module')
def pairs(tmp_path_factory) -> dict[str, Pair]:
  found = {}
  for seed, (name, fields) in enumerate({'published_rates': PUBLISHED_RATES, 'other_rates': OTHER_RATES}.items()):
    folder = tmp_path_factory.mktemp('codec') / name
    model = saved_codec(folder, fields, seed)
    found[name] = Pair(model, *load_codec(folder))
  return found


NAMES = pytest.mark.parametrize('name', ['published_rates', 'other_rates'])


def sound(samples: int, seed: int = 0) -> np.ndarray:
  rng = np.random.default_rng(seed)
  t = np.arange(samples) / 24000
  return (0.4 * np.sin(2 * np.pi * 200 * t * (1 + t)) + 0.3 * rng.normal(size=samples)).astype(np.float32)


def assert_close(ours, theirs):
  theirs = np.asarray(theirs)
  assert ours.shape == theirs.shape
  assert np.abs(np.asarray(ours) - theirs).max() <= TOLERANCE * np.abs(theirs).max()


def reference_stages(model, wave: np.ndarray):
  """'T D' after SEANet, 'T D' after the transformer, 'F D' latents, 'F Q' codes."""
  encoder = model.encoder
  with torch.no_grad():
    x = encoder.encoder_seanet(torch.from_numpy(wave)[None, None])
    y = encoder.encoder_transformer(x.transpose(1, 2)).last_hidden_state
    latents = encoder.downsample(y.transpose(1, 2))
    codes = model.quantizer.encode(latents)
    assert torch.equal(model.encode(torch.from_numpy(wave)[None, None]).audio_codes, codes.transpose(0, 1))
  return x[0].T.numpy(), y[0].numpy(), latents[0].T.numpy(), codes[:, 0].T.numpy()


@NAMES
@pytest.mark.parametrize('length', ['short', 'beyond_the_window'])
def test_each_stage_equals_the_reference(pairs, name, length):
  pair = pairs[name]
  cfg, hop = pair.cfg, pair.cfg.samples_per_frame
  steps = 9 if length == 'short' else 2 * cfg.sliding_window + 5
  wave = sound(steps * cfg.hop_samples - 3)
  shrunk, attended, latents, _ = reference_stages(pair.reference, wave)

  frames = cfg.frames(len(wave))
  padded = jnp.pad(jnp.asarray(wave), (0, frames * hop - len(wave)))[None]
  samples, state = jnp.asarray([len(wave)]), codec_encoder.init_encoder_state(cfg, 1)
  ours, _ = jax.jit(lambda w: codec_encoder.shrink(pair.params, cfg, w, samples, state.tails))(padded)
  assert_close(ours[0, :steps], shrunk)
  given = jnp.pad(jnp.asarray(shrunk), ((0, frames * cfg.latent_stride - steps), (0, 0)))[None]
  ours, _, _ = jax.jit(lambda x: codec_encoder.transform(pair.params, cfg, x, state))(given)
  assert_close(ours[0, :steps], attended)
  given = jnp.pad(jnp.asarray(attended), ((0, frames * cfg.latent_stride - steps), (0, 0)))[None]
  ours, _ = codec_encoder.downsample(pair.params, cfg, given, jnp.asarray([steps]), state)
  assert_close(ours[0], latents)
  ours, count = pair.latents(padded, samples)
  assert count[0] == frames
  assert_close(ours[0], latents)


@NAMES
def test_codes_equal_the_reference_wherever_they_are_no_near_tie(pairs, name):
  pair = pairs[name]
  hop, second = pair.cfg.samples_per_frame, 12.5 * pair.cfg.samples_per_frame
  compared = total = 0
  for i, length in enumerate((1, hop - 1, hop, hop + 1, int(2 * second) - 1, int(2 * second), int(2 * second) + 1)):
    wave = sound(length, seed=i)
    latents, theirs = reference_stages(pair.reference, wave)[2:]
    padded = np.zeros((1, -(-length // hop) * hop), np.float32)
    padded[0, :length] = wave
    mine, _ = pair.latents(padded, np.asarray([length]))
    assert_close(mine[0], latents)
    ours = np.asarray(pair.codes(mine))[0]
    assert ours.shape == theirs.shape == (-(-length // hop), pair.cfg.num_code_groups)
    sure = margins(pair, mine)[0] > MARGIN
    sure = np.concatenate([np.logical_and.accumulate(part, axis=1) for part in branches(pair.cfg, sure)], axis=1)
    np.testing.assert_array_equal(ours[sure], theirs[sure])
    compared, total = compared + sure.sum(), total + sure.size
  assert compared > 0.95 * total  # measured 0.99


def branches(cfg, codes):
  return codes[:, : cfg.num_semantic_quantizers], codes[:, cfg.num_semantic_quantizers :]


def margins(pair: Pair, latents) -> np.ndarray:
  """'B F Q': how much nearer the nearest entry is than the next."""
  found = []
  entries = quantizer.codebook_vectors(pair.params['quantizer'])
  for branch in quantizer.BRANCHES:
    given = quantizer.project(pair.params['quantizer'][branch], latents)
    _, left = quantizer.residual_codes(given, entries[branch])
    for x, book in zip(np.asarray(left, np.float64), np.asarray(entries[branch], np.float64), strict=True):
      distance = np.sort(np.linalg.norm(x[..., None, :] - book, axis=-1), axis=-1)
      found.append(distance[..., 1] - distance[..., 0])
  return np.stack(found, axis=-1)


@NAMES
def test_quantised_latents_equal_the_reference(pairs, name):
  pair = pairs[name]
  rng = np.random.default_rng(3)
  for count in (pair.cfg.num_semantic_quantizers, pair.cfg.num_quantizers):
    codes = rng.integers(0, pair.cfg.codebook_size, (2, 6, count)).astype(np.int32)
    with torch.no_grad():
      theirs = pair.reference.quantizer.decode(torch.from_numpy(codes).long().transpose(1, 2))
    assert_close(quantizer.dequantise(pair.params['quantizer'], pair.cfg, codes), theirs.transpose(1, 2).numpy())


@NAMES
def test_a_row_of_a_batch_equals_the_clip_alone(pairs, name):
  pair = pairs[name]
  hop = pair.cfg.samples_per_frame
  lengths = [3 * hop, 1, hop + pair.cfg.hop_samples + 1, 2 * hop, 3 * hop - pair.cfg.hop_samples, 0]
  waves = [sound(n, seed=n) for n in lengths]
  batch = np.full((len(waves), 3 * hop), 0.7, np.float32)  # what lies past a row's end must not matter
  for row, wave in zip(batch, waves, strict=True):
    row[: len(wave)] = wave
  together, frames = pair.latents(batch, np.asarray(lengths))
  for i, wave in enumerate(waves[:-1]):
    latents = reference_stages(pair.reference, wave)[2]
    assert frames[i] == len(latents)
    assert_close(together[i, : len(latents)], latents)
  assert frames[-1] == 0


@NAMES
def test_a_stream_of_single_frames_equals_the_whole(pairs, name):
  pair = pairs[name]
  hop, stride = pair.cfg.samples_per_frame, pair.cfg.latent_stride
  frames = 5 if name == 'published_rates' else pair.cfg.sliding_window // stride + 9
  lengths = np.asarray([frames * hop - 1, (frames - 2) * hop - pair.cfg.hop_samples])
  batch = np.stack([np.pad(sound(n, seed=n), (0, frames * hop - n)) for n in lengths])
  whole, _ = pair.latents(batch, lengths)
  state, found = codec_encoder.init_encoder_state(pair.cfg, 2), []
  for i in range(frames):
    part = slice(i * hop, (i + 1) * hop)
    latents, state = pair.step(batch[:, part], np.clip(lengths - i * hop, 0, hop), state)
    found.append(latents[:, 0])
  assert state.frames.tolist() == [frames] * 2
  for row, count in enumerate(-(-lengths // hop)):
    assert_close(np.stack(found, axis=1)[row, :count], whole[row, :count])


def test_a_clip_in_chunks_equals_the_whole(pairs):
  pair = pairs['other_rates']
  lengths = np.asarray([11 * pair.cfg.samples_per_frame - 2, 4 * pair.cfg.samples_per_frame + 1])
  batch = np.stack([np.pad(sound(n, seed=n), (0, lengths.max() - n)) for n in lengths])
  whole, frames = pair.latents(batch, lengths)
  chunked, same = codec_encoder.encode_latents(pair.params, pair.cfg, batch, lengths, chunk=4)
  assert frames.tolist() == same.tolist() == [11, 5] and chunked.shape == whole.shape
  for row, count in enumerate(frames):
    assert_close(chunked[row, :count], whole[row, :count])


def test_whole_frames_are_asked_for(pairs):
  pair = pairs['other_rates']
  state = codec_encoder.init_encoder_state(pair.cfg, 1)
  with pytest.raises(ValueError, match='whole frames of 48'):
    codec_encoder.encode_step(pair.params, pair.cfg, jnp.zeros((1, 47)), jnp.asarray([47]), state)
