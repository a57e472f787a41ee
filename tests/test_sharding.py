"""The mesh changes nothing: forward passes, losses, gradients and a step of the optimiser equal those of one device."""

import jax
import numpy as np
import pytest

from qwen3_omni_jax.config_json import load_config
from qwen3_omni_jax.models.omni import omni_spec
from qwen3_omni_jax.nn.params import Param, leaves
from qwen3_omni_jax.sharding import (
  MESH_AXES,
  RULES,
  STRATEGIES,
  batch_axes,
  current_mesh,
  make_mesh,
  mesh_shape,
  param_shardings,
  partition,
)
from tests.conftest import ROOT

RELEASED = ROOT / 'configs' / 'model' / 'instruct.json'


def test_every_dimension_of_every_parameter_has_a_rule():
  names = {axis for _, param in leaves(omni_spec(load_config(RELEASED))) for axis in param.axes}
  assert names <= RULES.keys() and set(filter(None, RULES.values())) < set(MESH_AXES)


@pytest.mark.parametrize('shape', ['fsdp=8', 'expert=8', 'expert=4,fsdp=2', 'tensor=4,fsdp=2', 'pod', 'serve', 'fsdp', 'tensor'])
def test_the_released_parameters_fit_every_mesh(shape):
  mesh = make_mesh(mesh_shape(shape, 8))
  spec = omni_spec(load_config(RELEASED))
  if shape == 'tensor':  # 20 heads of the audio encoder
    with pytest.raises(ValueError, match=r'(?s)as tensor=4 does:.*audio/layers/attn/q/kernel: heads 20 over tensor=8'):
      param_shardings(spec, mesh)
    return
  shardings = param_shardings(spec, mesh)
  held = sum(np.prod(_at(shardings, path).shard_shape(param.shape)) for path, param in leaves(spec))
  assert held < 35_259_818_545 * 0.25


def _at(tree, path: str):
  for key in path.split('/'):
    tree = tree[key]
  return tree


def test_what_cannot_be_cut_is_listed_with_the_fix():
  mesh = make_mesh({'expert': 4, 'tensor': 2})
  spec = {'a': Param((6, 8), ('expert', 'expert_mlp')), 'b': {'c': Param((4, 3), ('expert', 'expert_mlp'))}}
  told = r'(?s)2 dimensions.*choose a mesh.*as expert=2,tensor=1 does.*a: expert 6 over expert=4.*b/c: expert_mlp 3 over tensor=2'
  with pytest.raises(ValueError, match=told):
    param_shardings(spec, mesh)
  with pytest.raises(ValueError, match='dimension names width: not in sharding.RULES'):
    partition(('width', 'embed'), mesh)
  with pytest.raises(ValueError, match='two would be cut along one mesh axis'):
    partition(('mlp', 'heads'), mesh)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('fsdp=3', 'fsdp=3.*= 3 devices, there are 8'),
    ('model=8', "'model=8' is not understood; expected one of single, fsdp"),
    ('fsdp=4,fsdp=2', 'not understood'),
    ('fsdp=-8', 'not understood'),
    ('expert=', 'not understood'),
  ],
)
def test_meshes_that_cannot_be_are_explained(text, message):
  with pytest.raises(ValueError, match=message):
    mesh_shape(text, 8)


def test_strategies_use_all_devices_and_keep_slices_apart():
  for devices, slices in ((8, 1), (8, 2), (256, 1), (512, 2)):
    for name in STRATEGIES:
      shape = mesh_shape(name, devices, slices)
      assert np.prod(list(shape.values())) == (1 if name == 'single' else devices)
      assert name == 'single' or shape.get('data', 1) % slices == 0
  mesh = make_mesh(mesh_shape('pod', 8, 2), slices=2)
  assert {d.id for d in mesh.devices[0].flat} == {0, 1, 2, 3}
  with pytest.raises(ValueError, match='2 slices: data=1 must be a multiple'):
    make_mesh({'fsdp': 8}, slices=2)
  with pytest.raises(ValueError, match='mesh axes rows: expected some of data'):
    make_mesh({'rows': 8})


def test_rows_lie_on_the_devices_they_fill():
  mesh = make_mesh({'data': 2, 'fsdp': 2, 'expert': 2})
  assert [batch_axes(n, mesh) for n in (8, 4, 2, 3, 12)] == [
    ('data', 'fsdp', 'expert'),
    ('data', 'fsdp'),
    ('data',),
    (),
    ('data', 'fsdp'),
  ]
  assert current_mesh() is None
  with jax.set_mesh(mesh):
    assert current_mesh() is not None
  with jax.set_mesh(make_mesh({})):
    assert current_mesh() is None
