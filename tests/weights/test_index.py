"""The union of the shards' headers decides what a folder holds; where an index is wrong, it is named and does no harm."""

import json
import pathlib
import shutil

import ml_dtypes
import numpy as np
import pytest

from qwen3_omni_jax.cli import main
from qwen3_omni_jax.weights.folder import open_folder
from qwen3_omni_jax.weights.load import load_params
from qwen3_omni_jax.weights.opened import open_checkpoint
from qwen3_omni_jax.weights.safetensors import INDEX, write_shards
from qwen3_omni_jax.weights.to_hf import convert_to_hf
from qwen3_omni_jax.weights.to_jax import convert_to_jax

from .folders import assert_same, contents, odd_config, odd_dict, random_tensors, write

CFG = odd_config('thinking')
NORM, EMBED = 'thinker.model.norm.weight', 'thinker.model.embed_tokens.weight'
S1, S2, S3 = (f'model-0000{i}-of-00003.safetensors' for i in (1, 2, 3))  # EMBED is in the first, NORM in the second


@pytest.fixture(scope='module')
def tensors():
  return random_tensors(CFG, dtype=ml_dtypes.bfloat16)


@pytest.fixture(scope='module')
def good(tensors, tmp_path_factory) -> pathlib.Path:
  return write(tmp_path_factory.mktemp('good') / 'hf', tensors, odd_dict('thinking'), shard_bytes=200_000)


@pytest.fixture(scope='module')
def params(good):
  return load_params(good)


def edited(**changes):
  """The index with these entries; None takes one away."""

  def change(folder: pathlib.Path) -> None:
    data = json.loads((folder / INDEX).read_text())
    data['weight_map'] |= changes
    data['weight_map'] = {name: file for name, file in data['weight_map'].items() if file is not None}
    (folder / INDEX).write_text(json.dumps(data))

  return change


def without_size(folder: pathlib.Path) -> None:
  data = json.loads((folder / INDEX).read_text())
  (folder / INDEX).write_text(json.dumps({'weight_map': data['weight_map']}))


def rewritten(folder: pathlib.Path, tensors, shard_bytes: int) -> None:
  """Other shards beside those that are there, and their index."""
  write_shards(folder, tensors.items(), {n: (v.dtype, v.shape) for n, v in tensors.items()}, shard_bytes)


def swapped(folder: pathlib.Path) -> None:
  (folder / S1).rename(folder / 'x')
  (folder / S3).rename(folder / S1)
  (folder / 'x').rename(folder / S3)


def renamed(folder: pathlib.Path) -> None:
  """Shards of other names, and no index."""
  (folder / INDEX).unlink()
  for i, path in enumerate(sorted(folder.glob('*.safetensors'))):
    path.rename(folder / f'thinker_part{i}.safetensors')


def copied(name: str, *, listed: bool):
  """A tensor in a second shard too, with other values; the index names the first copy."""

  def change(folder: pathlib.Path) -> None:
    shard = open_folder(folder)[name]
    value = np.zeros_like(shard.read(name))
    other = folder / 'other'
    other.mkdir()
    write_shards(other, [(name, value)], {name: (value.dtype, value.shape)})
    (other / 'model-00001-of-00001.safetensors').rename(folder / 'aside.safetensors')
    shutil.rmtree(other)
    if listed:
      edited(mtp='aside.safetensors')(folder)

  return change


STALE = {  # what is done to a folder, and what is said
  'no index, other names': (renamed, None),
  'no total size': (without_size, None),
  'a tensor less': (edited(**{NORM: None}), f'  1 not in the index:\n    {NORM}: in {S2}'),
  'another shard': (edited(**{EMBED: S3}), f'  1 elsewhere in the index:\n    {EMBED}: in {S1}, the index says {S3}'),
  'a shard that is not there': (edited(**{EMBED: 'm-9.safetensors'}), f'{EMBED}: in {S1}, the index says m-9.safetensors'),
  'two shards swapped': (swapped, f'the index says {S1}'),
  'a tensor that is nowhere': (
    edited(**{'talker.codec_head.weight': S1, 'mtp.norm': 'mtp.safetensors'}),
    '  2 listed but not there:\n'
    f'    {S1}, which does not hold them: talker.codec_head.weight\n'
    '    mtp.safetensors, which does not exist: mtp.norm',
  ),
  'a copy in a shard that it does not list': (
    copied(NORM, listed=False),
    '  1 files of which nothing is used:\n    aside.safetensors',
  ),
  'a copy in a shard that it lists': (
    copied(NORM, listed=True),
    f'  1 present twice:\n    {NORM}: in {S2}, which the index names, and in aside.safetensors',
  ),
}


