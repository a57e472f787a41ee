"""A step of training: which parameters change and which do not, microbatches, meshes, skipped steps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from qwen3_omni_jax.train import thinker_loss
from qwen3_omni_jax.train.config import LoraPart, Loss, Optimiser, Part, Recipe, Run, Step
from qwen3_omni_jax.train.config_file import read
from qwen3_omni_jax.train.optimiser import moments_by_name
from qwen3_omni_jax.train.state import TrainState, abstract_state, assign_roles, flatten, init_state, unflatten
from qwen3_omni_jax.train.step import batch_specs, compiled_step, compute_params, loss_sums, make_step, take_unless_bad

from qwen3_omni_jax.infer.collate import Media
from qwen3_omni_jax.models.thinker import Features, embed_tokens, thinker_forward
from qwen3_omni_jax.nn.moe import route
from qwen3_omni_jax.nn.remat import NAMES
from qwen3_omni_jax.plan.collectives import collectives
from qwen3_omni_jax.sharding import make_mesh
from tests.train import batches

pytestmark = pytest.mark.quick_to_compile

# No load-balance loss: it is a mean over microbatches, not over tokens (see test_accumulated_…).
EXACT = Recipe(
  parts=(Part('thinker', 1e-3, 0.1), Part('audio', 1e-3), Part('vision', 1e-3)),
  steps=10,
  optimiser=Optimiser(warmup=1, eps=1e-3),
  loss=Loss(balance=0.0, chunk=16),
  step=Step(dtype='float32', remat='none', encoder_remat='none'),
)
ADAPTER = dataclasses.replace(
  EXACT,
  parts=(Part('audio/proj', 1e-2),),
  lora=(LoraPart('thinker/layers/(attn/[qo]|moe/experts/down)$', 2, 4.0, 1e-2), LoraPart('vision/layers/mlp', 3)),
)


def run(recipe, batch, shape=(), steps=1):
  """(state after the steps, metrics of the last one)"""
  mesh = make_mesh(dict(shape))
  state = init_state(jax.tree.map(jnp.asarray, batches.params()), batches.config(), recipe, mesh)
  step = compiled_step(batches.config(), recipe, mesh)
  for _ in range(steps):
    state, metrics = step(state, batch)
  return jax.device_get((state, metrics))


@functools.cache
def one_step():
  return run(EXACT, batches.batch())


def assert_same_step(got, expected, rtol):
  (state, metrics), (state2, metrics2) = got, expected
  np.testing.assert_allclose(metrics['loss'], metrics2['loss'], rtol=1e-5)
  np.testing.assert_allclose(metrics['grad_norm'], metrics2['grad_norm'], rtol=1e-4)
  for path, value in state2.trainable.items():
    moved = np.abs(value - state.trainable[path]).max()
    assert moved <= rtol * 1e-3, f'{path}: {moved:.1e}'  # of the rate: steps of Adam have about its size


def test_what_was_trained_on_is_told_by_source():
  batch, (_, metrics) = batches.batch(), one_step()
  of = lambda key: np.array([metrics[f'source/{name}/{key}'] for name in batch.sources])
  counts = lambda where: np.bincount(batch.source[where], minlength=2)
  np.testing.assert_array_equal(of('tokens'), counts(batch.tokens.segment != 0))
  np.testing.assert_array_equal(of('records'), counts((batch.tokens.segment != 0) & (batch.tokens.positions[0] == 0)))
  np.testing.assert_array_equal(of('weight'), [batch.weights[batch.source == i].sum() for i in range(2)])
  assert (of('cross_entropy') * of('weight')).sum() == pytest.approx(metrics['cross_entropy'] * metrics['weight'], rel=1e-5)
  assert of('tokens').sum() == metrics['tokens'] and of('cross_entropy')[0] != of('cross_entropy')[1]


def test_a_step_on_every_modality_trains_all_that_it_should():
  before = flatten(batches.params())
  state, metrics = one_step()
  still = [path for path, value in state.trainable.items() if np.array_equal(value, before[path])]
  assert not still and not state.frozen
  assert np.isfinite(metrics['loss']) and metrics['skipped'] == 0 and metrics['lost'] == 0 and state.step == 1
  assert metrics['weight'] == batches.batch().weights.sum()
  kinds = sum(metrics[f'weight/{k}'] * metrics[f'cross_entropy/{k}'] for k in ('text', 'audio', 'image', 'video', 'mixed'))
  np.testing.assert_allclose(kinds / metrics['weight'], metrics['cross_entropy'], rtol=1e-5)


def test_the_compiler_gets_the_options_of_the_step_and_refuses_unknown_ones():
  with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option: 'xla_nonsense'"):
    run(dataclasses.replace(EXACT, step=dataclasses.replace(EXACT.step, xla=('xla_nonsense=1',))), batches.batch())
  options = dataclasses.replace(EXACT.step, xla=('xla_a=true', 'xla_b=98304', 'xla_c = false')).compiler_options
  assert options == {'xla_a': True, 'xla_b': '98304', 'xla_c': False}
  with pytest.raises(ValueError, match="step.xla 'xla_a': expected name=value"):
    Run(model='m', out='o', step=Step(xla=('xla_a',))).check()


def test_frozen_parts_do_not_change_by_a_bit():
  before = flatten(batches.params())
  state, _ = run(ADAPTER, batches.batch(), steps=2)
  assert {path for path in state.trainable if not path.startswith('lora/')} == {p for p in before if p.startswith('audio/proj')}
  assert all(np.array_equal(value, before[path]) for path, value in state.frozen.items())
  assert set(state.frozen) | set(state.trainable) >= set(before)
  adapted = [path for path in state.trainable if path.startswith('lora/thinker') and path.endswith('/b')]
  assert len(adapted) == 3 and all(np.abs(state.trainable[path]).max() > 0 for path in adapted)
  moments = {f'adam/{moment}/{path}' for moment in ('mu', 'nu') for path in state.trainable}
  assert set(moments_by_name(state.optimiser)) == {'adam/count', *moments}  # frozen ones have no optimiser state


def test_accumulated_microbatches_equal_one_batch():
  halves = [batches.batch(1, 4), batches.batch(2, 4)]
  two = dataclasses.replace(EXACT, step=dataclasses.replace(EXACT.step, accumulate=2))
  whole = jax.tree.map(lambda a, b: np.concatenate([a, b], axis=1 if a.shape[0] == 3 else 0), *halves)
  audio, visual = whole.tokens.audio_index, whole.tokens.visual_index
  audio[4:], visual[4:] = (np.where(x[4:] < 0, -1, x[4:] + n) for x, n in ((audio, 4 * 26), (visual, 4 * 4)))
  assert_same_step(run(two, batches.stacked(halves)), run(EXACT, whole), rtol=2e-3)


def recomputing(policy: str) -> Recipe:
  return dataclasses.replace(EXACT, step=dataclasses.replace(EXACT.step, remat=policy, encoder_remat=policy))


def test_a_step_that_computes_again_what_it_dropped_has_the_same_gradients():
  """With `dots`, in the Thinker and both encoders; `full` is compared by each network's own tests."""
  (state, metrics), (expected, metrics2) = run(recomputing('dots'), batches.batch()), one_step()
  np.testing.assert_allclose(metrics['loss'], metrics2['loss'], rtol=1e-6)
  moment = lambda state: state.optimiser['adam'].mu  # after one step: the clipped gradient, but for a factor
  largest = max(np.abs(m).max() for m in moment(expected).values())
  wrong = []
  for path, gradient in moment(expected).items():
    # That of key biases is zero but for rounding: a softmax does not see what is added to all scores of a query.
    size = max(np.abs(gradient).max(), 1e-3 * largest if path == 'audio/layers/attn/k/bias' else 0)
    error = np.abs(moment(state)[path] - gradient).max() / size
    if not error <= 1e-5:
      wrong.append(f'{path}: {error:.1e}')
  assert not wrong, wrong


