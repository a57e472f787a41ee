"""Floating-point operations of a model by part, from its config: the numerator of MFU and of all estimates.

Model FLOPs: 2 for each multiply-add of a matrix product or convolution that the result depends on. Attention counts the pairs
that are not masked, a mixture of experts the experts that a token is sent to. Padding, masked scores and recomputation are not
counted, nor are element-wise operations (1 to 2 % at the released size).
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping

from .config import AudioConfig, Code2WavConfig, OmniConfig, TalkerConfig, TextConfig, VisionConfig

PARTS = ('audio', 'vision', 'thinker', 'talker', 'code_predictor', 'code2wav')


@dataclasses.dataclass(frozen=True)
class Work:
  """What one step is to compute, summed over its rows. Work may be added up.

  pairs: (query, key) pairs of tokens in which the query sees the key, in one layer; logits: positions whose next token is scored.
  """

  tokens: int = 0  # Thinker
  pairs: int = 0
  logits: int = 0
  audio_chunks: int = 0  # AuT: 1 s each, convolved alone
  audio_tokens: int = 0
  audio_pairs: int = 0  # within windows of 8 s
  patches: int = 0  # vision encoder
  patch_pairs: int = 0  # within frames
  talker_tokens: int = 0
  talker_pairs: int = 0
  talker_logits: int = 0
  talker_rows: int = 0  # brought from the Thinker's width to the Talker's
  code_frames: int = 0  # of the code predictor: all codes of a frame but the first
  wave_frames: int = 0  # of Code2Wav
  wave_pairs: int = 0

  def __add__(self, other: 'Work') -> 'Work':
    return Work(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

  @classmethod
  def of_lengths(
    cls,
    cfg: OmniConfig,
    lengths: Iterable[int] = (),
    *,
    logits: int | None = None,
    audio: Iterable[int] = (),
    frames: Iterable[int] = (),
    talker: Iterable[int] = (),
    code_frames: int = 0,
    wave: Iterable[int] = (),
  ) -> 'Work':
    """Of whole sequences. lengths: tokens of each document (of each of those packed in a row). logits: default all tokens.

    audio: mel frames of each clip. frames: patches of each image or pair of video frames. talker: tokens of each Talker
    sequence. code_frames: codec frames whose other codes are predicted. wave: codec frames of each utterance to be heard.
    """
    lengths, talker, frames, wave = list(lengths), list(talker), list(frames), list(wave)
    windows = [window for clip in audio for window in _windows(cfg.thinker.audio, clip)]
    of_window = [_audio_tokens(cfg.thinker.audio, n) for n in windows]
    span = cfg.code2wav.sliding_window if cfg.code2wav else 0
    return cls(
      tokens=sum(lengths),
      pairs=sum(map(causal_pairs, lengths)),
      logits=sum(lengths) if logits is None else logits,
      audio_chunks=sum(-(-n // cfg.thinker.audio.chunk_frames) for n in windows),
      audio_tokens=sum(of_window),
      audio_pairs=sum(n * n for n in of_window),
      patches=sum(frames),
      patch_pairs=sum(n * n for n in frames),
      talker_tokens=sum(talker),
      talker_pairs=sum(map(causal_pairs, talker)),
      talker_logits=sum(talker),
      talker_rows=sum(talker),
      code_frames=code_frames,
      wave_frames=sum(wave),
      wave_pairs=sum(causal_pairs(n, span) for n in wave),
    )

  @classmethod
  def of_step(cls, rows: int, context: int) -> 'Work':
    """Of one Thinker decode step: each row's next token sees `context` tokens, itself among them."""
    return cls(tokens=rows, pairs=rows * context, logits=rows)

  @classmethod
  def of_frame(cls, rows: int, context: int) -> 'Work':
    """Of one spoken frame: a Talker step, the other codes, one text token brought to the Talker's width."""
    return cls(talker_tokens=rows, talker_pairs=rows * context, talker_logits=rows, talker_rows=rows, code_frames=rows)


