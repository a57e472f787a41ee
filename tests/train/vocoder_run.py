"""A small run that trains a vocoder or a codec on tones, for the tests of the task."""

import pathlib

import numpy as np
from qwen3_omni_jax.train.config import Run
from qwen3_omni_jax.train.config_file import read

CODEC = {
  'hidden_size': 32,
  'num_filters': 4,
  'codebook_size': 256,
  'codebook_dim': 8,
  'vector_quantization_hidden_dimension': 8,
  'num_quantizers': 16,
  'num_hidden_layers': 1,
  'intermediate_size': 48,
  'num_attention_heads': 2,
  'num_key_value_heads': 2,
  'head_dim': 8,
  'sliding_window': 8,
}
PARTS = 'parts=[{pattern: code2wav/, lr: 1e-3}, {pattern: codec/, lr: 1e-3}, {pattern: discriminators/, lr: 1e-3}]'


def write_tones(folder: pathlib.Path, number: int = 4) -> pathlib.Path:
  """Recordings of 0.3 to 0.9 s at 16 and 24 kHz."""
  import soundfile

  folder.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(0)
  for i in range(number):
    rate = (16_000, 24_000)[i % 2]
    t = np.arange(int(rate * (0.3 + 0.2 * i))) / rate
    wave = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 1000) * t * (1 + t)) + 0.01 * rng.normal(size=len(t))
    soundfile.write(folder / f'{i}.wav', wave.astype(np.float32), rate)
  return folder


def codec_run(model: pathlib.Path, waves: pathlib.Path, out: pathlib.Path, *more: str) -> Run:
  """Four steps: two without quantisation, two with; discriminators from the third on."""
  settings = [
    f'model={model}',
    f'out={out}',
    'init=random',
    'steps=4',
    'mesh=single',
    'save.every=2',
    'log={tensorboard: false, every: 1}',
    f"data={{sources: [{{path: '{waves}/*.wav'}}], rows: 2}}",
    'optimiser={warmup: 1, b1: 0.8, b2: 0.99}',
    'step={dtype: float32, ema: 0.5}',
    PARTS,
    'vocoder={frames: 3, context: 1, codec: {begin: 2}, adversaries: {begin: 2, width: 2, periods: [2, 3], windows: [512]}}',
  ]
  settings += [f'vocoder.codec.config.{key}={value}' for key, value in CODEC.items()]
  return read(Run, None, [*settings, *more])
