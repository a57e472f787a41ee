"""Muon beside optax's own; schedules, clipping, averages and decay beside their formulas."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers, muon
from qwen3_omni_jax.train.config import LoraPart, Optimiser, Part, Recipe
from qwen3_omni_jax.train.optimiser import make_schedule, moments_by_name
from qwen3_omni_jax.train.state import assign_roles, build_optimiser
from qwen3_omni_jax.train.step import update_ema

from tests.train import batches

pytestmark = pytest.mark.quick_to_compile

RATE, DECAY = 2e-3, 0.3
# Axes of inputs and of outputs, the others being layers or experts: by hand, not from the table that the optimiser reads.
MATRICES = {
  'audio/conv_out/kernel': ((0, 1), (2,)),
  'thinker/layers/attn/q': ((1,), (2, 3)),
  'thinker/layers/attn/o': ((1, 2), (3,)),
  'thinker/layers/moe/experts/down': ((2,), (3,)),
  'lora/vision/layers/mlp/up/kernel/a': ((1,), (2,)),
  'lora/vision/layers/mlp/up/kernel/b': ((1,), (2,)),
}
OTHERS = (
  'audio/conv1/kernel',
  'audio/layers/attn/k/bias',
  'thinker/embed',
  'thinker/head',
  'thinker/layers/attn_norm',
  'thinker/layers/moe/router',
)


def test_muon_steps_matrices_as_optax_does_and_adamw_all_others():
  recipe = Recipe(
    parts=tuple(Part(f'{path}$', RATE, DECAY) for path in (*MATRICES, *OTHERS) if not path.startswith('lora/')),
    lora=(LoraPart('vision/layers/mlp/up', 3, lr=RATE),),
    optimiser=Optimiser('muon', schedule='constant', warmup=0, clip=0),
  )
  roles, rng = assign_roles(batches.config(), recipe), np.random.default_rng(0)
  assert set(roles.trainable) == {*MATRICES, *OTHERS}
  draw = lambda: {path: rng.standard_normal(param.shape, dtype=np.float32) for path, param in roles.trainable_specs.items()}
  ours = build_optimiser(recipe, roles)
  params: Any = draw()
  some = lambda tree, group: {path: tree[path] for path in group}
  decayed = {path: param.init == 'normal' and not path.startswith('lora/') for path, param in roles.trainable_specs.items()}
  mask = lambda tree: some(decayed, tree)
  axes = {path: MuonDimensionNumbers(*axes) for path, axes in MATRICES.items()}
  theirs = {
    tuple(MATRICES): muon(
      RATE, beta=0.95, weight_decay=DECAY, weight_decay_mask=mask, consistent_rms=0.2, muon_weight_dimension_numbers=axes
    ),
    OTHERS: optax.adamw(RATE, 0.9, 0.95, 1e-8, weight_decay=DECAY, mask=mask),
  }
  expected: Any = dict(params)
  gradients = [draw(), draw()]
  with jax.numpy_dtype_promotion('standard'):  # optax is not written for strict promotion
    state, update = ours.init(params), jax.jit(ours.update)
    for gradient in gradients:
      updates, state = update(gradient, state, params, step=jnp.int32(0))
      params = optax.apply_updates(params, updates)
    for group, optimiser in theirs.items():
      own = some(expected, group)
      state, update = optimiser.init(own), jax.jit(optimiser.update)
      for gradient in gradients:
        change, state = update(some(gradient, group), state, own)
        own: Any = optax.apply_updates(own, change)
      expected |= own
  for path, value in expected.items():
    np.testing.assert_allclose(params[path], value, rtol=1e-5, atol=1e-6, err_msg=path)  # sums in another order


@pytest.mark.parametrize(
  ('schedule', 'middle'), [('cosine', 0.1 + 0.9 * 0.5), ('linear', 0.1 + 0.9 * 0.5), ('constant', 1.0)], ids=lambda x: str(x)
)
def test_the_rate_rises_in_warmup_and_falls_to_its_final_share(schedule, middle):
  """Four steps of warm-up, then 21: the first of them is the highest, the last `final`, the eleventh half way."""
  rate = rates(Optimiser(schedule=schedule, warmup=4, final=0.1), 25)
  np.testing.assert_allclose(rate[:4], [0.25, 0.5, 0.75, 1.0], rtol=1e-6)
  np.testing.assert_allclose([rate[4], rate[14], rate[24]], [1.0, middle, 1.0 if schedule == 'constant' else 0.1], rtol=1e-6)
  assert all(later <= earlier for earlier, later in zip(rate[4:], rate[5:], strict=False))
  quarter = {'cosine': 0.1 + 0.45 * (1 + np.cos(np.pi / 4)), 'linear': 0.1 + 0.9 * 0.75, 'constant': 1.0}[schedule]
  np.testing.assert_allclose(rate[9], quarter, rtol=1e-6)


def rates(cfg: Optimiser, steps: int, part: Part | None = None) -> list[float]:
  schedule = make_schedule(cfg, steps, part)
  with jax.numpy_dtype_promotion('standard'):
    return [float(schedule(jnp.int32(step))) for step in range(steps)]


def test_wsd_keeps_the_highest_rate_until_the_last_share_of_the_steps():
  """Two steps of warm-up, the highest rate until five of 25 are left, then a fifth of the way down in each."""
  rate = rates(Optimiser(schedule='wsd', warmup=2, final=0.1, decay=0.2), 25)
  np.testing.assert_allclose(rate, [0.5] + [1.0] * 19 + [0.82, 0.64, 0.46, 0.28, 0.1], rtol=1e-6)


def test_a_run_without_warmup_begins_at_the_highest_rate():
  for warmup in (0, 1):
    np.testing.assert_allclose(
      rates(Optimiser(schedule='linear', warmup=warmup, final=0.0), 3 + warmup)[warmup:], [1.0, 0.5, 0.0]
    )


def test_a_part_has_its_own_schedule_where_it_says_so():
  cfg = Optimiser(schedule='cosine', warmup=4, final=0.1)
  assert rates(cfg, 9, Part('x', 1.0)) == rates(cfg, 9)
  own = Part('x', 1.0, schedule='wsd', warmup=1, final=0.5, decay=0.25)
  assert rates(cfg, 9, own) == rates(Optimiser(schedule='wsd', warmup=1, final=0.5, decay=0.25), 9)
  recipe = Recipe(
    parts=(Part('thinker/norm', 0.5), dataclasses.replace(own, pattern='audio/proj1/bias')),
    steps=9,
    optimiser=dataclasses.replace(cfg, clip=0.0),
  )
  updates = first_update(recipe, step=2)  # Adam's first direction is the gradient's sign
  np.testing.assert_allclose(np.abs(updates['thinker/norm']), 0.5 * 0.75, rtol=1e-5)
  np.testing.assert_allclose(np.abs(updates['audio/proj1/bias']), 1.0, rtol=1e-5)


def first_update(recipe: Recipe, step: int, value: float = 0.0, gradient: float = 1.0) -> dict:
  """The chain's first update of parameters that are all `value`."""
  roles = assign_roles(batches.config(), recipe)
  optimiser = build_optimiser(recipe, roles)
  full = lambda x: {path: jnp.full(param.shape, x, jnp.float32) for path, param in roles.trainable_specs.items()}
  with jax.numpy_dtype_promotion('standard'):
    return optimiser.update(full(gradient), optimiser.init(full(value)), full(value), step=jnp.int32(step))[0]


