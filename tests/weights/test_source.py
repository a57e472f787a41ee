"""Every way a published checkpoint is written gives the same parameters; every mismatch is named."""

import dataclasses
import re

import ml_dtypes
import numpy as np
import pytest

from qwen3_omni_jax.config_json import load_config
from qwen3_omni_jax.weights.load import load_params
from qwen3_omni_jax.weights.safetensors import Shard

from .folders import assert_same, fuse, odd_config, odd_dict, random_tensors, write


@pytest.fixture(scope='module')
def tensors():
  return random_tensors(odd_config())


@pytest.fixture(scope='module')
def params(tensors, tmp_path_factory):
  return load_params(write(tmp_path_factory.mktemp('plain') / 'hf', tensors))


def test_fused_experts_give_the_same_parameters(tensors, params, tmp_path):
  fused = fuse(tensors)
  assert 'thinker.model.language_model.layers.3.mlp.experts.gate_up_proj' in fused and len(fused) < len(tensors)
  assert_same(load_params(write(tmp_path / 'hf', fused)), params)


@pytest.mark.parametrize('layout', [dict, fuse])
def test_a_thinker_saved_alone_gives_the_same_thinker(tensors, params, tmp_path, layout):
  thinker = layout({name: value for name, value in tensors.items() if name.startswith('thinker.')})
  alone = {name.removeprefix('thinker.'): value for name, value in thinker.items()}
  loaded = load_params(write(tmp_path / 'hf', alone, odd_dict('thinking')))
  assert_same(loaded, {part: params[part] for part in ('audio', 'vision', 'thinker')})


def test_one_file_without_an_index(tensors, params, tmp_path):
  folder = write(tmp_path / 'hf', tensors, shard_bytes=10**9)
  (folder / 'model.safetensors.index.json').unlink()
  (folder / 'model-00001-of-00001.safetensors').rename(folder / 'model.safetensors')
  assert_same(load_params(folder), params)


def test_parts_are_parts_of_the_whole(tensors, params, tmp_path):
  loaded = load_params(write(tmp_path / 'hf', tensors), parts=('audio', 'code2wav'))
  assert_same(loaded, {part: params[part] for part in ('audio', 'code2wav')})


def test_a_part_that_is_not_there_is_an_error(tmp_path):
  folder = write(tmp_path / 'hf', random_tensors(odd_config('thinking')), odd_dict('thinking'))
  with pytest.raises(ValueError, match='has no talker; it has audio, vision, thinker'):
    load_params(folder, parts=('talker',))


@pytest.mark.parametrize('other', [np.float32, np.float16])
def test_a_stack_of_mixed_dtypes_keeps_every_value(tmp_path, other):
  """float32 holds every bfloat16 and every float16; neither of these holds the other."""
  narrow = 'thinker.model.layers.0.mlp.experts.0.gate_proj.weight'
  tensors = random_tensors(odd_config(), dtype=other)
  tensors[narrow] = tensors[narrow].astype(ml_dtypes.bfloat16)
  loaded = load_params(write(tmp_path / 'hf', tensors), parts=('thinker',))['thinker']
  gate = loaded['layers']['moe']['experts']['gate']
  assert gate.dtype == np.float32 and loaded['layers']['moe']['experts']['up'].dtype == other
  np.testing.assert_array_equal(gate[0, 0], tensors[narrow].T.astype(np.float32))
  expert = 'thinker.model.layers.3.mlp.experts.4.gate_proj.weight'
  np.testing.assert_array_equal(gate[3, 4], tensors[expert].T.astype(np.float32))


def test_dtype_converts_each_array(tensors, params, tmp_path):
  loaded = load_params(write(tmp_path / 'hf', tensors), dtype='bfloat16', parts=('vision',))
  expected = params['vision']['patch']['kernel'].astype(ml_dtypes.bfloat16)
  assert loaded['vision']['patch']['kernel'].dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(loaded['vision']['patch']['kernel'], expected)
  with pytest.raises(ValueError, match="dtype 'int8': expected one of bfloat16, float16, float32"):
    load_params(tmp_path / 'hf', dtype='int8')


