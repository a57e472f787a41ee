"""Dimension letters and array aliases, defined once.

  B batch          T query length      S key length / cache slots
  D model width    F ffn width         V vocabulary
  N query heads    K key-value heads   G = N/K       H head dim
  E experts        A active experts (top-k) per token
  L layers         Q codebooks         M mel bins    P patches
  C channels       W wave samples      R rows of a packed media batch (audio windows, video frames)

A letter names the same thing in einsum strings, comments and annotations. (One letter alone is written ' B' in an annotation, so
that linters do not take it for the name of a class.)
"""

from jaxtyping import Array, Bool, Float, Int, PyTree

__all__ = ['Array', 'Bool', 'Float', 'Int', 'Params', 'PyTree']

Params = PyTree[Array]