@pytest.mark.parametrize('policy', NAMES)
def test_the_words_of_a_step_are_those_of_rematerialisation(policy):
  assert read(Run, None, [f'step.remat={policy}', f'step.encoder_remat={policy}']).step.remat == policy


def test_gradients_of_a_frequent_token_are_summed_in_float32():
  """4,096 ones: summed in bfloat16 they are 256."""
  trainable = {
    'thinker/embed': jnp.ones((3, 4)),
    'thinker/layers/moe/router': jnp.ones((2, 4, 3)),
    'thinker/head': jnp.ones((4, 3)),
  }
  ids = jnp.ones((1, 4096), jnp.int32)

  def total(trainable):
    params = unflatten(compute_params(trainable, jnp.bfloat16))
    return embed_tokens(params['thinker'], ids, jnp.bfloat16).astype(jnp.float32).sum()

  np.testing.assert_array_equal(jax.grad(total)(trainable)['thinker/embed'][1], 4096.0)
  dtypes = {path: p.dtype for path, p in compute_params(trainable, jnp.bfloat16).items()}
  assert dtypes == {
    'thinker/embed': jnp.float32,
    'thinker/layers/moe/router': jnp.float32,
    'thinker/head': jnp.bfloat16,
  }


def test_padding_takes_no_experts_in_training():
  """Nor does it see or is it seen: layer by layer it stays the embedding that it was."""
  cfg, params, tokens = batches.config().thinker, batches.params()['thinker'], batches.batch().tokens
  tokens = tokens.replace(audio_index=None, visual_index=None)
  run = jax.jit(lambda params, tokens: thinker_forward(params, cfg, tokens, Features(), observe=lambda hidden, _: hidden))
  out, hidden = run(params, tokens)
  padding = tokens.segment == 0
  assert padding.any()
  for layer in hidden:
    np.testing.assert_array_equal(layer[padding], out.embeds[padding])
    assert (layer[~padding] != out.embeds[~padding]).any(axis=-1).all()