def test_a_long_gradient_is_scaled_to_the_largest_norm_and_a_short_one_left():
  """Seen in Adam's first moment, a tenth of the gradient that reaches it. The norm is that of all parameters together."""
  recipe = Recipe(parts=(Part('thinker/norm', 1.0), Part('audio/proj1/bias', 1.0)))
  roles = assign_roles(batches.config(), recipe)
  size = sum(int(np.prod(param.shape)) for param in roles.trainable_specs.values())
  for clip, factor in ((0.5, 0.5), (2.0, 1.0), (0.0, 1.0)):  # 0: no clipping
    optimiser = build_optimiser(dataclasses.replace(recipe, optimiser=Optimiser(clip=clip)), roles)
    grads = {path: jnp.full(param.shape, size**-0.5) for path, param in roles.trainable_specs.items()}  # of norm 1
    with jax.numpy_dtype_promotion('standard'):
      _, state = optimiser.update(grads, optimiser.init(grads), grads, step=jnp.int32(0))
    for path, moment in state['adam'].mu.items():
      np.testing.assert_allclose(moment, 0.1 * factor * size**-0.5, rtol=1e-5, err_msg=path)


def test_an_average_moves_towards_the_parameter_by_one_minus_its_decay():
  average, parameter = {'a': jnp.array([1.0, 2.0])}, {'a': jnp.array([2.0, -2.0])}
  np.testing.assert_allclose(update_ema(average, parameter, 0.75)['a'], [1.25, 1.0])
  assert update_ema(None, parameter, 0.75) is None


def test_weight_decay_is_of_matrices_alone_and_in_units_of_the_rate():
  recipe = Recipe(parts=(Part('thinker/(norm|head)$', 0.5, 0.2),), optimiser=Optimiser(warmup=10))
  updates = first_update(recipe, step=0, value=10.0)
  np.testing.assert_allclose(updates['thinker/head'], -0.05 * (1 + 0.2 * 10), rtol=1e-5)
  np.testing.assert_allclose(updates['thinker/norm'], -0.05 * 1, rtol=1e-5)


@pytest.mark.parametrize('name', ['adamw', 'adafactor', 'muon'])
def test_moments_have_the_names_of_their_parameters_however_parts_are_divided(name):
  paths = ('thinker/head', 'thinker/norm', 'thinker/layers/attn/q')

  def names(*parts):
    recipe = Recipe(parts=parts, optimiser=Optimiser(name))
    roles = assign_roles(batches.config(), recipe)
    shapes = {path: jax.ShapeDtypeStruct(param.shape, jnp.float32) for path, param in roles.trainable_specs.items()}
    with jax.numpy_dtype_promotion('standard'):
      return {
        name: leaf.shape for name, leaf in moments_by_name(jax.eval_shape(build_optimiser(recipe, roles).init, shapes)).items()
      }

  together, apart = names(Part(f'({"|".join(paths)})$', 1.0)), names(*(Part(f'{path}$', 1.0, 0.1) for path in paths))
  assert together == apart
  first = {'adamw': 'adam/mu/', 'adafactor': 'adafactor/v/', 'muon': 'adam/mu/'}[name]
  assert first + 'thinker/norm' in together
  if name == 'muon':
    assert 'muon/mu/thinker/layers/attn/q' in together and 'adam/mu/thinker/layers/attn/q' not in together
