"""Recognisers: who writes down what was said in a spoken benchmark. None of them is the one of the published figures."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from .benchmark import Benchmark, Item
from .sphinx import Sphinx
from .wer import without_punctuation

Hear = Callable[[Sequence[pathlib.Path]], list[str]]


@dataclasses.dataclass(frozen=True)
class Recogniser:
  """name: as results call it. prepare: (a benchmark, all of its items) -> wave files -> what is heard. It raises ValueError if it
  cannot write these texts down."""

  name: str
  prepare: Callable[[Benchmark, Sequence[Item]], Hear]


def own_ear(omni: Any, batch_size: int = 16) -> Recogniser:
  """The model itself. A score by it says how well the model understands its own voice."""

  def prepare(benchmark: Benchmark, items: Sequence[Item]) -> Hear:
    def hear(waves: Sequence[pathlib.Path]) -> list[str]:
      ask = {'type': 'text', 'text': benchmark.hear}
      asked = [[{'role': 'user', 'content': [{'type': 'audio', 'audio': str(wave)}, ask]}] for wave in waves]
      limit = benchmark.max_new_tokens
      return [r.text for r in omni.generate(asked, max_new_tokens=limit, temperature=0.0, batch_size=batch_size)] if asked else []

    return hear

  return Recogniser('self', prepare)


def sphinx() -> Recogniser:
  """PocketSphinx, with the words of the benchmark's texts (eval.sphinx)."""

  def prepare(benchmark: Benchmark, items: Sequence[Item]) -> Hear:
    listen = Sphinx(word for item in items for word in without_punctuation(item.reference).split())
    return lambda waves: [listen(wave) for wave in waves]

  return Recogniser('sphinx', prepare)
