"""The weight table of a speech codec: MimiModel's layout on disk, or the same behind the prefix of a tokenizer that holds it."""

import re

from ..codec_config import CodecConfig
from .rows import Row, attention, conv, linear, norm

# The codec's own decoder (Code2Wav is used in its place), and flags of training. In a tokenizer `decoder.` is another network.
_UNUSED = r'(decoder|decoder_transformer|upsample)\..*|quantizer\..*\.codebook\.(initialized)'


def unused_group(name: str, cfg: CodecConfig) -> str | None:
  """What a tensor on disk belongs to, if that is known and not needed to make codes: 'decoder.*'."""
  if cfg.prefix and name.startswith('decoder.'):
    return 'decoder.*'
  if not name.startswith(cfg.prefix) or (found := re.fullmatch(_UNUSED, name.removeprefix(cfg.prefix))) is None:
    return None
  return f'{cfg.prefix}{found[1]}.*' if found[1] else f'{cfg.prefix}quantizer.*.{found[2]}'


def codec_rows(cfg: CodecConfig) -> list[Row]:
  """SEANet is one numbered list of modules on disk, in which activations have a number and no tensors."""
  seanet = f'{cfg.prefix}encoder.layers'
  rows, number = conv('codec/conv_in', f'{seanet}.0'), 1
  for i in range(len(cfg.strides)):
    ours = f'codec/stages/{i}'
    for j in range(cfg.num_residual_layers):
      rows += conv(f'{ours}/units/{j}/conv1', f'{seanet}.{number}.block.1')
      rows += conv(f'{ours}/units/{j}/conv2', f'{seanet}.{number}.block.3')
      number += 1
    rows += conv(f'{ours}/down', f'{seanet}.{number + 1}')
    number += 2
  rows += conv('codec/conv_out', f'{seanet}.{number + 1}')

  layer, their_layer = 'codec/layers', f'{cfg.prefix}encoder_transformer.layers.{{L}}'
  rows += [
    *norm(f'{layer}/attn_norm', f'{their_layer}.input_layernorm'),
    *attention(f'{layer}/attn', f'{their_layer}.self_attn'),
    Row(f'{layer}/attn_scale', f'{their_layer}.self_attn_layer_scale.scale'),
    *norm(f'{layer}/mlp_norm', f'{their_layer}.post_attention_layernorm'),
    *linear(f'{layer}/mlp/up', f'{their_layer}.mlp.fc1', bias=False),
    *linear(f'{layer}/mlp/down', f'{their_layer}.mlp.fc2', bias=False),
    Row(f'{layer}/mlp_scale', f'{their_layer}.mlp_layer_scale.scale'),
    *conv('codec/downsample', f'{cfg.prefix}downsample', bias=False),
  ]

  for branch in ('semantic', 'acoustic'):
    ours, theirs = f'codec/quantizer/{branch}', f'{cfg.prefix}quantizer.{branch}_residual_vector_quantizer'
    book = f'{theirs}.layers.{{Q}}.codebook'
    if cfg.codebook_dim != cfg.hidden_size:
      rows += [
        Row(f'{ours}/input/kernel', f'{theirs}.input_proj.weight', 'O I 1 -> I O'),
        Row(f'{ours}/output/kernel', f'{theirs}.output_proj.weight', 'O I 1 -> I O'),
      ]
    rows += [
      Row(f'{ours}/books/embed_sum', f'{book}.embed_sum', 'K D -> K D'),
      Row(f'{ours}/books/cluster_usage', f'{book}.cluster_usage'),
    ]
  return rows
