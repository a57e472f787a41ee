"""A merged LoRA is W + scale * B @ A in float32, under every name PEFT gives it; what cannot be merged is named."""

import json
import pathlib

import ml_dtypes
import numpy as np
import pytest

from qwen3_omni_jax.config_json import parse_config
from qwen3_omni_jax.weights.adapter import Adapter
from qwen3_omni_jax.weights.folder import open_folder
from qwen3_omni_jax.weights.opened import open_checkpoint
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
    expected = by_hand(tensors[name], pairs, MODULES[name], scale)
    np.testing.assert_allclose(opened.read(name), expected, rtol=1e-5, atol=1e-5)  # float32 sums, rounded once


def test_a_replaced_module_and_fused_experts(folder, tensors, tmp_path):
  head = np.full(tensors['thinker.lm_head.weight'].shape, 2.5, np.float32)
  name = 'talker.model.layers.2.mlp.experts.6.down_proj.weight'
  pairs = lora(tensors, {name: MODULES[name]}) | {'thinker.lm_head.weight': head}
  adapter = write_adapter(tmp_path / 'adapter', pairs, modules_to_save=['lm_head'])
  convert_to_hf(folder, tmp_path / 'merged', adapter=adapter, fused_experts=True)
  convert_to_hf(folder, tmp_path / 'plain', adapter=adapter)
  assert (open_checkpoint(tmp_path / 'merged').read('thinker.lm_head.weight') == 2.5).all()
  found, opened = open_folder(tmp_path / 'merged'), open_checkpoint(tmp_path / 'plain')
  plain = {n: opened.read(n) for n in tensors}
  assert (plain[name] != tensors[name]).any()
  for fused, value in fuse(plain).items():
    np.testing.assert_array_equal(found[fused].read(fused), value, err_msg=fused)


