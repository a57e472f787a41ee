"""A merged LoRA is W + scale * B @ A in float32, under every name PEFT gives it; what cannot be merged is named."""

import json
import pathlib

import ml_dtypes
import numpy as np
import pytest

from qwen3_omni_jax.weights.opened import open_checkpoint
from qwen3_omni_jax.weights.safetensors import open_folder
from qwen3_omni_jax.weights.to_hf import convert_to_hf

from .folders import fuse, odd_config, odd_dict, random_tensors, write

R = 3
# published name: the module as PEFT names it, for models held in different ways
MODULES = {
  'thinker.model.layers.1.self_attn.q_proj.weight': 'thinker.model.layers.1.self_attn.q_proj',
  'thinker.model.layers.2.self_attn.o_proj.weight': 'thinker.model.language_model.layers.2.self_attn.o_proj',
  'thinker.model.layers.0.mlp.gate.weight': 'model.layers.0.mlp.gate',
  'thinker.model.layers.3.mlp.experts.4.up_proj.weight': 'model.layers.3.mlp.experts.4.up_proj',
  'thinker.visual.blocks.1.attn.qkv.weight': 'model.visual.blocks.1.attn.qkv',
  'thinker.audio_tower.layers.0.fc1.weight': 'audio_tower.layers.0.fc1',
  'talker.model.layers.2.mlp.experts.6.down_proj.weight': 'talker.model.layers.2.mlp.experts.6.down_proj',
}


@pytest.fixture(scope='module')
def tensors():
  return random_tensors(odd_config(), dtype=ml_dtypes.bfloat16)


@pytest.fixture(scope='module')
def folder(tensors, tmp_path_factory) -> pathlib.Path:
  return write(tmp_path_factory.mktemp('base') / 'hf', tensors)


def write_adapter(folder: pathlib.Path, tensors: dict[str, np.ndarray], **options) -> pathlib.Path:
  write(folder, {f'base_model.model.{name}': value for name, value in tensors.items()}, odd_dict(), shard_bytes=10**9)
  (folder / 'model-00001-of-00001.safetensors').rename(folder / 'adapter_model.safetensors')
  for other in ('config.json', 'model.safetensors.index.json'):
    (folder / other).unlink()
  config = {'peft_type': 'LORA', 'r': R, 'lora_alpha': 8, 'bias': 'none', 'use_dora': False, 'init_lora_weights': True}
  (folder / 'adapter_config.json').write_text(json.dumps(config | options))
  return folder


def lora(tensors, modules=MODULES, rank: int = R) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(1)
  out = {}
  for name, module in modules.items():
    rows, columns = tensors[name].shape
    out[f'{module}.lora_A.weight'] = rng.standard_normal((rank, columns), dtype=np.float32)
    out[f'{module}.lora_B.weight'] = rng.standard_normal((rows, rank), dtype=np.float32)
  return out


def by_hand(value: np.ndarray, pairs, module: str, scale: float) -> np.ndarray:
  a, b = (pairs[f'{module}.lora_{half}.weight'].astype(np.float64) for half in 'AB')
  return value.astype(np.float64) + scale * (b @ a)


@pytest.mark.parametrize(('options', 'scale'), [({}, 8 / R), ({'use_rslora': True}, 8 / np.sqrt(R))])
def test_every_name_is_merged_and_nothing_else_changes(folder, tensors, tmp_path, options, scale):
  pairs = lora(tensors)
  adapter = write_adapter(tmp_path / 'adapter', pairs, **options)
  convert_to_hf(folder, tmp_path / 'merged', adapter=adapter)
  opened = open_checkpoint(tmp_path / 'merged')
  for name, value in tensors.items():
    if name not in MODULES:
      np.testing.assert_array_equal(opened.read(name), value, err_msg=name)
      continue
    expected = by_hand(value, pairs, MODULES[name], scale)
    found = opened.read(name)
    assert found.dtype == ml_dtypes.bfloat16
    # float32 sums and bfloat16 rounding: half a unit in the last place of 8 bits, and float32's error before it
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=2**-8 * 1.01, atol=1e-5, err_msg=name)
    assert np.abs(found.astype(np.float64) - value.astype(np.float64)).max() > 1


def test_patterns_of_rank_and_alpha(folder, tensors, tmp_path):
  names = list(MODULES)[:2]
  pairs = lora(tensors, {names[0]: MODULES[names[0]]}, rank=2) | lora(tensors, {names[1]: MODULES[names[1]]})
  adapter = write_adapter(tmp_path / 'adapter', pairs, rank_pattern={'layers.1.self_attn.q_proj': 2}, alpha_pattern={'o_proj': 5})
  convert_to_hf(folder, tmp_path / 'merged', adapter=adapter, dtype='float32')
  opened = open_checkpoint(tmp_path / 'merged')
  for name, scale in zip(names, (8 / 2, 5 / R), strict=True):
    # Merged in the tensor's own dtype, then widened.
    expected = by_hand(tensors[name], pairs, MODULES[name], scale)
    np.testing.assert_allclose(opened.read(name), expected, rtol=2**-8 * 1.01, atol=1e-5)


