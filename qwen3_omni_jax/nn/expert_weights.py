"""The weights of a layer's experts: arrays of one layer, or an index into the stack of all layers."""

import flax.struct
import jax

from ..shapes import Array, Float, Int, Params


class Experts(flax.struct.PyTreeNode):
  """The experts of one layer: arrays of their own, or a window into the stack of all layers.

  Decoding reads a few experts of each layer; slicing the layer out of its stack first would copy all of them.
  """

  gate: Float[Array, '*L E D F']
  up: Float[Array, '*L E D F']
  down: Float[Array, '*L E F D']
  layer: Int[Array, ''] | None = None  # of the stack; None: there is no stack

  @classmethod
  def of_layer(cls, p: Params) -> 'Experts':
    """From the parameters of one layer ('E D F' arrays)."""
    return cls(p['gate'], p['up'], p['down'])

  @classmethod
  def in_stack(cls, p: Params, layer: Int[Array, '']) -> 'Experts':
    """From the stacked parameters of all layers."""
    return cls(p['gate'], p['up'], p['down'], layer)

  @property
  def number(self) -> int:
    return self.gate.shape[-3]

  def one(self, expert: Int[Array, '']) -> Params:
    """The SwiGLU parameters of one expert."""
    at = self.place(expert)
    return self._each(lambda w: read(w, at))

  def all(self) -> Params:
    """The parameters of every expert of the layer ('E D F' arrays)."""
    if self.layer is None:
      return self._each(lambda w: w)
    return self._each(lambda w: jax.lax.dynamic_index_in_dim(w, self.layer, keepdims=False))

  def place(self, expert: Int[Array, '']) -> tuple[Array, ...]:
    """Where an expert lies in each array."""
    return (expert,) if self.layer is None else (self.layer, expert)

  def _each(self, pick) -> Params:
    return jax.tree.map(pick, {'gate': self.gate, 'up': self.up, 'down': self.down})


def read(w: Array, at: tuple[Array, ...]) -> Array:
  """w[at]: one expert's matrix."""
  one = jax.lax.dynamic_slice(w, _start(w, at), (*(1,) * len(at), *w.shape[len(at) :]))
  return one.reshape(w.shape[len(at) :])


def write(w: Array, at: tuple[Array, ...], new: Array) -> Array:
  """w with w[at], one expert's matrix, replaced."""
  start, new = _start(w, at), new.astype(w.dtype)
  return jax.lax.dynamic_update_slice(w, new.reshape(*(1,) * len(at), *w.shape[len(at) :]), start)


def _start(w: Array, at: tuple[Array, ...]) -> tuple[Array | int, ...]:
  return (*(i.reshape(()) for i in at), *(0,) * (w.ndim - len(at)))
