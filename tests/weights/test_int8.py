"""A folder converted to int8: half the bytes, the same names, on any mesh, and back in the dtype it came from."""

import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from qwen3_omni_jax.infer.omni import Omni
from qwen3_omni_jax.models.omni import omni_spec
from qwen3_omni_jax.nn.int8 import Int8, is_int8, quantize, summed_axes
from qwen3_omni_jax.nn.params import leaves
from qwen3_omni_jax.sharding import make_mesh, param_shardings
from qwen3_omni_jax.weights.folder import open_folder
from qwen3_omni_jax.weights.load import load_params
from qwen3_omni_jax.weights.opened import open_checkpoint
from qwen3_omni_jax.weights.summary import summarise
from qwen3_omni_jax.weights.to_hf import convert_to_hf
from qwen3_omni_jax.weights.to_jax import convert_to_jax
from qwen3_omni_jax.weights.verify import verify

from .folders import odd_config, random_tensors, write


@pytest.fixture(scope='module')
def published_folder(tmp_path_factory) -> pathlib.Path:
  return write(tmp_path_factory.mktemp('odd') / 'hf', random_tensors(odd_config(), dtype=ml_dtypes.bfloat16))


@pytest.fixture(scope='module')
def int8_folder(published_folder, tmp_path_factory) -> pathlib.Path:
  convert_to_jax(published_folder, tmp_path_factory.mktemp('int8') / 'jax', 'int8')
  return next(tmp_path_factory.getbasetemp().glob('int8*/jax'))


def flat(params) -> dict:
  found = jax.tree.leaves_with_path(params, is_leaf=is_int8)
  return {'/'.join(key.key for key in path): leaf for path, leaf in found}


def test_matrices_are_rounded_layer_by_layer_and_the_rest_is_untouched(published_folder, int8_folder):
  whole, loaded = flat(load_params(published_folder)), flat(load_params(int8_folder))
  assert whole.keys() == loaded.keys()
  for path, param in leaves(omni_spec(odd_config())):
    if axes := summed_axes(path, param):
      values, scale = quantize(whole[path], axes)
      np.testing.assert_array_equal(loaded[path].values, values, err_msg=path)
      np.testing.assert_array_equal(loaded[path].scale, scale, err_msg=path)
    else:
      np.testing.assert_array_equal(loaded[path], whole[path], err_msg=path)


def test_it_is_smaller_and_inspect_says_so(published_folder, int8_folder):
  before, after = summarise(published_folder), summarise(int8_folder)
  assert after.total.parameters == before.total.parameters
  held = sum(leaf.nbytes for leaf in jax.tree.leaves(load_params(int8_folder)))
  assert after.total.bytes == held < 0.8 * before.total.bytes  # small widths: embeddings and scales weigh more
  assert after.dtypes.keys() == {'int8', 'bfloat16'}


def test_it_goes_back_to_the_published_layout_within_half_a_step(published_folder, int8_folder, tmp_path):
  assert not verify(published_folder, int8_folder).agree
  assert verify(published_folder, int8_folder, rtol=0.008).agree  # 1/254 for int8, 1/256 for bf16
  convert_to_hf(int8_folder, tmp_path / 'hf')
  shards, original = open_folder(tmp_path / 'hf'), open_folder(published_folder)
  assert {n: s.path.name for n, s in shards.items()} == {n: s.path.name for n, s in original.items()}
  assert all(shards[name].dtype(name) == ml_dtypes.bfloat16 for name in shards)
  assert (tmp_path / 'hf' / 'config.json').read_bytes() == (published_folder / 'config.json').read_bytes()
  assert verify(tmp_path / 'hf', int8_folder).agree
  convert_to_jax(tmp_path / 'hf', tmp_path / 'again', 'int8')
  assert verify(tmp_path / 'again', tmp_path / 'hf', rtol=0.008).agree


def test_a_changed_scale_is_noticed(int8_folder, tmp_path):
  manifest = json.loads((int8_folder / 'manifest.json').read_text())
  name = 'thinker.model.layers.1.self_attn.q_proj.weight'
  values, scale = manifest['tensors'][name].split()
  changed = manifest | {'tensors': manifest['tensors'] | {name: f'{values} {values}'}}
  (int8_folder / 'manifest.json').write_text(json.dumps(changed))
  try:
    with pytest.raises(ValueError, match=f'{name} is damaged'):
      open_checkpoint(int8_folder).read(name)
  finally:
    (int8_folder / 'manifest.json').write_text(json.dumps(manifest))
  assert values != scale and open_checkpoint(int8_folder).read(name).dtype == ml_dtypes.bfloat16


def test_values_and_scales_lie_together_on_a_mesh(int8_folder):
  spec = {part: omni_spec(odd_config())[part] for part in ('thinker',)}
  mesh = make_mesh({'tensor': 2, 'fsdp': 4})
  loaded = flat(load_params(int8_folder, parts=('thinker',), shardings=param_shardings(spec, mesh)))
  alone = flat(load_params(int8_folder, parts=('thinker',)))
  o = loaded['thinker/layers/attn/o']  # 'L N H D': summed over heads, cut by heads and by width
  assert o.values.sharding.spec == PartitionSpec(None, 'tensor', None, 'fsdp')
  assert o.scale.sharding.spec == PartitionSpec(None, None, None, 'fsdp')
  for path, leaf in alone.items():
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(loaded[path]), leaf)


def test_values_that_are_not_finite_are_refused_by_name(tmp_path):
  tensors = random_tensors(odd_config())
  tensors['talker.codec_head.weight'][3, 2] = np.inf
  with pytest.raises(ValueError, match='talker.codec_head.weight: holds values that are not finite'):
    convert_to_jax(write(tmp_path / 'hf', tensors), tmp_path / 'jax', 'int8')
  assert [path.name for path in tmp_path.iterdir()] == ['hf']


def test_an_int8_model_answers_and_speaks(tiny_folder, tmp_path):
  convert_to_jax(tiny_folder, tmp_path / 'jax', 'int8')
  omni = Omni.load(tmp_path / 'jax', dtype='float32')
  assert isinstance(omni.params['thinker']['layers']['moe']['experts']['up'], Int8)
  conversation = [{'role': 'user', 'content': 'Say hello to the small dog.'}]
  reply = omni.generate([conversation], max_new_tokens=8, temperature=0, speech=True, max_frames=4, talker_temperature=0)[0]
  assert len(reply.token_ids) == 8 and reply.speech.codes.shape[0] == 4
  answered = [*conversation, {'role': 'assistant', 'content': 'Hello!'}]
  ours, whole = (model.score([answered])[0] for model in (omni, Omni.load(tiny_folder, dtype='float32')))
  assert ours.token_ids == whole.token_ids
  np.testing.assert_allclose(ours.logprobs, whole.logprobs, rtol=0, atol=0.5)  # a tiny random model: nothing averages out