def test_router_logits_are_float32_in_training(monkeypatch):
  """Two experts whose logits bfloat16 cannot tell apart; what the Thinker is asked for in a step."""
  x, router = jnp.full((1, 1, 2), 1, jnp.bfloat16), jnp.array([[1.0, 1.0], [0.0, 1e-3]])
  assert route(x, router, 1, True, jnp.float32).experts.item() == 1 and route(x, router, 1, True).experts.item() == 0
  asked = []
  monkeypatch.setattr(thinker_loss, 'thinker_forward', lambda *args, **options: asked.append(options['router_dtype']) or 1 / 0)
  sums_fn = functools.partial(loss_sums, cfg=batches.config(), recipe=EXACT, roles=assign_roles(batches.config(), EXACT))
  with pytest.raises(ZeroDivisionError):
    jax.eval_shape(sums_fn, flatten(batches.params()), {}, batches.batch())
  assert asked == [jnp.float32]


def test_spikes_are_skipped_beside_the_running_mean_of_the_steps_that_were_taken():
  zero, count = jnp.float32(0), jnp.int32(0)
  state = TrainState(count, {'a': zero}, {}, {}, {'a': zero}, count, count, zero)
  seen = []
  for i, norm in enumerate([4.0, 6.0, 12.2, np.inf, 8.0, 4.0]):
    new = state.replace(trainable={'a': jnp.float32(i + 1)}, ema={'a': jnp.float32(10 * (i + 1))})
    state = take_unless_bad(state, new, jnp.float32(norm), jnp.float32(1), Step(skip_nonfinite=False, spike=3.0))
    assert state.ema['a'] == 10 * state.trainable['a']
    seen.append([int(x) for x in (state.trainable['a'], state.skipped, state.skipped_in_a_row)])
  assert seen == [[1, 0, 0], [2, 0, 0], [2, 1, 1], [2, 2, 2], [5, 2, 0], [6, 2, 0]]  # 12.2 > 3 x (4 + 0.02 x 2)
  np.testing.assert_allclose(state.usual_norm, 0.98 * (0.98 * 4.04 + 0.02 * 8) + 0.02 * 4, rtol=1e-6)


