"""`qwen3-omni tiny`: makes a random but structurally complete checkpoint in the published layout, for tests and first steps."""

import argparse
import importlib.resources
import json
import pathlib
import zlib
from typing import Any

from qwen3_omni_jax.examples.nano.data import corpus as nano_corpus

PRESETS = ('tiny', 'odd', 'small', 'nano')
VARIANTS = ('instruct', 'thinking', 'captioner')

# The 33 added tokens, in their published order; the ones marked with * are ordinary text to a decoder.
ADDED_TOKENS = (
  '<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> '
  '<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> *<tool_call> '
  '*</tool_call> *<|fim_prefix|> *<|fim_middle|> *<|fim_suffix|> *<|fim_pad|> *<|repo_name|> *<|file_sep|> '
  '*<tool_response> *</tool_response> *<think> *</think> <|audio_start|> <|audio_end|> <tts_pad> <tts_text_bos> '
  '<tts_text_eod> <tts_text_bos_single> <|audio_pad|>'
).split()

# Token-id fields of config.json and the tokens they stand for.
TOKEN_FIELDS = {
  'im_start_token_id': '<|im_start|>',
  'im_end_token_id': '<|im_end|>',
  'tts_pad_token_id': '<tts_pad>',
  'tts_bos_token_id': '<tts_text_bos>',
  'tts_eos_token_id': '<tts_text_eod>',
  'system_token_id': 'system',
  'user_token_id': 'user',
  'assistant_token_id': 'assistant',
}
MEDIA_TOKEN_FIELDS = {
  'audio_token_id': '<|audio_pad|>',
  'image_token_id': '<|image_pad|>',
  'video_token_id': '<|video_pad|>',
  'audio_start_token_id': '<|audio_start|>',
  'audio_end_token_id': '<|audio_end|>',
  'vision_start_token_id': '<|vision_start|>',
  'vision_end_token_id': '<|vision_end|>',
  'user_token_id': 'user',
}

CORPUS = """system user assistant system user assistant system user assistant
The quick brown fox jumps over the lazy dog. What do you see in this picture? There is a red disc and a blue square.
What do you hear in this sound? I can hear a melody with a few notes, and then a voice that says hello.
What happens in the video? The disc moves from the left to the right while the music plays.
Please describe the image, the audio and the video, and answer the question in one short sentence.
You are a helpful assistant that can listen, look, read, think and speak. How many people are there? Where are they going?
It is a sunny day in the park; children are playing with a small dog near the water, and someone is singing a song.
"""

