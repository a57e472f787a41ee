"""Generation settings, and where unset values come from.

The rule, for every setting: the call's own argument; else the checkpoint's generation_config.json; else the default below.
In that file temperature, top_k and top_p count only if do_sample is true, as in transformers. (transformers' Qwen3-Omni
itself never reads the file and decodes the Thinker greedily; a checkpoint whose file has no do_sample does the same here.)
"""

import dataclasses
import json
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

from .sampling import Sampling

# Keys that other libraries keep in generation_config.json and that do not change what is generated here.
_IGNORED = frozenset(
  (
    '_from_model_config',
    'transformers_version',
    'pad_token_id',
    'bos_token_id',
    'use_cache',
    'return_dict_in_generate',
    'output_attentions',
    'output_hidden_states',
    'output_scores',
    'max_length',
    'trust_remote_code',
  )
)


@dataclasses.dataclass(frozen=True)
class GenerationDefaults:
  """The checkpoint's own defaults for the Thinker."""

  sampling: Sampling = dataclasses.field(default_factory=Sampling)
  max_new_tokens: int = 1024
  stop_token_ids: tuple[int, ...] = ()

  @classmethod
  def from_folder(cls, folder: str | pathlib.Path, im_end: int) -> 'GenerationDefaults':
    """Reads generation_config.json if the folder has one. im_end: the stop token where the file names none."""
    path = pathlib.Path(folder) / 'generation_config.json'
    if not path.is_file():
      return cls(stop_token_ids=(im_end,))
    try:
      data = json.loads(path.read_text(encoding='utf-8'))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as e:
      raise ValueError(f'{path}: not valid JSON ({e})') from e
    if not isinstance(data, dict):
      raise ValueError(f'{path}: expected a JSON object, found {type(data).__name__}')
    return cls._from_dict({k: v for k, v in data.items() if v is not None}, str(path), im_end)

  def stop_ids(self, given: Sequence[int] | None) -> tuple[int, ...]:
    """The stop tokens of a call: those given, else the checkpoint's."""
    return self.stop_token_ids if given is None else tuple(given)

  @classmethod
  def _from_dict(cls, data: dict, where: str, im_end: int) -> 'GenerationDefaults':
    errors = []

    def take(key, kinds, default):
      value = data.pop(key, default)
      if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        errors.append(f'{key}: found {json.dumps(value)[:60]}')
        return default
      return value

    drawn = take('do_sample', bool, False)
    settings = {
      'temperature': float(take('temperature', (int, float), 1.0)),
      'top_k': take('top_k', int, 50),  # transformers' default once do_sample is on
      'top_p': float(take('top_p', (int, float), 1.0)),
      'repetition_penalty': float(take('repetition_penalty', (int, float), 1.0)),
    }
    if not drawn:
      settings |= {'temperature': 0.0, 'top_k': 0, 'top_p': 1.0}
    stop = take('eos_token_id', (int, list), im_end)
    max_new_tokens = take('max_new_tokens', int, 1024)
    stop = tuple(stop) if isinstance(stop, list) else (stop,)
    if not all(isinstance(s, int) and s >= 0 for s in stop) or max_new_tokens < 1:
      errors.append(f'eos_token_id {list(stop)} / max_new_tokens {max_new_tokens}')
    unknown = sorted(k for k in data if k not in _IGNORED and not k.startswith('talker_'))
    if unknown:
      warnings.warn(f'{where}: not used here: {", ".join(unknown)}', stacklevel=4)
    try:
      sampling = Sampling(**settings)
    except ValueError as e:
      errors.append(str(e))
    if errors:
      raise ValueError(f'{where}: ' + '; '.join(errors))
    return cls(sampling, max_new_tokens, stop)


def merge_sampling(default: Sampling, **given) -> Sampling:
  """`default` with every argument that is not None replaced. Raises ValueError for impossible values."""
  return dataclasses.replace(default, **{k: v for k, v in given.items() if v is not None})


def per_row(value: Any, rows: int, name: str) -> list[Any]:
  """One value per row from a single value or a sequence of them."""
  if isinstance(value, (int, str)):
    return [value] * rows
  if len(value) != rows:
    raise ValueError(f'{name}: {len(value)} values for {rows} conversations; give one, or one for each')
  return list(value)