def test_every_mismatch_is_listed(tensors, tmp_path):
  broken = dict(tensors)
  layers = 'thinker.model.layers'
  for expert in range(5):
    for matrix in ('gate', 'up'):
      del broken[f'{layers}.1.mlp.experts.{expert}.{matrix}_proj.weight']
  del broken['code2wav.decoder.0.conv.bias']
  broken['thinker.model.layers.9.new.weight'] = np.zeros(3, np.float32)
  broken['talker.codec_head.weight'] = broken['talker.codec_head.weight'].T
  broken['thinker.lm_head.weight'] = np.zeros(broken['thinker.lm_head.weight'].shape, np.int8)
  folder = write(tmp_path / 'hf', broken)
  with pytest.raises(ValueError) as caught:
    load_params(folder)
  rows, width = tensors['talker.codec_head.weight'].shape
  assert str(caught.value).split('\n') == [
    f'{folder}: the weights do not match config.json',
    '  11 missing:',
    f'    {layers}.1.mlp.experts.{{0-4}}.gate_proj.weight  (5)',
    f'    {layers}.1.mlp.experts.{{0-4}}.up_proj.weight  (5)',
    '    code2wav.decoder.0.conv.bias',
    '  1 unknown:',
    f'    {layers}.9.new.weight',
    '  1 of another shape:',
    f'    talker.codec_head.weight: found [{width}, {rows}], expected [{rows}, {width}]',
    '  1 not floating point:',
    '    thinker.lm_head.weight: int8',
  ]


def test_experts_in_both_layouts_at_once_are_an_error(tensors, tmp_path):
  both = tensors | {name: value for name, value in fuse(tensors).items() if name.endswith('.3.mlp.experts.down_proj')}
  with pytest.raises(ValueError, match=r'5 present twice:\n +thinker\.model\.layers\.3\.mlp\.experts\.\{0-4\}\.down'):
    load_params(write(tmp_path / 'hf', both))


def test_fused_experts_that_do_not_divide_are_named(tensors, tmp_path):
  fused = fuse(tensors)
  name = 'thinker.model.language_model.layers.2.mlp.experts.gate_up_proj'
  fused[name] = fused[name][:4, :-1]
  with pytest.raises(ValueError) as caught:
    load_params(write(tmp_path / 'hf', fused))
  experts = 'thinker.model.layers.2.mlp.experts'
  assert f'2 missing:\n    {experts}.4.gate_proj.weight\n    {experts}.4.up_proj.weight\n' in str(caught.value)
  assert f'{experts}.{{0-3}}.gate_proj.weight: found [17, 52], expected [18, 52]' in str(caught.value)


def test_only_the_bytes_of_a_fused_expert_are_read(tensors, tmp_path, monkeypatch):
  read = []
  plain = np.fromfile
  monkeypatch.setattr(np, 'fromfile', lambda *a, **k: (read.append(a[2]), plain(*a, **k))[1])
  folder = write(tmp_path / 'hf', fuse(tensors))
  shard = next(
    s for s in map(Shard, sorted(folder.glob('*.safetensors'))) if 'talker.model.layers.2.mlp.experts.gate_up_proj' in s.names()
  )
  value = shard.read('talker.model.layers.2.mlp.experts.gate_up_proj', (6, slice(14, 28)))
  np.testing.assert_array_equal(value, tensors['talker.model.layers.2.mlp.experts.6.up_proj.weight'])
  assert read == [value.nbytes]


def test_what_transformers_writes_is_read(tiny_folder, tmp_path):
  """save_pretrained of the whole model in both layouts, and of the Thinker alone; transformers finds nothing amiss."""
  from tests.reference import Reference

  model = Reference.load(tiny_folder).model.bfloat16()  # bf16 weights are exact in the float32 it loads
  expected = load_params(tiny_folder)
  model.save_pretrained(tmp_path / 'whole', max_shard_size='1MB')
  model.save_pretrained(tmp_path / 'fused', save_original_format=False)
  for name in ('whole', 'fused'):
    assert_same(load_params(tmp_path / name), expected)
  assert any(re.search(r'experts\.gate_up_proj', n) for n in Shard(tmp_path / 'fused' / 'model.safetensors').names())
  model.thinker.save_pretrained(tmp_path / 'thinker')
  # Its config.json lacks the tokens of the whole model, whose defaults lie outside this small vocabulary.
  cfg = dataclasses.replace(load_config(tiny_folder), talker=None, code2wav=None)
  assert_same(load_params(tmp_path / 'thinker', cfg), {n: expected[n] for n in ('audio', 'vision', 'thinker')})
