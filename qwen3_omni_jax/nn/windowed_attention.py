"""Causal attention over a sliding window, whole or as a stream: keys and values of earlier chunks come from the state."""

import jax.numpy as jnp

from ..shapes import Array, Float, Int, Params
from . import rope
from .attention import attention


def windowed_attention(
  x: Float[Array, 'B T D'],
  p: Params,
  begin: Int[Array, ' B'],
  k_before: Float[Array, 'B S K H'],
  v_before: Float[Array, 'B S K H'],
  theta: float,
) -> tuple[Float[Array, 'B T D'], Float[Array, 'B S K H'], Float[Array, 'B S K H']]:
  """(output, k, v): of T positions from `begin` on, each of which sees itself and the S before it.

  p: q, k, v, o without biases. k_before, v_before: of the last S positions before these, keys rotated; what lies before position
  0 is not looked at. The returned ones are those for the next chunk, in the dtype of what was given. theta: of RoPE.
  """
  B, T, _ = x.shape
  S = k_before.shape[1]
  index = begin[:, None] + jnp.arange(T, dtype=jnp.int32)
  k_index = begin[:, None] + jnp.arange(-S, T, dtype=jnp.int32)
  angle = rope.angles(index, p['q'].shape[-1], theta)
  q = rope.rotate(jnp.einsum('BTD,DNH->BTNH', x, p['q'].astype(x.dtype)), angle)
  k = rope.rotate(jnp.einsum('BTD,DKH->BTKH', x, p['k'].astype(x.dtype)), angle)
  v = jnp.einsum('BTD,DKH->BTKH', x, p['v'].astype(x.dtype))
  k = jnp.concatenate([k_before.astype(x.dtype), k], axis=1)
  v = jnp.concatenate([v_before.astype(x.dtype), v], axis=1)
  out = attention(
    q,
    k,
    v,
    q_segment=jnp.ones((B, T), jnp.int32),
    k_segment=(k_index >= 0).astype(jnp.int32),
    q_index=index,
    k_index=k_index,
    causal=True,
    window=S + 1,
  )
  out = jnp.einsum('BTNH,NHD->BTD', out, p['o'].astype(x.dtype))
  return out, k[:, T:].astype(k_before.dtype), v[:, T:].astype(v_before.dtype)
