"""Muon beside optax's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, muon
from qwen3_omni_jax.train.config import Optimiser, Recipe
from qwen3_omni_jax.train.optimiser import make_transform
from qwen3_omni_jax.train.stages import LoraPart, Part
from qwen3_omni_jax.train.state import assign_roles
from qwen3_omni_jax.train.step import apply_update

from tests.train import batches

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
  fast = lambda update: jax.jit(update, compiler_options=batches.FAST_TO_COMPILE)
  expected = dict(params)
  gradients = [draw(), draw()]
  with jax.numpy_dtype_promotion('standard'):  # optax is not written for strict promotion
    state, update = ours.init(params), fast(ours.update)
    for gradient in gradients:
      updates, state = update(gradient, state, params)
      params = {path: apply_update(p, updates[path], jnp.float32(1), path, roles) for path, p in params.items()}
    for group, optimiser in theirs.items():
      own = some(expected, group)
      state, update = optimiser.init(own), fast(optimiser.update)
      for gradient in gradients:
        change, state = update(some(gradient, group), state, own)
        own = optax.apply_updates(own, change)
      expected |= own
  for path, value in expected.items():
    np.testing.assert_allclose(params[path], value, rtol=1e-5, atol=1e-6, err_msg=path)  # sums in another order
