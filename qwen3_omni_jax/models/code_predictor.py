"""The code predictor: codes 1 .. Q-1 of a frame from the Talker's hidden state and the frame's code 0.

A small decoder that runs once per code, so a frame is Q - 1 passes over the same few layers. `predict_codes` does all of
them in one traced function; `code_predictor_forward` gives the same logits for known codes in one pass (training,
scoring).
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from ..config import TalkerConfig
from ..nn import rope
from ..nn.attention import attention
from ..nn.decoder import decoder_spec, forward
from ..nn.layers import rms_norm, silu_gate
from ..nn.params import Param, Spec, declare
from ..shapes import Array, Float, Int, Params

Pick = Callable[[Float[Array, 'B V'], Int[Array, '']], Int[Array, ' B']]


def code_predictor_spec(cfg: TalkerConfig) -> Spec:
  """embed and head of codebook q (1 .. Q-1) are row q - 1."""
  D, V, rest = cfg.code_predictor.hidden_size, cfg.code_predictor.vocab_size, cfg.num_code_groups - 1
  return {
    'embed': Param((rest, V, D), ('codebook', 'vocab', 'embed'), fan_in=D),
    'layers': decoder_spec(cfg.code_predictor),
    'norm': Param((D,), ('embed',), 'ones'),
    'head': Param((rest, D, V), ('codebook', 'embed', 'vocab'), fan_in=D),
  }


class MergedLayer(flax.struct.PyTreeNode):
  """The weights of one layer as a step reads them: q|k|v and gate|up side by side, so that a layer is four matmuls."""

  attn_norm: Float[Array, ' D']
  qkv: Float[Array, 'D HH']  # HH = (N + 2 K) * H
  q_norm: Float[Array, ' H']
  k_norm: Float[Array, ' H']
  o: Float[Array, 'NH D']
  mlp_norm: Float[Array, ' D']
  gate_up: Float[Array, 'D 2F']
  down: Float[Array, 'F D']


class Predictor(flax.struct.PyTreeNode):
  """The code predictor ready for `predict_codes`: layers apart, weights in the compute dtype."""

  embed: Float[Array, 'Q V D']
  layers: tuple[MergedLayer, ...]
  norm: Float[Array, ' D']
  head: Float[Array, 'Q D V']


def prepare_predictor(params: Params, dtype=jnp.float32) -> Predictor:
  """The weights laid out for `predict_codes`. Do it once: at loading, or at the head of a function that loops over
  frames.

  A layer sliced out of its stack inside the loop would be copied at every one of the 15 passes; measured on CPU, passes
  over separate layers take half the time of a scan over the stack.
  """

  def merge(i: int) -> MergedLayer:
    p = jax.tree.map(lambda w: w[i].astype(dtype), params['layers'])
    a, m = p['attn'], p['mlp']
    D = a['q'].shape[0]
    return MergedLayer(
      attn_norm=p['attn_norm'],
      qkv=jnp.concatenate([a[name].reshape(D, -1) for name in ('q', 'k', 'v')], axis=1),
      q_norm=a['q_norm'],
      k_norm=a['k_norm'],
      o=a['o'].reshape(-1, D),
      mlp_norm=p['mlp_norm'],
      gate_up=jnp.concatenate([m['gate'], m['up']], axis=1),
      down=m['down'],
    )

  layers = tuple(merge(i) for i in range(params['layers']['attn_norm'].shape[0]))
  embed, norm, head = (params[name].astype(dtype) for name in ('embed', 'norm', 'head'))
  return Predictor(embed, layers, norm, head)


def predict_codes(
  predictor: Predictor,
  cfg: TalkerConfig,
  hidden: Float[Array, 'B D'],
  code0_embedding: Float[Array, 'B D'],
  pick: Pick,
) -> tuple[Int[Array, 'B Q-1'], Float[Array, 'B D']]:
  """Codes 1 .. Q-1 of one frame, and the sum of the embeddings of all its codes (code 0 too): the Talker's next input.

  hidden: the Talker's, after its final norm, at the position that gave code 0. code0_embedding: from the Talker's
  table. pick(logits, step) chooses code step + 1, step = 0 .. Q-2, from float32 logits.
  The cache has one slot per position: hidden, code 0, … code Q-2. It starts empty at every frame.
  """
  p, B, Q = cfg.code_predictor, hidden.shape[0], cfg.num_code_groups
  empty = jnp.zeros((B, Q, p.num_key_value_heads, p.head_dim), hidden.dtype)
  caches = tuple((empty, empty) for _ in predictor.layers)

  def next_code(x: Float[Array, 'B T D'], step, caches):
    """Runs the tokens x, the last of them at position step + 1."""
    first = step + 2 - x.shape[1]
    y, caches = _run_layers(predictor, cfg, x, first, caches)
    y = rms_norm(y[:, -1], predictor.norm, p.rms_norm_eps)
    head = jax.lax.dynamic_index_in_dim(predictor.head, step, keepdims=False)
    logits = jnp.einsum('BD,DV->BV', y, head, preferred_element_type=jnp.float32)
    code = pick(logits, step)
    return code, predictor.embed[step, code], caches

  def body(carry, step):
    embedding, total, caches = carry
    code, embedding, caches = next_code(embedding[:, None], step, caches)
    return (embedding, total + embedding.astype(jnp.float32), caches), code

  code, embedding, caches = next_code(jnp.stack([hidden, code0_embedding], axis=1), jnp.int32(0), caches)
  carry = (embedding, code0_embedding.astype(jnp.float32) + embedding.astype(jnp.float32), caches)
  (_, total, _), codes = jax.lax.scan(body, carry, jnp.arange(1, Q - 1, dtype=jnp.int32))
  return jnp.concatenate([code[:, None], codes.T], axis=1), total.astype(embedding.dtype)


def _run_layers(predictor: Predictor, cfg: TalkerConfig, x: Float[Array, 'B T D'], first, caches):
  """The layers over tokens at positions first, first + 1, …; (output, caches)."""
  p = cfg.code_predictor
  N, K, H = p.num_attention_heads, p.num_key_value_heads, p.head_dim
  B, T, _ = x.shape
  slots = caches[0][0].shape[1]
  index = jnp.broadcast_to(first + jnp.arange(T, dtype=jnp.int32), (B, T))
  angle = rope.angles(index, H, p.rope_theta)
  ones = jnp.ones((B, slots), jnp.int32)
  filled = []
  for layer, (k_cache, v_cache) in zip(predictor.layers, caches, strict=True):
    normed = rms_norm(x, layer.attn_norm, p.rms_norm_eps)
    q, k, v = jnp.split((normed @ layer.qkv).reshape(B, T, -1, H), [N, N + K], axis=2)
    q = rope.rotate(rms_norm(q, layer.q_norm, p.rms_norm_eps), angle)
    k = rope.rotate(rms_norm(k, layer.k_norm, p.rms_norm_eps), angle)
    k_cache = jax.lax.dynamic_update_slice_in_dim(k_cache, k, first, axis=1)
    v_cache = jax.lax.dynamic_update_slice_in_dim(v_cache, v, first, axis=1)
    filled.append((k_cache, v_cache))
    out = attention(q, k_cache, v_cache, q_segment=ones[:, :T], k_segment=ones, q_index=index, causal=True)
    x = x + out.reshape(B, T, N * H) @ layer.o
    normed = rms_norm(x, layer.mlp_norm, p.rms_norm_eps)
    gate, up = jnp.split(normed @ layer.gate_up, 2, axis=-1)
    x = x + silu_gate(gate, up) @ layer.down
  return x, tuple(filled)


def code_predictor_forward(
  params: Params,
  cfg: TalkerConfig,
  hidden: Float[Array, 'B D'],
  code0_embedding: Float[Array, 'B D'],
  codes: Int[Array, 'B Q-1'],
  *,
  remat: bool | str = False,
) -> Float[Array, 'B Q-1 V']:
  """Logits of codes 1 .. Q-1 given all codes before each (teacher forcing), float32. B is frames, of any utterances."""
  B, rest = codes.shape
  known = params['embed'][jnp.arange(rest - 1), codes[:, :-1]].astype(hidden.dtype)
  x = jnp.concatenate([hidden[:, None], code0_embedding[:, None].astype(hidden.dtype), known], axis=1)
  positions = jnp.broadcast_to(jnp.arange(rest + 1, dtype=jnp.int32), (B, rest + 1))
  x, _, _ = forward(params['layers'], cfg.code_predictor, x, positions, jnp.ones_like(positions), remat=remat)
  x = rms_norm(x[:, 1:], params['norm'], cfg.code_predictor.rms_norm_eps)
  # With Q first, as XLA on CPU multiplies in bfloat16 with a float32 result; it cannot do so in the order 'BQV'.
  y = jnp.einsum('BQD,QDV->QBV', x, params['head'].astype(x.dtype), preferred_element_type=jnp.float32)
  return jnp.einsum('QBV->BQV', y)


class CodePredictor(nn.Module):
  """The code predictor as a Flax module: `apply({'params': …}, hidden, code0_embedding, codes)` gives logits."""

  cfg: TalkerConfig
  remat: bool = False

  @nn.compact
  def __call__(self, hidden, code0_embedding, codes) -> Float[Array, 'B Q-1 V']:
    params = declare(self, code_predictor_spec(self.cfg))
    return code_predictor_forward(params, self.cfg, hidden, code0_embedding, codes, remat=self.remat)
