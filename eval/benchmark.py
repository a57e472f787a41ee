"""Definition of a benchmark: how its released files become questions, and how replies become scores.

    Benchmark.read(folder) -> [Item]         questions with their media, references and categories
    Benchmark.score(items, replies, Scoring) -> Scores

This module is independent of any model. `run.evaluate` joins a benchmark with anything that answers conversations.
"""

import dataclasses
import pathlib
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from .multiple_choice import DIALECTS, Options, guess, read_choice

Variant = Literal['instruct', 'thinking', 'captioner']


@dataclasses.dataclass(frozen=True)
class Item:
  """One question.

  messages: the conversation; media by path, or as an object with `read()` that gives bytes or samples when they are needed.
  reference: what the scorer compares with. category: axis -> value, for tables and plots. fields: what else the scorer needs.
  """

  id: str
  messages: list[dict[str, Any]]
  reference: Any
  category: Mapping[str, str] = dataclasses.field(default_factory=dict)
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Settings:
  """How replies are made; written beside the results."""

  variant: Variant
  max_new_tokens: int
  temperature: float
  top_k: int
  top_p: float
  fps: float = 2.0  # the published evaluation reads every video at 2 frames a second
  media: str = 'utils'  # frames and sizes as in the published examples, which the published scores were made with
  audio_in_video: bool = False
  seed: int = 0

  def prompt(self) -> dict[str, Any]:
    """What the processor is told."""
    return {'fps': self.fps, 'media': self.media, 'audio_in_video': self.audio_in_video}


def default_settings(variant: Variant, max_new_tokens: int, audio_in_video: bool = False) -> Settings:
  """Evaluation defaults of a variant: greedy for Instruct; for the others, the sampling of their generation_config."""
  if variant == 'instruct':
    return Settings(variant, max_new_tokens, 0.0, 0, 1.0, audio_in_video=audio_in_video)
  if variant not in ('thinking', 'captioner'):
    raise ValueError(f"variant '{variant}': expected instruct, thinking or captioner")
  return Settings(variant, 32_768, 0.6, 20, 0.95, audio_in_video=audio_in_video)


class Judge(Protocol):
  """A model that grades replies: `n` texts for a prompt."""

  name: str

  def __call__(self, prompt: str, *, system: str | None = None, n: int = 1, **sampling: Any) -> list[str]: ...


@dataclasses.dataclass(frozen=True)
class Scoring:
  """What a scorer may use. official_fallback: guess where the official scorer guesses, with this seed."""

  judge: Judge | None = None
  official_fallback: bool = False
  seed: int = 42


@dataclasses.dataclass(frozen=True)
class Row:
  """The score of one item: value / weight is its rate (1 for a right answer; edits over words for a transcript).

  readable: False where the scorer found no answer in the reply; such an item counts as wrong.
  """

  id: str
  value: float
  weight: float
  extracted: Any = None
  readable: bool = True


@dataclasses.dataclass(frozen=True)
class Scores:
  """The scores of a benchmark, with all that a confidence interval needs.

  metrics: percent (or BLEU) by name, the one that is compared with the published figure first. units: one row of sums for each
  independent unit (an item; for HallusionBench a set of questions), `groups` the group of each (0 … G-1). formula: the first
  metric of sums by group, 'G S'. signature: the scorer, as the results name it.
  """

  metrics: dict[str, float]
  rows: list[Row]
  units: np.ndarray  # float64 'U S'
  groups: np.ndarray  # int64 'U'
  formula: Callable[[np.ndarray], float]
  signature: str
  lower_is_better: bool = False

  @property
  def headline(self) -> float:
    return next(iter(self.metrics.values()))

  @property
  def unreadable(self) -> int:
    return sum(not row.readable for row in self.rows)


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """One row of a results table.

  folder: where its files lie under the data root. expected: items in the released split, None where no count is published.
  answer: 'generate' a reply, 'choose' the most probable option, or 'speak' the text (an item's `speaker` field: in whose voice).
  needs_judge: no score without a judge. Of spoken ones, hear: what a model that writes the speech down is asked, with
  max_new_tokens; measure: metrics of the sound itself, of (items, wave files, finish_reasons).
  """

  name: str
  title: str
  suite: Literal['audio', 'vision', 'audiovisual', 'speech', 'text', 'nano']
  folder: str
  read: Callable[[pathlib.Path], list[Item]]
  score: Callable[[Sequence[Item], Sequence[str | None], Scoring], Scores]
  scorer: str
  expected: int | None = None
  max_new_tokens: int = 2048
  audio_in_video: bool = False
  answer: Literal['generate', 'choose', 'speak'] = 'generate'
  needs_judge: bool = False
  hear: str = 'Transcribe the audio into text.'
  measure: Callable[[Sequence[Item], Sequence[pathlib.Path], Sequence[str]], dict[str, float]] | None = None

  def settings(self, variant: Variant) -> Settings:
    return default_settings(variant, self.max_new_tokens, self.audio_in_video)