def causal_pairs(length: int, window: int | None = None) -> int:
  """Pairs in which each token sees itself and those before it, at most `window` tokens."""
  if window is None or length <= window:
    return length * (length + 1) // 2
  return window * (window + 1) // 2 + (length - window) * window


def _windows(cfg: AudioConfig, frames: int) -> list[int]:
  whole, rest = divmod(frames, cfg.n_window_infer)
  return [cfg.n_window_infer] * whole + [rest] * (rest > 0)


def _audio_tokens(cfg: AudioConfig, frames: int) -> int:
  """13 a second; the rest of a chunk is shrunk eightfold."""
  whole, rest = divmod(frames, cfg.chunk_frames)
  return whole * -(-cfg.chunk_frames // 8) + -(-rest // 8)


def forward_flops(cfg: OmniConfig, work: Work) -> dict[str, float]:
  """FLOPs of one pass by 'part.kind', as 'thinker.experts'; what there is no work for is left out."""
  counted = {
    'audio': _audio(cfg.thinker.audio, work),
    'vision': _vision(cfg.thinker.vision, work),
    'thinker': _decoder(cfg.thinker.text, work.tokens, work.pairs)
    | {'head': 2 * work.logits * cfg.thinker.text.hidden_size * cfg.thinker.text.vocab_size},
  }
  if cfg.talker is not None:
    counted |= {'talker': _talker(cfg.talker, work), 'code_predictor': _code_predictor(cfg.talker, work)}
  if cfg.code2wav is not None:
    counted['code2wav'] = _code2wav(cfg.code2wav, work)
  return {f'{part}.{kind}': float(n) for part, kinds in counted.items() for kind, n in kinds.items() if n}


def train_flops(cfg: OmniConfig, work: Work, trained: Collection[str] = PARTS, passed: Collection[str] = ()) -> dict[str, float]:
  """FLOPs of a training step, by 'part.kind'. trained: what has weights that are; passed: frozen, but gradients flow through it
  to what is trained. The rest is only computed forward. Both name parts, or kinds of them as in 'audio.projection'.

  Backward is as much again for the activations' gradients and as much again for the weights'; attention scores have no weights,
  but two operands, so they cost three times the forward pass wherever gradients flow.
  """
  unknown = sorted({name for name in (*trained, *passed) if name.partition('.')[0] not in PARTS})
  if unknown:
    raise ValueError(f'parts {", ".join(unknown)}: expected some of {", ".join(PARTS)}')

  def times(name: str) -> int:
    part, _, kind = name.partition('.')
    flows = part in passed or name in passed
    if part in trained or name in trained or (flows and kind == 'scores'):
      return 3
    return 2 if flows else 1

  return {name: n * times(name) for name, n in forward_flops(cfg, work).items()}


def by_part(flops: Mapping[str, float]) -> dict[str, float]:
  """Sums over the kinds of each part."""
  sums: dict[str, float] = {}
  for name, n in flops.items():
    part = name.partition('.')[0]
    sums[part] = sums.get(part, 0.0) + n
  return sums


def _decoder(cfg: TextConfig, tokens: int, pairs: int) -> dict[str, int]:
  D, N, K, H = cfg.hidden_size, cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim
  each = {'projections': 2 * tokens * D * H * (2 * N + 2 * K), 'scores': 4 * pairs * N * H}  # q k^T and weights v
  if cfg.num_experts:
    each['router'] = 2 * tokens * D * cfg.num_experts
    each['experts'] = 6 * tokens * D * cfg.moe_intermediate_size * cfg.num_experts_per_tok
    if cfg.shared_expert_intermediate_size:
      each['shared_expert'] = 2 * tokens * D * (3 * cfg.shared_expert_intermediate_size + 1)
  else:
    each['mlp'] = 6 * tokens * D * cfg.intermediate_size
  return {kind: cfg.num_hidden_layers * n for kind, n in each.items()}


def _audio(cfg: AudioConfig, work: Work) -> dict[str, int]:
  D, C, T, M = cfg.d_model, cfg.downsample_hidden_size, cfg.chunk_frames, cfg.num_mel_bins
  convolutions, inputs = 0, 1
  for _ in range(3):  # 3 x 3, stride 2, one zero around; the zeros are not counted
    convolutions += 2 * inputs * C * _border_taps(T) * _border_taps(M)
    T, M, inputs = -(-T // 2), -(-M // 2), C
  return {
    'convolutions': work.audio_chunks * (convolutions + 2 * T * M * C * D),
    'layers': cfg.encoder_layers * 2 * work.audio_tokens * (4 * D * D + 2 * D * cfg.encoder_ffn_dim),
    'scores': cfg.encoder_layers * 4 * work.audio_pairs * D,
    'projection': 2 * work.audio_tokens * D * (D + cfg.output_dim),
  }


def _border_taps(size: int) -> int:
  """Products along one axis: three for each output, but for those with the zero before the first and after the last input."""
  return 3 * -(-size // 2) - 1 - size % 2


def _vision(cfg: VisionConfig, work: Work) -> dict[str, int]:
  D, group = cfg.hidden_size, cfg.spatial_merge_size**2
  merged = D * group
  merger = 2 * (work.patches // group) * merged * (merged + cfg.out_hidden_size)
  return {
    'patches': 2 * work.patches * cfg.patch_dim * D,
    'layers': cfg.depth * 2 * work.patches * (4 * D * D + 2 * D * cfg.intermediate_size),
    'scores': cfg.depth * 4 * work.patch_pairs * D,
    'mergers': (1 + len(cfg.deepstack_visual_indexes)) * merger,
  }


def _talker(cfg: TalkerConfig, work: Work) -> dict[str, int]:
  D, I, F = cfg.text.hidden_size, cfg.thinker_hidden_size, cfg.text.intermediate_size
  return _decoder(cfg.text, work.talker_tokens, work.talker_pairs) | {
    'inputs': 2 * work.talker_rows * F * (I + D),
    'head': 2 * work.talker_logits * D * cfg.text.vocab_size,
  }


def _code_predictor(cfg: TalkerConfig, work: Work) -> dict[str, int]:
  """A frame is a sequence of Q positions, of which all but the first are scored; the same with a cache or in one pass."""
  Q, text = cfg.num_code_groups, cfg.code_predictor
  layers = _decoder(text, work.code_frames * Q, work.code_frames * causal_pairs(Q))
  return layers | {'head': 2 * work.code_frames * (Q - 1) * text.hidden_size * text.vocab_size}


def _code2wav(cfg: Code2WavConfig, work: Work) -> dict[str, int]:
  D, H, frames = cfg.hidden_size, cfg.head_dim, work.wave_frames
  N, K, F = cfg.num_attention_heads, cfg.num_key_value_heads, cfg.intermediate_size
  rate, convolutions = 1, 0  # positions per frame
  for ratio in cfg.upsampling_ratios:
    rate *= ratio
    convolutions += rate * 2 * (D * D + 7 * D + 8 * D * D)  # up, depth-wise, 4 D wide block
  width = cfg.decoder_dim
  convolutions += rate * 2 * 7 * D * width
  for ratio in cfg.upsample_rates:
    rate, width = rate * ratio, width // 2
    convolutions += rate * 2 * (2 * 2 * width * width + 3 * (7 + 1) * width * width)  # overlapping up, three residual units
  return {
    'layers': cfg.num_hidden_layers * 2 * frames * (D * H * (2 * N + 2 * K) + 3 * D * F),
    'scores': cfg.num_hidden_layers * 4 * work.wave_pairs * N * H,
    'convolutions': frames * (convolutions + rate * 2 * 7 * width),
  }
