"""The vision encoder: patches of images and video frames to features, with deepstack levels from layers on the way.

Every frame is a row of the batch: attention is within a frame, so a video is its frames. Patches come in merge-block order
(the four patches that become one feature are neighbours).
"""

from ..config import VisionConfig
from ..nn.layers import layer_norm_spec, linear_spec
from ..nn.params import Param, Spec, stack


def vision_spec(cfg: VisionConfig) -> Spec:
  """Parameters. `merger` makes the features, `deepstack` (stacked by level) the levels added inside the Thinker."""
  D, N, H, F = cfg.hidden_size, cfg.num_heads, cfg.head_dim, cfg.intermediate_size
  layer: Spec = {
    'attn_norm': layer_norm_spec(D),
    'attn': {
      'qkv': {
        'kernel': Param((D, 3, N, H), ('embed', 'qkv', 'heads', 'head_dim'), fan_in=D),
        'bias': Param((3, N, H), ('qkv', 'heads', 'head_dim'), 'zeros'),
      },
      'o': {
        'kernel': Param((N, H, D), ('heads', 'head_dim', 'embed'), fan_in=D),
        'bias': Param((D,), ('embed',), 'zeros'),
      },
    },
    'mlp_norm': layer_norm_spec(D),
    'mlp': {'up': linear_spec(D, F, ('embed', 'mlp')), 'down': linear_spec(F, D, ('mlp', 'embed'))},
  }
  spec: Spec = {
    'patch': linear_spec(cfg.patch_dim, D, ('patch', 'embed')),
    'positions': Param((cfg.num_position_embeddings, D), ('positions', 'embed'), fan_in=D),
    'layers': stack(cfg.depth, layer),
    'merger': _merger_spec(cfg, cfg.hidden_size),
  }
  if cfg.deepstack_visual_indexes:
    merged = cfg.hidden_size * cfg.spatial_merge_size**2
    spec['deepstack'] = stack(len(cfg.deepstack_visual_indexes), _merger_spec(cfg, merged))
  return spec


def _merger_spec(cfg: VisionConfig, normed: int) -> Spec:
  merged = cfg.hidden_size * cfg.spatial_merge_size**2
  return {
    'norm': layer_norm_spec(normed),
    'up': linear_spec(merged, merged, ('embed', 'mlp')),
    'down': linear_spec(merged, cfg.out_hidden_size, ('mlp', 'embed')),
  }
