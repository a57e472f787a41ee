"""adapter_config.json of a LoRA adapter as PEFT writes it: its scales, its packing, and what cannot be merged."""

import dataclasses
import json
import math
import pathlib
import re
from typing import Any

from .names import report

CONFIG = 'adapter_config.json'
RANK_MAJOR, GROUPED_BY_EXPERT = 'rank_major', 'grouped_by_expert'  # how lora_B of fused experts is packed: adapter.py
_MERGE_WITH_PEFT = 'merge it with PEFT (merge_and_unload, then save_pretrained) and convert the result'
_REFUSED = {  # options under which W + scale * B @ A is not what PEFT computes: the values that leave it so
  'peft_type': ('LORA',),
  'fan_in_fan_out': (False, None),
  'trainable_token_indices': (None, {}, []),
  'alora_invocation_tokens': (None, []),
  'use_qalora': (False, None),
  'use_bdlora': (False, None),
  'arrow_config': (None,),
  'kasa_config': (None,),
  'monteclora_config': (None,),
  'layer_replication': (None, []),
}
_INITIAL = (True, False, None, 'gaussian', 'orthogonal', 'eva')  # the other ways to begin change the weights it is added to
_SAVE_PLAIN = 'it changes the base weights; save it as plain LoRA: save_pretrained(path_initial_model_for_weight_conversion=…)'
_SWAPPED_SINCE = (0, 19, 1)  # the first PEFT that reads a fused parameter as 'E out in', as transformers keeps it


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
  """r, alpha, and by pattern: rank and alpha of modules whose name ends with it (a regular expression)."""

  file: pathlib.Path
  r: int
  alpha: float
  ranks: dict[str, int]
  alphas: dict[str, float]
  rslora: bool
  dora: bool
  parameters: tuple[str, ...]  # target_parameters
  layout: str | None  # how lora_B of fused experts is packed, if the file says so
  layouts: dict[str, str]  # the same for one parameter: 'gate_up_proj', 'down_proj'
  unsloth: bool
  version: tuple[int, ...] | None  # of PEFT

  def rank(self, key: str) -> int:
    return _matching(self.ranks, key, self.r)

  def scale(self, key: str) -> float:
    """What PEFT multiplies B @ A with, for the module or parameter of that name."""
    rank = self.rank(key)
    return _matching(self.alphas, key, self.alpha) / (math.sqrt(rank) if self.rslora else rank)

  def key(self, module: str) -> str:
    """The name that patterns are matched against: with `.weight` where the parameter, not the module, was adapted."""
    key = f'{module}.weight'
    return key if any(key == target or key.endswith(f'.{target}') for target in self.parameters) else module

  def packing(self, parameter: str) -> str:
    """How lora_B of a fused parameter is packed: RANK_MAJOR, as PEFT does, unless the adapter says otherwise.

    Raises ValueError if the tool that wrote it has packed in both ways.
    """
    marked = self.layouts.get(parameter) or self.layout
    if marked is None and self.unsloth:
      raise ValueError(
        f'{self.file}: written by Unsloth without lora_B_layout. Its versions before September 2026 packed lora_B of experts in '
        f'another order, of the same shape: add "lora_B_layout": "{GROUPED_BY_EXPERT}" if it was trained with one of them, '
        f'"{RANK_MAJOR}" otherwise'
      )
    return marked or RANK_MAJOR

  def reads_as_in_out(self) -> bool:
    """Whether it was made by a PEFT that read a fused parameter 'E out in' as 'E in out'. Raises ValueError if not known."""
    if self.version is None:
      raise ValueError(
        f'{self.file}: no peft_version, and these experts have a shape that does not tell how lora_A and lora_B are laid out. '
        'Add "peft_version" as it was in training'
      )
    return self.version < _SWAPPED_SINCE


def read_adapter_config(folder: pathlib.Path) -> AdapterConfig:
  """Raises ValueError naming every option that cannot be merged, with what to do."""
  file = folder / CONFIG
  if not file.is_file():
    raise ValueError(f'{file}: no such file; expected an adapter as PEFT saves it')
  try:
    options = json.loads(file.read_text(encoding='utf-8'))
    if not isinstance(options, dict):
      raise ValueError(f'expected an object, found {type(options).__name__}')
    read = _read(file, options)
  except (ValueError, KeyError, AttributeError, TypeError, RecursionError, re.error) as error:
    raise ValueError(f'{file}: not the options of a LoRA adapter ({type(error).__name__}: {error})') from error
  wrong = [
    f'{name}: {json.dumps(options[name])[:80]}' for name, usable in _REFUSED.items() if options.get(name, usable[0]) not in usable
  ]
  report(f'{file}: only LoRA and DoRA can be merged; {_MERGE_WITH_PEFT}', unsupported_options=wrong)
  if (initial := options.get('init_lora_weights')) not in _INITIAL:
    raise ValueError(f'{file}: init_lora_weights: {json.dumps(initial)[:80]}: {_SAVE_PLAIN}')
  return read


def _read(file: pathlib.Path, options: dict[str, Any]) -> AdapterConfig:
  r, alpha = options['r'], options['lora_alpha']
  ranks, alphas = (options.get(name) or {} for name in ('rank_pattern', 'alpha_pattern'))
  if not all(type(n) in (int, float) and 0 < n < math.inf for n in (r, alpha, *ranks.values(), *alphas.values())):
    raise ValueError('r, lora_alpha and their patterns must be positive numbers')
  for pattern in (*ranks, *alphas):
    re.compile(pattern)
  marks = options.get('unsloth_fused_expert_lora') or {}
  layouts = {name: mark['lora_B_layout'] for name, mark in (marks.get('parameters') or {}).items() if 'lora_B_layout' in mark}
  for layout in (options.get('lora_B_layout'), *layouts.values()):
    if layout not in (None, RANK_MAJOR, GROUPED_BY_EXPERT):
      raise ValueError(f'lora_B_layout {layout!r}: expected {RANK_MAJOR!r} or {GROUPED_BY_EXPERT!r}')
  if (layout := marks.get('lora_A_layout')) not in (None, GROUPED_BY_EXPERT):
    raise ValueError(f'lora_A_layout {layout!r}: expected {GROUPED_BY_EXPERT!r}')
  version = re.match(r'(\d+)\.(\d+)\.(\d+)', options.get('peft_version') or '')
  return AdapterConfig(
    file=file,
    r=r,
    alpha=alpha,
    ranks=ranks,
    alphas=alphas,
    rslora=bool(options.get('use_rslora')),
    dora=bool(options.get('use_dora')),
    parameters=tuple(options.get('target_parameters') or ()),
    layout=options.get('lora_B_layout'),
    layouts=layouts,
    unsloth=bool((options.get('auto_mapping') or {}).get('unsloth_fixed')),
    version=version and tuple(int(n) for n in version.groups()),
  )


def _matching(patterns: dict[str, Any], key: str, default: Any) -> Any:
  """The value of the first pattern that the name matches as a whole or from a dot on, as PEFT looks it up."""
  for pattern, value in patterns.items():
    if re.match(rf'(.*\.)?({pattern})$', key):
      return value
  return default
