"""What PEFT trains on transformers' model is merged as PEFT merges it itself: by numbers, every tensor of the model."""

import copy
import pathlib
import re
import warnings

import numpy as np
import pytest
from qwen3_omni_jax.train.adapter import write_adapter
from qwen3_omni_jax.train.config import LoraPart, Recipe
from qwen3_omni_jax.train.state import assign_roles

from qwen3_omni_jax.weights.folder import open_folder
from qwen3_omni_jax.weights.spelling import memory_name
from qwen3_omni_jax.weights.table import published
from qwen3_omni_jax.weights.to_hf import convert_to_hf
from tests.reference import load_model

from .folders import odd_config, random_tensors, write

GATE_UP, DOWN = 'mlp.experts.gate_up_proj', 'mlp.experts.down_proj'
ADAPTERS = {  # of 5 experts (7 in the Talker) and rank 3, unlike every width
  'both parameters of the experts': {'target_modules': [], 'target_parameters': [GATE_UP, DOWN]},
  'beside attention, rsLoRA': {'target_modules': ['q_proj', 'fc1'], 'target_parameters': [DOWN, GATE_UP], 'use_rslora': True},
  'gate and up, and the router': {'target_modules': ['o_proj'], 'target_parameters': [GATE_UP, 'mlp.gate.weight']},
  'down of one layer': {'target_modules': [], 'target_parameters': ['layers.2.mlp.experts.down_proj'], 'use_rslora': True},
  'patterns': {
    'target_modules': ['k_proj'],
    'target_parameters': [GATE_UP, DOWN, 'mlp.gate.weight'],
    'rank_pattern': {'experts.gate_up_proj': 4, r'talker.*\.down_proj': 2, 'gate.weight': 1},
    'alpha_pattern': {'mlp.experts.down_proj': 5, 'layers.1.self_attn.k_proj': 9, 'gate.weight': 7},
  },
  'names of transformers 4': {'target_modules': ['v_proj', 'gate_proj', 'up_proj', 'down_proj', 'gate']},
  'DoRA': {'target_modules': ['o_proj', 'fc2', 'qkv'], 'use_dora': True, 'use_rslora': True},
  'biases': {'target_modules': ['fc1'], 'bias': 'all', 'lora_bias': True},
  'embeddings, and modules saved whole': {
    'target_modules': ['embed_tokens', 'q_proj'],
    'modules_to_save': ['thinker.lm_head', 'mlp.experts'],
  },
}


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  folder = write(tmp_path_factory.mktemp('base') / 'hf', random_tensors(odd_config()))
  return folder, load_model(folder)


def trained(model, name: str, **options):
  """PEFT's model with an adapter, every trained number of it drawn at random."""
  import peft
  import torch

  config = peft.LoraConfig(r=3, lora_alpha=8, **options)
  if isinstance(model, peft.PeftModel):
    model.add_adapter(name, config)
    model.set_adapter(name)
  else:
    model = peft.get_peft_model(model, config, adapter_name=name)
  torch.manual_seed(0)
  for parameter in model.parameters():
    if parameter.requires_grad:
      parameter.data = torch.randn(parameter.shape) / 2
  return model


def assert_merged(folder: pathlib.Path, theirs, before) -> set[str]:
  """The folder holds what PEFT merged. Returns the names of the tensors that the merge changed."""
  found, expected = open_folder(folder), theirs.state_dict()
  assert found.keys() == expected.keys()
  changed = set()
  for name, shard in found.items():
    ours, value = shard.read(name), expected[name].numpy()
    np.testing.assert_allclose(ours, value, rtol=1e-5, atol=1e-4, err_msg=name)  # float32 sums of numbers up to 50
    if not np.array_equal(value, before[name].numpy()):
      changed.add(name)
  return changed


@pytest.mark.parametrize('options', ADAPTERS.values(), ids=ADAPTERS.keys())
def test_an_adapter_is_merged_as_peft_merges_it(base, tmp_path, options):
  folder, model = base
  theirs = trained(copy.deepcopy(model), 'default', **copy.deepcopy(options))
  theirs.save_pretrained(tmp_path / 'adapter', save_embedding_layers=False)  # PEFT cannot find the Omni's
  convert_to_hf(folder, tmp_path / 'merged', adapter=tmp_path / 'adapter', fused_experts=True)
  changed = assert_merged(tmp_path / 'merged', theirs.merge_and_unload(), model.state_dict())
  for target in (*options['target_modules'], *options.get('target_parameters', ())):
    assert any(target.removesuffix('.weight') in name for name in changed) or target in ('gate_proj', 'up_proj')


def test_two_adapters_of_the_same_experts_are_merged_as_peft_merges_them(base, tmp_path):
  folder, model = base
  theirs = trained(copy.deepcopy(model), 'one', target_modules=['q_proj'], target_parameters=[GATE_UP, DOWN])
  theirs = trained(theirs, 'two', target_modules=['q_proj'], target_parameters=[DOWN, GATE_UP], use_rslora=True)
  theirs.save_pretrained(tmp_path / 'adapters')
  folders = [tmp_path / 'adapters' / name for name in ('one', 'two')]
  convert_to_hf(folder, tmp_path / 'merged', adapter=folders, fused_experts=True)
  merged = theirs.merge_and_unload(adapter_names=['one', 'two'])
  assert len(assert_merged(tmp_path / 'merged', merged, model.state_dict())) > 20


RECIPES = {
  'every kind of matrix': {
    'thinker/layers/(attn/[qo]|moe/router)': (2, 3.0),
    'thinker/layers/moe/experts/(gate|up)': (3, 8.0),
    'thinker/layers/moe/experts/down': (4, 5.0),
    'vision/layers/(attn/qkv|mlp/up)': (3, 3.0),
    'audio/(conv_out|layers/attn/v)': (2, 1.0),
    'thinker/head': (5, 3.0),
  },
  'gate and up unlike each other': {'thinker/layers/moe/experts/gate': (2, 8.0), 'thinker/layers/moe/experts/up': (4, 3.0)},
  'up alone': {'thinker/layers/moe/experts/up': (3, 8.0)},
}


@pytest.mark.parametrize('parts', RECIPES.values(), ids=RECIPES.keys())
def test_peft_loads_what_training_writes(base, tmp_path, parts):
  import peft

  folder, model = base
  recipe = Recipe(lora=tuple(LoraPart(pattern, rank, alpha) for pattern, (rank, alpha) in parts.items()))
  roles, rng = assign_roles(odd_config(), recipe), np.random.default_rng(0)
  trained = {path: rng.standard_normal(param.shape, dtype=np.float32) / 2 for path, param in roles.trainable_specs.items()}
  write_adapter(tmp_path / 'adapter', odd_config(), roles.lora, trained)
  with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter('always')
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / 'adapter')
  assert not [w for w in map(str, said) if 'adapter keys' in w or 'no module' in w or 'no parameter' in w]
  convert_to_hf(folder, tmp_path / 'merged', adapter=tmp_path / 'adapter', fused_experts=True)
  changed = assert_merged(tmp_path / 'merged', theirs.merge_and_unload(), model.state_dict())
  names = {memory_name(name) for name, tensor in published(odd_config()).items() if tensor.row.ours in roles.lora}
  fused = {re.sub(r'\d+\.(gate|up)_proj\.weight', 'gate_up_proj', name) for name in names}
  assert changed == {re.sub(r'\d+\.down_proj\.weight', 'down_proj', name) if 'experts' in name else name for name in fused}
