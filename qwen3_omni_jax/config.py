"""Model configuration: frozen dataclasses, read from a checkpoint's own config.json (config_json.py).

Field names are the published ones. A default is the reference's class default (transformers 5.23), because its writer may
leave out values that equal it; a field without a default must be in the file. An unknown key is an error, unless
IGNORED lists it with the reason: a config that is only partly understood would give a wrong model without notice.
"""

import dataclasses
from typing import ClassVar

from .config_reader import BOOKKEEPING, TRAINING


@dataclasses.dataclass(frozen=True)
class AudioConfig:
  """AuT audio encoder (`thinker_config.audio_config`)."""

  num_mel_bins: int = 128
  d_model: int = 1280
  encoder_layers: int = 32
  encoder_attention_heads: int = 20
  encoder_ffn_dim: int = 5120
  downsample_hidden_size: int = 480
  output_dim: int = 3584
  n_window: int = 50
  n_window_infer: int = 800
  activation_function: str = 'gelu'

  IGNORED: ClassVar[dict[str, str]] = {
    'max_source_positions': 'length of a sinusoid table; positions restart every second, so 13 rows suffice',
    'scale_embedding': 'declared by the reference, never read',
    'conv_chunksize': 'splits the convolution batch in the reference; no effect on the result',
    'encoder_layerdrop': TRAINING,
    'num_hidden_layers': 'same as encoder_layers',
  }

  @property
  def head_dim(self) -> int:
    return self.d_model // self.encoder_attention_heads

  @property
  def chunk_frames(self) -> int:
    """Mel frames of one convolution chunk (100 = 1 s)."""
    return 2 * self.n_window

  @property
  def chunks_per_window(self) -> int:
    """Chunks that attend to one another (8 = 8 s)."""
    return self.n_window_infer // self.chunk_frames

  def problems(self):
    if self.d_model % self.encoder_attention_heads:
      yield f'd_model {self.d_model} is not divisible by encoder_attention_heads {self.encoder_attention_heads}'
    if self.d_model % 2 or self.num_mel_bins % 8:
      yield f'd_model {self.d_model} must be even and num_mel_bins {self.num_mel_bins} a multiple of 8'
    if self.n_window != 50:
      yield f'n_window {self.n_window}: only 50 is consistent with the 13 audio tokens per second of the token count'
    elif self.n_window_infer % 100 or self.n_window_infer < 100:
      yield f'n_window_infer {self.n_window_infer} must be a positive multiple of 100 mel frames'
    if self.activation_function != 'gelu':
      yield f"activation_function '{self.activation_function}': only 'gelu' (exact) is implemented"


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """Vision encoder (`thinker_config.vision_config`)."""

  depth: int = 27
  hidden_size: int = 1152
  intermediate_size: int = 4304
  num_heads: int = 16
  in_channels: int = 3
  patch_size: int = 16
  spatial_merge_size: int = 2
  temporal_patch_size: int = 2
  out_hidden_size: int = 3584
  num_position_embeddings: int = 2304
  deepstack_visual_indexes: tuple[int, ...] = (8, 16, 24)
  rope_theta: float = 1e4
  hidden_act: str = 'gelu_pytorch_tanh'

  IGNORED: ClassVar[dict[str, str]] = {
    'image_size': 'images keep their native size; the position grid comes from num_position_embeddings',
    'tokens_per_second': 'time positions use thinker_config.position_id_per_seconds',
    'apply_vit_abs_pos_embed': 'the position embedding is always applied',
    'in_chans': 'same as in_channels',
  }

  @property
  def head_dim(self) -> int:
    return self.hidden_size // self.num_heads

  @property
  def grid_side(self) -> int:
    """Side of the learned position grid (48)."""
    return round(self.num_position_embeddings**0.5)

  @property
  def patch_dim(self) -> int:
    """Values in one flattened patch row: channels × time × height × width (1536)."""
    return self.in_channels * self.temporal_patch_size * self.patch_size**2

  def problems(self):
    if self.hidden_size % self.num_heads or self.head_dim % 4:
      yield f'hidden_size {self.hidden_size} / num_heads {self.num_heads} must be a multiple of 4 (2-D RoPE)'
    if self.grid_side**2 != self.num_position_embeddings:
      yield f'num_position_embeddings {self.num_position_embeddings} is not a square'
    if any(not 0 <= i < self.depth for i in self.deepstack_visual_indexes):
      yield f'deepstack_visual_indexes {list(self.deepstack_visual_indexes)} must lie in 0..{self.depth - 1}'
    if list(self.deepstack_visual_indexes) != sorted(set(self.deepstack_visual_indexes)):
      yield f'deepstack_visual_indexes {list(self.deepstack_visual_indexes)} must increase'
    if self.hidden_act != 'gelu_pytorch_tanh':
      yield f"hidden_act '{self.hidden_act}': only 'gelu_pytorch_tanh' is implemented"


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """A decoder-only transformer: the Thinker's, the Talker's or the code predictor's.

  num_experts is 0 for the dense code predictor; shared_expert_intermediate_size is 0 where there is no shared expert.
  """

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_attention_heads: int
  num_key_value_heads: int
  head_dim: int
  rms_norm_eps: float = 1e-6
  hidden_act: str = 'silu'
  max_position_embeddings: int = 32768
  rope_theta: float = 1e6
  mrope_section: tuple[int, ...] = ()
  num_experts: int = 0
  num_experts_per_tok: int = 0
  moe_intermediate_size: int = 0
  shared_expert_intermediate_size: int = 0
  norm_topk_prob: bool = True
  router_aux_loss_coef: float = 0.001
  attention_bias: bool = False
  tie_word_embeddings: bool = False
  use_sliding_window: bool = False
  decoder_sparse_step: int = 1
  mlp_only_layers: tuple[int, ...] = ()

  IGNORED: ClassVar[dict[str, str]] = {
    'sliding_window': 'use_sliding_window is false in every released config',
    'max_window_layers': 'use_sliding_window is false in every released config',
    'layer_types': 'every layer is full attention',
    'use_qk_norm': 'q and k are always normalised',
    'num_code_groups': 'read from talker_config.code_predictor_config by the composite config',
  }

  def problems(self):
    if self.num_attention_heads % self.num_key_value_heads:
      yield (f'num_attention_heads {self.num_attention_heads} is not divisible by num_key_value_heads {self.num_key_value_heads}')
    if self.head_dim % 2:
      yield f'head_dim {self.head_dim} must be even'
    if self.mrope_section and 2 * sum(self.mrope_section) != self.head_dim:
      yield f'mrope_section {list(self.mrope_section)} must sum to head_dim/2 = {self.head_dim // 2}'
    if self.num_experts and not 0 < self.num_experts_per_tok <= self.num_experts:
      yield f'num_experts_per_tok {self.num_experts_per_tok} must be in 1..num_experts {self.num_experts}'
    if self.hidden_act != 'silu':
      yield f"hidden_act '{self.hidden_act}': only 'silu' is implemented"
    for name in ('attention_bias', 'tie_word_embeddings', 'use_sliding_window'):
      if getattr(self, name):
        yield f'{name} is true: not implemented, and false in every released config'
    if self.num_experts and (self.mlp_only_layers or self.decoder_sparse_step != 1):
      yield 'mlp_only_layers / decoder_sparse_step: dense layers among MoE layers are not implemented (none is released)'


