"""Configurations: every shipped one is valid, mistakes are named with what was probably meant, parts decide in order."""

import pathlib

import pytest
from qwen3_omni_jax.train.config import LoraPart, Optimiser, Part, Recipe, Run
from qwen3_omni_jax.train.config_file import from_data, read, to_data
from qwen3_omni_jax.train.state import assign_roles

from tests.train import batches

ROOT = pathlib.Path(__file__).parents[2]
SHIPPED = [p.stem for p in sorted((ROOT / 'configs' / 'train').glob('*.yaml'))]
SHIPPED += [str(p) for p in sorted((ROOT / 'examples' / 'nano').glob('*.yaml'))]


@pytest.mark.parametrize('name', SHIPPED)
def test_a_shipped_configuration_is_valid_and_survives_being_written(name):
  run = read(Run, name, ['model=m', 'out=o'])
  run.check()
  assert from_data(Run, to_data(run)) == run
  if run.parts or run.lora:
    assert assign_roles(batches.config(), run).trainable


def test_every_mistake_is_listed_with_what_was_meant():
  with pytest.raises(ValueError) as error:
    from_data(Recipe, {'stepps': 3, 'optimiser': {'warmupp': 1, 'clip': 'much'}, 'parts': [{'lr': 1e-3}]})
  for text in (
    "stepps: unknown; did you mean 'steps'",
    "optimiser.warmupp: unknown; did you mean 'warmup'",
    'expected float',
    'parts[0].pattern: missing',
  ):
    assert text in str(error.value)


def test_overrides_are_yaml_and_reach_into_objects(tmp_path):
  (tmp_path / 'base.yaml').write_text('steps: 5\noptimiser: {name: muon, warmup: 3}\n')
  (tmp_path / 'own.yaml').write_text('extends: base.yaml\noptimiser: {warmup: 4}\n')
  recipe = read(Recipe, tmp_path / 'own.yaml', ['optimiser.eps=1e-6', 'parts=[{pattern: audio/, lr: 1e-3}]'])
  assert recipe == Recipe((Part('audio/', 1e-3),), steps=5, optimiser=Optimiser('muon', warmup=4, eps=1e-6))
  with pytest.raises(ValueError, match='expected key=value'):
    read(Recipe, None, ['steps'])
  with pytest.raises(ValueError, match='no such file, nor'):
    read(Recipe, 'stf')


def test_the_first_matching_part_decides_and_the_rest_is_frozen():
  roles = assign_roles(batches.config(), Recipe((Part('audio/proj[12]/', 0.0), Part('audio/', 1e-4))))
  assert roles.trainable and all(path.startswith('audio/') and '/proj' not in path for path in roles.trainable)
  assert {'audio/proj1/kernel', 'thinker/embed', 'vision/positions'} <= set(roles.frozen)


@pytest.mark.parametrize(
  ('recipe', 'message'),
  [
    (Recipe((Part('adio/', 1e-3),)), "'adio/' decide over no parameter"),
    (Recipe((Part('audio/', 0.0),)), 'nothing is trained'),
    (Recipe((Part('(', 1e-3),)), 'pattern'),
    (Recipe(lora=(LoraPart('thinker/embed'),)), 'match no matrix'),
    (Recipe((Part('thinker/', 1e-3),), (LoraPart('thinker/layers/attn/q'),)), 'both trained and adapted'),
  ],
)
def test_patterns_that_cannot_be_meant_are_refused(recipe, message):
  with pytest.raises(ValueError, match=message):
    assign_roles(batches.config(), recipe)