REFUSED = {
  'another kind': ({'peft_type': 'IA3'}, 'peft_type: "IA3"'),
  'several options': (
    {'layer_replication': [[0, 2]], 'trainable_token_indices': [1]},
    'only LoRA and DoRA can be merged; merge it with PEFT .*\n  2 unsupported options:\n'
    '    trainable_token_indices: .1.\n    layer_replication: ..0, 2..',
  ),
  'weights changed at the start': ({'init_lora_weights': 'pissa'}, 'init_lora_weights: "pissa": .* save_pretrained.path_initial'),
  'no rank': ({'r': None}, 'not the options of a LoRA adapter'),
  'rank zero': ({'r': 0}, 'must be positive'),
  'a pattern that is none': ({'alpha_pattern': {'q_proj(': 4}}, 'not the options of a LoRA adapter'),
  'a packing that nobody knows': (
    {'lora_B_layout': 'expert_major'},
    "lora_B_layout 'expert_major': expected 'rank_major' or 'gr",
  ),
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
  pairs['model.layers.9.mlp.experts.lora_A.weight'] = np.zeros((R, 52), np.float32)
  pairs['model.layers.0.mlp.experts.lora_A.weight'] = np.zeros((15, 51), np.float32)
  pairs['model.layers.0.mlp.experts.lora_B.weight'] = np.zeros((36, 15), np.float32)
  pairs |= lora(tensors, {(name := 'talker.model.layers.2.mlp.experts.6.down_proj.weight'): MODULES[name]}, rank=2)
  pairs['lm_head.lora_magnitude_vector'] = np.zeros(70, np.float32)
  pairs['thinker.model.norm.weight'] = np.zeros(53, np.float32)
  with pytest.raises(ValueError) as caught:
    convert_to_hf(folder, tmp_path / 'merged', adapter=write_adapter(tmp_path / 'adapter', pairs))
  rows, columns = tensors['thinker.audio_tower.layers.0.fc1.weight'].shape
  base = 'base_model.model.'
  assert str(caught.value).split('\n') == [
    f'{tmp_path / "adapter"}: cannot be merged into this model',
    '  3 unknown:',
    f'    {base}model.layers.9.self_attn.q_proj.lora_A.weight',
    f'    {base}model.layers.9.mlp.experts.lora_A.weight',
    f'    {base}lm_head.lora_magnitude_vector',
    '  1 without its other half:',
    f'    {base}model.layers.0.mlp.gate.lora_A.weight',
    '  3 of another shape:',
    f'    {base}thinker.model.norm.weight: found [53], expected [52]',
    f'    {base}audio_tower.layers.0.fc1.lora_A.weight: with B [3, 7] and [{rows}, 3], for a matrix of [{rows}, {columns}]',
    f'    {base}model.layers.0.mlp.experts.lora_A.weight: with B [15, 51] and [36, 15], for gate_up_proj [5, 36, 52] or '
    'down_proj [5, 52, 18]',
    '  1 of another rank:',
    f'    {base}talker.model.layers.2.mlp.experts.6.down_proj.lora_A.weight: 2, but adapter_config.json says 3',
  ]


# 'E out in' of the two fused parameters of a layer, and what PEFT names a pair for them where both are adapted.
FUSED = {'base_layer.': ('gate_up_proj', (5, 36, 52)), '': ('down_proj', (5, 52, 18))}
LAYER = 'model.language_model.layers.1.mlp.experts'


def packed(rank: int, layout: str, in_out: bool = False) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """Pairs as an adapter packs them, and {fused parameter: B @ A of every expert}."""
  rng = np.random.default_rng(2)
  pairs, deltas = {}, {}
  for nested, (parameter, (count, out, into)) in FUSED.items():
    ends = (out, into) if in_out else (into, out)
    a, b = rng.standard_normal((count, rank, ends[0])), rng.standard_normal((count, ends[1], rank))
    pairs[f'{LAYER}.{nested}lora_A.weight'] = a.reshape(count * rank, -1).astype(np.float32)
    order = {'rank_major': (1, 2, 0), 'grouped_by_expert': (1, 0, 2)}[layout]
    pairs[f'{LAYER}.{nested}lora_B.weight'] = b.transpose(order).reshape(ends[1], -1).astype(np.float32)
    deltas[parameter] = (b @ a).transpose(0, 2, 1) if in_out else b @ a
  return pairs, deltas


def assert_added(adapter: Adapter, deltas: dict[str, np.ndarray], scale: float) -> None:
  parts = {'gate': ('gate_up_proj', slice(0, 18)), 'up': ('gate_up_proj', slice(18, 36)), 'down': ('down_proj', slice(None))}
  for matrix, (parameter, rows) in parts.items():
    for expert, delta in enumerate(deltas[parameter]):
      found = adapter(f'thinker.model.layers.1.mlp.experts.{expert}.{matrix}_proj.weight', np.zeros_like(delta[rows], np.float32))
      np.testing.assert_allclose(found, scale * delta[rows], rtol=1e-4, atol=1e-4, err_msg=f'{matrix} {expert}')


OWN = {name: {'lora_B_layout': 'grouped_by_expert'} for name in ('gate_up_proj', 'down_proj')}
PACKINGS = {
  'PEFT': ('rank_major', False, {'peft_version': '0.21.2'}),
  'marked as such': ('rank_major', False, {'lora_B_layout': 'rank_major', 'auto_mapping': {'unsloth_fixed': True}}),
  'marked as an older tool packed': ('grouped_by_expert', False, {'lora_B_layout': 'grouped_by_expert'}),
  'each parameter marked': ('grouped_by_expert', False, {'unsloth_fused_expert_lora': {'parameters': OWN}}),
  'PEFT until 0.19.0, which took rows for columns': ('rank_major', True, {'peft_version': '0.18.1'}),
}


@pytest.mark.parametrize(('layout', 'in_out', 'options'), PACKINGS.values(), ids=PACKINGS.keys())
def test_a_packed_pair_is_read_as_it_was_packed(tmp_path, layout, in_out, options):
  pairs, deltas = packed(R, layout, in_out)
  adapter = Adapter(write_adapter(tmp_path / 'adapter', pairs, target_modules=[], **options), odd_config('thinking'))
  assert_added(adapter, deltas, 8 / R)


def test_a_tool_that_packed_in_both_ways_has_to_say_which(tmp_path):
  options = {'auto_mapping': {'base_model_class': 'X', 'unsloth_fixed': True}}
  folder = write_adapter(tmp_path / 'adapter', packed(R, 'rank_major')[0], **options)
  with pytest.raises(
    ValueError, match='adapter_config.json: written by Unsloth without lora_B_layout.*: add "lora_B_layout": "gr'
  ):
    Adapter(folder, odd_config('thinking'))
  pairs, deltas = packed(1, 'rank_major')  # of rank 1 both are the same
  assert_added(Adapter(write_adapter(tmp_path / 'one', pairs, r=1, **options), odd_config('thinking')), deltas, 8)


@pytest.mark.parametrize(('version', 'transposed'), [('0.19.0', True), ('0.19.1', False), (None, None)])
def test_a_square_expert_is_read_by_the_version_that_trained_it(tmp_path, version, transposed):
  config = odd_dict('thinking')
  config['thinker_config']['text_config']['moe_intermediate_size'] = 52
  name = 'thinker.model.layers.1.mlp.experts.3.down_proj.weight'
  rng = np.random.default_rng(3)
  a, b = (rng.standard_normal(shape, dtype=np.float32) for shape in ((2 * 5, 52), (52, 2 * 5)))
  pairs = {f'{LAYER}.lora_A.weight': a, f'{LAYER}.lora_B.weight': b}
  folder = write_adapter(tmp_path / 'adapter', pairs, r=2, lora_alpha=2, peft_version=version)
  if version is None:
    with pytest.raises(ValueError, match='adapter_config.json: no peft_version, and these experts have a shape that'):
      Adapter(folder, parse_config(config))
    return
  found = Adapter(folder, parse_config(config))(name, np.zeros((52, 52), np.float32))
  delta = b.reshape(52, 2, 5)[..., 3] @ a.reshape(5, 2, 52)[3]
  np.testing.assert_allclose(found, delta.T if transposed else delta, rtol=1e-5, atol=1e-5)


def test_two_adapters_are_summed_and_one_that_replaces_is_alone(folder, tensors, tmp_path):
  name = 'thinker.model.layers.1.self_attn.q_proj.weight'
  pairs = lora(tensors, {name: MODULES[name]})
  one, two = (write_adapter(tmp_path / text, pairs, lora_alpha=alpha) for text, alpha in (('one', 3), ('two', 6)))
  convert_to_hf(folder, tmp_path / 'merged', adapter=[one, two], dtype='float32')
  expected = by_hand(tensors[name], pairs, MODULES[name], 9 / R)
  np.testing.assert_allclose(open_checkpoint(tmp_path / 'merged').read(name), expected, rtol=1e-5, atol=1e-5)
  whole = write_adapter(tmp_path / 'whole', {name: tensors[name]})
  with pytest.raises(ValueError, match=f'only one adapter can(.|\n)*1 changed by both:\n    {name}: in .*one and .*whole'):
    convert_to_hf(folder, tmp_path / 'both', adapter=[one, whole])


def test_an_adapter_in_another_file_is_named(tmp_path):
  folder = write_adapter(tmp_path / 'adapter', {})
  (folder / 'adapter_model.safetensors').rename(folder / 'adapter_model.bin')
  with pytest.raises(ValueError, match='adapter: found adapter_model.bin, expected adapter_model.safetensors; load it with PEFT'):
    Adapter(folder, odd_config('thinking'))


def test_a_folder_without_an_adapter_is_an_error(folder, tmp_path):
  with pytest.raises(ValueError, match='adapter_config.json: no such file; expected an adapter as PEFT saves it'):
    convert_to_hf(folder, tmp_path / 'merged', adapter=folder)
