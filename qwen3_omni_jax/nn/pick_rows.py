"""Feature rows to the tokens that they belong to, without leaving the device where both lie."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ..shapes import Array, Float, Int
from ..sharding import batch_axes, current_mesh, length_axis, shard_rows


def pick_rows(rows: Float[Array, 'R D'], index: Int[Array, 'B T'], lanes: int = 1) -> Float[Array, 'B T D']:
  """rows[index], zeros where index < 0.

  lanes: B and R are each cut into so many equal parts, and the tokens of a part take rows of the same part. As far as the parts
  lie on devices of their own, each device then looks into what it has, forward and backward; rows are gathered only along
  `context`, which cuts the tokens of one lane. 1: nothing is known of where rows lie, and all devices ask all of them.
  Raises ValueError if lanes do not divide B and R.
  """
  mesh = current_mesh()
  axes = () if mesh is None else batch_axes(index.shape[0], mesh)
  own = () if mesh is None else batch_axes(lanes, mesh, axes)  # further axes divide a lane, whose rows are gathered over them
  if mesh is None or not own:
    return shard_rows(_take(rows, index))
  if index.shape[0] % lanes or rows.shape[0] % lanes:
    raise ValueError(f'{index.shape[0]} rows of tokens and {rows.shape[0]} of features: expected multiples of the {lanes} lanes')
  length = length_axis(index.shape[1], mesh)
  tokens = PartitionSpec(axes, length)

  def local(rows, index):
    return _take(rows, jnp.where(index >= 0, index - jax.lax.axis_index(own) * rows.shape[0], -1))

  used = {*axes, *((length,) if length else ())}
  run = jax.shard_map(local, in_specs=(PartitionSpec(own), tokens), out_specs=tokens, axis_names=used)
  return run(rows, index)


def _take(rows, index):
  found = jnp.take(rows, jnp.maximum(index, 0), axis=0)  # NaN where there is no such row
  return jnp.where(index[..., None] >= 0, found, jnp.zeros((), rows.dtype))