CHAT_TEMPLATE = """{%- macro parts(content) -%}
{%- if content is string -%}{{- content -}}{%- else -%}
{%- for part in content -%}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'audio' or 'audio' in part or 'audio_url' in part -%}<|audio_start|><|audio_pad|><|audio_end|>
{%- elif part.type == 'video' or 'video' in part -%}<|vision_start|><|video_pad|><|vision_end|>
{%- elif 'text' in part -%}{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- parts(messages[0].content) + '\\n\\n' }}{%- endif %}
{{- '# Tools\\n\\nYou may call these functions:\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
{{- '\\n</tools>\\n\\nCall one by writing {"name": ..., "arguments": ...} inside <tool_call></tool_call>.<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + parts(messages[0].content) + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'system' and loop.first %}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' }}
{%- if message.reasoning_content %}{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}{%- endif %}
{{- parts(message.content) }}
{%- for call in message.tool_calls or [] %}
{%- set f = call.function if call.function else call %}
{{- '\\n<tool_call>\\n{"name": "' + f.name + '", "arguments": ' }}
{{- (f.arguments if f.arguments is string else f.arguments | tojson) + '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + parts(message.content) + '\\n</tool_response><|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' + parts(message.content) + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--out', required=True, metavar='DIR', help='new folder')
  sizes = 'tiny: under 10 M parameters; small: about 200 M; nano: 7 M, a size to train at home'
  parser.add_argument('--preset', default='tiny', choices=PRESETS, help=sizes)
  parser.add_argument('--seed', type=int, default=0, help='of the random weights')
  parser.add_argument('--variant', default='instruct', choices=VARIANTS, help='thinking and captioner have no Talker')


def run(args: argparse.Namespace) -> int:
  make_checkpoint(args.out, args.preset, args.seed, args.variant)
  print(f'{args.out}: a random {args.preset} checkpoint ({args.variant}); its words will mean nothing')
  return 0


def make_checkpoint(out: str | pathlib.Path, preset: str = 'tiny', seed: int = 0, variant: str = 'instruct') -> None:
  """Writes config, tokenizer, processor and generation files, chat template and sharded bf16 safetensors."""
  import ml_dtypes
  import numpy as np

  from ..config_json import parse_config
  from ..weights.safetensors import write_shards
  from ..weights.table import published

  if preset not in PRESETS or variant not in VARIANTS:
    raise ValueError(f'preset {preset!r}, variant {variant!r}: expected one of {PRESETS} and one of {VARIANTS}')
  out = pathlib.Path(out)
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise ValueError(f'{out}: not empty; give a new folder')
  out.mkdir(parents=True, exist_ok=True)
  corpus = CORPUS + (nano_corpus() if preset == 'nano' else '')
  vocab, merges = train_vocabulary(1024 - len(ADDED_TOKENS) if preset != 'small' else 1200, corpus)
  ids = vocab | {token.lstrip('*'): len(vocab) + i for i, token in enumerate(ADDED_TOKENS)}
  config = make_config(preset, variant, ids)
  cfg = parse_config(config, f'preset {preset}')
  _write_json(out / 'config.json', config)
  _write_tokenizer(out, vocab, merges)
  _write_json(out / 'preprocessor_config.json', PREPROCESSOR)
  _write_json(out / 'chat_template.json', {'chat_template': CHAT_TEMPLATE})
  _write_json(out / 'generation_config.json', _generation_config(variant, ids))

  bf16 = np.dtype(ml_dtypes.bfloat16)
  tensors = published(cfg)
  total = sum(2 * int(np.prod(t.shape)) for t in tensors.values())

  def value(name, shape):
    array = random_tensor(name, shape, seed)
    if name == 'thinker.lm_head.weight':
      array[len(ids) :] = 0  # ids that no token has are not said
    return array.astype(bf16)

  values = ((name, value(name, t.shape)) for name, t in tensors.items())
  write_shards(out, values, {name: (bf16, t.shape) for name, t in tensors.items()}, shard_bytes=total // 3 + 1)


def random_tensor(name: str, shape: tuple[int, ...], seed: int):
  """Values that keep activations near 1 and make every parameter matter: norms and scales vary, biases are not zero.

  Each tensor's values depend on its own name and the seed only.
  """
  import numpy as np

  rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
  noise = rng.standard_normal(shape, dtype=np.float32)
  if name.endswith('.bias') or name.endswith(('.alpha', '.beta')):
    return 0.1 * noise
  if name.endswith(('layer_scale.scale', '.gamma')):
    return 0.3 + 0.05 * noise
  if len(shape) == 1:
    return 1 + 0.2 * noise
  if 'embed' in name and 'patch_embed' not in name:
    return 0.5 * noise
  upsampling = '.block.1.conv' in name or ('code2wav.upsample.' in name and '.0.conv' in name)  # stored [in, out, taps]
  fan_in = 2 * shape[0] if upsampling else int(np.prod(shape[1:]))
  return _gain(name) * noise / np.sqrt(np.float32(fan_in))


def _gain(name: str) -> float:
  """Decisive routers and heads; a vocoder that stays far from clipping, where rounding would be all one hears."""
  if name.startswith('code2wav.decoder.'):
    return 0.4
  gains = {'mlp.gate.weight': 3.0, 'lm_head.weight': 3.0, 'codec_head.weight': 2.0}
  return next((gain for end, gain in gains.items() if name.endswith(end)), 1.0)


def make_config(preset: str, variant: str, ids: dict[str, int]) -> dict[str, Any]:
  """config.json of a preset, with the token ids of its tokenizer."""
  data = importlib.resources.files('qwen3_omni_jax.configs').joinpath('model', f'{preset}.json').read_text('utf-8')
  config = json.loads(data)
  config |= {field: ids[token] for field, token in TOKEN_FIELDS.items()}
  media = {field: ids[token] for field, token in MEDIA_TOKEN_FIELDS.items()}
  config['thinker_config'] |= media
  if variant == 'instruct' and 'talker_config' in config:
    config['talker_config'] |= {k: v for k, v in media.items() if k not in ('user_token_id', 'vision_end_token_id')}
    first = config['talker_config']['codec_pad_id'] + 153  # the released ids: pad 2148, speakers from 2301
    config['talker_config'].setdefault('speaker_id', {name: first + i for i, name in enumerate(('chelsie', 'ethan', 'aiden'))})
  else:
    config['enable_audio_output'] = False
    for part in ('talker_config', 'code2wav_config'):
      config.pop(part, None)
  return config


def train_vocabulary(size: int, corpus: str = CORPUS) -> tuple[dict[str, int], list[tuple[str, str]]]:
  """(token: id, merges) of a byte-level BPE over the corpus; the role words are single tokens, as the prompt logic needs."""
  import tokenizers

  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=size,
    initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  lines = corpus.splitlines() + [role for role in ('system', 'user', 'assistant') for _ in range(50)]
  tokenizer.train_from_iterator(lines, trainer)
  model = json.loads(tokenizer.to_str())['model']
  missing = [role for role in ('system', 'user', 'assistant') if role not in model['vocab']]
  assert not missing, f'{missing} did not become single tokens'
  return model['vocab'], [tuple(merge) for merge in model['merges']]


def _write_tokenizer(out: pathlib.Path, vocab: dict[str, int], merges: list[tuple[str, str]]) -> None:
  _write_json(out / 'vocab.json', vocab)
  (out / 'merges.txt').write_text('#version: 0.2\n' + ''.join(f'{a} {b}\n' for a, b in merges), encoding='utf-8')
  flags = {'lstrip': False, 'normalized': False, 'rstrip': False, 'single_word': False}
  added = {
    str(len(vocab) + i): {'content': token.lstrip('*'), **flags, 'special': not token.startswith('*')}
    for i, token in enumerate(ADDED_TOKENS)
  }
  named = {
    'image_token': '<|image_pad|>',
    'audio_token': '<|audio_pad|>',
    'video_token': '<|video_pad|>',
    'vision_bos_token': '<|vision_start|>',
    'vision_eos_token': '<|vision_end|>',
    'audio_bos_token': '<|audio_start|>',
    'audio_eos_token': '<|audio_end|>',
  }
  _write_json(
    out / 'tokenizer_config.json',
    {
      'add_bos_token': False,
      'add_prefix_space': False,
      'added_tokens_decoder': added,
      'bos_token': None,
      'clean_up_tokenization_spaces': False,
      'eos_token': '<|im_end|>',
      'errors': 'replace',
      'extra_special_tokens': named,
      'model_max_length': 131072,
      'pad_token': '<|endoftext|>',
      'processor_class': 'Qwen3OmniMoeProcessor',
      'split_special_tokens': False,
      'tokenizer_class': 'Qwen2Tokenizer',
      'unk_token': None,
      **named,
    },
  )


PREPROCESSOR = {
  'chunk_length': 300,
  'dither': 0.0,
  'feature_extractor_type': 'WhisperFeatureExtractor',
  'feature_size': 128,
  'hop_length': 160,
  'image_mean': [0.5, 0.5, 0.5],
  'image_processor_type': 'Qwen2VLImageProcessor',
  'image_std': [0.5, 0.5, 0.5],
  'max_pixels': 12845056,
  'merge_size': 2,
  'min_pixels': 3136,
  'n_fft': 400,
  'n_samples': 4800000,
  'nb_max_frames': 30000,
  'padding_value': 0.0,
  'patch_size': 16,
  'processor_class': 'Qwen3OmniMoeProcessor',
  'return_attention_mask': True,
  'sampling_rate': 16000,
  'temporal_patch_size': 2,
}


def _generation_config(variant: str, ids: dict[str, int]) -> dict[str, Any]:
  stop = {'eos_token_id': ids['<|im_end|>'], 'pad_token_id': ids['<|endoftext|>']}
  if variant == 'instruct':
    return stop | {
      'talker_max_new_tokens': 4096,
      'talker_repetition_penalty': 1.05,
      'talker_temperature': 0.9,
      'talker_top_k': 50,
      'talker_top_p': 1.0,
    }
  return stop | {'do_sample': True, 'temperature': 0.6, 'top_k': 20, 'top_p': 0.95}


def _write_json(path: pathlib.Path, data: Any) -> None:
  path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')
