"""Whole networks on meshes: outputs, loss, every gradient and a step of the optimiser equal those of one device."""

import jax
import pytest

from qwen3_omni_jax.sharding import make_mesh
from tests.models.training_step import assert_same_step, config, params_and_batch, step, step_on

MESHES = {
  'dp8': ({'data': 8}, 1), 'fsdp8': ({'fsdp': 8}, 1), 'ep8': ({'expert': 8}, 1), 'ep4 fsdp2': ({'expert': 4, 'fsdp': 2}, 1),
  'tp4 fsdp2': ({'tensor': 4, 'fsdp': 2}, 1), 'cp2 ep4': ({'context': 2, 'expert': 4}, 1),
  'dp2 fsdp2 ep2': ({'data': 2, 'fsdp': 2, 'expert': 2}, 1), '2 slices': ({'data': 2, 'fsdp': 2, 'expert': 2}, 2),
}  # fmt: skip


@pytest.fixture(scope='module')
def expected():
  return jax.device_get(step(*params_and_batch(), config()))


@pytest.mark.parametrize('name', MESHES)
def test_a_step_equals_that_of_one_device(expected, name, capfd):
  shape, slices = MESHES[name]
  got = step_on(make_mesh(shape, slices=slices))
  assert 'full rematerialization' not in capfd.readouterr().err  # XLA's word for: every device was given the whole of it
  if shape.get('fsdp', 1) * shape.get('expert', 1) * shape.get('tensor', 1) > 1:
    gate = got[3]['thinker']['layers']['moe']['experts']['gate']
    assert gate.addressable_shards[0].data.size < gate.size  # what was cut stays cut
  assert_same_step(jax.device_get(got), expected)
