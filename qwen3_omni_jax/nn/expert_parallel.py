"""Expert parallelism: experts sharded over the `expert` axis of a mesh, forward and backward.

Every device holds E / n experts of each layer. Its rows are either its own (then pairs of token and expert are sent) or the
same as those of its whole expert group (a few rows being decoded: then each device computes the part of its experts, and the
parts are summed). `Dispatch.method` names how pairs are sent:

    ragged    ragged all-to-all: sends only the pairs (TPU, GPU)
    padded    all-to-all of equal buffers, the largest that can be needed (everywhere)
    gathered  all tokens to all devices, partial sums back (all-gather and reduce-scatter; everywhere)

Nothing is dropped unless a bounded buffer is configured; then the pairs that do not fit are counted.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ..shapes import Array, Float, Int, Params
from ..sharding import batch_axes, length_axis, platform
from .expert_weights import Experts
from .experts import run_experts
from .lora import Lora
from .permute import move_rows, sorting, weighted_sum

AXIS = 'expert'


@dataclasses.dataclass(frozen=True)
class Dispatch:
  """method: None for the platform's. buffer: rows a device makes room for, as a multiple of the pairs it would get if all were
  balanced; None for as many as it could ever get. form: of the grouped matmul, see nn.experts."""

  method: str | None = None
  buffer: float | None = None
  form: str | None = None


LOSSLESS = Dispatch()


def expert_parallel(
  x: Float[Array, 'B T D'], routing, experts: Experts, mesh, dispatch: Dispatch = LOSSLESS
) -> tuple[Float[Array, 'B T D'], Int[Array, '']]:
  """The weighted sum over each token's experts, and the number of pairs that did not fit into a bounded buffer.

  routing: nn.moe.Routing of x ('B T A'). mesh: the one in force.
  Raises ValueError if the experts cannot be divided evenly or the method is unknown.
  """
  shards = mesh.shape[AXIS]
  if experts.number % shards:
    raise ValueError(f'{experts.number} experts over expert={shards}: choose a mesh whose expert axis divides them')
  rows = batch_axes(x.shape[0], mesh)
  length = length_axis(x.shape[1], mesh)
  tokens = PartitionSpec(rows or None, length, None)
  if AXIS not in rows:
    method = _summed
  else:
    name = dispatch.method or ('padded' if platform() == 'cpu' else 'ragged')
    if name not in METHODS:
      raise ValueError(f'dispatch {name!r}: expected one of {", ".join(METHODS)}')
    method = functools.partial(METHODS[name], shards=shards, buffer=dispatch.buffer)
  everywhere = (*rows, *((length,) if length else ()))

  cut = _expert_specs(experts)
  if mesh.shape['fsdp'] > 1:
    # One layer is gathered. Without its own sharding said here, the compiler gathers the whole stack, and that for every layer.
    experts = Experts.of_layer(experts.all())
    cut = _expert_specs(experts, mesh.shape['fsdp'])
    experts = jax.lax.with_sharding_constraint(experts, cut)

  def local(x, experts_of, weights, experts):
    experts = jax.tree.map(_gather_fsdp, experts, cut)
    flat = lambda a: a.reshape(-1, a.shape[-1])
    balanced = math.prod(experts_of.shape) // (1 if AXIS in rows else shards)  # pairs for this device if all get as many
    compute = lambda rows, expert: run_experts(rows, expert, experts, dispatch.form, balanced)
    y, lost = method(flat(x), flat(experts_of), flat(weights), experts.number, compute)
    if mesh.shape['tensor'] > 1:
      y = jax.lax.psum(y, 'tensor')  # each device did a part of the experts' hidden width
    return y.reshape(x.shape), jax.lax.psum(lost, everywhere) if everywhere else lost

  run = jax.shard_map(
    local,
    in_specs=(tokens, tokens, tokens, cut),
    out_specs=(tokens, PartitionSpec()),
    check_vma=False,
  )
  return run(x, routing.experts, routing.weights, experts)


def _gather_fsdp(w: Array, cut: PartitionSpec) -> Array:
  """A weight whole along the dimension that is cut over fsdp. Backward, this scatters the sum of gradients over the same devices;
  where the compiler gathers, it may give each of them the whole sum first."""
  axis = next((i for i, name in enumerate(cut) if name == 'fsdp'), None)
  return w if axis is None else jax.lax.all_gather(w, 'fsdp', axis=axis, tiled=True)


def _expert_specs(experts: Experts, fsdp: int = 1) -> Experts:
  """How the arrays are cut: by expert, the hidden width over `tensor`, and the other over that many devices of `fsdp`, where they
  divide it (not the rank of LoRA). Scales of int8 have size 1 where summed over."""
  stacked = experts.layer is not None
  first = (None, AXIS) if stacked else (AXIS,)

  def cut(weight: Params, width: int):
    if isinstance(weight, Lora):  # a has the input's width, b the output's
      whole = PartitionSpec(*first)
      a, b = (cut(weight.a, -2), whole) if width == -2 else (whole, cut(weight.b, -1))
      return weight.replace(base=cut(weight.base, width), a=a, b=b)

    def spec(w):
      other = 'fsdp' if fsdp > 1 and w.shape[-3 - width] % fsdp == 0 else None
      named = {width: 'tensor', -3 - width: other}
      return PartitionSpec(*first, *(named[axis] if w.shape[axis] > 1 else None for axis in (-2, -1)))

    return jax.tree.map(spec, weight)

  return Experts(cut(experts.gate, -1), cut(experts.up, -1), cut(experts.down, -2), PartitionSpec() if stacked else None)


Compute = Callable[[Array, Array], Array]  # (rows, their experts here in ascending order) -> results


def _grouped(x, expert: Int[Array, ' M'], number: int, compute: Compute):
  """compute over rows in any order; those of no expert here (`number`) give zeros."""
  order, back = sorting(expert)
  y = move_rows(compute(move_rows(x, order, back), expert[order]), back, order)
  return jnp.where((expert < number)[:, None], y, 0)


def _local_expert(experts_of: Int[Array, 'T A'], number: int) -> Int[Array, ' TA']:
  """Numbers among this device's experts; `number` for those of other devices."""
  local = experts_of.reshape(-1) - jax.lax.axis_index(AXIS) * number
  return jnp.where((local >= 0) & (local < number), local, number)


