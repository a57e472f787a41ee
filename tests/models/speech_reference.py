"""The reference's speech networks with random weights, and their weights in our layout."""

import einops
import numpy as np
import torch

from qwen3_omni_jax.config import Code2WavConfig, TalkerConfig, TextConfig

_schemas = torch.library.Library('torchvision', 'FRAGMENT')
for _name, _schema in (
  ('nms', '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'),
  ('qnms', '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'),
):
  try:  # torchvision built for CUDA cannot be imported beside CPU torch until these two operators have a schema
    _schemas.define(_name + _schema)
  except RuntimeError:
    pass  # a torchvision that fits defines them itself

from transformers.models.qwen3_omni_moe import configuration_qwen3_omni_moe as ref_config  # noqa: E402
from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as ref  # noqa: E402


def randomise(module: torch.nn.Module, seed: int, gain: float = 1.0) -> torch.nn.Module:
  """Weights that make every term count: matrices of unit gain, biases, norms and scales away from 0 and 1."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, p in module.named_parameters():
      noise = torch.randn(p.shape, generator=generator)
      if p.ndim > 1:
        p.copy_(noise * gain * (p.numel() / p.shape[0]) ** -0.5)
      elif name.endswith(('alpha', 'beta', 'bias')):
        p.copy_(0.3 * noise)
      else:
        p.copy_(1 + 0.2 * noise)
  return module.float().eval()


class Weights:
  """Tensors of a state dict by name, as numpy arrays in our layout."""

  def __init__(self, module: torch.nn.Module):
    self.tensors = {name: t.detach().numpy() for name, t in module.state_dict().items()}

  def __call__(self, name: str, layout: str | None = None, **sizes: int) -> np.ndarray:
    value = self.tensors[name]
    return einops.rearrange(value, layout, **sizes) if layout else value

  def stacked(self, name: str, layers: int, layout: str | None = None, **sizes: int) -> np.ndarray:
    """name with * for the layer number."""
    return np.stack([self(name.replace('*', str(i)), layout, **sizes) for i in range(layers)])


def code2wav_config(cfg: Code2WavConfig) -> ref_config.Qwen3OmniMoeCode2WavConfig:
  fields = (
    'codebook_size',
    'num_quantizers',
    'hidden_size',
    'intermediate_size',
    'num_hidden_layers',
    'num_attention_heads',
    'num_key_value_heads',
    'sliding_window',
    'rms_norm_eps',
    'decoder_dim',
  )
  return ref_config.Qwen3OmniMoeCode2WavConfig(
    **{name: getattr(cfg, name) for name in fields},
    upsample_rates=list(cfg.upsample_rates),
    upsampling_ratios=list(cfg.upsampling_ratios),
    rope_parameters={'rope_type': 'default', 'rope_theta': cfg.rope_theta},
  )


def code2wav_pair(cfg: Code2WavConfig, seed: int):
  """(reference module, our parameters). The gain keeps the wave inside [-1, 1]."""
  module = randomise(ref.Qwen3OmniMoeCode2Wav(code2wav_config(cfg)), seed, gain=0.4)
  return module, code2wav_params(Weights(module), cfg)


def code2wav_params(w: Weights, cfg: Code2WavConfig) -> dict:
  L, H = cfg.num_hidden_layers, cfg.head_dim
  layer = 'pre_transformer.layers.*.'

  def conv(name):
    return {'kernel': w(f'{name}.conv.weight', 'O I K -> K I O'), 'bias': w(f'{name}.conv.bias')}

  def up(name):
    return {'kernel': w(f'{name}.conv.weight', 'I O K -> I K O'), 'bias': w(f'{name}.conv.bias')}

  def linear(name):
    return {'kernel': w(f'{name}.weight', 'O I -> I O'), 'bias': w(f'{name}.bias')}

  def snake(name):
    return {'alpha': w(f'{name}.alpha'), 'beta': w(f'{name}.beta')}

  def next_block(i):
    name = f'upsample.{i}.1.'
    return {
      'up': up(f'upsample.{i}.0'),
      'depthwise': {'kernel': w(f'{name}dwconv.conv.weight', 'C 1 K -> K C'), 'bias': w(f'{name}dwconv.conv.bias')},
      'norm': {'scale': w(f'{name}norm.weight'), 'bias': w(f'{name}norm.bias')},
      'fc1': linear(f'{name}pwconv1'),
      'fc2': linear(f'{name}pwconv2'),
      'gamma': w(f'{name}gamma'),
    }

  def block(i):
    name = f'decoder.{i + 1}.block.'
    unit = lambda j: {
      'act1': snake(f'{name}{j}.act1'),
      'conv1': conv(f'{name}{j}.conv1'),
      'act2': snake(f'{name}{j}.act2'),
      'conv2': conv(f'{name}{j}.conv2'),
    }
    return {'act': snake(f'{name}0'), 'up': up(f'{name}1'), 'units': {str(j): unit(j + 2) for j in range(3)}}

  stages = len(cfg.upsample_rates)
  return {
    'embed': w('code_embedding.weight'),
    'layers': {
      'attn_norm': w.stacked(layer + 'input_layernorm.weight', L),
      'attn': {
        **{name: w.stacked(f'{layer}self_attn.{name}_proj.weight', L, '(N H) D -> D N H', H=H) for name in ('q', 'k', 'v')},
        'o': w.stacked(layer + 'self_attn.o_proj.weight', L, 'D (N H) -> N H D', H=H),
      },
      'attn_scale': w.stacked(layer + 'self_attn_layer_scale.scale', L),
      'mlp_norm': w.stacked(layer + 'post_attention_layernorm.weight', L),
      'mlp': {name: w.stacked(f'{layer}mlp.{name}_proj.weight', L, 'O I -> I O') for name in ('gate', 'up', 'down')},
      'mlp_scale': w.stacked(layer + 'mlp_layer_scale.scale', L),
    },
    'norm': w('pre_transformer.norm.weight'),
    'upsample': {str(i): next_block(i) for i in range(len(cfg.upsampling_ratios))},
    'conv_in': conv('decoder.0'),
    'blocks': {str(i): block(i) for i in range(stages)},
    'act_out': snake(f'decoder.{stages + 1}'),
    'conv_out': conv(f'decoder.{stages + 2}'),
  }


def text_config_fields(cfg: TextConfig) -> dict:
  names = (
    'vocab_size',
    'hidden_size',
    'intermediate_size',
    'num_hidden_layers',
    'num_attention_heads',
    'num_key_value_heads',
    'head_dim',
    'rms_norm_eps',
  )
  rope = {'rope_type': 'default', 'rope_theta': cfg.rope_theta}
  if cfg.mrope_section:
    rope['mrope_section'] = list(cfg.mrope_section)
  fields = {name: getattr(cfg, name) for name in names} | {'rope_parameters': rope}
  if cfg.num_experts:
    names = ('num_experts', 'num_experts_per_tok', 'moe_intermediate_size', 'norm_topk_prob')
    fields |= {name: getattr(cfg, name) for name in names}
    fields['shared_expert_intermediate_size'] = cfg.shared_expert_intermediate_size
  return fields


def talker_config(cfg: TalkerConfig) -> ref_config.Qwen3OmniMoeTalkerConfig:
  predictor = text_config_fields(cfg.code_predictor) | {'num_code_groups': cfg.num_code_groups}
  ids = (
    'codec_pad_id',
    'codec_bos_id',
    'codec_eos_token_id',
    'codec_nothink_id',
    'codec_think_bos_id',
    'codec_think_eos_id',
    'num_code_groups',
    'thinker_hidden_size',
    'accept_hidden_layer',
  )
  config = ref_config.Qwen3OmniMoeTalkerConfig(
    text_config=text_config_fields(cfg.text),
    code_predictor_config=predictor,
    speaker_id=dict(cfg.speaker_id),
    **{name: getattr(cfg, name) for name in ids},
  )
  config.spatial_merge_size = 2  # not declared by the class, read by the model
  return config


def talker_pair(cfg: TalkerConfig, seed: int):
  """(reference Talker with its code predictor, our Talker parameters, our code predictor parameters)."""
  module = randomise(ref.Qwen3OmniMoeTalkerForConditionalGeneration(talker_config(cfg)), seed)
  return module, *talker_params(Weights(module), cfg)


def talker_params(weights: Weights, cfg: TalkerConfig) -> tuple[dict, dict]:
  """(Talker, code predictor)."""
  rest = cfg.num_code_groups - 1
  talker = {
    'embed': weights('model.codec_embedding.weight'),
    'layers': decoder_params(weights, cfg.text, 'model.'),
    'norm': weights('model.norm.weight'),
    'head': weights('codec_head.weight', 'V D -> D V'),
  }
  for name in ('text_projection', 'hidden_projection'):
    layer = lambda short: {
      'kernel': weights(f'{name}.linear_{short}.weight', 'O I -> I O'),
      'bias': weights(f'{name}.linear_{short}.bias'),
    }
    talker[name] = {'fc1': layer('fc1'), 'fc2': layer('fc2')}
  code_predictor = {
    'embed': weights.stacked('code_predictor.model.codec_embedding.*.weight', rest),
    'layers': decoder_params(weights, cfg.code_predictor, 'code_predictor.model.'),
    'norm': weights('code_predictor.model.norm.weight'),
    'head': weights.stacked('code_predictor.lm_head.*.weight', rest, 'V D -> D V'),
  }
  return talker, code_predictor


def decoder_params(w: Weights, cfg: TextConfig, prefix: str) -> dict:
  L, H, layer = cfg.num_hidden_layers, cfg.head_dim, prefix + 'layers.*.'
  swiglu = lambda name: {part: w.stacked(f'{layer}{name}.{part}_proj.weight', L, 'O I -> I O') for part in ('gate', 'up', 'down')}
  params = {
    'attn_norm': w.stacked(layer + 'input_layernorm.weight', L),
    'attn': {
      **{name: w.stacked(f'{layer}self_attn.{name}_proj.weight', L, '(N H) D -> D N H', H=H) for name in ('q', 'k', 'v')},
      'o': w.stacked(layer + 'self_attn.o_proj.weight', L, 'D (N H) -> N H D', H=H),
      'q_norm': w.stacked(layer + 'self_attn.q_norm.weight', L),
      'k_norm': w.stacked(layer + 'self_attn.k_norm.weight', L),
    },
    'mlp_norm': w.stacked(layer + 'post_attention_layernorm.weight', L),
  }
  if not cfg.num_experts:
    return params | {'mlp': swiglu('mlp')}
  gate_up = w.stacked(layer + 'mlp.experts.gate_up_proj', L, 'E (two F) D -> two E D F', two=2)
  params['moe'] = {
    'router': w.stacked(layer + 'mlp.gate.weight', L, 'E D -> D E'),
    'experts': {
      'gate': gate_up[:, 0],
      'up': gate_up[:, 1],
      'down': w.stacked(layer + 'mlp.experts.down_proj', L, 'E D F -> E F D'),
    },
  }
  if cfg.shared_expert_intermediate_size:
    params['moe']['shared'] = swiglu('mlp.shared_expert')
    params['moe']['shared_gate'] = w.stacked(layer + 'mlp.shared_expert_gate.weight', L, '1 D -> D')
  return params
