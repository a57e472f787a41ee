"""transformers loads what to-hf writes, in both spellings, and writes the same names and bits itself."""

import numpy as np
import pytest

from qwen3_omni_jax.weights.folder import open_folder
from qwen3_omni_jax.weights.opened import open_checkpoint
from qwen3_omni_jax.weights.safetensors import Shard
from qwen3_omni_jax.weights.to_hf import convert_to_hf
from qwen3_omni_jax.weights.to_jax import convert_to_jax
from tests.reference import Reference


@pytest.fixture(scope='module')
def exported(tiny_folder, tmp_path_factory):
  root = tmp_path_factory.mktemp('exported')
  convert_to_jax(tiny_folder, root / 'jax')
  convert_to_hf(root / 'jax', root / 'plain')
  convert_to_hf(root / 'jax', root / 'fused', fused_experts=True)
  return root


def test_both_spellings_load_as_the_same_model(tiny_folder, exported):
  import torch

  expected = Reference.load(tiny_folder).model.state_dict()  # Reference.load fails on missing and unexpected keys
  for spelling in ('plain', 'fused'):
    found = Reference.load(exported / spelling).model.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_fused_is_what_transformers_writes_of_the_model_in_memory(exported, tmp_path):
  model = Reference.load(exported / 'fused').model.bfloat16()
  model.save_pretrained(tmp_path / 'theirs', save_original_format=False)
  theirs = Shard(tmp_path / 'theirs' / 'model.safetensors')
  ours = open_folder(exported / 'fused')
  assert set(theirs.names()) == set(ours)
  for name, shard in ours.items():
    assert theirs.dtype(name) == shard.dtype(name) and theirs.shape(name) == shard.shape(name)
    assert theirs.read(name).tobytes() == shard.read(name).tobytes(), name


def test_plain_is_what_transformers_publishes(exported, tmp_path):
  model = Reference.load(exported / 'plain').model.bfloat16()
  model.save_pretrained(tmp_path / 'theirs')
  theirs, ours = open_folder(tmp_path / 'theirs'), open_checkpoint(exported / 'plain')
  assert set(theirs) == set(ours.names())
  for name in ours.names():
    np.testing.assert_array_equal(theirs[name].read(name).view(np.uint16), ours.read(name).view(np.uint16), err_msg=name)