def _summed(x, experts_of, weights, number: int, compute: Compute):
  """The whole group has the same tokens: each device adds the part of its experts."""
  active = weights.shape[-1]
  y = _grouped(jnp.repeat(x, active, axis=0), _local_expert(experts_of, number), number, compute)
  return jax.lax.psum(weighted_sum(y, weights), AXIS), jnp.int32(0)


def _gathered(x, experts_of, weights, number: int, compute: Compute, *, shards: int, buffer: float | None):
  """All-gathers the tokens of the group, and reduce-scatters the partial sums."""
  del shards, buffer  # nothing is ever lost: rows of other devices' experts cost memory, not time
  x, experts_of, weights = (jax.lax.all_gather(a, AXIS, tiled=True) for a in (x, experts_of, weights))
  y = _grouped(jnp.repeat(x, weights.shape[-1], axis=0), _local_expert(experts_of, number), number, compute)
  return jax.lax.psum_scatter(weighted_sum(y, weights), AXIS, tiled=True), jnp.int32(0)


def _capacity(pairs: int, tokens: int, active: int, number: int, shards: int, buffer: float | None) -> int:
  """Rows that a device makes room for."""
  largest = shards * tokens * min(active, number)  # a token sends each device no more pairs than that has experts
  return largest if buffer is None else min(largest, 8 * math.ceil(buffer * pairs / 8))


