"""One step of a vocoder's training: whom it teaches, and whom not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from qwen3_omni_jax.train.optimiser import moments_by_name
from qwen3_omni_jax.train.vocoder import discriminators
from qwen3_omni_jax.train.vocoder.task import VocoderTask

from qwen3_omni_jax.nn.params import init_params
from qwen3_omni_jax.sharding import make_mesh
from tests.train.vocoder_run import codec_run, write_tones

pytestmark = pytest.mark.quick_to_compile
is_judge = lambda path: path.startswith('discriminators/')


def host(state):
  return jax.tree.map(np.array, state)


@pytest.fixture(scope='module')
def task(tiny_folder, tmp_path_factory) -> VocoderTask:
  folder = tmp_path_factory.mktemp('step')
  run = codec_run(tiny_folder, write_tones(folder / 'waves'), folder / 'run')
  run = dataclasses.replace(run, optimiser=dataclasses.replace(run.optimiser, clip=0.0, eps=1e-30))
  return VocoderTask(run, make_mesh({}), tiny_folder).resolved(None)


@pytest.fixture(scope='module')
def compiled(task):
  return task.step()


@pytest.fixture(scope='module')
def steps(task, compiled):
  """The states before, between and after four steps, with the metrics of each."""
  state, step, batches = task.first_state(), compiled, task.batches(None)
  states, metrics = [host(state)], []
  for _ in range(4):
    state, values = step(state, next(batches).batch)
    states.append(host(state))
    metrics.append(jax.device_get(values))
  return states, metrics


def changed(before, after) -> set[str]:
  return {path for path in before.trainable if not np.array_equal(before.trainable[path], after.trainable[path])}


def test_the_generator_learns_alone_until_the_discriminators_begin(steps):
  states, metrics = steps
  assert not any(map(is_judge, changed(states[0], states[1]))) and changed(states[0], states[1])
  assert metrics[1]['discriminator'] == metrics[1]['adversarial'] == 0 < metrics[2]['discriminator']
  counts = [moments_by_name(state.optimiser)['discriminators/count'] for state in states]
  assert counts == [0, 0, 0, 1, 2] and moments_by_name(states[4].optimiser)['adam/count'] == 4


def test_gradients_reach_every_parameter(steps):
  states, _ = steps
  last = {path for path in states[0].trainable if path not in changed(states[2], states[4])}
  assert not last


def test_entries_are_kept_still_before_quantisation_and_move_after(steps):
  states, metrics = steps
  books = [state.frozen['codec/quantizer/acoustic/books/embed_sum'] for state in states]
  np.testing.assert_array_equal(books[0], books[2])
  assert np.abs(books[3] - books[2]).min(axis=-1).max() > 0 and np.abs(books[4] - books[3]).max() > 0
  recent = [state.frozen['codec/recent'] for state in states]
  assert not recent[0].any() and np.abs(recent[2]).min(axis=-1).max() > 0
  np.testing.assert_array_equal(recent[2], recent[4])
  assert [values['perplexity'] > 1 for values in metrics[2:]] == [True, True]


@pytest.mark.slow
def test_two_devices_step_as_one(task, steps):
  states, metrics = steps
  mesh = make_mesh({'data': 2}, jax.devices()[:2])
  other = dataclasses.replace(task, mesh=mesh)
  state, batches = other.first_state(), other.batches(None)
  step = other.step()
  for i in range(3):
    state, values = step(state, next(batches).batch)
    for name in ('loss', 'grad_norm', 'commitment', 'discriminator'):
      np.testing.assert_allclose(values[name], metrics[i][name], rtol=2e-3, err_msg=f'{name} of step {i}')
  usage = 'codec/quantizer/semantic/books/cluster_usage'
  np.testing.assert_allclose(state.frozen[usage].sum(), states[3].frozen[usage].sum(), rtol=1e-4)


def test_a_step_with_a_loss_that_is_not_finite_changes_nothing(task, compiled):
  state, batch = task.first_state(), next(task.batches(None)).batch
  before = host(state)
  bad = batch.replace(wave=batch.wave.at[0, 5000].set(jnp.nan))
  after, values = compiled(state, bad)
  after = host(after)
  assert values['skipped'] == 1 and not changed(before, after)
  assert all(np.array_equal(before.frozen[path], after.frozen[path]) for path in before.frozen)


def test_discriminators_tell_the_two_apart_and_the_generator_is_told_how():
  cfg = discriminators.Adversaries(0, 2, (2, 3), (256,))
  params = init_params(discriminators.discriminators_spec(cfg), jax.random.key(0))
  real, fake = (jax.random.normal(jax.random.key(i), (2, 2048)) for i in range(2))
  judge = lambda params, wave: discriminators.judge(params, cfg, wave)
  of_judges = jax.grad(lambda p: discriminators.discriminator_loss(judge(p, real), judge(p, fake)))(params)
  assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(of_judges))
  adversarial, features = discriminators.generator_losses(judge(params, real), judge(params, real))
  assert features == 0 and adversarial > 0
  perfect = [(jnp.ones((1, 3)), []), (jnp.ones((1, 4)), [])]
  none = [(jnp.zeros((1, 3)), []), (jnp.zeros((1, 4)), [])]
  assert discriminators.discriminator_loss(perfect, none) == 0 and discriminators.discriminator_loss(none, perfect) == 2
  pulled = jax.grad(lambda wave: sum(discriminators.generator_losses(judge(params, real), judge(params, wave))))(fake)
  assert np.abs(pulled).max() > 0
