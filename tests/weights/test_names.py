import itertools
import re

import numpy as np
import pytest

from qwen3_omni_jax.weights.names import compress, report


def expand(line: str) -> list[str]:
  """The names a line of compress stands for."""
  line = re.sub(r'  \(\d+\)$', '', line)
  texts, sets = re.split(r'\{.*?\}', line), re.findall(r'\{(.*?)\}', line)
  runs = [[run.split('-') for run in numbers.split(',')] for numbers in sets]
  choices = [[str(n) for run in column for n in range(int(run[0]), int(run[-1]) + 1)] for column in runs]
  return [''.join(a + b for a, b in zip(texts, [*c, ''], strict=True)) for c in itertools.product(*choices)]


def test_a_full_grid_is_one_line():
  names = [f'layers.{layer}.experts.{e}.gate_proj.weight' for layer in range(48) for e in range(128)]
  assert compress(names) == ['layers.{0-47}.experts.{0-127}.gate_proj.weight  (6144)']


def test_one_hole_takes_one_more_line():
  names = [f'layers.{layer}.experts.{e}.up' for layer in range(6) for e in range(9) if (layer, e) != (2, 7)]
  assert compress(names) == ['layers.{0-1,3-5}.experts.{0-8}.up  (45)', 'layers.2.experts.{0-6,8}.up  (8)']


@pytest.mark.parametrize('seed', range(5))
def test_nothing_is_lost(seed):
  rng = np.random.default_rng(seed)
  names = [f'a{i}.b{j}.{k}' for i, j, k in itertools.product(range(5), range(7), range(12)) if rng.random() < 0.6]
  names += ['plain', '3', 'fc1.weight', 'fc2.weight: found [3, 4], expected [4, 3]']
  rng.shuffle(names)
  assert sorted(itertools.chain.from_iterable(map(expand, compress(names)))) == sorted(names)


def test_odd_names_are_printed_as_they_are():
  names = ['x{0}', 'x{}', 'layer.007.w', '9' * 40, '%s {name!r}', '']
  assert sorted(compress(names)) == sorted(names)


def test_report_is_silent_without_problems_and_counts_them_otherwise():
  report('folder', missing=[], unknown=[])
  with pytest.raises(ValueError, match=r'^folder\n  3 not there:\n    a\.\{1-3\}  \(3\)\n  1 unknown:\n    b$'):
    report('folder', not_there=['a.1', 'a.2', 'a.3'], unknown=['b'], repeated=[])