def _padded(x, experts_of, weights, number: int, compute: Compute, *, shards: int, buffer: float | None):
  """Equal buffers to and from every device. A bounded buffer is divided equally among the senders."""
  (T, A), pairs = weights.shape, experts_of.size
  capacity = -(-_capacity(pairs, T, A, number, shards, buffer) // shards)
  expert = experts_of.reshape(-1)
  order = jnp.argsort(expert)
  target = expert[order] // number  # `shards` for pairs that are not sent
  sent = jnp.bincount(target, length=shards)
  slot = jnp.arange(pairs) - (jnp.cumsum(sent) - sent)[target]
  fits, sent_on = slot < capacity, target < shards
  place = jnp.where(fits & sent_on, target * capacity + slot, shards * capacity)
  empty = lambda fill, x: jnp.full((shards * capacity, *x.shape[1:]), fill, x.dtype)
  scatter = lambda fill, x: empty(fill, x).at[place].set(x, mode='drop')
  exchange = lambda a: jax.lax.all_to_all(a.reshape(shards, capacity, *a.shape[1:]), AXIS, 0, 0).reshape(a.shape)
  arrived = exchange(scatter(0, x[order // A]))
  local = exchange(scatter(number, expert[order] % number))
  back = exchange(_grouped(arrived, local, number, compute))
  y = jnp.where((fits & sent_on)[:, None], back[jnp.minimum(place, shards * capacity - 1)], 0)
  return weighted_sum(y[jnp.argsort(order)], weights), (sent_on & ~fits).sum()


def _ragged(x, experts_of, weights, number: int, compute: Compute, *, shards: int, buffer: float | None):
  """Sends only the pairs. Receivers fill up in the order of senders; what does not fit into a bounded buffer is not sent."""
  (T, A), pairs = weights.shape, experts_of.size
  capacity = _capacity(pairs, T, A, number, shards, buffer)
  rank = jax.lax.axis_index(AXIS)
  expert = experts_of.reshape(-1)
  order = jnp.argsort(expert)
  counts = jnp.bincount(expert, length=shards * number).astype(jnp.int32).reshape(shards, number)
  counts = jax.lax.all_gather(counts, AXIS)  # pairs by (sender, receiver, expert there)
  by_sender = counts.sum(axis=2)
  before = jnp.cumsum(by_sender, axis=0) - by_sender  # rows of earlier senders in a receiver's buffer
  fitting = jnp.clip(capacity - before, 0, by_sender)  # rows by (sender, receiver) that fit
  start = jnp.minimum(before, capacity)
  local_counts = counts[:, rank]
  # the rows of the last experts are left out first
  local_counts = jnp.diff(jnp.minimum(jnp.cumsum(local_counts, axis=1), fitting[:, rank, None]), axis=1, prepend=0)
  send_from = jnp.cumsum(by_sender[rank]) - by_sender[rank]
  arrived = jax.lax.ragged_all_to_all(
    x[order // A],
    jnp.zeros((capacity, x.shape[1]), x.dtype),
    send_from,
    fitting[rank],
    start[rank],
    fitting[:, rank],
    axis_name=AXIS,
  )
  local = jnp.repeat(jnp.tile(jnp.arange(number), shards), local_counts.reshape(-1), total_repeat_length=capacity)
  local = jnp.where(jnp.arange(capacity) < fitting[:, rank].sum(), local, number)
  y = _grouped(arrived, local, number, compute)
  returned_at = (jnp.cumsum(by_sender, axis=1) - by_sender)[:, rank]  # where each sender keeps what it sent here
  back = jax.lax.ragged_all_to_all(
    y, jnp.zeros((pairs, x.shape[1]), x.dtype), start[:, rank], fitting[:, rank], returned_at, fitting[rank], axis_name=AXIS
  )
  return weighted_sum(back[jnp.argsort(order)], weights), (by_sender[rank] - fitting[rank]).sum()


METHODS = {'ragged': _ragged, 'padded': _padded, 'gathered': _gathered}
