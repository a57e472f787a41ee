"""Confidence intervals: the metric over resampled units."""

import numpy as np

from .benchmark import Scores, sums_by_group

SAMPLES = 1000


def interval(scores: Scores, *, level: float = 0.95, samples: int = SAMPLES, seed: int = 0) -> tuple[float, float]:
  """The percentile bootstrap interval of the first metric; units are resampled within their group."""
  rng = np.random.default_rng(seed)
  number = int(scores.groups.max()) + 1
  members = [np.flatnonzero(scores.groups == g) for g in range(number)]
  values = []
  for _ in range(samples):
    weights = np.zeros(len(scores.units))
    for units in members:
      weights[units] = rng.multinomial(len(units), np.full(len(units), 1 / len(units))) if len(units) else 0
    values.append(scores.formula(sums_by_group(scores.units, scores.groups, number, weights)))
  low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)
