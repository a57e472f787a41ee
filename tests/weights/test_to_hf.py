"""Back to the published layout: the same files byte for byte, in either spelling; transformers loads them."""

import json
import pathlib
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from qwen3_omni_jax.config_json import parse_config
from qwen3_omni_jax.weights.folder import open_folder
from qwen3_omni_jax.weights.load import load_params
from qwen3_omni_jax.weights.opened import open_checkpoint
from qwen3_omni_jax.weights.safetensors import INDEX
from qwen3_omni_jax.weights.table import published_shapes
from qwen3_omni_jax.weights.to_hf import convert_to_hf
from qwen3_omni_jax.weights.to_jax import convert_to_jax

from .folders import assert_same, assert_same_files, contents, fuse, odd_config, odd_dict, random_tensors, write

CLI = [sys.executable, '-m', 'qwen3_omni_jax.cli', 'convert']


@pytest.fixture(scope='module')
def tensors():
  return random_tensors(odd_config(), dtype=ml_dtypes.bfloat16)


@pytest.fixture(scope='module')
def folders(tensors, tmp_path_factory) -> dict[str, pathlib.Path]:
  """The same checkpoint in both spellings, and both converted."""
  root = tmp_path_factory.mktemp('both')
  shuffled = dict(sorted(tensors.items(), key=lambda item: item[0][::-1]))
  for name, values in (('plain', shuffled), ('fused', fuse(shuffled))):
    folder = write(root / name, values, shard_bytes=400_000)
    (folder / '.gitattributes').write_text('*.safetensors filter=lfs\n')
    (folder / 'manifest.json').write_text('{"mine": true}')
    (folder / 'notes').mkdir()
    (folder / 'merges.txt').symlink_to(folder / '.gitattributes')
    convert_to_jax(folder, root / f'{name}_jax')
  return {path.name: path for path in root.iterdir()}


def test_published_files_come_back_byte_for_byte(folders, tmp_path):
  convert_to_hf(folders['plain_jax'], tmp_path / 'back')
  assert_same_files(tmp_path / 'back', folders['plain'])


def test_fused_files_come_back_byte_for_byte(folders, tmp_path):
  convert_to_hf(folders['fused_jax'], tmp_path / 'back', fused_experts=True)
  assert_same_files(tmp_path / 'back', folders['fused'])


@pytest.mark.parametrize('fused', [False, True])
def test_one_spelling_becomes_the_other(folders, tensors, tmp_path, fused):
  source = folders['plain_jax' if fused else 'fused_jax']
  convert_to_hf(source, tmp_path / 'other', fused_experts=fused)
  found = open_folder(tmp_path / 'other')
  expected = fuse(tensors) if fused else tensors
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(found[name].read(name), value, err_msg=name)
  assert contents(tmp_path / 'other').keys() >= {'.gitattributes', 'manifest.json', 'merges.txt', 'config.json', INDEX}
  direct = tmp_path / 'direct'  # without a converted folder in between
  convert_to_hf(folders['plain' if fused else 'fused'], direct, fused_experts=fused)
  assert_same_files(direct, tmp_path / 'other')


def test_one_file_without_an_index_comes_back(tensors, tmp_path):
  folder = write(tmp_path / 'hf', tensors, shard_bytes=10**9)
  (folder / INDEX).unlink()
  (folder / 'model-00001-of-00001.safetensors').rename(folder / 'model.safetensors')
  convert_to_jax(folder, tmp_path / 'jax')
  convert_to_hf(tmp_path / 'jax', tmp_path / 'back')
  assert_same_files(tmp_path / 'back', folder)


@pytest.fixture(scope='module')
def tall():
  """A config with room for the token ids that a Thinker's own config.json does not tell (it means the published ones)."""
  config = odd_dict()
  config['thinker_config']['text_config'] |= {'vocab_size': 151_700}
  return config, random_tensors(parse_config(config), dtype=ml_dtypes.bfloat16)


def write_thinker(folder: pathlib.Path, config, tensors, layout=dict) -> pathlib.Path:
  """A Thinker as its own class in transformers saves it."""
  thinker = layout({name: value for name, value in tensors.items() if name.startswith('thinker.')})
  return write(folder, {name.removeprefix('thinker.'): value for name, value in thinker.items()}, config['thinker_config'])


@pytest.mark.parametrize('layout', [dict, fuse])
def test_a_thinker_saved_alone_comes_back(tall, tmp_path, layout):
  alone = write_thinker(tmp_path / 'hf', *tall, layout)
  convert_to_jax(alone, tmp_path / 'jax')
  convert_to_hf(tmp_path / 'jax', tmp_path / 'back', fused_experts=layout is fuse)
  assert_same_files(tmp_path / 'back', alone)


def test_a_stack_of_mixed_dtypes_comes_back(tmp_path):
  tensors = random_tensors(odd_config('thinking'))
  for name in list(tensors)[::3]:
    tensors[name] = tensors[name].astype(ml_dtypes.bfloat16)
  folder = write(tmp_path / 'hf', tensors, odd_dict('thinking'))
  convert_to_jax(folder, tmp_path / 'jax')
  convert_to_hf(tmp_path / 'jax', tmp_path / 'back')
  assert_same_files(tmp_path / 'back', folder)


