"""Training losses: chunked cross-entropy, load-balance loss and z-loss of the router.

Padding has no loss. Logits exist for a chunk of positions at a time, in the forward pass and again in the backward pass: the
array [tokens x 152,064] of a whole batch would be larger than the model's activations.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from qwen3_omni_jax.nn.moe import Routing, expert_load, expert_pairs
from qwen3_omni_jax.shapes import Array, Bool, Float, Int
from qwen3_omni_jax.sharding import batch_axes, current_mesh, length_axis

CHUNK = 1024  # positions whose logits a device holds at once: 0.6 GB in float32 at the released vocabulary


def token_losses(
  hidden: Float[Array, 'B T D'], head: Float[Array, 'D V'], targets: Int[Array, 'B T'], chunk: int = CHUNK
) -> Float[Array, 'B T']:
  """-log p(target) of every position, float32: see token_scores."""
  return token_scores(hidden, head, targets, chunk).loss


class Scores(flax.struct.PyTreeNode):
  """loss: -log p(target). right: the target is the likeliest token. other: -log p of one token that was asked for."""

  loss: Float[Array, 'B T']
  right: Bool[Array, 'B T']
  other: Float[Array, 'B T'] | None = None


def token_scores(
  hidden: Float[Array, 'B T D'],
  head: Float[Array, 'D V'],
  targets: Int[Array, 'B T'],
  chunk: int = CHUNK,
  other: int | None = None,
) -> Scores:
  """Of every position. Matmuls run in hidden's dtype, softmax in float32. other: a token to score besides.

  chunk: positions at once on a device; their logits are computed again in the backward pass. On a mesh, rows and lengths stay
  where they are, each device gathers the head once, and a vocabulary cut over `tensor` is never put together.
  """
  mesh = current_mesh()
  if mesh is None:
    return _chunked(hidden, head, targets, chunk, other, None)
  rows, length = batch_axes(hidden.shape[0], mesh) or None, length_axis(hidden.shape[1], mesh)
  vocab = 'tensor' if mesh.shape['tensor'] > 1 and head.shape[1] % mesh.shape['tensor'] == 0 else None
  local = functools.partial(_chunked, chunk=chunk, other=other, vocab=vocab)
  tokens = PartitionSpec(rows, length)
  run = jax.shard_map(local, in_specs=(tokens, PartitionSpec(None, vocab), tokens), out_specs=tokens, check_vma=False)
  return run(hidden, head, targets)


def _chunked(hidden, head, targets, chunk: int, other: int | None, vocab: str | None) -> Scores:
  """On one device. vocab: the mesh axis over which the head's columns are cut."""
  (B, T), D = targets.shape, hidden.shape[-1]
  n = -(-B * T // -(-B * T // chunk))  # chunks of equal size, with a little padding
  count = -(-B * T // n)
  pad = lambda x: jnp.pad(x, [(0, count * n - B * T)] + [(0, 0)] * (x.ndim - 1)).reshape(count, n, *x.shape[1:])
  # Widened, so that the chunks' gradients of the head are summed in float32; rounded again where it is multiplied.
  wide = head.astype(jnp.float32)

  @jax.checkpoint
  def one_chunk(_, inputs):
    x, target = inputs
    logits = _logits(x, wide)
    top = jax.lax.stop_gradient(logits.max(axis=-1))
    top = top if vocab is None else jax.lax.pmax(top, vocab)
    total = jnp.exp(logits - top[:, None]).sum(axis=-1)
    first = 0 if vocab is None else jax.lax.axis_index(vocab) * logits.shape[1]
    total = total if vocab is None else jax.lax.psum(total, vocab)

    def of(token):
      at = jnp.clip(token - first, 0, logits.shape[1] - 1)
      chosen = jnp.take_along_axis(logits, at[:, None], axis=-1)[:, 0]
      return chosen if vocab is None else jax.lax.psum(jnp.where(at == token - first, chosen, 0), vocab)

    chosen = of(target)
    log_z = jnp.log(total) + top
    return None, Scores(log_z - chosen, chosen >= top, None if other is None else log_z - of(jnp.full_like(target, other)))

  _, scores = jax.lax.scan(one_chunk, None, (pad(hidden.reshape(-1, D)), pad(targets.reshape(-1))))
  return jax.tree.map(lambda x: x.reshape(-1)[: B * T].reshape(B, T), scores)


@jax.custom_vjp
def _logits(x: Float[Array, 'n D'], head: Float[Array, 'D V']) -> Float[Array, 'n V']:
  """float32, from a product in x's dtype. Their gradient is rounded to it before it is multiplied, as in any other layer: left to
  itself it stays float32, and so do two of three matmuls."""
  return jnp.einsum('nD,DV->nV', x, head.astype(x.dtype), preferred_element_type=jnp.float32)


def _logits_backward(inputs, dy):
  x, head = inputs
  dy = dy.astype(x.dtype)
  dhead = jnp.einsum('nD,nV->DV', x, dy, preferred_element_type=jnp.float32)
  return jnp.einsum('nV,DV->nD', dy, head.astype(x.dtype)), dhead.astype(head.dtype)


_logits.defvjp(lambda x, head: (_logits(x, head), (x, head)), _logits_backward)


class RouterSums(flax.struct.PyTreeNode):
  """What the losses need of a layer's routing, averaged over valid tokens. lost: pairs that a bounded buffer had no room for."""

  pairs: Float[Array, '*L E']  # of token and expert, not averaged
  load: Float[Array, '*L E']  # share of the pairs of token and expert; balanced: 1/E
  probs: Float[Array, '*L E']  # mean router probability
  log_z2: Float[Array, '*L']  # mean square of the log of the softmax's denominator
  lost: Int[Array, '*L']


def router_sums(valid: Bool[Array, 'B T'], _: Array, routing: Routing | None) -> RouterSums | None:
  """Of one layer, while it runs: the probabilities of all layers are never kept. None for a dense model."""
  if routing is None:
    return None
  number = jnp.maximum(valid.sum(), 1).astype(jnp.float32)
  mean = lambda x: jnp.where(valid.reshape(*valid.shape, *(1,) * (x.ndim - 2)), x, 0).sum(axis=(0, 1)) / number
  pairs = expert_pairs(routing, valid)
  return RouterSums(pairs, expert_load(pairs), mean(routing.probs), mean(jnp.square(routing.log_z)), routing.lost)


def balance_loss(sums: RouterSums, active: int, form: str = 'per_layer') -> Float[Array, '']:
  """E * sum_e f_e P_e; `active` (top-k) where experts are balanced. f_e: pairs of expert e per token; P_e: its mean probability.

  form 'per_layer': of each layer (Switch Transformers, equation 4), averaged over layers. 'reference': f and P averaged over all
  layers first, as in transformers' load_balancing_loss_func; it is at its lowest also where every layer sends all tokens to one
  expert, if only each layer has another one.
  """
  load, probs = sums.load, sums.probs
  if form == 'reference':
    load, probs = load.mean(axis=0, keepdims=True), probs.mean(axis=0, keepdims=True)
  return load.shape[-1] * active * (load * probs).sum(axis=-1).mean()


def z_loss(sums: RouterSums) -> Float[Array, '']:
  """Mean square of log sum exp of the router's logits (ST-MoE, equation 5)."""
  return sums.log_z2.mean()


def busiest_expert(sums: RouterSums) -> Float[Array, '']:
  """Load of the busiest expert of any layer, as a multiple of the balanced one."""
  return sums.load.max() * sums.load.shape[-1]


def sums_by(values: Float[Array, 'B T'], index: Int[Array, 'B T'], number: int) -> Float[Array, ' N']:
  """Sums over the positions that have each of `number` indices."""
  return jnp.zeros(number, jnp.float32).at[index.reshape(-1)].add(values.reshape(-1).astype(jnp.float32))
