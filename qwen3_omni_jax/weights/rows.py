"""One line of the weight table, and the lines that most networks share."""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Row:
  """ours: path in the parameter tree. theirs: published name. layout: 'published dims -> our dims' of one tensor."""

  ours: str
  theirs: str
  layout: str = 'D -> D'

  @property
  def counters(self) -> list[str]:
    return re.findall(r'\{(\w+)\}', self.theirs)


TRANSPOSED = 'O I -> I O'


def linear(ours: str, theirs: str, bias: bool = True) -> list[Row]:
  rows = [Row(f'{ours}/kernel', f'{theirs}.weight', TRANSPOSED)]
  return rows + ([Row(f'{ours}/bias', f'{theirs}.bias')] if bias else [])


def norm(ours: str, theirs: str) -> list[Row]:
  return [Row(f'{ours}/scale', f'{theirs}.weight'), Row(f'{ours}/bias', f'{theirs}.bias')]


def swiglu(ours: str, theirs: str) -> list[Row]:
  return [Row(f'{ours}/{name}', f'{theirs}.{name}_proj.weight', TRANSPOSED) for name in ('gate', 'up', 'down')]


def attention(ours: str, theirs: str) -> list[Row]:
  return [
    *(Row(f'{ours}/{n}', f'{theirs}.{n}_proj.weight', '(N H) D -> D N H') for n in 'qkv'),
    Row(f'{ours}/o', f'{theirs}.o_proj.weight', 'D (N H) -> N H D'),
  ]


def conv(ours: str, theirs: str, layout: str = 'O I T -> T I O', bias: bool = True) -> list[Row]:
  rows = [Row(f'{ours}/kernel', f'{theirs}.conv.weight', layout)]
  return rows + ([Row(f'{ours}/bias', f'{theirs}.conv.bias')] if bias else [])
