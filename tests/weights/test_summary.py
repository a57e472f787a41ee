"""`inspect` tells what is there, whatever the layout, and what is not; `diff` tells configs apart by meaning."""

import json
import pathlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from qwen3_omni_jax.cli import main
from qwen3_omni_jax.config_json import load_config
from qwen3_omni_jax.models.omni import omni_spec
from qwen3_omni_jax.nn.params import count
from qwen3_omni_jax.weights.config_diff import diff, fields
from qwen3_omni_jax.weights.summary import Summary, Unfinished, summarise
from qwen3_omni_jax.weights.to_jax import convert_to_jax
from qwen3_omni_jax.weights.work import Work

from .folders import Tensors, fuse, odd_config, odd_dict, random_tensors, write


@pytest.fixture(scope='module')
def tensors() -> Tensors:
  return random_tensors(odd_config(), dtype=ml_dtypes.bfloat16)


@pytest.fixture(scope='module')
def plain(tensors, tmp_path_factory) -> pathlib.Path:
  return write(tmp_path_factory.mktemp('summary') / 'hf', tensors)


def test_parts_are_counted_alike_in_every_layout(plain, tensors, tmp_path):
  convert_to_jax(plain, tmp_path / 'jax')
  write(tmp_path / 'fused', fuse(tensors))
  summaries = [summarise(folder) for folder in (plain, tmp_path / 'fused', tmp_path / 'jax')]
  spec = omni_spec(odd_config())
  for summary in summaries:
    assert not summary.problems and summary.variant == 'instruct'
    assert {part: amount.parameters for part, amount in summary.parts.items()} == {part: count(s) for part, s in spec.items()}
    assert summary.total.tensors == len(tensors) and summary.total.bytes == 2 * summary.total.parameters
    assert summary.dtypes == {'bfloat16': summary.total} and summary.tree == summaries[0].tree
  assert [s.kind for s in summaries] == ['published', 'published', 'converted']
  assert [s.layout.split(',')[0] for s in summaries] == ['a tensor per expert', 'experts fused', 'one array per parameter']
  assert 'thinker.model.layers.{0-3}.mlp.experts.{0-4}.up_proj.weight: [18, 52] bfloat16  (20)' in summaries[0].tree


def test_a_broken_shard_is_told_beside_what_the_others_hold(tensors, tmp_path):
  folder = write(tmp_path / 'hf', tensors, shard_bytes=300_000)
  shard, other = sorted(folder.glob('*.safetensors'))[:2]
  shard.write_bytes(shard.read_bytes()[:-5])
  other.unlink()
  summary = summarise(folder)
  assert isinstance(summary, Summary) and set(summary.problems) == {'broken', 'missing', 'listed_but_not_there'}
  assert [f'{shard}: ' in text for text in summary.problems['broken']] == [True]
  why = {text.split(': ')[0] for text in summary.problems['listed_but_not_there']}
  assert why == {f'{shard.name}, which cannot be read', f'{other.name}, which does not exist'}
  assert summary.total.tensors == len(tensors) - len(summary.problems['missing']) > 0


def test_what_is_missing_or_unknown_is_told(tensors, tmp_path):
  broken = dict(tensors) | {'thinker.new.weight': np.ones((3, 5), np.float16)}
  for layer in range(3):
    del broken[f'talker.model.layers.{layer}.mlp.gate.weight']
  summary = summarise(write(tmp_path / 'hf', broken))
  assert summary.problems['missing'] == [f'talker.model.layers.{i}.mlp.gate.weight' for i in range(3)]
  assert summary.problems['unknown'] == ['thinker.new.weight']
  assert (summary.parts['unknown'].parameters, summary.parts['unknown'].bytes) == (15, 30)
  assert summary.parts['talker'].tensors == summarise_part(tensors, 'talker') - 3
  assert summary.dtypes['float16'].tensors == 1


def summarise_part(tensors: Tensors, part: str) -> int:
  return sum(name.startswith(f'{part}.') and '.code_predictor.' not in name for name in tensors)


@pytest.mark.parametrize(
  ('name', 'readme', 'variant'),
  [
    ('Qwen3-Omni-30B-A3B-Thinking', None, 'thinking'),
    ('model', '# Qwen3-Omni-30B-A3B-Captioner\n', 'captioner'),
    ('model', 'both a thinking and a captioner model exist', 'thinking or captioner'),
    ('model', None, 'thinking or captioner'),
  ],
)
def test_variants_without_a_talker(tmp_path, name, readme, variant):
  alone = {n.removeprefix('thinker.'): v for n, v in random_tensors(odd_config('thinking')).items()}
  folder = write(tmp_path / name, alone, odd_dict('thinking'))
  if readme:
    (folder / 'README.md').write_text(readme)
  summary = summarise(folder)
  assert summary.variant == variant and summary.layout == 'a tensor per expert, a Thinker saved alone'
  assert tuple(summary.parts) == ('audio', 'vision', 'thinker')


