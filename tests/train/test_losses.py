"""Cross-entropy in chunks is cross-entropy, on one device and on meshes; the router's losses leave padding out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from qwen3_omni_jax.train.losses import RouterSums, balance_loss, router_sums, token_losses, z_loss

from qwen3_omni_jax.nn.moe import route
from qwen3_omni_jax.sharding import make_mesh

pytestmark = pytest.mark.quick_to_compile

B, T, D, V = 4, 6, 5, 14


def plain(hidden, head, targets):
  logits = jax.nn.log_softmax(jnp.einsum('BTD,DV->BTV', hidden, head))
  return -jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]


def values():
  rng = np.random.default_rng(0)
  hidden, head = rng.standard_normal((B, T, D), dtype=np.float32), rng.standard_normal((D, V), dtype=np.float32)
  return hidden, head, rng.integers(0, V, (B, T)), rng.standard_normal((B, T), dtype=np.float32)


def with_gradients(losses, hidden, head, targets, weights):
  total = lambda hidden, head: (losses(hidden, head, targets) * weights).sum()
  return jax.jit(jax.value_and_grad(total, (0, 1)))(hidden, head)


@pytest.fixture(scope='module')
def expected():
  return with_gradients(plain, *values())


# What a chunk's size does is seen on one device; on meshes, only that chunks and shards do not get in one another's way.
SHAPES = [({}, 1), ({}, 7), ({}, 1000), ({'data': 2, 'tensor': 2, 'context': 2}, 7), ({'fsdp': 4, 'tensor': 2}, 7)]


@pytest.mark.parametrize(('shape', 'chunk'), SHAPES, ids=str)
def test_chunked_cross_entropy_equals_plain_with_gradients(expected, chunk, shape):
  with jax.set_mesh(make_mesh(shape)):
    got = with_gradients(lambda *x: token_losses(*x, chunk=chunk), *values())
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), got, expected)


def test_no_table_of_all_logits_exists():
  """Neither forward nor backward: no array of the compiled program has tokens x vocabulary elements."""
  n, wide = 512, 1031
  shapes = [jax.ShapeDtypeStruct(s, d) for s, d in (((1, n, D), 'float32'), ((D, wide), 'float32'), ((1, n), 'int32'))]
  total = lambda hidden, head, targets: token_losses(hidden, head, targets, chunk=64).sum()
  text = jax.jit(jax.value_and_grad(total, (0, 1))).lower(*shapes).compile().as_text()
  assert f'64,{wide}]' in text
  assert f'{n},{wide}]' not in text and f'8,64,{wide}]' not in text


def test_balance_loss_leaves_padding_out_and_is_top_k_when_balanced():
  rng = np.random.default_rng(1)
  router = rng.standard_normal((D, 8), dtype=np.float32)
  x = rng.standard_normal((B, T, D), dtype=np.float32)
  valid = np.arange(T) < 4
  loss = lambda x, valid: balance_loss(jax.tree.map(lambda a: a[None], router_sums(valid, x, route(x, router, 3, True))), 3)
  padded = loss(x, jnp.broadcast_to(valid, (B, T)))
  np.testing.assert_allclose(padded, loss(x[:, :4], jnp.ones((B, 4), bool)), rtol=1e-6)
  assert abs(padded - loss(x, jnp.ones((B, T), bool))) > 1e-4
  even = RouterSums(
    jnp.full((2, 8), 4.0), jnp.full((2, 8), 1 / 8), jnp.full((2, 8), 1 / 8), jnp.zeros(2), jnp.zeros(2, jnp.int32)
  )
  np.testing.assert_allclose(balance_loss(even, 3), 3.0, rtol=1e-6)


def test_a_layer_that_sends_all_to_one_expert_is_not_balanced_by_other_layers():
  """Every layer to another expert: as unbalanced as can be, and the reference's pooled form does not see it."""
  one_each = jnp.eye(8)
  sums = RouterSums(one_each, one_each, one_each, jnp.zeros(8), jnp.zeros(8, jnp.int32))
  np.testing.assert_allclose(balance_loss(sums, 1), 8.0)
  np.testing.assert_allclose(balance_loss(sums, 1, 'reference'), 1.0)


def test_the_z_loss_is_the_mean_square_of_the_routers_log_denominator():
  rng = np.random.default_rng(2)
  x, router = rng.standard_normal((B, T, D), dtype=np.float32), rng.standard_normal((D, 8), dtype=np.float32)
  valid = np.broadcast_to(np.arange(T) < 4, (B, T))
  sums = jax.tree.map(lambda a: a[None], router_sums(jnp.asarray(valid), x, route(x, router, 3, True)))
  log_z = np.log(np.exp(np.einsum('BTD,DE->BTE', x, router)).sum(axis=-1))
  np.testing.assert_allclose(z_loss(sums), (log_z[valid] ** 2).mean(), rtol=1e-5)
