"""Feature rows reach their tokens: with the same values on any mesh, and where lanes say so, without a collective."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from qwen3_omni_jax.models.thinker import merge_features
from qwen3_omni_jax.nn.decoder import Deepstack
from qwen3_omni_jax.nn.pick_rows import pick_rows
from qwen3_omni_jax.nn.remat import rematerialised
from qwen3_omni_jax.plan.collectives import collectives
from qwen3_omni_jax.sharding import batch_axes, length_axis, make_mesh

pytestmark = pytest.mark.quick_to_compile

B, T, D, R, LAYERS = 16, 6, 5, 48, 3
SHAPES = [
  {'fsdp': 2, 'expert': 4},
  {'data': 2, 'fsdp': 2, 'expert': 2},
  {'data': 2, 'expert': 2, 'context': 2},
  {'expert': 4, 'tensor': 2},
]


def arguments(lanes: int):
  """Embeddings, features with deepstack levels, and an index that stays in its lane."""
  rng = np.random.default_rng(0)
  per_lane = R // lanes
  index = rng.integers(-per_lane, per_lane, (B, T))
  index = np.where(index < 0, -1, index + np.arange(B)[:, None] // (B // lanes) * per_lane).astype(np.int32)
  normal = lambda *shape: rng.standard_normal(shape, dtype=np.float32)
  return normal(B, T, D), normal(R, D), normal(2, R, D), index


def loss(x, features, levels, index, lanes: int):
  """Features merged, and added again in the layers of a rematerialised scan: what the Thinker does with them."""
  stack = Deepstack(levels, index, lanes)
  layer = lambda x, i: (stack.add(jnp.tanh(x), i), None)
  x, _ = jax.lax.scan(rematerialised(layer, 'full'), merge_features(x, features, index, lanes), jnp.arange(LAYERS))
  return jnp.square(x).sum()


def on_mesh(mesh, lanes: int):
  """(compiled loss with gradients, its arguments laid out as in a step)"""
  x, features, levels, index = arguments(lanes)
  rows, length = batch_axes(B, mesh), length_axis(T, mesh)
  of_rows = batch_axes(R, mesh)
  specs = (PartitionSpec(rows, length), PartitionSpec(of_rows), PartitionSpec(None, of_rows), PartitionSpec(rows, length))
  shardings = tuple(NamedSharding(mesh, spec) for spec in specs)
  put = jax.device_put((x, features, levels, index), shardings)
  gradient = jax.value_and_grad(loss, argnums=(0, 1, 2))
  with jax.set_mesh(mesh):
    whole = NamedSharding(mesh, PartitionSpec())
    run = jax.jit(gradient, static_argnums=4, out_shardings=(whole, shardings[:3]))
    return run.lower(*put, lanes).compile(), put


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('lanes', [16, 8, 2, 1])
def test_values_and_gradients_are_those_of_one_device(shape, lanes):
  run, put = on_mesh(make_mesh(shape), lanes)
  got, expected = jax.device_get(run(*put)), jax.value_and_grad(loss, argnums=(0, 1, 2))(*arguments(lanes), lanes)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * float(np.abs(b).max()))


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_lanes_on_their_own_devices_send_nothing(shape):
  mesh = make_mesh(shape)
  sent = collectives(on_mesh(mesh, lanes=8)[0].as_text(), dict(mesh.shape))
  along = {axes for kinds in sent.values() for axes, size in kinds.items() if size > 64}  # a scalar: the loss
  assert along <= {'context'}, sent
  assert not collectives(on_mesh(mesh, lanes=1)[0].as_text(), dict(mesh.shape)).keys() <= {'context'}  # what the lanes save


def test_a_lane_that_devices_share_is_gathered_among_them_alone():
  mesh = make_mesh({'data': 2, 'fsdp': 2, 'expert': 2})
  sent = collectives(on_mesh(mesh, lanes=4)[0].as_text(), dict(mesh.shape))
  assert {axes for kinds in sent.values() for axes, size in kinds.items() if size > 64} == {'expert'}, sent


def test_an_index_beyond_its_lane_is_not_answered_with_another_row():
  x, features, _, index = arguments(8)
  index[0, 0] = R - 1
  with jax.set_mesh(make_mesh({'fsdp': 2, 'expert': 4})):
    picked = jax.jit(pick_rows, static_argnums=2)(features, index, 8)
  assert np.isnan(picked[0, 0]).all() and np.isfinite(picked[0, 1:]).all()


def test_rows_that_are_not_of_equal_lanes_are_refused():
  with jax.set_mesh(make_mesh({'fsdp': 2, 'expert': 4})), pytest.raises(ValueError, match='expected multiples of the 8 lanes'):
    pick_rows(jnp.zeros((R + 1, D)), jnp.zeros((B, T), jnp.int32), 8)
