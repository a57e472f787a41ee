"""The bias of expert selection: it evens loads, weighs nothing, is gone at the end, and goes on where it was."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from qwen3_omni_jax.train.checkpoint import Checkpoints
from qwen3_omni_jax.train.config import Loss, Optimiser, Part, Recipe, Run, Step
from qwen3_omni_jax.train.config_file import read, to_data
from qwen3_omni_jax.train.losses import router_sums
from qwen3_omni_jax.train.router_bias import PATH, take_back, update_bias
from qwen3_omni_jax.train.state import abstract_state, assign_roles, init_state
from qwen3_omni_jax.train.step import compiled_step

from qwen3_omni_jax.nn.moe import expert_pairs, route
from qwen3_omni_jax.sharding import make_mesh
from qwen3_omni_jax.weights.opened import open_checkpoint
from tests.train import batches

pytestmark = [pytest.mark.filterwarnings('ignore'), pytest.mark.quick_to_compile]

RATE = 0.01
RECIPE = Recipe(
  parts=(Part('thinker/norm', 1e-3),),
  steps=4,
  optimiser=Optimiser(warmup=1),
  loss=Loss(balance=0.0, chunk=16, bias_update=RATE, bias_until=0.5),
  step=Step(dtype='float32', remat='none', encoder_remat='none'),
)


def run(recipe: Recipe, batch, state=None, steps: int = 1, shape=()):
  """(state after the steps, metrics of each)"""
  mesh = make_mesh(dict(shape))
  params = jax.tree.map(jnp.asarray, batches.params())
  state = init_state(params, batches.config(), recipe, mesh) if state is None else state
  step, told = compiled_step(batches.config(), recipe, mesh), []
  for _ in range(steps):
    state, metrics = step(state, batch)
    told.append(metrics)
  return jax.device_get((state, told))


def with_bias(state, bias):
  return jax.tree.map(jnp.asarray, state.replace(router_bias=bias))


@pytest.fixture(scope='module')
def whole():
  """A complete run, step by step: updated twice, then taken back."""
  batch, states, told, state = batches.batch(), [], [], None
  for _ in range(RECIPE.steps):
    state, (metrics,) = run(RECIPE, batch, None if state is None else jax.tree.map(jnp.asarray, state))
    states.append(state)
    told.append(metrics)
  return states, told


def test_loads_of_a_lopsided_router_become_even():
  rng = np.random.default_rng(0)
  x, router = rng.standard_normal((256, 16)).astype(np.float32), 0.2 * rng.standard_normal((16, 8)).astype(np.float32)
  x[:, 0], router[0] = 1, np.linspace(0, 3, 8)
  recipe = Recipe(steps=10_000, loss=Loss(bias_update=2e-3))

  @jax.jit
  def step(bias, number):
    pairs = expert_pairs(route(x, router, 2, True, bias=bias[0]))[None]
    return update_bias(bias, pairs, number, recipe), pairs[0]

  bias, loads = jnp.zeros((1, 8)), []
  for number in range(400):
    bias, pairs = step(bias, number)
    loads.append(np.asarray(pairs) / 64)
  assert loads[0].max() > 2.5 and loads[0].min() < 0.2
  assert np.abs(loads[-1] - 1).max() < 0.15


def test_the_bias_selects_and_does_not_weigh():
  x, router = jnp.array([[1.0]]), jnp.array([[3.0, 2.0, 1.0, 0.0]])
  plain, biased = (route(x, router, 2, True, bias=bias) for bias in (None, jnp.array([-1.0, 0.0, 0.0, 1.0])))
  assert plain.experts[0].tolist() == [0, 1] and biased.experts[0].tolist() == [3, 1]
  chosen = jax.nn.softmax(router[0])[jnp.array([3, 1])]
  np.testing.assert_allclose(biased.weights[0], chosen / chosen.sum(), rtol=1e-6)
  np.testing.assert_array_equal(biased.probs, plain.probs)
  weigh = lambda router, bias: (route(x, router, 2, True, bias=bias).weights[0, 0]).sum()
  assert np.all(jax.grad(weigh, argnums=1)(router, jnp.zeros(4)) == 0) and np.any(jax.grad(weigh)(router, jnp.zeros(4)) != 0)


def test_a_step_moves_the_bias_of_each_layer_by_the_pairs_of_its_valid_tokens(whole):
  (first, *_), told = whole
  segment = batches.batch().tokens.segment
  assert first.router_bias.shape == (3, batches.config().thinker.text.num_experts)
  np.testing.assert_allclose(np.abs(first.router_bias).max(), RATE)
  assert set(np.round(np.unique(first.router_bias) / RATE)) <= {-1, 0, 1} and (first.router_bias < 0).any(axis=1).all()
  assert told[0]['router_bias'] == pytest.approx(RATE) and (segment == 0).any()
  rng = np.random.default_rng(1)
  routing = route(rng.standard_normal((8, 32, 4)), rng.standard_normal((4, 6)), 2, True)
  sums = router_sums(jnp.asarray(segment != 0), None, routing.replace(lost=jnp.int32(0)))
  np.testing.assert_array_equal(sums.pairs, np.bincount(np.asarray(routing.experts)[segment != 0].reshape(-1), minlength=6))


def test_the_bias_is_updated_then_taken_back_and_gone_at_the_end(whole):
  states, told = whole
  top = states[1].router_bias
  assert np.abs(top).max() == pytest.approx(2 * RATE)
  np.testing.assert_allclose(states[2].router_bias, top / 2, rtol=1e-6)
  assert not states[3].router_bias.any() and told[3]['router_bias'] == 0
  at = [take_back(jnp.ones((1, 1)), jnp.int32(step), dataclasses.replace(RECIPE, steps=10)).item() for step in range(12)]
  np.testing.assert_allclose(np.cumprod(at), [1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0, 0, 0], atol=1e-6)


def test_a_complete_run_ends_with_the_plain_model(whole):
  """Its last state has the loss that it has without the option; earlier ones do not."""
  plain = dataclasses.replace(RECIPE, loss=Loss(balance=0.0, chunk=16))
  batch = batches.batch(3)
  loss = lambda recipe, state: run(recipe, batch, state)[1][0]['loss']
  for state, same in ((whole[0][1], False), (whole[0][3], True)):
    both = [loss(RECIPE, with_bias(state, state.router_bias)), loss(plain, with_bias(state, None))]
    assert (both[0] == both[1]) == same


def test_a_skipped_step_does_not_update_the_bias(whole):
  bad = batches.batch()
  bad.media.audio[0].mel[0, 0, 0] = np.inf
  state, (metrics,) = run(RECIPE, bad, with_bias(whole[0][0], whole[0][0].router_bias))
  assert metrics['skipped'] == 1
  np.testing.assert_array_equal(state.router_bias, whole[0][0].router_bias)
  state, _ = run(RECIPE, bad, with_bias(state, state.router_bias), steps=2)
  assert not state.router_bias.any()  # it is taken back all the same


@pytest.mark.parametrize(('shape', 'accumulate'), [({'data': 2, 'fsdp': 2, 'expert': 2}, 1), ({}, 2)], ids=str)
def test_the_update_is_that_of_the_whole_batch_on_any_mesh_and_in_microbatches(shape, accumulate, whole):
  recipe = dataclasses.replace(RECIPE, step=dataclasses.replace(RECIPE.step, accumulate=accumulate))
  batch, expected = batches.batch(), whole[0][0].router_bias
  if accumulate == 2:  # the same rows twice
    batch = batches.stacked([batch, batch])
  state, _ = run(recipe, batch, shape=shape.items())
  np.testing.assert_array_equal(state.router_bias, expected)


def test_the_bias_goes_on_from_a_checkpoint_and_an_export_of_it_warns(whole, tmp_path, capsys):
  states, cfg, mesh = whole[0], batches.config(), make_mesh({})
  roles, plain = assign_roles(cfg, RECIPE), dataclasses.replace(RECIPE, loss=Loss())
  checkpoints = Checkpoints(tmp_path / 'checkpoints', keep=2)
  for state in (states[1], states[3]):
    checkpoints.save(with_bias(state, state.router_bias), roles, {}, to_data(RECIPE))
  checkpoints.wait()
  (tmp_path / 'checkpoints' / '4').rename(tmp_path / 'last')
  found = Checkpoints(tmp_path / 'checkpoints').restore(abstract_state(cfg, RECIPE, mesh), roles, RECIPE)
  assert found is not None and not found.notes
  np.testing.assert_array_equal(found.state.router_bias, states[1].router_bias)
  found = Checkpoints(tmp_path / 'checkpoints').restore(abstract_state(cfg, plain, mesh), roles, plain)
  assert found is not None and found.state.router_bias is None and 'is not used' in found.notes[0]

  for folder, warns in (
    (tmp_path / 'checkpoints/2', True),
    (tmp_path / 'checkpoints/2/params', True),
    (tmp_path / 'last', False),
  ):
    capsys.readouterr()
    open_checkpoint(folder, cfg=cfg, strict=False)
    assert ('selected with a bias (of up to 0.02)' in capsys.readouterr().err) == warns


def test_a_run_that_begins_to_balance_so_begins_at_zero(tmp_path):
  cfg, mesh, plain = batches.config(), make_mesh({}), dataclasses.replace(RECIPE, loss=Loss())
  roles = assign_roles(cfg, RECIPE)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(init_state(None, cfg, plain, mesh), roles, {}, to_data(plain))
  checkpoints.wait()
  found = checkpoints.restore(abstract_state(cfg, RECIPE, mesh), roles, RECIPE)
  assert found is not None and 'begins at 0' in found.notes[0]
  assert found.state.router_bias.shape == (3, cfg.thinker.text.num_experts) and not found.state.router_bias.any()


def test_what_cannot_be_balanced_so_is_refused():
  dense = batches.config()
  dense = dataclasses.replace(
    dense, thinker=dataclasses.replace(dense.thinker, text=dataclasses.replace(dense.thinker.text, num_experts=0))
  )
  with pytest.raises(ValueError, match='no experts to balance'):
    abstract_state(dense, RECIPE, make_mesh({}))
  for setting in ('loss.bias_until=1.0', 'loss.bias_update=-1.0'):
    with pytest.raises(ValueError, match='loss.bias_update'):
      read(Run, None, ['model=a', 'out=b', setting]).check()
  assert PATH.endswith('moe/router_bias')
