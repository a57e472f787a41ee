"""Code2Wav against the reference, and the laws of its streaming form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from qwen3_omni_jax.config import Code2WavConfig
from qwen3_omni_jax.models import code2wav as c2w
from qwen3_omni_jax.nn.params import abstract_params
from tests.arrays import params_of
from tests.models.speech_reference import code2wav_pair

pytestmark = pytest.mark.quick_to_compile

OTHER_RATES = Code2WavConfig(
  codebook_size=13,
  num_quantizers=3,
  hidden_size=24,
  intermediate_size=20,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  sliding_window=7,
  decoder_dim=32,
  upsample_rates=(4, 3, 2),
  upsampling_ratios=(2,),
)
PUBLISHED_RATES = Code2WavConfig(
  codebook_size=11,
  num_quantizers=4,
  hidden_size=16,
  intermediate_size=36,
  num_hidden_layers=3,
  num_attention_heads=2,
  num_key_value_heads=2,
  decoder_dim=32,
)
SLIM = Code2WavConfig(
  codebook_size=9,
  num_quantizers=2,
  hidden_size=8,
  intermediate_size=12,
  num_hidden_layers=2,
  num_attention_heads=2,
  num_key_value_heads=2,
  decoder_dim=16,
)
CONFIGS = pytest.mark.parametrize('cfg', [OTHER_RATES, PUBLISHED_RATES], ids=['other_rates', 'published_rates'])
TOLERANCE = 1e-5  # float32; the wave is in [-1, 1]; measured 5e-7


def random_codes(cfg, batch, frames, seed=1):
  return np.random.default_rng(seed).integers(0, cfg.codebook_size, (batch, frames, cfg.num_quantizers)).astype(np.int32)


def slim_params(seed=0):
  params = params_of(c2w.code2wav_spec(SLIM), seed)
  return jax.tree.map(lambda x: np.float32(0.7) * x, params)  # keeps the wave off the clip limits


@functools.cache
def whole(cfg):
  return jax.jit(lambda params, codes: c2w.code2wav(params, cfg, codes))


@functools.cache
def stepper(cfg):
  return jax.jit(lambda params, codes, state: c2w.code2wav_step(params, cfg, codes, state))


@functools.cache
def empty_state(cfg, batch):
  return jax.jit(lambda: c2w.init_state(cfg, batch))()


@CONFIGS
def test_wave_equals_the_reference(cfg):
  module, params = code2wav_pair(cfg, seed=0)
  codes = random_codes(cfg, 2, 40 if cfg is OTHER_RATES else 90)  # more frames than the attention window
  with torch.no_grad():
    want = module(torch.tensor(codes).transpose(1, 2)).numpy()[:, 0]
  got = whole(cfg)(params, codes)
  assert got.shape == want.shape == (2, c2w.sample_count(cfg, codes.shape[1]))
  assert np.abs(want).mean() > 0.05 and (np.abs(want) == 1).mean() < 0.3  # neither silent nor clipped
  np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize('frames', [12, 30, 75])
def test_chunked_decode_reproduces_the_reference_sample_for_sample(frames):
  cfg = OTHER_RATES
  module, params = code2wav_pair(cfg, seed=3)
  codes = random_codes(cfg, 2, frames)
  with torch.no_grad():
    want = module.chunked_decode(torch.tensor(codes).transpose(1, 2), 30, 5).numpy()[:, 0]
  got = jax.jit(lambda params, codes: c2w.chunked_decode(params, cfg, codes, chunk=30, context=5))(params, codes)
  assert got.shape == want.shape == (2, c2w.sample_count(cfg, frames, 30))
  np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)


def test_published_rates_lead_by_555_samples():
  cfg = Code2WavConfig()
  assert c2w.lead_samples(cfg) == 555
  assert c2w.sample_count(cfg, 301) == 301 * 1920 - 555
  assert c2w.sample_count(cfg, 301, 300) == 301 * 1920 - 2 * 555
  assert c2w.sample_count(cfg, 0) == c2w.sample_count(cfg, 0, 300) == 0


@pytest.mark.parametrize('chunk', [pytest.param(1, marks=pytest.mark.slow), 3, 25])
def test_chunks_equal_the_whole_over_700_frames(chunk):
  params, codes = slim_params(), random_codes(SLIM, 1, 700)
  got = jax.jit(lambda params, codes: c2w.code2wav(params, SLIM, codes, chunk=chunk))(params, codes)
  np.testing.assert_allclose(got, whole(SLIM)(params, codes), rtol=0, atol=TOLERANCE)


def test_chunks_of_random_sizes_equal_the_whole():
  params, codes = slim_params(), random_codes(SLIM, 1, 700)
  sizes = [35] * 17 + [4] * 20 + [1] * 25
  np.random.default_rng(5).shuffle(sizes)
  state, waves, start = empty_state(SLIM, 1), [], 0
  for size in sizes:
    wave, state = stepper(SLIM)(params, codes[:, start : start + size], state)
    waves.append(wave)
    start += size
  assert start == 700
  joined = np.concatenate(waves, axis=1)
  lead = c2w.lead_samples(SLIM)
  assert not joined[:, :lead].any()  # before the beginning
  np.testing.assert_allclose(joined[:, lead:], whole(SLIM)(params, codes), rtol=0, atol=TOLERANCE)


def test_codes_after_a_row_ends_do_not_change_it():
  params, codes = slim_params(), random_codes(SLIM, 2, 12)
  ended = codes.copy()
  ended[1, 7:] = 0
  length = c2w.sample_count(SLIM, 7)
  got, want = whole(SLIM)(params, ended), whole(SLIM)(params, codes)
  np.testing.assert_array_equal(got[1, :length], want[1, :length])
  assert not np.array_equal(got[1], want[1])


def test_a_restarted_row_is_a_new_stream_and_leaves_the_others_alone():
  params, first, second = slim_params(), random_codes(SLIM, 2, 12), random_codes(SLIM, 2, 12, seed=2)
  lead = c2w.lead_samples(SLIM)
  wave, state = stepper(SLIM)(params, first, empty_state(SLIM, 2))
  after, _ = stepper(SLIM)(params, second, jax.jit(c2w.restart_rows)(state, np.array([False, True])))
  fresh = whole(SLIM)(params, second)[1]
  np.testing.assert_allclose(after[1, lead:], fresh, rtol=0, atol=TOLERANCE)
  joined = np.concatenate([wave[0, lead:], after[0]])
  want = whole(SLIM)(params, np.concatenate([first, second], axis=1))[0]
  np.testing.assert_allclose(joined, want, rtol=0, atol=TOLERANCE)


def test_snake_is_exact_for_large_angles():
  x = np.linspace(-300, 300, 20001, dtype=np.float32)[None, :, None]
  p = {'alpha': np.array([0.7], np.float32), 'beta': np.array([-0.4], np.float32)}
  angle = (x * np.exp(p['alpha'])).astype(np.float64)  # rounded to float32 first, as any implementation must
  want = x + np.sin(angle) ** 2 / np.exp(np.float64(p['beta']))
  # 1.5e-4: float32 spacing at 300 is 3e-5, and the angle itself (600) is known to 6e-5
  np.testing.assert_allclose(c2w._snake(jnp.asarray(x), p), want, rtol=0, atol=1.5e-4)


def test_bfloat16_weights_and_activations_stay_close():
  params, codes = slim_params(), random_codes(SLIM, 2, 12)
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  got = jax.jit(lambda params, codes: c2w.code2wav(params, SLIM, codes, dtype=jnp.bfloat16))(half, codes)
  want = whole(SLIM)(params, codes)
  assert got.dtype == jnp.float32
  assert np.abs(got - want).mean() < 0.05 * np.abs(want).mean() + 0.01


def test_the_module_is_the_function_over_its_own_parameters():
  codes = random_codes(SLIM, 2, 12)
  module = c2w.Code2Wav(SLIM)
  params = slim_params()
  declared = jax.eval_shape(module.init, jax.random.key(0), codes)
  assert jax.tree.map(jnp.shape, declared) == {'params': jax.tree.map(jnp.shape, params)}
  got = jax.jit(module.apply)({'params': params}, codes)
  np.testing.assert_allclose(got, whole(SLIM)(params, codes), rtol=0, atol=TOLERANCE)


def test_published_size_keeps_its_state_in_shape_and_under_3_megabytes_a_row():
  cfg = Code2WavConfig()
  params = abstract_params(c2w.code2wav_spec(cfg), jnp.bfloat16)
  assert sum(p.size for p in jax.tree.leaves(params)) == 216_016_577
  state = jax.eval_shape(lambda: c2w.init_state(cfg, 1, jnp.bfloat16))
  codes = jax.ShapeDtypeStruct((1, 1, 16), jnp.int32)
  step = functools.partial(c2w.code2wav_step, dtype=jnp.bfloat16)
  wave, after = jax.eval_shape(lambda params, codes, state: step(params, cfg, codes, state), params, codes, state)
  assert wave.shape == (1, 1920) and wave.dtype == jnp.float32
  assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
  assert sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) < 3e6