def test_a_loss_that_is_not_finite_is_skipped_only_where_it_is_asked_for():
  zero, count = jnp.float32(0), jnp.int32(0)
  old = TrainState(count, {'a': zero}, {}, {}, None, count, count, zero)
  new = old.replace(trainable={'a': jnp.float32(1)})
  for step_cfg, norm, loss, taken in (
    (Step(), 1.0, np.nan, 0),
    (Step(), np.inf, 1.0, 0),
    (Step(), 1e9, 1.0, 1),
    (Step(skip_nonfinite=False), np.nan, np.nan, 1),
  ):
    assert take_unless_bad(old, new, jnp.float32(norm), jnp.float32(loss), step_cfg).trainable['a'] == taken


@pytest.mark.slow
@pytest.mark.parametrize('shape', [{'fsdp': 2, 'expert': 2, 'tensor': 2}, {'data': 2, 'expert': 2, 'context': 2}], ids=str)
def test_a_step_on_a_mesh_equals_that_of_one_device(shape):
  assert_same_step(run(EXACT, batches.batch(), shape.items()), one_step(), rtol=5e-3)


@pytest.mark.slow
def test_media_add_nothing_to_what_the_devices_of_a_step_send():
  """Features stay where their tokens are, forward and backward. The encoders' own weights are frozen, and on every device."""
  mesh = make_mesh({'data': 2, 'expert': 4})
  recipe = dataclasses.replace(recomputing('full'), parts=(Part('thinker', 1e-3),))
  batch = batches.batch()
  text = batch.replace(tokens=batch.tokens.replace(audio_index=None, visual_index=None), media=Media())
  sent = [collectives(compiled_text(recipe, batch, mesh), dict(mesh.shape)) for batch in (batch, text)]
  total = [sum(sum(along.values()) for along in kinds.values()) for kinds in sent]
  assert 0 < total[1] <= total[0] <= total[1] + 64, sent


@pytest.mark.slow
def test_features_are_gathered_along_context_alone_where_it_cuts_the_tokens_of_a_lane():
  """Forward and backward, with trained encoders: once their outputs went to all devices: memory grew with their number."""
  mesh = make_mesh({'fsdp': 2, 'expert': 2, 'context': 2})
  recipe = dataclasses.replace(recomputing('full'), parts=(Part('audio', 1e-3), Part('vision', 1e-3), Part('thinker', 1e-3)))
  batch = batches.batch()
  text = batch.replace(tokens=batch.tokens.replace(audio_index=None, visual_index=None), media=Media())
  of_all = {}
  for name, given in (('media', batch), ('text', text)):
    gathered = collectives(compiled_text(recipe, given, mesh), dict(mesh.shape))['all-gather']
    of_all[name] = {axes: n for axes, n in gathered.items() if {'fsdp', 'expert'} <= set(axes.split('+'))}
  assert of_all['media'] == of_all['text'], of_all


def compiled_text(recipe, batch, mesh) -> str:
  shaped = lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
  batch = jax.tree.map(shaped, batch, batch_specs(batch, mesh))
  with jax.set_mesh(mesh):
    step = jax.jit(make_step(batches.config(), recipe))
    return step.lower(abstract_state(batches.config(), recipe, mesh), batch).compile().as_text()


@pytest.mark.slow
def test_a_step_that_is_not_finite_is_skipped_and_counted():
  bad = batches.batch()
  bad.media.audio[0].mel[0, 0, 0] = np.inf
  before = flatten(batches.params())
  state, metrics = run(dataclasses.replace(EXACT, step=dataclasses.replace(EXACT.step, ema=0.9)), bad, steps=2)
  assert metrics['skipped'] == metrics['skipped_in_a_row'] == 2 and state.step == 2 and not np.isfinite(metrics['loss'])
  assert all(np.array_equal(value, before[path]) for path, value in state.trainable.items())
  assert all(np.array_equal(value, before[path]) for path, value in state.ema.items())
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.optimiser))
