"""Building frozen dataclasses from JSON objects: every field typed, every unknown key an error, all problems collected."""

import dataclasses
import difflib
import json
from typing import Any

BOOKKEEPING = 'bookkeeping of the library that wrote the file'
TRAINING = 'used only to initialise or regularise training in the reference'
_IGNORED_ANYWHERE = {
  **dict.fromkeys(
    (
      'architectures',
      'model_type',
      'transformers_version',
      '_name_or_path',
      'torch_dtype',
      'dtype',
      'use_cache',
      '_attn_implementation',
      '_attn_implementation_autoset',
      '_experts_implementation',
      'return_dict',
      'output_attentions',
      'output_hidden_states',
      'output_router_logits',
      'chunk_size_feed_forward',
      'is_encoder_decoder',
      'id2label',
      'label2id',
      'problem_type',
      'auto_map',
      'num_hidden_layers_alias',
      'tokenizer_class',
      'is_decoder',
      'add_cross_attention',
      'cross_attention_hidden_size',
      'tie_encoder_decoder',
      'pruned_heads',
    ),
    BOOKKEEPING,
  ),
  **dict.fromkeys(
    (
      'initializer_range',
      'attention_dropout',
      'dropout',
      'activation_dropout',
      'classifier_dropout',
      'initializer_factor',
      'router_jitter_noise',
    ),
    TRAINING,
  ),
  **dict.fromkeys(
    (
      'pad_token_id',
      'bos_token_id',
      'eos_token_id',
      'sep_token_id',
      'decoder_start_token_id',
      'bad_words_ids',
      'max_length',
      'min_length',
      'do_sample',
      'temperature',
      'top_k',
      'top_p',
      'num_beams',
      'typical_p',
      'repetition_penalty',
      'length_penalty',
      'no_repeat_ngram_size',
      'diversity_penalty',
      'early_stopping',
      'num_beam_groups',
      'encoder_no_repeat_ngram_size',
      'num_return_sequences',
      'output_scores',
      'return_dict_in_generate',
      'forced_bos_token_id',
      'forced_eos_token_id',
      'remove_invalid_values',
      'exponential_decay_length_penalty',
      'suppress_tokens',
      'begin_suppress_tokens',
      'prefix',
      'finetuning_task',
      'task_specific_params',
      'tf_legacy_loss',
      'torchscript',
      'use_bfloat16',
    ),
    'generation settings live in generation_config.json and the tokenizer files',
  ),
  **dict.fromkeys(('quantization_config', 'compression_config'), 'the weights themselves tell'),
}


class Reader:
  """Builds dataclasses from JSON objects and collects every problem."""

  def __init__(self):
    self.errors: list[str] = []

  def object(self, data: Any, key: str, where: str) -> dict | None:
    value = data.get(key)
    if not isinstance(value, dict):
      found = 'nothing' if value is None else type(value).__name__
      self.errors.append(f'{where}{key}: expected an object, found {found}')
      return None
    return value

  def build(self, cls, data: dict, where: str, parts: dict[str, Any], renamed: tuple[str, ...] = ()):
    """An instance of cls. parts: fields already built; renamed: keys of `data` that became parts."""
    fields = {f.name: f for f in dataclasses.fields(cls) if f.name not in parts}
    known = set(fields) | set(renamed) | set(cls.IGNORED) | set(_IGNORED_ANYWHERE)
    for key in data.keys() - known:
      close = difflib.get_close_matches(key, fields, 1)
      hint = f"; did you mean '{close[0]}'?" if close else ''
      self.errors.append(f'{where}{key}: unknown field{hint}')
    values = dict(parts)
    whole = all(parts[k] is not None for k in _REQUIRED_PARTS & parts.keys())
    for name, field in fields.items():
      if name in data:
        values[name] = self.typed(data[name], field.type, where + name)
        whole &= values[name] is not None
      elif field.default is dataclasses.MISSING:
        self.errors.append(f'{where}{name}: missing, and it has no default')
        whole = False
    if not whole:
      return None
    built = cls(**values)
    self.errors += [where + problem for problem in built.problems()]
    return built

  def typed(self, value: Any, kind: Any, where: str) -> Any:
    """value checked against the annotation; None (and an error) if it does not fit."""
    if kind in (bool, str):
      fits = isinstance(value, kind)
    elif kind is int:
      fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
    elif kind is float:
      fits = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float('inf')
      value = float(value) if fits else value
    else:  # tuple[int, ...]
      fits = isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
      value = tuple(value) if fits else value
    if not fits:
      name = kind.__name__ if isinstance(kind, type) and kind in (bool, str, int, float) else 'list of int'
      self.errors.append(f'{where}: expected {name}, found {json.dumps(value)[:80]}')
      return None
    if kind is int and value == 0 and where.rsplit('.', 1)[-1] in _POSITIVE:
      self.errors.append(f'{where}: must be positive, found 0')
      return None
    return value


_REQUIRED_PARTS = frozenset(('audio', 'vision', 'text', 'code_predictor', 'thinker'))
_POSITIVE = frozenset(
  (
    'num_mel_bins',
    'd_model',
    'encoder_layers',
    'encoder_attention_heads',
    'encoder_ffn_dim',
    'downsample_hidden_size',
    'output_dim',
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
    'vocab_size',
    'num_hidden_layers',
    'num_attention_heads',
    'num_key_value_heads',
    'head_dim',
    'codebook_size',
    'num_quantizers',
    'sliding_window',
    'decoder_dim',
    'num_code_groups',
    'moe_intermediate_size',
  )
)
