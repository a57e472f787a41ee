"""Either kind of folder shows the same published tensors, reads only what is asked for, and says what is wrong."""

import json
import pathlib
import shutil

import ml_dtypes
import numpy as np
import pytest

from qwen3_omni_jax.weights import store, writer
from qwen3_omni_jax.weights.opened import open_checkpoint
from qwen3_omni_jax.weights.safetensors import INDEX
from qwen3_omni_jax.weights.to_jax import convert_to_jax

from .folders import fuse, odd_config, odd_dict, random_tensors, write


@pytest.fixture(scope='module')
def tensors():
  return random_tensors(odd_config(), dtype=ml_dtypes.bfloat16)


@pytest.fixture(scope='module')
def folders(tensors, tmp_path_factory) -> dict[str, pathlib.Path]:
  root = tmp_path_factory.mktemp('opened')
  plain, fused = write(root / 'plain', tensors), write(root / 'fused', fuse(tensors))
  convert_to_jax(plain, root / 'jax')
  return {'plain': plain, 'fused': fused, 'jax': root / 'jax'}


@pytest.mark.parametrize('kind', ['plain', 'fused', 'jax'])
@pytest.mark.parametrize('chunk_bytes', [None, 1000])
def test_every_kind_shows_the_same_tensors(folders, tensors, kind, chunk_bytes, monkeypatch, tmp_path):
  folder = folders[kind]
  if kind == 'jax' and chunk_bytes:  # several chunks to a tensor
    monkeypatch.setattr(writer, 'CHUNK_BYTES', chunk_bytes)
    convert_to_jax(folders['plain'], folder := tmp_path / 'jax')
  opened = open_checkpoint(folder)
  assert opened.kind == ('converted' if kind == 'jax' else 'published')
  assert opened.names() == tuple(tensors) and not opened.unknown and not opened.missing
  assert opened.parts == ('audio', 'vision', 'thinker', 'talker', 'code_predictor', 'code2wav')
  for name, expected in tensors.items():
    value = opened.read(name)
    assert opened.shape(name) == value.shape == expected.shape
    assert opened.dtype(name) == value.dtype == expected.dtype
    np.testing.assert_array_equal(value.view(np.uint16), expected.view(np.uint16), err_msg=name)


def test_one_expert_is_one_chunk(folders, tensors, monkeypatch):
  read = []
  plain = store.Arrays.read
  monkeypatch.setattr(store.Arrays, 'read', lambda self, path, index, *a: (read.append(index), plain(self, path, index, *a))[1])
  name = 'thinker.model.layers.3.mlp.experts.4.up_proj.weight'
  np.testing.assert_array_equal(open_checkpoint(folders['jax']).read(name), tensors[name])
  assert read == [(3, 4, slice(0, 52))]


def broken_published(folder: pathlib.Path, tensors) -> None:
  changed = dict(tensors)
  del changed['thinker.model.norm.weight']
  changed['talker.codec_head.weight'] = changed['talker.codec_head.weight'].T
  changed['talker.new'] = np.zeros(3, np.float32)
  write(folder, changed)


def test_a_published_folder_that_does_not_match_opens_as_far_as_it_goes(tensors, tmp_path):
  broken_published(tmp_path / 'hf', tensors)
  with pytest.raises(ValueError, match='1 missing'):
    open_checkpoint(tmp_path / 'hf')
  opened = open_checkpoint(tmp_path / 'hf', strict=False)
  assert opened.missing == ('thinker.model.norm.weight',) and list(opened.unknown) == ['talker.new']
  assert opened.shape('talker.codec_head.weight') == tensors['talker.codec_head.weight'].T.shape
  wrong = {kind for kind, names in opened.problems.items() if names}
  assert wrong == {'missing', 'unknown', 'of_another_shape'}


def test_a_lost_shard_is_a_problem_of_its_own(tensors, tmp_path):
  folder = write(tmp_path / 'hf', tensors, shard_bytes=500_000)
  file = json.loads((folder / INDEX).read_text())['weight_map']['thinker.model.norm.weight']
  (folder / file).unlink()
  with pytest.raises(ValueError, match=f'{file}, which does not exist: '):
    open_checkpoint(folder)
  opened = open_checkpoint(folder, strict=False)
  assert 'thinker.model.norm.weight' in opened.missing and 0 < len(opened.missing) < len(tensors)
  assert {kind for kind, names in opened.problems.items() if names} == {'missing', 'listed_but_not_there'}


def test_a_converted_folder_of_another_config_opens_as_far_as_it_goes(folders, tmp_path):
  config = odd_dict()
  config['thinker_config']['text_config'] |= {'num_experts': 4}
  folder = shutil.copytree(folders['jax'], tmp_path / 'jax')
  (folder / 'config.json').write_text(json.dumps(config))
  with pytest.raises(ValueError, match='4 of another shape'):
    open_checkpoint(folder)
  opened = open_checkpoint(folder, strict=False)
  assert len(opened.problems['of_another_shape']) == 4
  assert all('.experts.' in name or '.mlp.gate.' in name for name in opened.missing) and opened.missing


def test_without_config_or_weights_there_is_nothing_to_open(tmp_path):
  for strict in (True, False):
    with pytest.raises(ValueError, match='no such folder'):
      open_checkpoint(tmp_path / 'nowhere', strict=strict)
    with pytest.raises(ValueError, match='config.json'):
      open_checkpoint(tmp_path, strict=strict)
  (tmp_path / 'config.json').write_text(json.dumps(odd_dict()))
  with pytest.raises(ValueError, match='no safetensors files'):
    open_checkpoint(tmp_path, strict=False)
