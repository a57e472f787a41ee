"""LoRA adapters as PEFT writes them, merged into published tensors: W + scale * B @ A, in float32."""

import json
import math
import pathlib
import re
from typing import Any

import numpy as np

from ..config import OmniConfig
from .names import report
from .safetensors import Header, Shard
from .spelling import published_name
from .table import published

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'
_REFUSED = {  # options under which W + scale * B @ A is not what PEFT computes: the values that leave it so
  'peft_type': ('LORA',),
  'use_dora': (False, None),
  'bias': ('none', None),
  'lora_bias': (False, None),
  'fan_in_fan_out': (False, None),
  'target_parameters': (None, []),
  'trainable_token_indices': (None, {}, []),
  'alora_invocation_tokens': (None, []),
  'use_qalora': (False, None),
  'init_lora_weights': (True, False, None, 'gaussian', 'orthogonal', 'eva'),  # others change the weights it is added to
}


class Adapter:
  """An adapter folder, checked against the tensors it is for. Call it with a tensor's name and value.

  Raises ValueError naming every option and tensor that cannot be merged: nothing is left out in silence.
  """

  def __init__(self, folder: pathlib.Path, cfg: OmniConfig):
    options = _read_options(folder)
    self._shard = Shard(folder / WEIGHTS)
    wanted = {name: tensor.shape for name, tensor in published(cfg).items()}
    self._pairs: dict[str, tuple[str, str, float]] = {}  # published name: A, B, scale
    self._replaced: dict[str, str] = {}
    halves: dict[str, dict[str, str]] = {}
    unknown, misshapen = [], []
    for name in self._shard.names():
      module = name.removeprefix('base_model.model.')
      lora = re.fullmatch(r'(.*)\.lora_([AB])(\.default)?\.weight', module)
      module = f'{lora[1]}.weight' if lora else module.replace('.modules_to_save.default.', '.')
      known = next((n for alone in (False, True) if (n := published_name(module, alone)) in wanted), None)
      if known is None:
        unknown.append(name)
      elif lora:
        halves.setdefault(known, {})[lora[2]] = name
        self._pairs[known] = ('', '', _scale(options, lora[1]))
      elif self._shard.shape(name) == wanted[known]:
        self._replaced[known] = name
      else:
        misshapen.append(f'{name}: found {list(self._shard.shape(name))}, expected {list(wanted[known])}')
    for known, pair in halves.items():
      if len(pair) == 2:
        self._pairs[known] = (pair['A'], pair['B'], self._pairs[known][2])
        misshapen += _misshapen(self._shard, pair['A'], pair['B'], wanted[known])
    report(
      f'{folder}: cannot be merged into this model',
      unknown=unknown,
      without_its_other_half=[name for pair in halves.values() if len(pair) == 1 for name in pair.values()],
      of_another_shape=misshapen,
    )
    if not self._shard.names():
      raise ValueError(f'{folder / WEIGHTS}: holds no tensors; expected lora_A and lora_B of some layers')

  def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
    """The tensor with the adapter in it, in its own dtype."""
    if name in self._replaced:
      value = self._shard.read(self._replaced[name]).astype(value.dtype)
    if name not in self._pairs:
      return value
    a, b, scale = self._pairs[name]
    change = self._shard.read(b).astype(np.float32) @ self._shard.read(a).astype(np.float32)
    change *= np.float32(scale)
    change += value.astype(np.float32)
    return change.astype(value.dtype)


def _read_options(folder: pathlib.Path) -> dict[str, Any]:
  file = folder / CONFIG
  if not file.is_file():
    raise ValueError(f'{file}: no such file; expected an adapter as PEFT saves it ({CONFIG} and {WEIGHTS})')
  try:
    options = json.loads(file.read_text(encoding='utf-8'))
    if not isinstance(options, dict):
      raise ValueError(f'expected an object, found {type(options).__name__}')
    r, alpha = options['r'], options['lora_alpha']
    patterns = [options.get(name) or {} for name in ('rank_pattern', 'alpha_pattern')]
    if not all(type(n) in (int, float) and n > 0 for n in (r, alpha, *patterns[0].values(), *patterns[1].values())):
      raise ValueError('r, lora_alpha and their patterns must be positive numbers')
  except (ValueError, KeyError, AttributeError, RecursionError) as error:
    raise ValueError(f'{file}: not the options of a LoRA adapter ({type(error).__name__}: {error})') from error
  wrong = [f'{name}: {options[name]!r}' for name, usable in _REFUSED.items() if name in options and options[name] not in usable]
  report(f'{file}: only plain LoRA can be merged', unsupported_options=wrong)
  return options


def _scale(options: dict[str, Any], module: str) -> float:
  """What PEFT multiplies B @ A with, for the module of that name."""

  def of(pattern: str, default: str) -> float:
    for key, value in (options.get(pattern) or {}).items():
      if re.match(rf'(.*\.)?({key})$', module):
        return value
    return options[default]

  rank = of('rank_pattern', 'r')
  return of('alpha_pattern', 'lora_alpha') / (math.sqrt(rank) if options.get('use_rslora') else rank)


def _misshapen(header: Header, a: str, b: str, shape: tuple[int, ...]) -> list[str]:
  found = (header.shape(a), header.shape(b))
  rank = found[0][0] if found[0] else 0
  if len(shape) == 2 and found == ((rank, shape[1]), (shape[0], rank)):
    return []
  return [f'{a}: with B {list(found[0])} and {list(found[1])}, for a matrix of {list(shape)}']