def user(*parts: Any) -> list[dict[str, Any]]:
  """A conversation of one user turn: media parts as (kind, source), text as str, in that order; no system prompt."""
  content = [{'type': 'text', 'text': p} if isinstance(p, str) else {'type': p[0], p[0]: p[1]} for p in parts]
  return [{'role': 'user', 'content': content}]


def ratio_scores(
  rows: list[Row],
  signature: str,
  *,
  name: str = 'accuracy',
  groups: Sequence[str] | None = None,
  lower_is_better: bool = False,
  extra: Mapping[str, float] | None = None,
) -> Scores:
  """Scores whose metric is sum(value) / sum(weight) in percent — the mean of that over groups, where groups are given."""
  if not rows or not sum(row.weight for row in rows):
    raise ValueError('nothing to score: no item has a reference of any length')
  units = np.array([[row.value, row.weight] for row in rows], np.float64)
  names = sorted(set(groups)) if groups else ['all']
  index = np.array([names.index(g) for g in groups], np.int64) if groups else np.zeros(len(rows), np.int64)
  sums = sums_by_group(units, index, len(names))
  metrics = {name: mean_of_rates(sums)}
  if groups:
    metrics |= {f'{name} {g}': 100 * value / weight for g, (value, weight) in zip(names, sums, strict=True) if weight}
  return Scores({**metrics, **(extra or {})}, rows, units, index, mean_of_rates, signature, lower_is_better)


def sums_by_group(units: np.ndarray, groups: np.ndarray, number: int, weights: np.ndarray | None = None) -> np.ndarray:
  """Sums of the units of each group, 'G S'; each unit as often as its weight says."""
  sums = np.zeros((number, units.shape[1]))
  np.add.at(sums, groups, units if weights is None else units * weights[:, None])
  return sums


def mean_of_rates(sums: np.ndarray) -> float:
  """Mean over groups of value / weight, in percent; groups without weight (none drawn) are left out."""
  kept = sums[sums[:, 1] > 0]
  return float(100 * np.mean(kept[:, 0] / kept[:, 1]))


def choice_rows(
  dialect: str, items: Sequence[Item], replies: Sequence[str | None], scoring: Scoring, options: Sequence[Options]
) -> list[Row]:
  """Rows of multiple-choice items whose reference is a letter (or several right ones)."""
  rng = random.Random(scoring.seed)
  rows = []
  for item, reply, choices in zip(items, replies, options, strict=True):
    letter = read_choice(dialect, reply, choices)
    readable = letter is not None
    if not readable and scoring.official_fallback:
      letter = guess(dialect, choices, rng)
    right = letter is not None and (letter in item.reference if isinstance(item.reference, list) else letter == item.reference)
    rows.append(Row(item.id, float(right), 1.0, letter, readable))
  return rows


def multiple_choice(dialect: str, group: str | None = None) -> Callable[..., Scores]:
  """A scorer of items with `options` in their fields. group: the metric is the mean over the values of this category."""

  def score(items: Sequence[Item], replies: Sequence[str | None], scoring: Scoring) -> Scores:
    rows = choice_rows(dialect, items, replies, scoring, [item.fields['options'] for item in items])
    groups = [item.category[group] for item in items] if group else None
    guesses = '|random guesses, seed ' + str(scoring.seed) if scoring.official_fallback and DIALECTS[dialect].guesses else ''
    return ratio_scores(rows, f'{DIALECTS[dialect].official}{guesses}', groups=groups)

  return score
