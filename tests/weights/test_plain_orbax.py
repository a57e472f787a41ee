"""A checkpoint as training leaves it, written by plain Orbax calls, is exported like any other."""

import json
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from qwen3_omni_jax.weights.load import load_params
from qwen3_omni_jax.weights.opened import open_checkpoint
from qwen3_omni_jax.weights.to_hf import convert_to_hf

from .folders import assert_same_files, odd_config, odd_dict, random_tensors, write

pytestmark = pytest.mark.filterwarnings('ignore')  # Orbax warns that it runs outside a distributed job


@pytest.fixture(scope='module')
def tensors():
  return random_tensors(odd_config(), dtype=ml_dtypes.bfloat16)


@pytest.fixture(scope='module')
def folder(tensors, tmp_path_factory) -> pathlib.Path:
  return write(tmp_path_factory.mktemp('base') / 'hf', tensors)


@pytest.fixture(scope='module')
def params(folder):
  """Spread over eight devices, so that every array is several of Orbax's chunks."""
  mesh = jax.make_mesh((8,), ('x',), axis_types=(AxisType.Auto,))

  def spread(array):
    axis = next((i for i, n in enumerate(array.shape) if n % 8 == 0), None)
    spec = [None] * array.ndim if axis is None else [*[None] * axis, 'x', *[None] * (array.ndim - axis - 1)]
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))

  return jax.tree.map(spread, load_params(folder))


def save_v1(root, params):
  from orbax.checkpoint import v1 as ocp

  ocp.save(root / 'params', params)
  return root


def save_v1_alone(root, params):
  from orbax.checkpoint import v1 as ocp

  ocp.save(root / 'saved', {'params': params, 'step': 5, 'opt_state': {'m': params['thinker']['norm']}})
  return root / 'saved'


def save_step(root, params):
  from orbax.checkpoint import v1 as ocp

  with ocp.training.Checkpointer(root) as checkpointer:
    checkpointer.save_checkpointables(3, {'params': params, 'state': {'step': 3}})
  return root / '3'


def save_step_v0(root, params):
  import orbax.checkpoint as ocp

  with ocp.CheckpointManager(root) as manager:
    manager.save(7, args=ocp.args.Composite(params=ocp.args.StandardSave(params)))
    manager.wait_until_finished()
  return root / '7'


@pytest.mark.parametrize('save', [save_v1, save_v1_alone, save_step, save_step_v0])
def test_every_way_of_saving_is_exported(folder, params, tmp_path, save):
  (tmp_path / 'training').mkdir()
  saved = save(tmp_path / 'training', params)
  shutil.copy(folder / 'config.json', tmp_path / 'training')  # in the folder, or beside the step
  assert open_checkpoint(saved).kind == 'orbax'
  convert_to_hf(saved, tmp_path / 'hf', base=folder)
  assert_same_files(tmp_path / 'hf', folder)
  convert_to_hf(saved, tmp_path / 'alone')
  opened = open_checkpoint(tmp_path / 'alone')
  for name in ('thinker.model.layers.3.mlp.experts.4.up_proj.weight', 'code2wav.decoder.0.conv.weight'):
    np.testing.assert_array_equal(opened.read(name), open_checkpoint(folder).read(name))
  assert {path.name for path in (tmp_path / 'alone').iterdir() if 'model' not in path.name} == {'config.json'}


def test_a_thinker_trained_in_float32_is_exported_whole(folder, tensors, params, tmp_path):
  """No config.json beside it: the base says what it is. Each tensor keeps its own dtype, unless told otherwise."""
  trained = {'thinker': jax.tree.map(lambda a: (-a).astype(np.float32), params['thinker'])}
  (tmp_path / 'run').mkdir()
  saved = save_v1(tmp_path / 'run', trained)
  with pytest.raises(ValueError, match='config.json: no such file'):
    convert_to_hf(saved, tmp_path / 'hf')
  convert_to_hf(saved, tmp_path / 'hf', base=folder)
  convert_to_hf(saved, tmp_path / 'narrow', base=folder, dtype='bfloat16')
  kept, narrow = open_checkpoint(tmp_path / 'hf'), open_checkpoint(tmp_path / 'narrow')
  for name, value in tensors.items():
    text = name.startswith(('thinker.model.', 'thinker.lm_head.'))
    expected = -value.astype(np.float32) if text else value
    assert kept.dtype(name) == (np.float32 if text else ml_dtypes.bfloat16)
    np.testing.assert_array_equal(kept.read(name), expected, err_msg=name)
    np.testing.assert_array_equal(narrow.read(name), expected.astype(ml_dtypes.bfloat16), err_msg=name)


def test_what_does_not_match_the_config_is_named(params, tmp_path):
  config = odd_dict()
  config['thinker_config']['text_config'] |= {'num_experts': 4}
  (tmp_path / 'run').mkdir()
  saved = save_v1(tmp_path / 'run', {'thinker': params['thinker'] | {'norm': params['thinker']['norm'].astype(np.int32)}})
  (saved / 'config.json').write_text(json.dumps(config))
  with pytest.raises(ValueError, match=r'4 of another shape:(.|\n)*1 not floating point:\n +thinker/norm: int32'):
    convert_to_hf(saved, tmp_path / 'hf')
  (tmp_path / 'other').mkdir()
  saved = save_v1(tmp_path / 'other', {'network': {'w': np.zeros(3)}})
  (saved / 'config.json').write_text(json.dumps(config))
  with pytest.raises(ValueError, match='holds none of the parameters; expected a tree with audio, vision, thinker'):
    convert_to_hf(saved, tmp_path / 'hf')