def test_an_unfinished_conversion_says_how_far_it_got(tmp_path, capsys):
  names = [f'thinker.model.layers.{layer}.input_layernorm.weight' for layer in range(5)]
  identity = {'conversion': 'to-jax', 'dtype': 'float16', 'tensors': 8}
  with pytest.raises(KeyboardInterrupt), Work(tmp_path / 'jax', identity) as work:
    work.begin()
    work.add((name, 'checksum') for name in names)
    raise KeyboardInterrupt
  for folder in (tmp_path / 'jax.partial', tmp_path / 'jax.partial' / 'data'):
    summary = summarise(folder)
    tree = ['thinker.model.layers.{0-4}.input_layernorm.weight  (5)']
    assert summary == Unfinished(str(folder), 'to-jax', [], 'float16', finished=5, tensors=8, tree=tree)
  assert main(['convert', 'inspect', str(tmp_path / 'jax.partial'), '--tree']) == 0
  out = capsys.readouterr().out
  assert 'jax.partial: unfinished (to-jax): 5 of 8 tensors' in out and tree[0] in out
  assert main(['convert', 'inspect', str(tmp_path / 'jax.partial'), '--json']) == 0
  assert json.loads(capsys.readouterr().out)['complete'] is False


def test_inspect_command_line(plain, capsys):
  assert main(['convert', 'inspect', str(plain)]) == 0
  text = capsys.readouterr().out
  assert 'published: a tensor per expert' in text and 'variant  instruct' in text and 'code2wav' in text
  assert main(['convert', 'inspect', str(plain), '--tree']) == 0
  assert '  code2wav.decoder.0.conv.bias: [' in capsys.readouterr().out
  assert main(['convert', 'inspect', str(plain), '--json']) == 0
  data = json.loads(capsys.readouterr().out)
  assert data['parts']['audio']['parameters'] == count(omni_spec(odd_config())['audio']) and 'tree' not in data
  assert main(['convert', 'inspect', f'{plain}x']) == 1


def respelled(config: dict[str, Any]) -> dict[str, Any]:
  """The same values as transformers 5 writes them: RoPE in one object, another name for the number of experts."""
  config = json.loads(json.dumps(config))
  text = config['thinker_config']['text_config']
  rope = {**(text.pop('rope_scaling', None) or {}), **(text.pop('rope_parameters', None) or {})}
  text['rope_parameters'] = {'rope_theta': text.pop('rope_theta', 1e6), **rope}
  text['num_local_experts'] = text.pop('num_experts')
  config['code2wav_config'].pop('hidden_act', None)  # equals the default
  return config


def write_config(path: pathlib.Path, config: dict) -> pathlib.Path:
  path.write_text(json.dumps(config))
  return path


def test_spellings_of_the_same_model_do_not_differ(tmp_path):
  a = write_config(tmp_path / 'a.json', odd_dict())
  b = write_config(tmp_path / 'b.json', respelled(odd_dict()))
  assert diff(a, b) == ([], [])


def test_differences_are_named_as_published_and_those_without_effect_apart(tmp_path, capsys):
  config = respelled(odd_dict())
  config['thinker_config']['text_config']['rope_parameters']['rope_theta'] = 123
  config['talker_config']['speaker_id']['ethan'] += 1
  config['code2wav_config']['sliding_window'] = 71
  config['thinker_config']['audio_config']['max_source_positions'] = 9
  config['transformers_version'] = '9.9'
  a, b = write_config(tmp_path / 'a.json', odd_dict()), write_config(tmp_path / 'b.json', config)
  changes, ignored = diff(a, b)
  assert [c.field for c in changes] == [
    'thinker_config.text_config.rope_theta',
    'talker_config.speaker_id',
    'code2wav_config.sliding_window',
  ]
  assert changes[2].b == 71 and changes[0].b == 123.0
  assert {c.field for c in ignored} == {'thinker_config.audio_config.max_source_positions', 'transformers_version'}
  assert main(['convert', 'diff', str(a), str(b)]) == 1
  assert 'thinker_config.text_config.rope_theta: ' in capsys.readouterr().out
  assert main(['convert', 'diff', str(a), str(b), '--json']) == 1
  data = json.loads(capsys.readouterr().out)
  assert data['differ']['code2wav_config.sliding_window']['b'] == 71 and 'transformers_version' in data['differ_without_effect']
  assert main(['convert', 'diff', str(a), str(a)]) == 0


def test_parts_that_only_one_has_are_differences(tmp_path):
  a, b = write_config(tmp_path / 'a.json', odd_dict()), write_config(tmp_path / 'b.json', odd_dict('thinking'))
  changes, _ = diff(a, b)
  assert {c.field.split('.')[0] for c in changes} == {'talker_config', 'code2wav_config'}
  assert all(str(c).endswith(' and absent') for c in changes)
  named = fields(load_config(a))
  assert named['thinker_config.vision_config.depth'] == odd_dict()['thinker_config']['vision_config']['depth']
