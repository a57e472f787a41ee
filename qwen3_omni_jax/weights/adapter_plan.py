"""What the tensors of a LoRA adapter do to published tensors, found by name and shape.

The experts of a layer are one parameter in transformers 5, 'E out in', and PEFT adapts it (`target_parameters`) with one
lora_A 'E·r in', expert by expert, and one lora_B 'out r·E', in which the expert changes fastest (`rank_major`). Older
versions of another tool packed lora_B expert by expert too (`grouped_by_expert`): the same shape, and a norm that looks
right. gate_up_proj is `experts.base_layer.lora_A` where down_proj is adapted too, which then is `experts.lora_A`; either
alone is `experts.lora_A`. Their shapes always tell which.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable

import numpy as np

from .adapter_config import CONFIG, RANK_MAJOR, AdapterConfig
from .safetensors import Header
from .spelling import published_name, split

_PREFIX = 'base_model.model.'
_LORA = re.compile(  # module.lora_A[.the adapter's name][.weight]
  r'(?P<module>.+)\.lora_(?P<half>A|B|embedding_A|embedding_B|magnitude_vector)(\.(?!weight$|bias$)[^.]+)?(\.(?P<leaf>weight|bias))?'
)
_EXPERTS = re.compile(r'(.*\.experts)(?:\.(gate_up_proj|down_proj))?')

Read = Callable[[str], np.ndarray]  # a tensor of the adapter, float32
Part = tuple[int | slice, ...]
Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Pair:
  """What a lora_A and a lora_B add to one published tensor: scale * B @ A, or the transpose of that.

  expert: its number and how many there are, in a packed pair. rows: of the product, where the tensor is a part of a fused one.
  """

  a: str
  b: str
  scale: float
  transposed: bool = False
  expert: tuple[int, int] | None = None
  rank_major: bool = True
  rows: slice | None = None

  def delta(self, read: Read) -> np.ndarray:
    a, b = read(self.a), read(self.b)
    if self.expert is not None:
      number, count = self.expert
      a = a.reshape(count, -1, a.shape[1])[number]
      b = b.reshape(len(b), -1, count)[..., number] if self.rank_major else b.reshape(len(b), count, -1)[:, number]
    if self.transposed:
      a, b = b.T, a.T
    out = (b if self.rows is None else b[self.rows]) @ a
    out *= np.float32(self.scale)
    return out


@dataclasses.dataclass
class Change:
  """What is done to one published tensor, in this order.

  whole: it is replaced by this tensor of the adapter. pair: added. magnitude: the length that each row gets then (DoRA).
  bias: of lora_B, and its scale.
  """

  whole: tuple[str, Part] | None = None
  pair: Pair | None = None
  magnitude: str | None = None
  bias: tuple[str, float] | None = None


class Plan:
  """The changes by published name, and by kind what fits nowhere. wanted: the shapes of all published tensors.

  Raises ValueError where the adapter does not say how its experts are packed, and has to.
  """

  def __init__(self, adapter: Header, config: AdapterConfig, wanted: Shapes):
    self._adapter, self._config, self._wanted, self._fused = adapter, config, wanted, _fused(wanted)
    self.changes: dict[str, Change] = {}
    kinds = ('unknown', 'present_twice', 'without_its_other_half', 'without_its_magnitude', 'of_another_shape', 'of_another_rank')
    self.problems: dict[str, list[str]] = {kind: [] for kind in kinds}
    modules: dict[str, dict[str, str]] = {}
    for name in adapter.names():
      found = _LORA.fullmatch(name.removeprefix(_PREFIX))
      if found is None:
        self._add_whole(name)
        continue
      halves = modules.setdefault(found['module'], {})
      half = found['half'] + ('.bias' if found['leaf'] == 'bias' else '')
      if half in halves:
        self.problems['present_twice'].append(f'{name}: also {halves[half]}')
      halves[half] = name
    for module, halves in modules.items():
      self._add_module(module, halves)

  def _add_whole(self, name: str) -> None:
    """A tensor that was trained itself: of modules_to_save, or a bias."""
    plain = re.sub(r'\.(modules_to_save(\.[^.]+)?|base_layer)(?=\.)', '', name.removeprefix(_PREFIX))
    shape = self._adapter.shape(name)
    for known, part in split(self._known(plain, ('', '.0.gate_proj.weight', '.0.down_proj.weight')), shape):
      cut = [len(range(*p.indices(n))) for p, n in zip(part, shape, strict=False) if isinstance(p, slice)]
      found = (*cut, *shape[len(part) :])
      if known not in self._wanted:
        self.problems['unknown'].append(name)
        return
      if found != self._wanted[known]:
        self.problems['of_another_shape'].append(f'{name}: found {list(found)}, expected {list(self._wanted[known])}')
        return
      self._change(known).whole = (name, part)

  def _add_module(self, module: str, halves: dict[str, str]) -> None:
    """All that was trained of one module."""
    plain = re.sub(r'(\.base_layer)+$', '', module)
    if experts := _EXPERTS.fullmatch(plain):
      self._add_experts(experts[1], experts[2], halves)
      return
    weight = self._known(f'{plain}.weight')
    bias, embedding = f'{weight.removesuffix(".weight")}.bias', 'embedding_A' in halves
    vectors = {} if embedding else {'B.bias': bias, 'magnitude_vector': weight} if self._config.dora else {'B.bias': bias}
    ends = ('embedding_A', 'embedding_B') if embedding else ('A', 'B')
    if (pair := self._both(halves, ends, vectors, weight in self._wanted)) is None:
      return
    key = self._config.key(plain)
    self._add_matrix(key, weight, *pair, embedding)
    for half, tensor in vectors.items():
      if half in halves:
        self._add_vector(tensor, halves[half], self._config.scale(key) if tensor == bias else None)
    if self._config.dora and 'magnitude_vector' not in halves:
      self.problems['without_its_magnitude'].append(pair[0])

  def _both(self, halves: dict[str, str], ends: tuple[str, str], others: Iterable[str], known: bool) -> tuple[str, str] | None:
    """lora_A and lora_B of a module, if both are there and it is known; what is not known beside them is a problem."""
    self.problems['unknown'] += [name for half, name in halves.items() if not known or half not in (*ends, *others)]
    if known and all(end in halves for end in ends):
      return halves[ends[0]], halves[ends[1]]
    self.problems['without_its_other_half'] += [halves[end] for end in ends if known and end in halves]
    return None

  def _add_matrix(self, key: str, weight: str, a: str, b: str, embedding: bool) -> None:
    """A pair for one published matrix."""
    shape, found = self._wanted[weight], (self._adapter.shape(a), self._adapter.shape(b))
    rank = found[0][0] if found[0] else 0
    into, out = (shape[:1], shape[1:]) if embedding else (shape[1:], shape[:1])
    if len(shape) != 2 or found != ((rank, *into), (*out, rank)):
      self._misshapen(a, b, f'a matrix of {list(shape)}' if len(shape) == 2 else f'{list(shape)}, which is not a matrix')
    elif self._has_rank(a, key, rank):
      self._add_pair(weight, Pair(a, b, self._config.scale(key), transposed=embedding))

  def _add_vector(self, tensor: str, name: str, scale: float | None) -> None:
    """A magnitude for the rows of a matrix, or (with a scale) what is added to a bias."""
    shape = self._wanted.get(tensor)
    if shape is None:
      self.problems['unknown'].append(name)
    elif self._adapter.shape(name) != shape[:1]:
      self.problems['of_another_shape'].append(f'{name}: found {list(self._adapter.shape(name))}, expected {list(shape[:1])}')
    elif scale is None:
      self._change(tensor).magnitude = name
    else:
      self._change(tensor).bias = (name, scale)

  def _add_experts(self, layer: str, named: str | None, halves: dict[str, str]) -> None:
    """A packed pair for all experts of a layer. named: the parameter, if the adapter's name says it."""
    experts = self._known(layer, ('.0.gate_proj.weight',))
    fused = {name: shape for name, shape in self._fused.get(experts, {}).items() if named in (None, name)}
    if (pair := self._both(halves, ('A', 'B'), (), bool(fused))) is None:
      return
    a, b = pair
    found, fits = (self._adapter.shape(a), self._adapter.shape(b)), []
    for parameter, (count, out, into) in fused.items():
      rank = found[0][0] // count if found[0] else 0
      for transposed, (start, end) in ((False, (into, out)), (True, (out, into))):
        if rank and found == ((count * rank, start), (end, count * rank)):
          fits.append((parameter, rank, transposed))
    if not fits:
      self._misshapen(a, b, ' or '.join(f'{name} {list(shape)}' for name, shape in fused.items()))
      return
    parameter, rank, transposed = fits[-1 if len(fits) > 1 and self._config.reads_as_in_out() else 0]
    key, shape = f'{layer}.{parameter}', fused[parameter]
    if not self._has_rank(a, key, rank):
      return
    rank_major = shape[0] == 1 or rank == 1 or self._config.packing(parameter) == RANK_MAJOR
    for weight, (expert, *rows) in split(f'{experts}.{parameter}', shape):
      pair = Pair(a, b, self._config.scale(key), transposed, (expert, shape[0]), rank_major, *rows)
      self._add_pair(weight, pair)

  def _add_pair(self, weight: str, pair: Pair) -> None:
    change = self._change(weight)
    if change.pair is not None:
      self.problems['present_twice'].append(f'{weight}: in {change.pair.a} and {pair.a}')
    change.pair = pair

  def _change(self, name: str) -> Change:
    return self.changes.setdefault(name, Change())

  def _known(self, name: str, ends: tuple[str, ...] = ('',)) -> str:
    """The name as published: of the Thinker alone where only that, with one of these ends, is a tensor of the model."""
    alone = published_name(name, True)
    return alone if any(f'{alone}{end}' in self._wanted for end in ends) else published_name(name, False)

  def _has_rank(self, a: str, key: str, rank: int) -> bool:
    if rank != (declared := self._config.rank(key)):
      self.problems['of_another_rank'].append(f'{a}: {rank}, but {CONFIG} says {declared}')
    return rank == declared

  def _misshapen(self, a: str, b: str, what: str) -> None:
    shapes = [list(self._adapter.shape(name)) for name in (a, b)]
    self.problems['of_another_shape'].append(f'{a}: with B {shapes[0]} and {shapes[1]}, for {what}')


def _fused(wanted: Shapes) -> dict[str, dict[str, tuple[int, int, int]]]:
  """{'...experts': {fused parameter: its shape, 'E out in'}} of every layer with experts."""
  counts: dict[str, int] = {}
  for name in wanted:
    if found := re.fullmatch(r'(.*\.experts)\.\d+\.down_proj\.weight', name):
      counts[found[1]] = counts.get(found[1], 0) + 1
  out = {}
  for experts, count in counts.items():
    (rows, columns), down = (wanted[f'{experts}.0.{matrix}_proj.weight'] for matrix in ('gate', 'down'))
    out[experts] = {'gate_up_proj': (count, 2 * rows, columns), 'down_proj': (count, *down)}
  return out
