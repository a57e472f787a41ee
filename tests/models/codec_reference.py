"""The reference's speech codec with random weights, saved as it saves them."""

import pathlib
from typing import Any

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
  """Random weights, and codebooks that lie where latents of noise lie, so that many entries are used: after the reference's own
  initialisation every code is a tie. Some entries have a usage below the least that the reference divides by."""
  torch.set_num_threads(2)
  model: Any = transformers.MimiModel(transformers.MimiConfig(**fields))
  randomise(model, seed)
  rng = np.random.default_rng(seed)
  wave = rng.uniform(-1, 1, 40 * model.config.frame_size) * np.linspace(0, 1, 40 * model.config.frame_size)
  with torch.no_grad():
    latents = model.encoder(torch.from_numpy(wave.astype(np.float32))[None, None]).latents
    for branch in (model.quantizer.semantic_residual_vector_quantizer, model.quantizer.acoustic_residual_vector_quantizer):
      x = (latents if branch.input_proj is None else branch.input_proj(latents))[0].T.numpy()
      centre = x.mean(0)
      for layer in branch.layers:
        book = layer.codebook
        usage = rng.uniform(0.5, 3, len(book.cluster_usage))
        usage[::5] = 1e-7
        entries = centre + x.std(0) * rng.normal(size=book.embed_sum.shape)
        book.cluster_usage.copy_(torch.from_numpy(usage))
        book.embed_sum.copy_(torch.from_numpy(entries * np.maximum(usage, 1e-5)[:, None]))
        centre = 0
  return model


def saved_codec(folder: pathlib.Path, fields: dict, seed: int):
  model = reference_codec(fields, seed)
  model.save_pretrained(folder)
  return model
