"""How far two waves are apart by ear: distances of their spectra at several resolutions.

Sums over resolutions as in Parallel WaveGAN (Yamamoto et al. 2020, arXiv:1910.11480); mel bands at each of them as in the
Descript audio codec (Kumar et al. 2023, arXiv:2306.06546), whose bands per window these are about.
"""

import functools

import jax.numpy as jnp
import numpy as np

from qwen3_omni_jax.shapes import Array, Float

RATE_HZ = 24_000
RESOLUTIONS = ((2048, 160), (1024, 100), (512, 64), (256, 40), (128, 20))  # samples of a window, mel bands
FLOOR = 1e-3  # added to mel magnitudes: 60 dB below full scale, about the noise of a quiet room


def stft(wave: Float[Array, 'B W'], window: int) -> Array:
  """Spectra of Hann windows at every quarter of a window; a sine of amplitude 1 has magnitude 1. F = window / 2 + 1.

  Samples behind the last whole quarter are not seen.
  """
  hop = window // 4
  quarters = wave.shape[1] // hop
  parts = wave[:, : quarters * hop].reshape(wave.shape[0], quarters, hop)
  frames = jnp.concatenate([parts[:, i : quarters - 3 + i] for i in range(4)], axis=-1)
  hann = np.hanning(window + 1)[:-1].astype(np.float32)
  return jnp.fft.rfft(frames * (hann * np.float32(2 / hann.sum())))


def magnitudes(wave: Float[Array, 'B W'], window: int) -> Float[Array, 'B T F']:
  """Of the STFT; the root has a gradient at silence too."""
  spectrum = stft(wave, window)
  return jnp.sqrt(spectrum.real**2 + spectrum.imag**2 + 1e-10)


@functools.lru_cache
def mel_bands(window: int, bands: int) -> Float[np.ndarray, 'F M']:
  """Triangles of height 1, from 0 to 12,000 Hz."""
  import librosa

  filters = librosa.filters.mel(sr=RATE_HZ, n_fft=window, n_mels=bands, fmin=0, fmax=RATE_HZ / 2, norm=None)
  return filters.T.astype(np.float32)


def spectral_losses(wave: Float[Array, 'B W'], target: Float[Array, 'B W']) -> tuple[Float[Array, ''], Float[Array, '']]:
  """(log-mel, linear), each the mean over resolutions: the mean distance of logarithms of mel magnitudes, in nepers; and the mean
  distance of linear magnitudes relative to the target's mean magnitude.

  W: at least 2048 samples. Source of the second: the spectral convergence of Parallel WaveGAN, as L1.
  """
  rows = wave.shape[0]
  both = jnp.concatenate([wave, target])
  log_mel = linear = jnp.float32(0)
  for window, bands in RESOLUTIONS:
    spectra = magnitudes(both, window)
    mel = jnp.log(spectra @ mel_bands(window, bands) + FLOOR)
    log_mel += jnp.mean(jnp.abs(mel[:rows] - mel[rows:]))
    linear += jnp.mean(jnp.abs(spectra[:rows] - spectra[rows:])) / (jnp.mean(spectra[rows:]) + 1e-4)
  return log_mel / len(RESOLUTIONS), linear / len(RESOLUTIONS)
