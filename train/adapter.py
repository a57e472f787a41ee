"""Writes trained LoRA matrices in PEFT's format, which `qwen3-omni convert to-hf --adapter` and PEFT read.

Names are those of the model in transformers 5, where the experts of a layer are one parameter: their pairs are packed
into one (weights/adapter_plan.py says how), gate and up side by side in the rank.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from qwen3_omni_jax.config import OmniConfig
from qwen3_omni_jax.weights.adapter import WEIGHTS
from qwen3_omni_jax.weights.adapter_config import CONFIG, RANK_MAJOR
from qwen3_omni_jax.weights.safetensors import as_bytes, plan_shards
from qwen3_omni_jax.weights.spelling import memory_name
from qwen3_omni_jax.weights.table import Tensor, published

from .config import LoraPart
from .state import LORA

_VERSION = '0.19.1'  # of PEFT: the first that reads a packed pair as it is written here
# PEFT takes a module of one of these names for experts or a router of transformers 4, so it is named as a parameter.
_RENAMED = ('gate', 'gate_proj', 'up_proj', 'down_proj')
_EXPERT = re.compile(r'(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight')

Arrays = Mapping[str, np.ndarray]
Matrices = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Pair:
  """lora_A 'R in' and lora_B 'out R' of one module or parameter. rank: of one expert, where there are several."""

  module: str  # as it is named in the file
  target: str  # as target_modules or target_parameters name it
  parameter: bool  # which of the two
  rank: int
  alpha: float
  shapes: tuple[tuple[int, int], tuple[int, int]]
  make: Callable[[], Matrices]
  packed: bool = False


def write_adapter(folder: pathlib.Path, cfg: OmniConfig, lora: Mapping[str, LoraPart], trainable: Arrays) -> None:
  """Writes adapter_config.json and adapter_model.safetensors, float32.

  trainable: by path, as in TrainState.trainable; what is not LoRA's is passed over.
  """
  pairs = [*_of_modules(cfg, lora, trainable), *_of_experts(cfg, lora, trainable)]
  folder.mkdir(parents=True, exist_ok=True)
  names = {half: lambda pair, half=half: f'base_model.model.{pair.module}.lora_{half}.weight' for half in 'AB'}
  shapes = {
    names[half](pair): (np.dtype(np.float32), shape) for pair in pairs for half, shape in zip('AB', pair.shapes, strict=True)
  }
  ((_, header),) = plan_shards(shapes, 2**62).headers.items()
  with (folder / WEIGHTS).open('wb') as out:
    out.write(header.raw)
    for pair in pairs:
      for array, shape in zip(pair.make(), pair.shapes, strict=True):
        assert array.shape == shape, pair.module
        out.write(as_bytes(np.ascontiguousarray(array, np.float32)))
  (folder / CONFIG).write_text(json.dumps(_config(pairs), indent=2) + '\n')


def _config(pairs: Sequence[_Pair]) -> dict:
  first = pairs[0]
  options = {
    'peft_type': 'LORA',
    'peft_version': _VERSION,
    'r': first.rank,
    'lora_alpha': first.alpha,
    'rank_pattern': {pair.target: pair.rank for pair in pairs if pair.rank != first.rank},
    'alpha_pattern': {pair.target: pair.alpha for pair in pairs if pair.alpha != first.alpha},
    'target_modules': sorted(pair.target for pair in pairs if not pair.parameter),
    'target_parameters': sorted(pair.target for pair in pairs if pair.parameter) or None,
    'bias': 'none',
    'use_dora': False,
    'use_rslora': False,
    'fan_in_fan_out': False,
    'init_lora_weights': True,
    'lora_dropout': 0.0,
    'inference_mode': True,
  }
  return options | ({'lora_B_layout': RANK_MAJOR} if any(pair.packed for pair in pairs) else {})


def _of_modules(cfg: OmniConfig, lora: Mapping[str, LoraPart], trainable: Arrays) -> Iterator[_Pair]:
  """Everything but experts."""
  for name, tensor in published(cfg).items():
    if (part := lora.get(tensor.row.ours)) is None or _EXPERT.fullmatch(name):
      continue
    a, b = _halves(trainable, tensor, tensor.index)
    if tensor.shape != (b.shape[1], a.shape[0]):
      raise ValueError(f'{name} {list(tensor.shape)}: not a matrix of {b.shape[1]} x {a.shape[0]}, PEFT cannot adapt it')
    module = memory_name(name).removesuffix('.weight')
    parameter = module.rpartition('.')[2] in _RENAMED
    target = f'{module}.weight' if parameter else module
    yield _Pair(module, target, parameter, part.rank, part.alpha, (a.T.shape, b.T.shape), lambda a=a, b=b: (a.T, b.T))


def _of_experts(cfg: OmniConfig, lora: Mapping[str, LoraPart], trainable: Arrays) -> Iterator[_Pair]:
  """A pair for all experts of a layer, of what was trained of gate and up, and one of down."""
  layers: dict[str, dict[str, Tensor]] = {}
  for name, tensor in published(cfg).items():
    if (found := _EXPERT.fullmatch(name)) and found[2] == '0':
      layers.setdefault(found[1], {})[found[3]] = tensor
  for experts, tensors in layers.items():
    fused = {'gate_up_proj': ('gate', 'up'), 'down_proj': ('down',)}
    adapted = {p: ms for p, ms in fused.items() if any(tensors[m].row.ours in lora for m in ms)}
    for parameter, matrices in adapted.items():
      parts = [lora.get(tensors[m].row.ours) for m in matrices]
      rank = sum(part.rank for part in parts if part)
      scale = next(part.alpha / part.rank for part in parts if part)
      halves = [
        part and (*_halves(trainable, tensors[m], tensors[m].index[:-1]), part.alpha / part.rank / scale)
        for m, part in zip(matrices, parts, strict=True)
      ]
      rows, columns = tensors[matrices[0]].shape
      count = next(len(half[0]) for half in halves if half)
      layer = memory_name(experts)
      yield _Pair(
        module=f'{layer}.base_layer' if parameter == 'gate_up_proj' and len(adapted) == 2 else layer,
        target=f'{layer}.{parameter}',
        parameter=True,
        rank=rank,
        alpha=scale * rank,
        shapes=((count * rank, columns), (len(parts) * rows, rank * count)),
        make=lambda halves=halves, rows=rows: _pack(halves, rows),
        packed=True,
      )


def _halves(trainable: Arrays, tensor: Tensor, index: tuple[int, ...]) -> Matrices:
  a, b = (np.asarray(trainable[f'{LORA}{tensor.row.ours}/{half}'], np.float32)[index] for half in 'ab')
  return a, b


def _pack(halves: Sequence[tuple[np.ndarray, np.ndarray, float] | None], rows: int) -> Matrices:
  """lora_A and lora_B of a fused parameter of `rows` rows for each of the halves. Each: a 'E in R', b 'E R out', and a factor."""
  present = [half for half in halves if half]
  lora_a = np.concatenate([a.swapaxes(1, 2) for a, _, _ in present], axis=1)
  lora_b = np.zeros((len(lora_a), len(halves) * rows, lora_a.shape[1]), np.float32)
  at = 0
  for i, half in enumerate(halves):
    if half:
      b = half[1].swapaxes(1, 2)
      lora_b[:, i * rows : (i + 1) * rows, at : at + b.shape[2]] = b * np.float32(half[2])
      at += b.shape[2]
  return lora_a.reshape(-1, lora_a.shape[2]), lora_b.transpose(1, 2, 0).reshape(lora_b.shape[1], -1)
