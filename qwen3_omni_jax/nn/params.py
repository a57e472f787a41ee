"""Parameter declarations: one `Param` per array with its shape, logical axes and initial values.

A network describes itself as a nested dict of `Param` (its *spec*). Initial values, abstract shapes, shardings and the check
against the weight table all derive from that one description, so they cannot disagree.
"""

import dataclasses
import math
import zlib
from collections.abc import Iterator
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
from flax import linen as nn

from ..shapes import Array, Params

Spec = dict  # nested dict[str, Spec | Param]


@dataclasses.dataclass(frozen=True)
class Param:
  """One array. axes: a logical name per dimension (see sharding.py). init: 'normal' | 'zeros' | 'ones'.

  fan_in: the number of inputs summed into one output; a 'normal' array starts with standard deviation fan_in**-0.5.
  """

  shape: tuple[int, ...]
  axes: tuple[str, ...]
  init: str = 'normal'
  fan_in: int = 1

  def __post_init__(self):
    assert len(self.shape) == len(self.axes), f'{self.shape} needs one axis name per dimension, has {self.axes}'

  def create(self, key: Array, dtype=jnp.float32) -> Array:
    if self.init == 'normal':
      return jax.random.normal(key, self.shape, dtype) * jnp.asarray(self.fan_in**-0.5, dtype)
    return {'zeros': jnp.zeros, 'ones': jnp.ones}[self.init](self.shape, dtype)


def stack(layers: int, spec: Spec) -> Spec:
  """The spec of `layers` equal blocks: every array gets a leading layer axis."""

  def stacked(p: Param) -> Param:
    return dataclasses.replace(p, shape=(layers, *p.shape), axes=('layers', *p.axes))

  return jax.tree.map(stacked, spec, is_leaf=is_param)


def is_param(x: Any) -> TypeGuard[Param]:
  return isinstance(x, Param)


def leaves(spec: Spec, path: str = '') -> Iterator[tuple[str, Param]]:
  """('attn/q', Param) for every array, in declaration order."""
  for name, value in spec.items():
    here = f'{path}/{name}' if path else name
    if is_param(value):
      yield here, value
    else:
      yield from leaves(value, here)


def init_params(spec: Spec, key: Array, dtype=jnp.float32) -> Params:
  """Random initial values. Each array's key is folded from its path, so adding a parameter does not move the others."""

  def walk(node: Spec | Param, path: str):
    if isinstance(node, Param):
      return node.create(jax.random.fold_in(key, zlib.crc32(path.encode())), dtype)
    return {name: walk(child, f'{path}/{name}') for name, child in node.items()}

  return walk(spec, '')


def abstract_params(spec: Spec, dtype=jnp.float32) -> Params:
  """ShapeDtypeStructs in place of arrays: a full-size model without its memory."""
  return jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, dtype), spec, is_leaf=is_param)


def count(spec: Spec) -> int:
  """Number of scalars."""
  return sum(math.prod(p.shape) for _, p in leaves(spec))


def declare(module: nn.Module, spec: Spec) -> Params:
  """Declares every array of `spec` as a Flax parameter of `module` and returns the values."""
  dtype = getattr(module, 'param_dtype', jnp.float32)
  return {
    name: module.param(name, lambda key, s=child: init_params(s, key, dtype) if not is_param(s) else s.create(key, dtype))
    for name, child in spec.items()
  }
