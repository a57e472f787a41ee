"""Sorting and permuting rows, with a backward pass that is a permutation too; and their sums by token.

By default the gradient of a gather is a scatter that adds rows one by one, because rows might be used twice.
"""

import functools

import jax
import jax.numpy as jnp

from ..shapes import Array, Float, Int
from ..sharding import platform
from .remat import EXPERTS, named

RANKED = 2048  # keys up to which a GPU is faster with all comparisons than with a sort


def sorting(key: Int[Array, ' M']) -> tuple[Int[Array, ' M'], Int[Array, ' M']]:
  """The order that sorts the keys, equal ones as they were, and its inverse."""
  M = len(key)
  if platform() != 'gpu':
    order = jnp.argsort(key)
    return order, jnp.argsort(order)
  count = jnp.arange(M, dtype=jnp.int32)
  if M <= RANKED:
    before = (key[None] < key[:, None]) | ((key[None] == key[:, None]) & (count[None] < count[:, None]))
    back = before.sum(axis=1, dtype=jnp.int32)
    return jnp.zeros(M, jnp.int32).at[back].set(count, unique_indices=True), back
  order = jnp.argsort(key)
  return order, jnp.zeros(M, jnp.int32).at[order].set(count, unique_indices=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def move_rows(x: Float[Array, 'M D'], source: Int[Array, ' X'], target: Int[Array, ' Y'], copies: int = 1) -> Float[Array, 'X D']:
  """Row i of the result is row source[i] of x, each of whose rows stands `copies` times in a row; zeros where source[i] is past
  the end.

  target: the way back: copy j (of M * copies) is row target[j] of the result and no other; past the end: it is nowhere.
  """
  del target
  return take_rows(x, source if copies == 1 else source // copies)


def take_rows(x: Float[Array, 'M D'], index: Int[Array, '*b']) -> Float[Array, '*b D']:
  """x[index], zeros where the index is past the end."""
  return jnp.take(x, index, axis=0, mode='fill', fill_value=0)


def _forward(x, source, target, copies):
  return move_rows(x, source, target, copies), target


def _backward(copies, target, dy):
  dx = take_rows(dy, target)
  return dx if copies == 1 else dx.reshape(-1, copies, dx.shape[-1]).sum(axis=1), None, None


move_rows.defvjp(_forward, _backward)


def weighted_sum(y: Float[Array, 'TA D'], weights: Float[Array, 'T A']) -> Float[Array, 'T D']:
  """The sum of every A rows, each times its weight, in float32, rounded once to y's dtype."""
  y32 = named(y, EXPERTS).reshape(*weights.shape, -1).astype(jnp.float32)
  return (y32 * weights[..., None]).sum(axis=1).astype(y.dtype)
