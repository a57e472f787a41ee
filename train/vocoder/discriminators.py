"""Discriminators of waves: which of two is a recording, by its periods and by its spectra, and what the generator learns of it.

Multi-period: HiFi-GAN (Kong et al. 2020, arXiv:2010.05646), every p-th sample as a sequence of its own. Multi-resolution: UnivNet
(Jang et al. 2021, arXiv:2106.07889), convolutions over magnitudes of an STFT. Least squares (LSGAN) and feature matching as in
HiFi-GAN, whose distances are relative to the recording's features here (as in EnCodec, arXiv:2210.13438).
"""

import jax
import jax.numpy as jnp

from qwen3_omni_jax.nn.params import Param, Spec
from qwen3_omni_jax.shapes import Array, Float, Params

from .config import Adversaries
from .spectral import magnitudes

PERIOD_WIDTHS = (1, 4, 16, 32, 32)  # channels of the layers of a period's discriminator, in widths
PERIOD_STRIDES = (3, 3, 3, 3, 1)
SPECTRUM_STRIDES = (1, 2, 2, 2, 1)  # along frequencies
SLOPE = 0.1  # of the leaky rectifier
Judgement = tuple[Array, list[Array]]  # scores, and the features of every layer


def discriminators_spec(cfg: Adversaries) -> Spec:
  spec: Spec = {}
  for period in cfg.periods:
    widths = [1, *(cfg.width * n for n in PERIOD_WIDTHS)]
    layers = {str(i): _conv((5,), a, b) for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False))}
    spec[f'period_{period}'] = {**layers, 'out': _conv((3,), widths[-1], 1)}
  for window in cfg.windows:
    widths = [1, *([cfg.width] * len(SPECTRUM_STRIDES))]
    layers = {str(i): _conv((3, 9), a, b) for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False))}
    spec[f'window_{window}'] = {**layers, 'out': _conv((3, 3), widths[-1], 1)}
  return spec


def _conv(taps: tuple[int, ...], inputs: int, outputs: int) -> Spec:
  axes = ('conv_taps',) * len(taps) + ('conv_in', 'conv_out')
  fan_in = inputs
  for n in taps:
    fan_in *= n
  return {'kernel': Param((*taps, inputs, outputs), axes, fan_in=fan_in), 'bias': Param((outputs,), ('conv_out',), 'zeros')}


def judge(params: Params, cfg: Adversaries, wave: Float[Array, 'B W']) -> list[Judgement]:
  """Of every discriminator: high scores for what it takes for a recording."""
  found = [_judge_period(params[f'period_{period}'], period, wave) for period in cfg.periods]
  return found + [_judge_spectrum(params[f'window_{window}'], window, wave) for window in cfg.windows]


def _judge_period(params: Params, period: int, wave: Float[Array, 'B W']) -> Judgement:
  length = wave.shape[1] // period
  x = wave[:, : length * period].reshape(-1, length, period)
  return _layers(params, jnp.moveaxis(x, 2, 1).reshape(-1, length, 1), [(n,) for n in PERIOD_STRIDES])


def _judge_spectrum(params: Params, window: int, wave: Float[Array, 'B W']) -> Judgement:
  x = jnp.log(magnitudes(wave, window) + 1e-5)[..., None]
  return _layers(params, x, [(1, n) for n in SPECTRUM_STRIDES])


def _layers(params: Params, x: Array, strides: list[tuple[int, ...]]) -> Judgement:
  features = []
  for i, stride in enumerate(strides):
    x = jax.nn.leaky_relu(_convolve(x, params[str(i)], stride), SLOPE)
    features.append(x)
  return _convolve(x, params['out'], (1,) * len(strides[0])), features


def _convolve(x: Array, p: Params, stride: tuple[int, ...]) -> Array:
  names = ('NWC', 'WIO', 'NWC') if len(stride) == 1 else ('NHWC', 'HWIO', 'NHWC')
  return jax.lax.conv_general_dilated(x, p['kernel'], stride, 'SAME', dimension_numbers=names) + p['bias']


def discriminator_loss(real: list[Judgement], fake: list[Judgement]) -> Float[Array, '']:
  """The mean over discriminators: recordings are to score 1, the generator's waves 0."""
  each = [jnp.mean((1 - r) ** 2) + jnp.mean(f**2) for (r, _), (f, _) in zip(real, fake, strict=True)]
  return sum(each, jnp.float32(0)) / len(each)


def generator_losses(real: list[Judgement], fake: list[Judgement]) -> tuple[Float[Array, ''], Float[Array, '']]:
  """(adversarial, features), means over discriminators: its waves are to score 1, and to have the features of the recordings."""
  adversarial = [jnp.mean((1 - score) ** 2) for score, _ in fake]
  distances = [
    jnp.mean(jnp.abs(f - jax.lax.stop_gradient(r))) / (jnp.mean(jnp.abs(jax.lax.stop_gradient(r))) + 1e-5)
    for (_, rs), (_, fs) in zip(real, fake, strict=True)
    for r, f in zip(rs, fs, strict=True)
  ]
  return sum(adversarial, jnp.float32(0)) / len(adversarial), sum(distances, jnp.float32(0)) / len(distances)
