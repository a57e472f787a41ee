"""The reference's speech codec with random weights, saved as it saves them."""

import pathlib

import numpy as np
import torch
import transformers

from .speech_reference import randomise

PUBLISHED_RATES = dict(  # the released strides and window at toy widths
  hidden_size=20,
  num_filters=2,
  num_hidden_layers=2,
  num_attention_heads=2,
  num_key_value_heads=2,
  head_dim=6,
  intermediate_size=28,
  codebook_size=16,
  codebook_dim=8,
  vector_quantization_hidden_dimension=8,
  num_quantizers=5,
  upsample_groups=20,
)
OTHER_RATES = dict(
  hidden_size=24,
  num_filters=4,
  num_residual_layers=2,
  upsampling_ratios=[3, 2, 4],
  kernel_size=5,
  last_kernel_size=5,
  residual_kernel_size=5,
  dilation_growth_rate=3,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=4,
  intermediate_size=20,
  codebook_size=32,
  codebook_dim=24,
  vector_quantization_hidden_dimension=24,
  num_quantizers=4,
  num_semantic_quantizers=2,
  sliding_window=7,
  upsample_groups=24,
)


def reference_codec(fields: dict, seed: int):
  """Codebooks too are random, and some entries hardly used: after the reference's own initialisation every code is a tie."""
  torch.set_num_threads(2)
  model = randomise(transformers.MimiModel(transformers.MimiConfig(**fields)), seed)
  rng = np.random.default_rng(seed)
  for name, buffer in model.named_buffers():
    if name.endswith('cluster_usage'):
      usage = rng.uniform(0.5, 3, buffer.shape)
      usage[::5] = 1e-7  # below the least that the reference divides by
      buffer.copy_(torch.from_numpy(usage))
    elif name.endswith('embed_sum'):
      buffer.copy_(torch.from_numpy(rng.normal(size=buffer.shape)))
      buffer[::5] *= 1e-5
  return model


def saved_codec(folder: pathlib.Path, fields: dict, seed: int):
  model = reference_codec(fields, seed)
  model.save_pretrained(folder)
  return model