@dataclasses.dataclass(frozen=True)
class ThinkerConfig:
  """`thinker_config`: the language model with its two encoders."""

  audio: AudioConfig
  vision: VisionConfig
  text: TextConfig
  vision_start_token_id: int
  vision_end_token_id: int
  audio_end_token_id: int
  audio_token_id: int = 151646
  image_token_id: int = 151655
  video_token_id: int = 151656
  audio_start_token_id: int = 151647
  user_token_id: int = 872
  position_id_per_seconds: float = 25

  IGNORED: ClassVar[dict[str, str]] = {
    'seconds_per_chunk': 'the reference never reads it: audio in video is merged token by token',
    'tie_word_embeddings': 'the text config decides',
  }

  def problems(self):
    for part, width in (('audio', self.audio.output_dim), ('vision', self.vision.out_hidden_size)):
      if width != self.text.hidden_size:
        yield f'the {part} encoder gives {width} features but text hidden_size is {self.text.hidden_size}'
    if len(self.vision.deepstack_visual_indexes) > self.text.num_hidden_layers:
      yield 'more deepstack levels than text layers'


@dataclasses.dataclass(frozen=True)
class TalkerConfig:
  """`talker_config`: speech tokens from the Thinker's states, with its code predictor."""

  text: TextConfig
  code_predictor: TextConfig
  num_code_groups: int = 32
  thinker_hidden_size: int = 2048
  accept_hidden_layer: int = 18
  codec_pad_id: int = 4196
  codec_bos_id: int = 4197
  codec_eos_token_id: int = 4198
  codec_nothink_id: int = 4203
  codec_think_bos_id: int = 4204
  codec_think_eos_id: int = 4205
  speaker_id: tuple[tuple[str, int], ...] = ()

  IGNORED: ClassVar[dict[str, str]] = {
    **dict.fromkeys(
      (
        'audio_token_id',
        'image_token_id',
        'video_token_id',
        'audio_start_token_id',
        'audio_end_token_id',
        'vision_start_token_id',
        'vision_end_token_id',
        'position_id_per_seconds',
        'spatial_merge_size',
        'user_token_id',
      ),
      'a copy of the thinker_config value; positions come from the processor',
    ),
    'seconds_per_chunk': 'the reference never reads it',
    'output_router_logits': BOOKKEEPING,
    'tie_word_embeddings': 'embedding and head are separate tensors',
  }

  def problems(self):
    for name in (
      'codec_pad_id',
      'codec_bos_id',
      'codec_eos_token_id',
      'codec_nothink_id',
      'codec_think_bos_id',
      'codec_think_eos_id',
    ):
      if not 0 <= getattr(self, name) < self.text.vocab_size:
        yield f'{name} {getattr(self, name)} is outside the Talker vocabulary of {self.text.vocab_size}'
    for name, token in self.speaker_id:
      if not 0 <= token < self.text.vocab_size:
        yield f"speaker '{name}' has id {token}, outside the Talker vocabulary of {self.text.vocab_size}"
    if self.num_code_groups < 2:
      yield f'num_code_groups {self.num_code_groups} must be at least 2'


