"""Attention by tiles with a running softmax, forward and backward: memory grows with the length, not with its square.

A tile that is masked as a whole is skipped. Backward computes the scores of a tile again, from the logarithm of each query's
softmax denominator, which is all that forward keeps beside its inputs and its result (Dao et al. 2022, FlashAttention).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from .remat import ATTENTION, named

BLOCK = 512  # queries and keys of a tile
_LOWEST = -1e30  # finite, so that a fully masked block gives exp(0) * 0 weights and never NaN


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def blockwise(mask_fn, q, k, v, query, key) -> jax.Array:
  """q 'B T K G H', k and v 'B S K H'. query, key: (segment, index), see nn.attention; mask_fn(query, key): the mask.

  query and key must come from `tie_to`. Else they do not depend on what is differentiated, and jax computes the masks of all
  tiles before the loops and keeps them for the backward pass: the square matrix that tiles avoid.
  """
  return _forward(mask_fn, q, k, v, query, key)[0]


def tie_to(q, query, key) -> Any:
  """(q, query, key) unchanged, but query and key are computed no earlier than q."""
  return jax.lax.optimization_barrier((q, query, key))


def _forward(mask_fn, q, k, v, query, key):
  """(result, logarithm of the denominators)"""
  keys = _blocks((k, v, key))

  def one_query_block(_, block):
    q_block, q_ids = block

    def add_key_block(carry, key_block):
      k_block, v_block, k_ids = key_block
      mask = mask_fn(q_ids, k_ids)

      def visible(carry):
        top, total, out = carry
        scores = _scores(q_block, k_block, mask)
        new_top = jnp.maximum(top, scores.max(axis=-1))
        weights = jnp.where(mask[:, None, None], jnp.exp(scores - new_top[..., None]), 0)
        shrink = jnp.exp(top - new_top)
        update = _einsum('BKGTS,BSKH->BKGTH', weights.astype(v.dtype), v_block)
        return new_top, total * shrink + weights.sum(axis=-1), out * shrink[..., None] + update

      return jax.lax.cond(mask.any(), visible, lambda carry: carry, carry), None

    shape = (*(q_block.shape[i] for i in (0, 2, 3)), BLOCK)
    start = (jnp.full(shape, _LOWEST), jnp.zeros(shape), jnp.zeros((*shape, q_block.shape[-1])))
    (top, total, out), _ = jax.lax.scan(add_key_block, start, keys)
    total = jnp.where(total == 0, 1, total)
    return None, (jnp.einsum('BKGTH->BTKGH', out / total[..., None]).astype(v.dtype), top + jnp.log(total))

  _, (out, log_total) = jax.lax.scan(one_query_block, None, _blocks((q, query)))
  out, log_total = named((_joined(out, q.shape[1]), log_total), ATTENTION)
  return out, (q, k, v, query, key, out, log_total)


def _backward(mask_fn, residuals, dout):
  q, k, v, query, key, out, log_total = residuals
  # Of each query, the sum of its weights' gradients, weighted: what the softmax takes from each of them.
  mean = jnp.einsum('BTKGH,BTKGH->BTKG', dout.astype(jnp.float32), out.astype(jnp.float32))
  keys = _blocks((k, v, key))

  def one_query_block(sums, block):
    (q_block, dout_block, mean_block, q_ids), log_total_block = block
    mean_block = jnp.einsum('BTKG->BKGT', mean_block)

    def one_key_block(dq, key_block):
      (k_block, v_block, k_ids), *sums = key_block
      mask = mask_fn(q_ids, k_ids)

      def visible(dq, dk, dv):
        weights = jnp.where(mask[:, None, None], jnp.exp(_scores(q_block, k_block, mask) - log_total_block[..., None]), 0)
        dv += _einsum('BKGTS,BTKGH->BSKH', weights.astype(v.dtype), dout_block)
        change = weights * (_einsum('BTKGH,BSKH->BKGTS', dout_block, v_block) - mean_block[..., None])
        change = (change * q.shape[-1] ** -0.5).astype(q.dtype)
        dq += _einsum('BKGTS,BSKH->BTKGH', change, k_block)
        return dq, dk + _einsum('BKGTS,BTKGH->BSKH', change, q_block), dv

      dq, *sums = jax.lax.cond(mask.any(), visible, lambda *carry: carry, dq, *sums)
      return dq, sums

    dq, sums = jax.lax.scan(one_key_block, jnp.zeros(q_block.shape), (keys, *sums))
    return sums, dq

  start = [jnp.zeros(x.shape) for x in keys[:2]]
  (dk, dv), dq = jax.lax.scan(one_query_block, start, (_blocks((q, dout, mean, query)), log_total))
  dq, dk, dv = (_joined(d, x.shape[1]).astype(x.dtype) for d, x in ((dq, q), (dk, k), (dv, v)))
  return dq, dk, dv, None, None


blockwise.defvjp(_forward, _backward)


def _blocks(tree):
  """Every array, 'B T ...', padded to whole blocks (of segment 0: nobody) and cut into 'blocks B BLOCK ...'."""

  def cut(x):
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % BLOCK)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], -1, BLOCK, *x.shape[2:]), 1, 0)

  return jax.tree.map(cut, tree)


def _joined(x, length: int):
  """The way back."""
  return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, :length]


def _scores(q, k, mask):
  return jnp.where(mask[:, None, None], _einsum('BTKGH,BSKH->BKGTS', q, k) * q.shape[-1] ** -0.5, _LOWEST)


_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
