"""The reference's encoders with random weights, and their weights in our layout."""

import functools

import jax
import numpy as np
import torch

from qwen3_omni_jax.config import AudioConfig, VisionConfig

_schemas = torch.library.Library('torchvision', 'FRAGMENT')
for _name in ('nms', 'qnms'):
  try:  # torchvision built for CUDA cannot be imported beside CPU torch until these operators have a schema
    _schemas.define(_name + '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
  except RuntimeError:
    pass  # a torchvision that fits, or another test, defines them

from transformers.models.qwen3_omni_moe import configuration_qwen3_omni_moe as hf_config  # noqa: E402
from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as hf_model  # noqa: E402


def _randomise(module: torch.nn.Module) -> dict[str, np.ndarray]:
  """Weights that make every term count: matrices of unit gain, biases and norms away from 0 and 1. Returns them."""
  generator = torch.Generator().manual_seed(1)
  with torch.no_grad():
    for name, p in module.named_parameters():
      if p.ndim > 1:
        p.copy_(torch.randn(p.shape, generator=generator) * p[0].numel() ** -0.5)
      else:
        scale = 'norm' in name or 'ln_' in name
        p.copy_(torch.randn(p.shape, generator=generator) * 0.3 + (scale and name.endswith('weight')))
  return {name: value.numpy() for name, value in module.state_dict().items()}


def _norm(w, name):
  return {'scale': w[name + '.weight'], 'bias': w[name + '.bias']}


def _linear(w, name):
  return {'kernel': w[name + '.weight'].reshape(len(w[name + '.weight']), -1).T, 'bias': w[name + '.bias']}


def _stack(layers):
  return jax.tree.map(lambda *x: np.stack(x), *layers)


@functools.cache
def audio_pair(cfg: AudioConfig):
  """(reference AuT, its weights as our parameters)."""
  names = (
    'num_mel_bins',
    'd_model',
    'encoder_layers',
    'encoder_attention_heads',
    'encoder_ffn_dim',
    'downsample_hidden_size',
    'output_dim',
    'n_window_infer',
  )
  given = {name: getattr(cfg, name) for name in names}
  module = hf_model.Qwen3OmniMoeAudioEncoder(hf_config.Qwen3OmniMoeAudioEncoderConfig(**given)).eval()
  w = _randomise(module)
  N, H, D = cfg.encoder_attention_heads, cfg.head_dim, cfg.d_model

  def heads(name):
    p = _linear(w, name)
    return {'kernel': p['kernel'].reshape(D, N, H), 'bias': p['bias'].reshape(N, H)}

  def layer(i):
    at = f'layers.{i}.'
    out = _linear(w, at + 'self_attn.out_proj')
    return {
      'attn_norm': _norm(w, at + 'self_attn_layer_norm'),
      'attn': {x: heads(at + f'self_attn.{x}_proj') for x in 'qkv'}
      | {'o': {'kernel': out['kernel'].reshape(N, H, D), 'bias': out['bias']}},
      'mlp_norm': _norm(w, at + 'final_layer_norm'),
      'mlp': {'up': _linear(w, at + 'fc1'), 'down': _linear(w, at + 'fc2')},
    }

  convs = {f'conv{i}': {'kernel': w[f'conv2d{i}.weight'].transpose(2, 3, 1, 0), 'bias': w[f'conv2d{i}.bias']} for i in (1, 2, 3)}
  return module, convs | {
    'conv_out': {'kernel': w['conv_out.weight'].T.reshape(cfg.downsample_hidden_size, -1, D)},
    'layers': _stack([layer(i) for i in range(cfg.encoder_layers)]),
    'norm': _norm(w, 'ln_post'),
    'proj1': _linear(w, 'proj1'),
    'proj2': _linear(w, 'proj2'),
  }


@functools.cache
def vision_pair(cfg: VisionConfig):
  """(reference vision encoder, its weights as our parameters)."""
  names = (
    'depth',
    'hidden_size',
    'intermediate_size',
    'num_heads',
    'in_channels',
    'patch_size',
    'spatial_merge_size',
    'temporal_patch_size',
    'out_hidden_size',
    'num_position_embeddings',
  )
  given = {name: getattr(cfg, name) for name in names}
  given['deepstack_visual_indexes'] = list(cfg.deepstack_visual_indexes)
  module = hf_model.Qwen3OmniMoeVisionEncoder(hf_config.Qwen3OmniMoeVisionEncoderConfig(**given)).eval()
  w = _randomise(module)
  N, H, D = cfg.num_heads, cfg.head_dim, cfg.hidden_size

  def layer(i):
    at = f'blocks.{i}.'
    qkv, out = _linear(w, at + 'attn.qkv'), _linear(w, at + 'attn.proj')
    return {
      'attn_norm': _norm(w, at + 'norm1'),
      'attn': {
        'qkv': {'kernel': qkv['kernel'].reshape(D, 3, N, H), 'bias': qkv['bias'].reshape(3, N, H)},
        'o': {'kernel': out['kernel'].reshape(N, H, D), 'bias': out['bias']},
      },
      'mlp_norm': _norm(w, at + 'norm2'),
      'mlp': {'up': _linear(w, at + 'mlp.linear_fc1'), 'down': _linear(w, at + 'mlp.linear_fc2')},
    }

  def merger(at):
    return {'norm': _norm(w, at + 'ln_q'), 'up': _linear(w, at + 'mlp.0'), 'down': _linear(w, at + 'mlp.2')}

  return module, {
    'patch': _linear(w, 'patch_embed.proj'),
    'positions': w['pos_embed.weight'],
    'layers': _stack([layer(i) for i in range(cfg.depth)]),
    'merger': merger('merger.'),
    'deepstack': _stack([merger(f'merger_list.{i}.') for i in range(len(cfg.deepstack_visual_indexes))]),
  }
