"""The spellings of a published checkpoint, read and written.

Three are known: the published one (a tensor per expert), the one that transformers 5 keeps in memory and writes with
`save_original_format=False` (the experts of a layer fused, `language_model` in the names), and a Thinker saved alone
(no `thinker.` in front, in either form).
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

import numpy as np

Signature = tuple[np.dtype, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Spelling:
  """fused: as transformers 5 keeps it in memory. alone: a Thinker without the rest."""

  fused: bool
  alone: bool

  def write(self, tensors: Mapping[str, Signature]) -> tuple[dict[str, Signature], dict[str, tuple[str, int]]]:
    """Published tensors as they are spelled: their dtype and shape, and the place of each published one.

    A place is a name and the element of that tensor where the published one starts; it is contiguous there.
    """
    spelled: dict[str, Signature] = {}
    places: dict[str, tuple[str, int]] = {}
    experts = _experts(tensors) if self.fused else {}
    for name, (dtype, shape) in tensors.items():
      expert = re.fullmatch(r'(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight', name)
      if expert is None or not self.fused:
        place, start = self._name(name), 0
        spelled[place] = (dtype, shape)
      else:
        half = expert[3] != 'down'
        place = self._name(f'{expert[1]}.{"gate_up" if half else "down"}_proj')
        count, common = experts[expert[1]]
        spelled[place] = (common, (count, (1 + half) * shape[0], shape[1]))
        start = (int(expert[2]) * (1 + half) + (expert[3] == 'up')) * math.prod(shape)
      places[name] = (place, start)
    return spelled, places

  def _name(self, name: str) -> str:
    name = memory_name(name) if self.fused else name
    return name.removeprefix('thinker.') if self.alone else name


def _experts(tensors: Mapping[str, Signature]) -> dict[str, tuple[int, np.dtype]]:
  """{'...experts': (how many, the dtype that holds all of them exactly)}."""
  found: dict[str, tuple[set[str], set[np.dtype]]] = {}
  for name, (dtype, _) in tensors.items():
    if expert := re.fullmatch(r'(.*\.experts)\.(\d+)\..*', name):
      numbers, dtypes = found.setdefault(expert[1], (set(), set()))
      numbers.add(expert[2])
      dtypes.add(dtype)
  return {layer: (len(numbers), common_dtype(dtypes)) for layer, (numbers, dtypes) in found.items()}


def common_dtype(dtypes: set[np.dtype]) -> np.dtype:
  """The smallest that holds all of these exactly."""
  if len(dtypes) == 1:
    return next(iter(dtypes))
  return np.dtype(np.float64 if np.dtype(np.float64) in dtypes else np.float32)


def memory_name(name: str) -> str:
  """A published name as transformers 5 has it in memory."""
  name = name.replace('thinker.model.', 'thinker.model.language_model.', 1)
  return re.sub(r'^thinker\.(audio_tower|visual)\.', r'thinker.model.\1.', name)


def published_name(name: str, alone: bool) -> str:
  name = f'thinker.{name}' if alone else name
  name = name.replace('thinker.model.language_model.', 'thinker.model.', 1)
  return re.sub(r'^thinker\.model\.(audio_tower|visual)\.', r'thinker.\1.', name)


def split(name: str, shape: tuple[int, ...]) -> Iterable[tuple[str, tuple[int | slice, ...]]]:
  """(published name, part) of each expert matrix in a fused tensor; of any other tensor, itself.

  gate_up_proj is 'E 2F D', gate first; down_proj is 'E D F'.
  """
  fused = re.fullmatch(r'(.*\.experts)\.(gate_up_proj|down_proj)', name)
  if fused is None or len(shape) != 3 or 0 in shape:
    yield name, ()
    return
  for expert in range(shape[0]):
    if fused[2] == 'down_proj':
      yield f'{fused[1]}.{expert}.down_proj.weight', (expert,)
    else:
      half = shape[1] // 2
      yield f'{fused[1]}.{expert}.gate_proj.weight', (expert, slice(0, half))
      yield f'{fused[1]}.{expert}.up_proj.weight', (expert, slice(half, shape[1]))