@pytest.mark.parametrize(('change', 'said'), STALE.values(), ids=STALE.keys())
def test_a_wrong_index_is_named_and_does_no_harm(good, params, tmp_path, capsys, change, said):
  folder = shutil.copytree(good, tmp_path / 'hf')
  change(folder)
  assert_same(load_params(folder), params)
  assert_said(capsys.readouterr().err, folder, said)
  assert main(['convert', 'verify', str(good), str(folder)]) == 0
  assert (said or 'agree bit for bit') in capsys.readouterr().out.replace('_in_B', '').replace(' in B:', ':')
  assert main(['convert', 'inspect', str(folder)]) == 0
  assert (said or 'a tensor per expert') in capsys.readouterr().out
  convert_to_jax(folder, tmp_path / 'jax')
  convert_to_hf(tmp_path / 'jax', tmp_path / 'back')
  capsys.readouterr()
  assert_same(load_params(tmp_path / 'back'), params)
  assert_said(capsys.readouterr().err, folder, None)  # the index that is given back is right


def assert_said(text: str, folder: pathlib.Path, said: str | None) -> None:
  if said is None:
    assert text == ''
  else:
    assert text.startswith(f'{folder}: read as the headers of its shards say\n') and said in text


def test_shards_left_over_from_another_save_are_not_used(good, params, tensors, tmp_path, capsys):
  folder = shutil.copytree(good, tmp_path / 'hf')
  rewritten(folder, {name: np.zeros_like(value) for name, value in tensors.items()}, 300_000)  # an old save of two files
  shutil.copyfile(good / INDEX, folder / INDEX)
  (folder / 'half.safetensors').write_bytes((folder / S1).read_bytes()[:1000])
  (folder / 'adapter_model.safetensors').write_bytes(b'')
  assert_same(load_params(folder), params)
  said = capsys.readouterr().err
  assert '  2 files of which nothing is used:\n    model-00001-of-00002.safetensors\n    model-00002-of-00002' in said
  assert '1 files that cannot be read and are not in the index:\n' in said and 'half.safetensors: not a safetensors file' in said
  assert '(convert to-hf --adapter):\n    adapter_model.safetensors' in said
  before = contents(folder)
  convert_to_jax(folder, tmp_path / 'jax')
  convert_to_hf(tmp_path / 'jax', tmp_path / 'back')
  back = contents(tmp_path / 'back')
  assert back == {name: before[name] for name in back} and len(back) == 5  # three shards, index, config


def test_tensors_beside_the_model_in_a_shard_that_the_index_does_not_list(good, params, tmp_path, capsys):
  folder = shutil.copytree(good, tmp_path / 'hf')
  other = tmp_path / 'other'
  other.mkdir()
  write_shards(other, [('mtp.norm', np.zeros(3, np.int8))], {'mtp.norm': (np.dtype(np.int8), (3,))})
  (other / 'model-00001-of-00001.safetensors').rename(folder / 'mtp.safetensors')
  assert_same(load_params(folder), params)
  assert '  1 not of this model and not in the index:\n    mtp.norm' in capsys.readouterr().err
  edited(mtp='mtp.safetensors')(folder)  # now the index says that it belongs to the model
  with pytest.raises(ValueError, match='1 unknown:\n +mtp.norm'):
    load_params(folder)


def test_what_no_shard_holds_is_missing_with_the_place_where_it_should_be(good, tmp_path):
  folder = shutil.copytree(good, tmp_path / 'hf')
  (folder / S2).unlink()
  edited(**{EMBED: None})(folder)
  with pytest.raises(ValueError) as caught:
    load_params(folder)
  assert ' missing:\n' in str(caught.value) and f'{NORM}\n' in str(caught.value)
  assert f'{S2}, which does not exist: ' in str(caught.value)
  assert EMBED not in str(caught.value)


def test_two_copies_that_no_index_tells_apart_are_an_error(good, tmp_path):
  folder = shutil.copytree(good, tmp_path / 'hf')
  copied(NORM, listed=False)(folder)
  (folder / INDEX).unlink()
  with pytest.raises(ValueError, match=f'1 repeated:\n +{NORM}: in both aside.safetensors and {S2}'):
    load_params(folder)
  assert open_checkpoint(folder, strict=False).problems['repeated']
