"""LoRA adapters as PEFT writes them, merged into published tensors: W + scale * B @ A, in float32."""

import functools
import pathlib
from collections.abc import Sequence

import numpy as np

from ..config import OmniConfig
from .adapter_config import read_adapter_config
from .adapter_plan import Change, Plan
from .batches import WORKERS
from .names import report
from .safetensors import Shard
from .table import published_shapes

WEIGHTS = 'adapter_model.safetensors'


class Adapter:
  """An adapter folder, checked against the tensors it is for. Call it with a tensor's name and value.

  Raises ValueError naming every option and tensor that cannot be merged: nothing is left out in silence.
  """

  def __init__(self, folder: pathlib.Path, cfg: OmniConfig):
    self.folder = folder
    config = read_adapter_config(folder)
    file = folder / WEIGHTS
    if not file.is_file() and (others := sorted(path.name for path in folder.glob('adapter_model*'))):
      raise ValueError(f'{folder}: found {", ".join(others)}, expected {WEIGHTS}; load it with PEFT and save_pretrained it again')
    self._shard = Shard(file)
    self._read = functools.lru_cache(2 * WORKERS)(self._as_float32)  # a packed pair is used once for every expert
    plan = Plan(self._shard, config, published_shapes(cfg))
    report(f'{folder}: cannot be merged into this model', **plan.problems)
    self.changes: dict[str, Change] = plan.changes
    if not self.changes:
      raise ValueError(f'{file}: holds no tensors; expected lora_A and lora_B of some layers')

  def _as_float32(self, name: str) -> np.ndarray:
    return self._shard.read(name).astype(np.float32)

  def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
    """The tensor with the adapter in it, float32; what the adapter does not touch, as it is."""
    change = self.changes.get(name)
    if change is None:
      return value
    value = (value if change.whole is None else self._shard.read(*change.whole)).astype(np.float32)
    if change.pair is not None:
      value += change.pair.delta(self._read)
    if change.magnitude is not None:
      value *= (self._read(change.magnitude) / np.linalg.norm(value, axis=1))[:, None]
    if change.bias is not None:
      bias, scale = change.bias
      value += np.float32(scale) * self._read(bias)
    return value


class Adapters:
  """Adapters for one model, in one: what each of them adds is summed in float32."""

  def __init__(self, folders: Sequence[pathlib.Path], cfg: OmniConfig):
    self._adapters = [Adapter(folder, cfg) for folder in folders]
    first: dict[str, Adapter] = {}
    clashes = []
    for adapter in self._adapters:
      for name, change in adapter.changes.items():
        other = first.setdefault(name, adapter)
        if other is not adapter and any(c.whole or c.magnitude for c in (change, other.changes[name])):
          clashes.append(f'{name}: in {other.folder} and {adapter.folder}')
    report('only one adapter can replace a tensor or adapt it with DoRA; merge one of these', changed_by_both=clashes)

  def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
    """The tensor with the adapters in it: float32, or as it is where none of them touches it."""
    for adapter in self._adapters:
      value = adapter(name, value)
    return value
