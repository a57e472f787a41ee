"""Muon beside optax's own; schedules, clipping, averages and decay beside their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers, muon
from qwen3_omni_jax.train.config import Optimiser, Recipe
from qwen3_omni_jax.train.optimiser import global_norm, lr_factor, make_transform
from qwen3_omni_jax.train.stages import LoraPart, Part
from qwen3_omni_jax.train.state import assign_roles
from qwen3_omni_jax.train.step import apply_update, clip_by_norm, update_ema

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
    optimiser=Optimiser('muon'),
  )
  roles, rng = assign_roles(batches.config(), recipe), np.random.default_rng(0)
  assert set(roles.trainable) == {*MATRICES, *OTHERS}
  draw = lambda: {path: rng.standard_normal(param.shape, dtype=np.float32) for path, param in roles.trainable_specs.items()}
  params, ours = draw(), make_transform(recipe.optimiser, roles.trainable_specs)
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
  expected = dict(params)
  gradients = [draw(), draw()]
  with jax.numpy_dtype_promotion('standard'):  # optax is not written for strict promotion
    state, update = ours.init(params), jax.jit(ours.update)
    for gradient in gradients:
      updates, state = update(gradient, state, params)
      params = {path: apply_update(p, updates[path], jnp.float32(1), path, roles) for path, p in params.items()}
    for group, optimiser in theirs.items():
      own = some(expected, group)
      state, update = optimiser.init(own), jax.jit(optimiser.update)
      for gradient in gradients:
        change, state = update(some(gradient, group), state, own)
        own = optax.apply_updates(own, change)
      expected |= own
  for path, value in expected.items():
    np.testing.assert_allclose(params[path], value, rtol=1e-5, atol=1e-6, err_msg=path)  # sums in another order


@pytest.mark.parametrize(
  ('schedule', 'middle'), [('cosine', 0.1 + 0.9 * 0.5), ('linear', 0.1 + 0.9 * 0.5), ('constant', 1.0)], ids=lambda x: str(x)
)
def test_the_rate_rises_in_warmup_and_falls_to_its_final_share(schedule, middle):
  """Four steps of warm-up, then 21: the first of them is the highest, the last `final`, the eleventh half way."""
  cfg, steps = Optimiser(schedule=schedule, warmup=4, final=0.1), 25
  rate = [float(lr_factor(cfg, steps, jnp.int32(step))) for step in range(steps)]
  np.testing.assert_allclose(rate[:4], [0.25, 0.5, 0.75, 1.0], rtol=1e-6)
  np.testing.assert_allclose([rate[4], rate[14], rate[24]], [1.0, middle, 1.0 if schedule == 'constant' else 0.1], rtol=1e-6)
  assert all(later <= earlier for earlier, later in zip(rate[4:], rate[5:], strict=False))
  quarter = {'cosine': 0.1 + 0.45 * (1 + np.cos(np.pi / 4)), 'linear': 0.1 + 0.9 * 0.75, 'constant': 1.0}[schedule]
  np.testing.assert_allclose(rate[9], quarter, rtol=1e-6)


def test_a_long_gradient_is_scaled_to_the_largest_norm_and_a_short_one_left():
  grads = {'a': jnp.array([3.0, 0.0]), 'b': jnp.array([[4.0]])}
  norm = global_norm(grads)
  assert float(norm) == 5.0
  np.testing.assert_allclose(clip_by_norm(grads, norm, 2.0)['a'], [1.2, 0.0], rtol=1e-6)
  np.testing.assert_allclose(global_norm(clip_by_norm(grads, norm, 2.0)), 2.0, rtol=1e-6)
  for largest in (6.0, 0.0):  # 0: no clipping
    np.testing.assert_array_equal(clip_by_norm(grads, norm, largest)['b'], grads['b'])


def test_an_average_moves_towards_the_parameter_by_one_minus_its_decay():
  average, parameter = {'a': jnp.array([1.0, 2.0])}, {'a': jnp.array([2.0, -2.0])}
  np.testing.assert_allclose(update_ema(average, parameter, 0.75)['a'], [1.25, 1.0])
  assert update_ema(None, parameter, 0.75) is None


def test_weight_decay_is_of_matrices_alone_and_in_units_of_the_rate():
  recipe = Recipe(parts=(Part('thinker/(norm|head)$', 0.5, 0.2),))
  roles = assign_roles(batches.config(), recipe)
  update, factor = jnp.float32(2.0), jnp.float32(0.1)
  np.testing.assert_allclose(apply_update(jnp.float32(10), update, factor, 'thinker/head', roles), 10 - 0.05 * (2 + 0.2 * 10))
  np.testing.assert_allclose(apply_update(jnp.float32(10), update, factor, 'thinker/norm', roles), 10 - 0.05 * 2)
