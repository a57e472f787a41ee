"""Code2Wav: codec frames to a 24 kHz wave."""

from ..config import Code2WavConfig
from ..nn.conv import causal_conv_spec, depthwise_conv_spec, upsample_conv_spec
from ..nn.layers import layer_norm_spec, linear_spec, swiglu_spec
from ..nn.params import Param, Spec, stack

TAPS = 7  # of every causal convolution; fixed in the reference
DILATIONS = (1, 3, 9)  # of the residual units of a decoder block; fixed in the reference


def code2wav_spec(cfg: Code2WavConfig) -> Spec:
  """embed: the codebooks one below the other, row q * codebook_size + code. Lists of modules are dicts '0', '1', …"""
  D, N, K, H = cfg.hidden_size, cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim
  layer: Spec = {
    'attn_norm': Param((D,), ('embed',), 'ones'),
    'attn': {
      'q': Param((D, N, H), ('embed', 'heads', 'head_dim'), fan_in=D),
      'k': Param((D, K, H), ('embed', 'kv_heads', 'head_dim'), fan_in=D),
      'v': Param((D, K, H), ('embed', 'kv_heads', 'head_dim'), fan_in=D),
      'o': Param((N, H, D), ('heads', 'head_dim', 'embed'), fan_in=N * H),
    },
    'attn_scale': Param((D,), ('embed',), 'ones'),
    'mlp_norm': Param((D,), ('embed',), 'ones'),
    'mlp': swiglu_spec(D, cfg.intermediate_size),
    'mlp_scale': Param((D,), ('embed',), 'ones'),
  }
  blocks = range(len(cfg.upsample_rates))
  last = cfg.decoder_dim // 2 ** len(blocks)
  return {
    'embed': Param((cfg.num_quantizers * cfg.codebook_size, D), ('vocab', 'embed'), fan_in=D),
    'layers': stack(cfg.num_hidden_layers, layer),
    'norm': Param((D,), ('embed',), 'ones'),
    'upsample': {str(i): _upsample_spec(D, ratio) for i, ratio in enumerate(cfg.upsampling_ratios)},
    'conv_in': causal_conv_spec(TAPS, D, cfg.decoder_dim),
    'blocks': {str(i): _block_spec(cfg.decoder_dim // 2**i, cfg.upsample_rates[i]) for i in blocks},
    'act_out': _snake_spec(last),
    'conv_out': causal_conv_spec(TAPS, last, 1),
  }


def _upsample_spec(width: int, ratio: int) -> Spec:
  return {
    'up': upsample_conv_spec(ratio, width, width),
    'depthwise': depthwise_conv_spec(TAPS, width),
    'norm': layer_norm_spec(width),
    'fc1': linear_spec(width, 4 * width, ('embed', 'mlp')),
    'fc2': linear_spec(4 * width, width, ('mlp', 'embed')),
    'gamma': Param((width,), ('embed',), 'ones'),
  }


def _block_spec(inputs: int, rate: int) -> Spec:
  outputs = inputs // 2
  unit = {
    'act1': _snake_spec(outputs),
    'conv1': causal_conv_spec(TAPS, outputs, outputs),
    'act2': _snake_spec(outputs),
    'conv2': causal_conv_spec(1, outputs, outputs),
  }
  return {
    'act': _snake_spec(inputs),
    'up': upsample_conv_spec(2 * rate, inputs, outputs),
    'units': {str(i): unit for i in range(len(DILATIONS))},
  }


def _snake_spec(channels: int) -> Spec:
  return {'alpha': Param((channels,), ('conv_out',), 'zeros'), 'beta': Param((channels,), ('conv_out',), 'zeros')}
