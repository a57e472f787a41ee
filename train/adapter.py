"""Trained LoRA matrices as PEFT saves an adapter, which `qwen3-omni convert to-hf --adapter` and PEFT itself take."""

import json
import pathlib
from collections.abc import Mapping

import numpy as np

from qwen3_omni_jax.config import OmniConfig
from qwen3_omni_jax.weights.adapter import CONFIG, WEIGHTS
from qwen3_omni_jax.weights.safetensors import as_bytes, plan_shards
from qwen3_omni_jax.weights.table import published

from .stages import LoraPart
from .state import LORA


def write_adapter(folder: pathlib.Path, cfg: OmniConfig, lora: Mapping[str, LoraPart], trained: Mapping[str, np.ndarray]) -> None:
  """Writes adapter_config.json and adapter_model.safetensors, float32: a pair for every published matrix.

  trained: by path, as in TrainState.trained; what is not LoRA's is passed over.
  """
  tensors: dict[str, np.ndarray] = {}
  ranks, alphas = {}, {}
  for name, tensor in published(cfg).items():
    path = tensor.row.ours
    if path not in lora:
      continue
    a, b = (np.asarray(trained[f'{LORA}{path}/{half}'], np.float32)[tensor.index] for half in 'ab')
    if tensor.shape != (b.shape[1], a.shape[0]):
      raise ValueError(f'{name} {list(tensor.shape)}: not a matrix of {b.shape[1]} x {a.shape[0]}, PEFT cannot adapt it')
    module = name.removesuffix('.weight')
    tensors[f'base_model.model.{module}.lora_A.weight'] = a.T
    tensors[f'base_model.model.{module}.lora_B.weight'] = b.T
    ranks[module], alphas[module] = lora[path].rank, lora[path].alpha
  folder.mkdir(parents=True, exist_ok=True)
  plan = plan_shards({name: (np.dtype(np.float32), array.shape) for name, array in tensors.items()}, 2**62)
  (header,) = plan.headers.values()
  with (folder / WEIGHTS).open('wb') as out:
    out.write(header.raw)
    for name in header.names():
      out.write(as_bytes(np.ascontiguousarray(tensors[name])))
  rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
  other = lambda values, common: {module: value for module, value in values.items() if value != common}
  options = {
    'peft_type': 'LORA',
    'r': rank,
    'lora_alpha': alpha,
    'rank_pattern': other(ranks, rank),
    'alpha_pattern': other(alphas, alpha),
    'target_modules': sorted(ranks),
    'bias': 'none',
    'use_dora': False,
    'use_rslora': False,
    'fan_in_fan_out': False,
    'init_lora_weights': True,
    'lora_dropout': 0.0,
    'inference_mode': True,
  }
  (folder / CONFIG).write_text(json.dumps(options, indent=2) + '\n')
