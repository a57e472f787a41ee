"""Low-rank adaptation, a kind of weight: a frozen matrix and a trainable low-rank change of it.

The change is added where the weight is used, layer by layer inside the scan, so that no second copy of the model exists. Merging
a layer costs as many operations as sending `rank` tokens through it.
"""

import dataclasses
import math

import flax.struct
import jax
import jax.numpy as jnp

from ..shapes import Array, Float
from .int8 import STACKED, matrix_axes
from .params import Param


class Lora(flax.struct.PyTreeNode):
  """base + scale * a @ b, in base's shape. base: any kind of weight. a: 'lead I R', b: 'lead R O', where base is 'lead in… out…'
  with I = prod(in), O = prod(out); lead: layers and experts."""

  base: Array
  a: Float[Array, '*lead I R']
  b: Float[Array, '*lead R O']
  scale: float = flax.struct.field(pytree_node=False, default=1.0)

  def astype(self, dtype) -> Array:
    """The matrix in `dtype`, as the modules ask every weight for before they multiply. The change is added in float32."""
    change = jnp.einsum('...IR,...RO->...IO', self.a.astype(dtype), self.b.astype(dtype), preferred_element_type=jnp.float32)
    base = self.base.astype(dtype).astype(jnp.float32)
    return (base + jnp.float32(self.scale) * change.reshape(base.shape)).astype(dtype)

  @property
  def shape(self) -> tuple[int, ...]:
    return self.base.shape


def is_lora(x) -> bool:
  return isinstance(x, Lora)


def lora_spec(path: str, param: Param, rank: int) -> dict[str, Param] | None:
  """{'a': …, 'b': …} for the matrix of that path ('thinker/layers/attn/q'); None for what is no matrix of a linear layer."""
  axes = matrix_axes(path, param)
  if not axes or 'patch' in param.axes:
    return None
  first, last = axes[0], axes[-1] + 1
  lead, names = param.shape[:first], param.axes[:first]
  assert all(name in STACKED for name in names)
  inputs, outputs = math.prod(param.shape[first:last]), math.prod(param.shape[last:])
  a = Param((*lead, inputs, rank), (*names, param.axes[first], 'rank'), fan_in=inputs)
  b = Param((*lead, rank, outputs), (*names, 'rank', param.axes[last]), 'zeros')
  if param.axes[first] == param.axes[last]:
    b = dataclasses.replace(b, axes=(*names, 'rank', 'rank'))
  return {'a': a, 'b': b}


def weight_map(function, tree):
  """jax.tree.map over a tree in which a weight of any kind is one leaf."""
  return jax.tree.map(function, tree, is_leaf=lambda x: hasattr(x, 'astype'))
