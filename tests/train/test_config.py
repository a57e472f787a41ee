"""Configurations: every shipped one is valid, mistakes are named with what was probably meant, parts decide in order."""

import dataclasses
import pathlib

import pytest
from qwen3_omni_jax.train.config import DataConfig, LoraPart, Optimiser, Part, Recipe, Run, Speaker, Speech
from qwen3_omni_jax.train.config_file import from_data, read, to_data
from qwen3_omni_jax.train.speakers import with_speakers
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
  if name == 'talker_speaker':
    run = dataclasses.replace(run, speakers=(Speaker('maria'),))
  if run.vocoder is None and (run.parts or run.lora):
    assert assign_roles(with_speakers(batches.config(), run.speakers), run).trainable


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
    (Recipe((Part('talker/', 1e-3),)), "'talker/' decide over no parameter"),  # without speech
    (Recipe((Part('code2wav/', 1e-3),), speech=Speech()), "'code2wav/' decide over no parameter"),
    (Recipe((Part('talker/', 1e-3),), speech=Speech(text=0.5)), 'the Thinker and its encoders are frozen'),
    (Recipe((Part('talker/embed', 1e-3, rows='speakers'),), speech=Speech()), 'there are none; give speakers'),
    (Recipe((Part('talker/', 1e-3, rows='speakers'),), speech=Speech()), 'is for talker/embed alone'),
    (Recipe((Part('talker/head', 1e-3),), speech=Speech(), speakers=(Speaker('maria'),)), 'is not trained'),
  ],
)
def test_patterns_that_cannot_be_meant_are_refused(recipe, message):
  with pytest.raises(ValueError, match=message):
    assign_roles(batches.config(), recipe)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'data': DataConfig(speech_rows=1)}, 'speech is read and not learnt; give speech'),
    ({'speech': Speech()}, 'data.speech_rows 0: the Talker has no rows'),
    ({'speakers': (Speaker('maria'),)}, 'only a run with speech'),
    ({'speech': Speech(frames=0.0)}, 'speech.frames 0.0: expected a share above 0'),
    ({'speech': Speech(predictor=-1.0)}, 'speech.predictor -1.0: expected at least 0'),
  ],
)
def test_settings_of_speech_that_do_not_go_together_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(Run(model='m', out='o'), **changes).check()


def test_a_new_speaker_gets_the_first_free_id_after_the_others_or_the_one_that_is_asked_for():
  cfg = batches.config()  # speakers 509 to 511, 1,280 ids, codes 0 to 255, marks 356 to 365
  ids = lambda *speakers: dict(with_speakers(cfg, speakers).talker.speaker_id)
  assert ids(Speaker('Maria'), Speaker('noor', 1000), Speaker('tom')) == ids() | {'maria': 512, 'noor': 1000, 'tom': 1001}
  assert with_speakers(cfg, ()) == cfg


@pytest.mark.parametrize(
  ('speaker', 'message'),
  [
    (Speaker('Ethan'), 'there is one already'),
    (Speaker('maria', 510), 'id 510 is taken'),
    (Speaker('maria', 358), 'id 358 is taken'),  # the end of speech
    (Speaker('maria', 255), 'id 255 is taken or no id for a speaker'),  # a code
    (Speaker('maria', 1280), 'expected a free one from 256 to 1279'),
    (Speaker('maria', like='tom'), "like 'tom', which is not one of aiden, chelsie, ethan"),
  ],
)
def test_speakers_that_cannot_be_added_are_refused(speaker, message):
  with pytest.raises(ValueError, match=message):
    with_speakers(batches.config(), (speaker,))
