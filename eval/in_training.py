"""Scores of a model that is being trained: what `train` calls at the steps of `evaluate.benchmarks`."""

import pathlib
from collections.abc import Callable
from typing import Any

from qwen3_omni_jax.train.config import Benchmarks

from .data_check import check
from .predict import OmniPredictor
from .registry import select_benchmarks
from .run import evaluate, spread


def make_scorer(wanted: Benchmarks) -> Callable[[Any], dict[str, float]]:
  """Omni -> the first metric of each benchmark by its name, of greedy replies.

  Raises ValueError for unknown names, for sets that a model alone cannot answer and score (a judge, speech), and for files and
  media that are not there: all questions are read once now.
  """
  benchmarks, root = select_benchmarks(None, list(wanted.names)), pathlib.Path(wanted.root)
  problems = [f'{b.name} is graded by a judge' for b in benchmarks if b.needs_judge]
  problems += [f'{b.name} is spoken, and a Talker is not trained' for b in benchmarks if b.answer == 'speak']
  if problems:
    raise ValueError(f'evaluate.benchmarks: {"; ".join(problems)}: run it on an export, with `qwen3-omni eval`')
  for benchmark in benchmarks:
    found = check(benchmark, spread(benchmark.read(root / benchmark.folder), wanted.limit))
    if found.lost or not found.found:
      problems += found.describe(benchmark.name, counts=False) or [f'{benchmark.name}: no items']
  if problems:
    raise ValueError('evaluate.benchmarks: ' + '; '.join(problems))
  changes = {} if wanted.max_new_tokens is None else {'max_new_tokens': wanted.max_new_tokens}

  def score(omni: Any) -> dict[str, float]:
    predict = OmniPredictor(omni, batch_size=wanted.batch)
    scores = evaluate(predict, benchmarks, root, variant='instruct', limit=wanted.limit, changes=changes, batch=wanted.batch)
    return {name: found.headline for name, found in scores.items()}

  return score
