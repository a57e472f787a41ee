"""Configuration of a speech codec: transformers' MimiConfig, alone or inside the config of the Qwen3-TTS 12 Hz tokenizer.

Names and defaults are the published ones (transformers 5.23, as in config.py). The fields of Mimi's decoder are not kept:
waves are made by Code2Wav.
"""

import dataclasses
import json
import math
import pathlib
from typing import Any, ClassVar

from .config_reader import TRAINING, Reader

DECODER = "of the codec's own decoder, which is not used: Code2Wav makes the wave"
RELEASED_CODE_GROUPS = 16  # of Qwen3-Omni: the first codebooks of the 32 that Mimi has
TOKENIZER = 'qwen3_tts_tokenizer_12hz'


@dataclasses.dataclass(frozen=True)
class CodecConfig:
  """A speech codec's encoder and quantiser.

  num_code_groups: how many of the codebooks are used. prefix: of the tensors' names on disk.
  """

  sampling_rate: int = 24000
  audio_channels: int = 1
  hidden_size: int = 512
  num_filters: int = 64
  num_residual_layers: int = 1
  upsampling_ratios: tuple[int, ...] = (8, 6, 5, 4)
  kernel_size: int = 7
  last_kernel_size: int = 3
  residual_kernel_size: int = 3
  dilation_growth_rate: int = 2
  use_causal_conv: bool = True
  pad_mode: str = 'constant'
  compress: int = 2
  codebook_size: int = 2048
  codebook_dim: int = 256
  num_quantizers: int = 32
  use_conv_shortcut: bool = False
  vector_quantization_hidden_dimension: int = 256
  num_semantic_quantizers: int = 1
  num_hidden_layers: int = 8
  intermediate_size: int = 2048
  num_attention_heads: int = 8
  num_key_value_heads: int = 8
  head_dim: int = 64
  hidden_act: str = 'gelu'
  norm_eps: float = 1e-5
  sliding_window: int = 250
  attention_bias: bool = False
  rope_theta: float = 1e4
  num_code_groups: int = RELEASED_CODE_GROUPS
  prefix: str = ''

  IGNORED: ClassVar[dict[str, str]] = {
    'upsample_groups': DECODER,
    'trim_right_ratio': DECODER,
    'encoder_config': 'null where a checkpoint has only one half',
    'decoder_config': 'null where a checkpoint has only one half',
    'max_position_embeddings': 'positions are computed, not looked up',
    'layer_scale_initial_scale': TRAINING,
    'use_streaming': 'a setting of a call',
    'normalize': 'the reference never reads it',
    'tie_word_embeddings': 'there are none',
  }

  @property
  def strides(self) -> tuple[int, ...]:
    """Of the encoder's convolutions, in their order: the published ratios are those of the decoder."""
    return tuple(reversed(self.upsampling_ratios))

  @property
  def hop_samples(self) -> int:
    """Samples of one step of the transformer (960)."""
    return math.prod(self.upsampling_ratios)

  @property
  def latent_stride(self) -> int:
    """Steps of the transformer in one frame; fixed in the reference (MimiConfig.frame_size)."""
    return 2

  @property
  def samples_per_frame(self) -> int:
    """Samples of one frame of codes (1920 = 80 ms)."""
    return self.hop_samples * self.latent_stride

  @property
  def frame_rate(self) -> float:
    """Frames of codes in a second (12.5)."""
    return self.sampling_rate / self.samples_per_frame

  def frames(self, samples: int) -> int:
    """Frames of a clip: the last one is filled up."""
    return -(-samples // self.samples_per_frame)

  def problems(self):
    if not self.upsampling_ratios or min(self.upsampling_ratios) < 1:
      yield f'upsampling_ratios {list(self.upsampling_ratios)}: expected at least one, all of them positive'
    for name in ('num_filters', 'kernel_size', 'last_kernel_size', 'residual_kernel_size', 'dilation_growth_rate', 'compress'):
      if getattr(self, name) < 1:
        yield f'{name} {getattr(self, name)} must be positive'
    if self.compress > 0 and self.num_filters % self.compress:
      yield f'num_filters {self.num_filters} is not divisible by compress {self.compress}'
    if self.num_attention_heads % self.num_key_value_heads or self.head_dim % 2:
      yield (
        f'num_attention_heads {self.num_attention_heads} must be a multiple of num_key_value_heads {self.num_key_value_heads}, '
        f'and head_dim {self.head_dim} even'
      )
    if not 0 < self.num_semantic_quantizers < self.num_quantizers:
      yield f'num_semantic_quantizers {self.num_semantic_quantizers} must lie in 1..{self.num_quantizers - 1}'
    if not self.num_semantic_quantizers <= self.num_code_groups <= self.num_quantizers:
      yield f'{self.num_code_groups} codebooks of {self.num_quantizers}: expected num_semantic_quantizers to num_quantizers'
    if not 2 <= self.codebook_size <= 2**15:
      yield f'codebook_size {self.codebook_size}: expected 2..32768 (codes are kept as int16)'
    if self.codebook_dim != self.vector_quantization_hidden_dimension:
      yield f'codebook_dim {self.codebook_dim} must be vector_quantization_hidden_dimension'
    if self.audio_channels != 1:
      yield f'audio_channels {self.audio_channels}: only 1 is implemented'
    if not self.use_causal_conv or self.use_conv_shortcut or self.attention_bias:
      yield 'only use_causal_conv without use_conv_shortcut and attention_bias is implemented (none other is released)'
    if self.pad_mode != 'constant' or self.hidden_act != 'gelu':
      yield f"pad_mode '{self.pad_mode}', hidden_act '{self.hidden_act}': only 'constant' and exact 'gelu' are implemented"


def load_codec_config(folder: str | pathlib.Path, num_code_groups: int | None = None) -> CodecConfig:
  """Reads a codec's config.json (the file, or the folder that holds it). Raises ValueError naming every problem at once."""
  path = pathlib.Path(folder)
  path = path / 'config.json' if path.is_dir() else path
  if not path.is_file():
    raise ValueError(f"{path}: no such file; expected the config.json of a codec in the layout of transformers' MimiModel")
  try:
    data = json.loads(path.read_text(encoding='utf-8'))
  except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
    raise ValueError(f'{path}: not valid JSON ({error})') from error
  return parse_codec_config(data, num_code_groups, str(path))


def parse_codec_config(data: Any, num_code_groups: int | None = None, where: str = 'config') -> CodecConfig:
  """A CodecConfig from the parsed config.json.

  num_code_groups: codebooks to use; None: those that a tokenizer's config names, else the 16 of the released model (or all, if
  there are fewer). `where` names the source in errors.
  """
  if not isinstance(data, dict) or data.get('model_type') not in ('mimi', TOKENIZER):
    found = repr(data.get('model_type')) if isinstance(data, dict) else type(data).__name__
    raise ValueError(f"{where}: model_type {found[:60]}; expected a codec: 'mimi' or '{TOKENIZER}'")
  reader, prefix = Reader(), ''
  if data['model_type'] == TOKENIZER:
    outer, prefix = data, 'encoder.'
    num_code_groups = num_code_groups or outer.get('encoder_valid_num_quantizers', RELEASED_CODE_GROUPS)
    data = reader.object(outer, 'encoder_config', '') or {}
    rate = outer.get('input_sample_rate', 24000)
    if rate != data.get('sampling_rate', 24000):
      reader.errors.append(f'input_sample_rate {rate} is not sampling_rate {data.get("sampling_rate", 24000)} of encoder_config')
  data = {key: value for key, value in data.items() if value is not None}
  rate = data.pop('_frame_rate', None)
  rate = data.pop('frame_rate', rate)
  rope = {key: data.pop(key) for key in ('rope_parameters', 'rope_scaling') if isinstance(data.get(key), dict)}
  for key, value in rope.items():
    if value.get('rope_type', 'default') != 'default':
      reader.errors.append(f"{key}: rope_type '{value['rope_type']}'; only 'default' is implemented")
    data.setdefault('rope_theta', value.get('rope_theta', 1e4))
  if 'head_dim' not in data and all(type(data.get(key, 1)) is int for key in ('hidden_size', 'num_attention_heads')):
    data['head_dim'] = data.get('hidden_size', 512) // max(data.get('num_attention_heads', 8), 1)
  books = data.get('num_quantizers', 32)
  groups = num_code_groups or (min(RELEASED_CODE_GROUPS, books) if isinstance(books, int) else RELEASED_CODE_GROUPS)
  groups = reader.typed(groups, int, 'num_code_groups')
  cfg = reader.build(CodecConfig, data, '', {'num_code_groups': groups, 'prefix': prefix}) if groups is not None else None
  if cfg is not None and rate is not None and not reader.errors and rate != cfg.frame_rate:
    reader.errors.append(f'frame_rate {rate}: {cfg.sampling_rate} Hz in frames of {cfg.samples_per_frame} make {cfg.frame_rate}')
  if reader.errors or cfg is None:
    raise ValueError(f'{where}: {len(reader.errors)} problem(s)\n  ' + '\n  '.join(reader.errors))
  return cfg


def codec_config_json(cfg: CodecConfig) -> dict[str, Any]:
  """The config.json of a codec that was trained here, as MimiModel without a decoder; num_code_groups is all its codebooks."""
  assert not cfg.prefix, 'a tokenizer keeps the config that it came with'
  fields = {
    name: value for name, value in dataclasses.asdict(cfg).items() if name not in ('num_code_groups', 'prefix', 'rope_theta')
  }
  rope = {'rope_parameters': {'rope_type': 'default', 'rope_theta': cfg.rope_theta}}
  fields['upsampling_ratios'] = list(cfg.upsampling_ratios)
  return {'architectures': ['MimiModel'], 'model_type': 'mimi', 'decoder_config': None, **fields, **rope}