def test_dtype_on_either_way(folders, tmp_path):
  convert_to_jax(folders['plain'], tmp_path / 'wide', 'float32')
  convert_to_hf(tmp_path / 'wide', tmp_path / 'kept')
  convert_to_hf(folders['plain_jax'], tmp_path / 'widened', dtype='float32')
  assert {open_checkpoint(tmp_path / 'kept').dtype(name) for name in published_shapes(odd_config())} == {np.dtype(np.float32)}
  assert_same_files(tmp_path / 'kept', tmp_path / 'widened')
  config = json.loads((tmp_path / 'kept' / 'config.json').read_text())
  assert config['dtype'] == config['thinker_config']['dtype'] == 'float32'
  convert_to_hf(tmp_path / 'wide', tmp_path / 'narrowed', dtype='bfloat16')
  assert_same_files(tmp_path / 'narrowed', folders['plain'])


def test_parts_alone_need_a_base(folders, tmp_path):
  convert_to_jax(folders['plain'], tmp_path / 'part', only=('thinker', 'talker'))
  expected = r'part: holds thinker, talker, code_predictor alone, not audio, vision, code2wav; name the folder .*\(--base\)'
  with pytest.raises(ValueError, match=expected):
    convert_to_hf(tmp_path / 'part', tmp_path / 'back')
  assert [path.name for path in tmp_path.iterdir()] == ['part']
  for base in ('plain', 'fused_jax'):
    convert_to_hf(tmp_path / 'part', tmp_path / base, base=folders[base])
    assert_same_files(tmp_path / base, folders['plain'])


def test_a_thinker_trained_alone_is_exported_whole(tall, tmp_path):
  """Its own config.json has no Talker; names, untouched parts and small files come from the base."""
  config, tensors = tall
  base = write(tmp_path / 'base', tensors, config)
  trained = {name: -value if name.startswith('thinker.') else value for name, value in tensors.items()}
  alone = write_thinker(tmp_path / 'thinker', config, trained)
  (alone / 'chat_template.jinja').write_text('mine')
  convert_to_hf(alone, tmp_path / 'whole', base=base)
  opened = open_checkpoint(tmp_path / 'whole')
  for name, value in trained.items():
    np.testing.assert_array_equal(opened.read(name), value, err_msg=name)
  assert contents(tmp_path / 'whole').keys() == contents(base).keys() | {'chat_template.jinja'}
  assert (tmp_path / 'whole' / 'config.json').read_bytes() == (base / 'config.json').read_bytes()


def test_a_base_of_another_model_is_refused(folders, tmp_path):
  config = odd_dict()
  config['thinker_config']['text_config'] |= {'rope_theta': 5.0}
  config['talker_config']['text_config'] |= {'num_experts': 3}
  other = write(tmp_path / 'other', random_tensors(parse_config(config)), config)
  with pytest.raises(ValueError, match=r'other: not of the same model as (.|\n)*talker(.|\n)*num_experts'):
    convert_to_hf(folders['plain_jax'], tmp_path / 'back', base=other)
  assert not (tmp_path / 'back').exists() and not (tmp_path / 'back.partial').exists()


def test_a_damaged_source_leaves_nothing(folders, tmp_path):
  copy = shutil.copytree(folders['plain_jax'], tmp_path / 'jax')
  largest = max((copy / 'params').rglob('*'), key=lambda p: p.stat().st_size if p.is_file() else 0)
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 16
  largest.write_bytes(data)
  with pytest.raises(ValueError, match='is damaged|not the checkpoint that manifest'):
    convert_to_hf(copy, tmp_path / 'back')
  assert [path.name for path in tmp_path.iterdir()] == ['jax']


def test_command_line(folders, tmp_path):
  run = lambda *arguments: subprocess.run([*CLI, *map(str, arguments)], capture_output=True, text=True)
  plan = run('to-hf', '--from', folders['plain_jax'], '--to', tmp_path / 'hf', '--dry-run')
  assert plan.returncode == 0, plan.stderr
  assert '571 tensors' in plan.stdout and 'thinker: 0.00 GB' in plan.stdout and 'GB free' in plan.stdout
  assert not list(tmp_path.iterdir())
  done = run('to-hf', '--from', folders['plain_jax'], '--to', tmp_path / 'hf')
  assert done.returncode == 0, done.stderr
  assert_same_files(tmp_path / 'hf', folders['plain'])
  done = run('to-jax', '--from', tmp_path / 'hf', '--to', tmp_path / 'part', '--only', 'audio', 'vision')
  assert done.returncode == 0, done.stderr
  loaded = load_params(tmp_path / 'part', parts=('vision',))
  assert_same(loaded, load_params(folders['plain'], parts=('vision',)))
  again = run('to-hf', '--from', tmp_path / 'part', '--to', tmp_path / 'whole', '--base', tmp_path / 'hf', '--fused-experts')
  assert again.returncode == 0, again.stderr
  assert open_folder(tmp_path / 'whole').keys() == open_folder(folders['fused']).keys()
