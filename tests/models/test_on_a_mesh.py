"""Whole networks on meshes: outputs, loss, every gradient and a step of the optimiser equal those of one device."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from qwen3_omni_jax.models.thinker import Features, ThinkerTokens, thinker_forward, thinker_spec
from qwen3_omni_jax.nn.params import is_param
from qwen3_omni_jax.sharding import make_mesh
from tests.models.training_step import assert_same_step, config, params_and_batch, step, step_on

pytestmark = pytest.mark.quick_to_compile

MESHES = {
  'dp8': ({'data': 8}, 1),
  'fsdp8': ({'fsdp': 8}, 1),
  'ep8': ({'expert': 8}, 1),
  'ep4 fsdp2': ({'expert': 4, 'fsdp': 2}, 1),
  'tp4 fsdp2': ({'tensor': 4, 'fsdp': 2}, 1),
  'cp2 ep4': ({'context': 2, 'expert': 4}, 1),
  'dp2 fsdp2 ep2': ({'data': 2, 'fsdp': 2, 'expert': 2}, 1),
  '2 slices': ({'data': 2, 'fsdp': 2, 'expert': 2}, 2),
}


@pytest.fixture(scope='module')
def expected():
  return jax.device_get(step(*params_and_batch(), config()))


# Every axis alone or with one other; the rest are their combinations.
SLOW = {'dp8', 'ep4 fsdp2', 'dp2 fsdp2 ep2'}


@pytest.mark.parametrize('name', [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MESHES])
def test_a_step_equals_that_of_one_device(expected, name, capfd):
  shape, slices = MESHES[name]
  got = step_on(make_mesh(shape, slices=slices))
  assert 'full rematerialization' not in capfd.readouterr().err  # XLA's word for: every device was given the whole of it
  if shape.get('fsdp', 1) * shape.get('expert', 1) * shape.get('tensor', 1) > 1:
    gate = got[3]['thinker']['layers']['moe']['experts']['gate']
    assert gate.addressable_shards[0].data.size < gate.size  # what was cut stays cut
  assert_same_step(jax.device_get(got), expected)


def test_activations_shrink_with_the_part_of_the_length_that_a_device_holds():
  cfg, T = config().thinker, 2048
  params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32), thinker_spec(cfg), is_leaf=is_param)

  def loss(params, ids):
    positions = jnp.broadcast_to(jnp.arange(T, dtype=jnp.float32), (3, *ids.shape))
    tokens = ThinkerTokens(ids, positions, jnp.ones_like(ids))
    out, _ = thinker_forward(params, cfg, tokens, Features(), remat='full')
    return jnp.square(out.hidden).mean()

  def workspace(context: int) -> int:
    mesh = make_mesh({'context': context}, jax.devices()[:context])
    with jax.set_mesh(mesh):
      ids = jax.ShapeDtypeStruct((1, T), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec(None, 'context')))
      program = jax.jit(jax.grad(loss)).lower(params, ids).compile()
    return program.memory_analysis().temp_size_in_bytes

  alone, shared = workspace(1), workspace(4)
  assert shared < alone / 2, (alone, shared)  # of 4: keys and values, and gradients of all parameters, are whole