@dataclasses.dataclass(frozen=True)
class Code2WavConfig:
  """`code2wav_config`: codec frames to 24 kHz samples."""

  codebook_size: int = 2048
  num_quantizers: int = 16
  hidden_size: int = 1024
  intermediate_size: int = 3072
  num_hidden_layers: int = 8
  num_attention_heads: int = 16
  num_key_value_heads: int = 16
  sliding_window: int = 72
  rms_norm_eps: float = 1e-5
  rope_theta: float = 1e4
  decoder_dim: int = 1536
  upsample_rates: tuple[int, ...] = (8, 5, 4, 3)
  upsampling_ratios: tuple[int, ...] = (2, 2)
  hidden_act: str = 'silu'
  attention_bias: bool = False

  IGNORED: ClassVar[dict[str, str]] = {
    'max_position_embeddings': 'positions are computed, not looked up',
    'layer_scale_initial_scale': TRAINING,
    **dict.fromkeys(
      ('codebook_dim', 'vector_quantization_hidden_dimension', 'semantic_codebook_size', 'num_semantic_quantizers'),
      'the reference never reads it',
    ),
    'head_dim': 'hidden_size / num_attention_heads in the reference',
  }

  @property
  def head_dim(self) -> int:
    return self.hidden_size // self.num_attention_heads

  @property
  def samples_per_frame(self) -> int:
    """Output samples one codec frame adds (1920 = 80 ms at 24 kHz)."""
    total = 1
    for rate in (*self.upsample_rates, *self.upsampling_ratios):
      total *= rate
    return total

  def problems(self):
    if self.hidden_size % self.num_attention_heads:
      yield f'hidden_size {self.hidden_size} is not divisible by num_attention_heads {self.num_attention_heads}'
    if self.decoder_dim % 2 ** len(self.upsample_rates):
      yield f'decoder_dim {self.decoder_dim} cannot be halved {len(self.upsample_rates)} times'
    if self.hidden_act != 'silu' or self.attention_bias:
      yield "only hidden_act 'silu' without attention_bias is implemented"


@dataclasses.dataclass(frozen=True)
class OmniConfig:
  """A whole checkpoint. talker and code2wav are None for the Thinking and Captioner variants."""

  thinker: ThinkerConfig
  talker: TalkerConfig | None = None
  code2wav: Code2WavConfig | None = None
  im_start_token_id: int = 151644
  im_end_token_id: int = 151645
  tts_pad_token_id: int = 151671
  tts_bos_token_id: int = 151672
  tts_eos_token_id: int = 151673
  system_token_id: int = 8948
  user_token_id: int = 872
  assistant_token_id: int = 77091

  IGNORED: ClassVar[dict[str, str]] = {'enable_audio_output': 'decided by the presence of talker_config'}

  def problems(self):
    if (self.talker is None) != (self.code2wav is None):
      yield 'talker_config and code2wav_config must be given together'
    if self.talker is not None and self.code2wav is not None:
      if self.talker.num_code_groups != self.code2wav.num_quantizers:
        yield f'num_code_groups {self.talker.num_code_groups} != num_quantizers {self.code2wav.num_quantizers}'
      if self.talker.thinker_hidden_size != self.thinker.text.hidden_size:
        yield (
          f'talker thinker_hidden_size {self.talker.thinker_hidden_size} != Thinker hidden_size {self.thinker.text.hidden_size}'
        )
      if not 0 < self.talker.accept_hidden_layer <= self.thinker.text.num_hidden_layers:
        yield f'accept_hidden_layer {self.talker.accept_hidden_layer} is not a Thinker layer'
    vocab = self.thinker.text.vocab_size
    for owner, names in (
      (self, [f.name for f in dataclasses.fields(self)]),
      (self.thinker, [f.name for f in dataclasses.fields(self.thinker)]),
    ):
      for name in names:
        if name.endswith('_token_id') and not 0 <= getattr(owner, name) < vocab:
          yield f'{name} {getattr(owner, name)} is outside the vocabulary of {vocab}'
