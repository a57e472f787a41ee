"""Trainable parameters of a stage: patterns over the paths of the parameter tree, from the stage's configuration.

A path is the parameter's place in the tree, e.g. `audio/layers/attn/q/kernel` or `thinker/layers/moe/experts/gate`. The first
part of the list whose pattern matches a path (from its beginning) decides; a parameter that none matches is frozen.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from qwen3_omni_jax.nn.params import Param

from .config import LoraPart, Part


def match_parts(params: Mapping[str, Param], parts: Sequence[Part]) -> dict[str, Part]:
  """{path: its part} for every trained parameter.

  Raises ValueError for a pattern that is not a regular expression or decides nothing: a misspelt one would freeze in silence.
  """
  chosen: dict[str, Part] = {}
  used = set()
  for path in params:
    for i, part in enumerate(parts):
      if matches(part.pattern, path):
        used.add(i)
        if part.lr > 0:
          chosen[path] = part
        break
  if idle := [part.pattern for i, part in enumerate(parts) if i not in used]:
    raise ValueError(f'parts: {", ".join(map(repr, idle))} decide over no parameter; paths look like {_examples(params)}')
  return chosen


def match_lora(matrices: Iterable[str], parts: Sequence[LoraPart]) -> dict[str, LoraPart]:
  """{path: its LoRA} of the matrices that some pattern matches; the first one decides."""
  matrices = list(matrices)
  chosen = {
    path: next(p for p in parts if matches(p.pattern, path)) for path in matrices if any(matches(p.pattern, path) for p in parts)
  }
  if idle := [part.pattern for part in parts if not any(matches(part.pattern, path) for path in matrices)]:
    raise ValueError(f'lora: {", ".join(map(repr, idle))} match no matrix; paths look like {_examples(matrices)}')
  return chosen


def matches(pattern: str, path: str) -> bool:
  """Whether the pattern matches the path from its beginning. Raises ValueError if it is not a regular expression."""
  try:
    return re.match(pattern, path) is not None
  except re.error as error:
    raise ValueError(f'pattern {pattern!r}: {error}') from error


def _examples(paths: Iterable[str]) -> str:
  paths = list(paths)
  return ', '.join(paths[:: max(1, len(paths) // 4)][:4])
