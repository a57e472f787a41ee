"""Distances of waves by their spectra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from qwen3_omni_jax.train.vocoder import spectral

pytestmark = pytest.mark.quick_to_compile
W = 4096


@pytest.fixture(scope='module')
def losses():
  """Of two batches of waves of W samples, with the gradient of their sum for the first."""
  return jax.jit(lambda x, y: (spectral.spectral_losses(x, y), jax.grad(lambda x: sum(spectral.spectral_losses(x, y)))(x)))


def noise(seed: int, rows: int = 2) -> np.ndarray:
  return (0.1 * np.random.default_rng(seed).normal(size=(rows, W))).astype(np.float32)


def test_equal_waves_are_no_distance_apart_and_silence_has_a_gradient(losses):
  (log_mel, linear), gradient = losses(noise(0), noise(0))
  assert float(log_mel) == float(linear) == 0.0
  assert np.isfinite(losses(np.zeros((2, W), np.float32), noise(0))[1]).all()


def test_a_sine_has_the_magnitude_of_its_amplitude():
  wave = 0.5 * np.sin(2 * np.pi * 64 / 1024 * np.arange(W))[None].astype(np.float32)
  magnitudes = spectral.magnitudes(jnp.asarray(wave), 1024)
  np.testing.assert_allclose(magnitudes.max(axis=-1), 0.5, rtol=1e-3)
  assert (np.asarray(magnitudes).argmax(axis=-1) == 64).all()


def test_distances_are_those_of_a_plain_short_time_fourier_transform(losses):
  import librosa

  waves = noise(1), noise(2)
  wanted = np.zeros(2)
  for window, bands in spectral.RESOLUTIONS:
    of = lambda wave: np.abs(librosa.stft(wave, n_fft=window, hop_length=window // 4, center=False)) * 4 / window  # noqa: B023
    x, y = (np.stack([of(wave) for wave in rows]) for rows in waves)
    filters = librosa.filters.mel(sr=24000, n_fft=window, n_mels=bands, fmax=12000, norm=None)
    mel = lambda s: np.log(filters @ s + 1e-3)  # noqa: B023
    wanted += [np.abs(mel(x) - mel(y)).mean(), np.abs(x - y).mean() / (y.mean() + 1e-4)]
  np.testing.assert_allclose(losses(*waves)[0], wanted / len(spectral.RESOLUTIONS), rtol=1e-3)


def test_twice_as_loud_is_further_apart_than_a_little_louder(losses):
  wave = noise(3)
  far, near = losses(2 * wave, wave)[0], losses(1.1 * wave, wave)[0]
  assert far[0] > 4 * near[0] > 0 and far[1] == pytest.approx(1.0, abs=0.02) and near[1] == pytest.approx(0.1, abs=0.01)