def test_a_replaced_module_and_fused_experts(folder, tensors, tmp_path):
  head = np.full(tensors['thinker.lm_head.weight'].shape, 2.5, np.float32)
  name = 'talker.model.layers.2.mlp.experts.6.down_proj.weight'
  pairs = lora(tensors, {name: MODULES[name]}) | {'thinker.lm_head.weight': head}
  adapter = write_adapter(tmp_path / 'adapter', pairs, modules_to_save=['lm_head'])
  convert_to_hf(folder, tmp_path / 'merged', adapter=adapter, fused_experts=True)
  convert_to_hf(folder, tmp_path / 'plain', adapter=adapter)
  assert (open_checkpoint(tmp_path / 'merged').read('thinker.lm_head.weight') == 2.5).all()
  found = open_folder(tmp_path / 'merged')
  plain = {n: open_checkpoint(tmp_path / 'plain').read(n) for n in tensors}
  assert (plain[name] != tensors[name]).any()
  for fused, value in fuse(plain).items():
    np.testing.assert_array_equal(found[fused].read(fused), value, err_msg=fused)


REFUSED = {
  'dora': ({'use_dora': True}, 'only plain LoRA can be merged\n  1 unsupported options:\n    use_dora: True'),
  'bias': ({'bias': 'lora_only'}, "bias: 'lora_only'"),
  'another kind': ({'peft_type': 'IA3'}, "peft_type: 'IA3'"),
  'weights changed at the start': ({'init_lora_weights': 'pissa'}, "init_lora_weights: 'pissa'"),
  'parameters of fused experts': ({'target_parameters': ['experts.gate_up_proj']}, 'target_parameters'),
  'no rank': ({'r': None}, 'not the options of a LoRA adapter'),
  'rank zero': ({'r': 0}, 'must be positive'),
}


@pytest.mark.parametrize(('options', 'expected'), REFUSED.values(), ids=REFUSED.keys())
def test_other_kinds_are_refused_by_name(folder, tensors, tmp_path, options, expected):
  adapter = write_adapter(tmp_path / 'adapter', lora(tensors), **options)
  with pytest.raises(ValueError, match=f'adapter_config.json: (.|\n)*{expected}'):
    convert_to_hf(folder, tmp_path / 'merged', adapter=adapter)
  assert [path.name for path in tmp_path.iterdir()] == ['adapter']


def test_tensors_that_do_not_fit_are_all_listed(folder, tensors, tmp_path):
  pairs = lora(tensors)
  del pairs['model.layers.0.mlp.gate.lora_B.weight']
  pairs['audio_tower.layers.0.fc1.lora_A.weight'] = np.zeros((R, 7), np.float32)
  pairs['model.layers.9.self_attn.q_proj.lora_A.weight'] = np.zeros((R, 52), np.float32)
  pairs['lm_head.lora_magnitude_vector'] = np.zeros(70, np.float32)
  pairs['thinker.model.norm.weight'] = np.zeros(53, np.float32)
  with pytest.raises(ValueError) as caught:
    convert_to_hf(folder, tmp_path / 'merged', adapter=write_adapter(tmp_path / 'adapter', pairs))
  rows, columns = tensors['thinker.audio_tower.layers.0.fc1.weight'].shape
  base = 'base_model.model.'
  assert str(caught.value).split('\n') == [
    f'{tmp_path / "adapter"}: cannot be merged into this model',
    '  2 unknown:',
    f'    {base}model.layers.9.self_attn.q_proj.lora_A.weight',
    f'    {base}lm_head.lora_magnitude_vector',
    '  1 without its other half:',
    f'    {base}model.layers.0.mlp.gate.lora_A.weight',
    '  2 of another shape:',
    f'    {base}thinker.model.norm.weight: found [53], expected [52]',
    f'    {base}audio_tower.layers.0.fc1.lora_A.weight: with B [3, 7] and [{rows}, 3], for a matrix of [{rows}, {columns}]',
  ]


def test_a_folder_without_an_adapter_is_an_error(folder, tmp_path):
  with pytest.raises(ValueError, match='adapter_config.json: no such file; expected an adapter as PEFT saves it'):
    convert_to_hf(folder, tmp_path / 'merged', adapter=folder)
