"""AuT, the audio encoder: log-mel windows of up to 8 s to 13 features a second.

Convolutions shrink each 1 s chunk eightfold in time, then a transformer attends within a window of 8 chunks. Clips are cut
into windows beforehand (windows never see one another), so time and memory grow with a clip's length, not its square.
"""

from ..config import AudioConfig
from ..nn.layers import layer_norm_spec, linear_spec
from ..nn.params import Param, Spec, stack


def audio_spec(cfg: AudioConfig) -> Spec:
  """Parameters. Convolution kernels are 'mel time in out' (published: out in mel time)."""
  D, N, H, F, C = cfg.d_model, cfg.encoder_attention_heads, cfg.head_dim, cfg.encoder_ffn_dim, cfg.downsample_hidden_size
  project: Spec = {
    'kernel': Param((D, N, H), ('embed', 'heads', 'head_dim'), fan_in=D),
    'bias': Param((N, H), ('heads', 'head_dim'), 'zeros'),
  }
  layer: Spec = {
    'attn_norm': layer_norm_spec(D),
    'attn': {
      **{name: dict(project) for name in 'qkv'},
      'o': {
        'kernel': Param((N, H, D), ('heads', 'head_dim', 'embed'), fan_in=D),
        'bias': Param((D,), ('embed',), 'zeros'),
      },
    },
    'mlp_norm': layer_norm_spec(D),
    'mlp': {'up': linear_spec(D, F, ('embed', 'mlp')), 'down': linear_spec(F, D, ('mlp', 'embed'))},
  }
  return {
    'conv1': _conv_spec(1, C),
    'conv2': _conv_spec(C, C),
    'conv3': _conv_spec(C, C),
    'conv_out': {
      'kernel': Param((C, cfg.num_mel_bins // 8, D), ('conv_in', 'mel', 'embed'), fan_in=C * cfg.num_mel_bins // 8)
    },
    'layers': stack(cfg.encoder_layers, layer),
    'norm': layer_norm_spec(D),
    'proj1': linear_spec(D, D, ('embed', 'mlp')),
    'proj2': linear_spec(D, cfg.output_dim, ('mlp', 'embed')),
  }


def _conv_spec(inputs: int, outputs: int) -> Spec:
  axes = ('conv_taps', 'conv_taps', 'conv_in', 'conv_out')
  return {
    'kernel': Param((3, 3, inputs, outputs), axes, fan_in=9 * inputs),
    'bias': Param((outputs,), ('conv_out',), 'zeros'),
  }
