"""LoRA on a mesh, and an optimiser whose state has other shapes than its parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from qwen3_omni_jax.train.config import Optimiser, Part
from qwen3_omni_jax.train.state import abstract_state, init_state
from qwen3_omni_jax.train.step import compiled_step

from qwen3_omni_jax.sharding import make_mesh
from tests.train import batches
from tests.train.test_step import ADAPTER, EXACT, assert_same_step, run

pytestmark = pytest.mark.quick_to_compile


@pytest.mark.slow
def test_lora_on_a_mesh_equals_one_device():
  shape = {'fsdp': 2, 'expert': 2, 'tensor': 2}
  assert_same_step(run(ADAPTER, batches.batch(), shape.items(), 2), run(ADAPTER, batches.batch(), steps=2), rtol=5e-2)


@pytest.mark.parametrize('name', ['adafactor'])
def test_other_optimisers_lower_the_loss_and_keep_their_state_as_planned(name):
  recipe = dataclasses.replace(
    EXACT, optimiser=Optimiser(name, warmup=1, schedule='constant'), parts=(Part('thinker', 1e-2),), steps=5
  )
  mesh = make_mesh({'fsdp': 4, 'expert': 2})
  planned = abstract_state(batches.config(), recipe, mesh, jnp.float32)
  state = init_state(jax.tree.map(jnp.asarray, batches.params()), batches.config(), recipe, mesh)
  step = compiled_step(batches.config(), recipe, mesh)
  losses = []
  for _ in range(4):
    state, metrics = step(state, batches.batch())
    losses.append(float(metrics['loss']))
  assert losses[-1] < losses[0] - 0.1, losses
  jax.tree.map(
    lambda x, p: (x.shape, x.dtype, x.sharding) == (p.shape, p.dtype, p.sharding) or pytest.fail(f'{x.sharding} {p}'),
    state,
    planned,
  )
