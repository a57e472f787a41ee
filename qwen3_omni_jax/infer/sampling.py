"""Sampling the next token: repetition penalty, temperature, top-k, top-p; one random number per row and step.

Every row has its own settings and its own random key, folded from its seed and step: a row's samples do not depend on
the other rows of its batch.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ..shapes import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How one row chooses tokens. temperature 0 is greedy; top_k 0 and top_p 1 are off; repetition_penalty 1 is off."""

  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  repetition_penalty: float = 1.0
  seed: int = 0

  def __post_init__(self):
    problems = []
    if not 0 <= self.temperature < float('inf'):
      problems.append(f'temperature {self.temperature}: expected 0 (greedy) or more')
    if self.top_k < 0 or self.top_k != int(self.top_k):
      problems.append(f'top_k {self.top_k}: expected 0 (off) or a positive whole number')
    if not 0 < self.top_p <= 1:
      problems.append(f'top_p {self.top_p}: expected a number in (0, 1]')
    if not 0 < self.repetition_penalty < float('inf'):
      problems.append(f'repetition_penalty {self.repetition_penalty}: expected a positive number (1 is off)')
    if not 0 <= self.seed < 2**32:
      problems.append(f'seed {self.seed}: expected 0 to 2**32 - 1')
    if problems:
      raise ValueError('; '.join(problems))


class SamplingRows(flax.struct.PyTreeNode):
  """Sampling settings of a batch, as arrays. candidates (static): how many of the largest logits may be drawn from at all:
  the largest top_k of the batch, or the whole vocabulary if some row has no top_k; 0 if every row is greedy. Several numbers,
  ascending: each row draws from the least that holds its top_k, so that its draw does not depend on the batch's largest."""

  temperature: Float[Array, ' B']
  top_k: Int[Array, ' B']
  top_p: Float[Array, ' B']
  repetition_penalty: Float[Array, ' B']
  seed: Int[Array, ' B']
  candidates: int | tuple[int, ...] = flax.struct.field(pytree_node=False)


def sampling_rows(rows: list[Sampling], vocab: int, candidates: int | tuple[int, ...] | None = None) -> SamplingRows:
  drawn = [r for r in rows if r.temperature > 0]
  if candidates is None:
    widest = max((r.top_k or vocab for r in drawn), default=0)
    candidates = min(vocab, 1 << (widest - 1).bit_length()) if drawn else 0  # a power of two: few programs are compiled
  return SamplingRows(
    temperature=np.array([r.temperature for r in rows], np.float32),
    top_k=np.array([min(r.top_k or vocab, vocab) for r in rows], np.int32),
    top_p=np.array([r.top_p for r in rows], np.float32),
    repetition_penalty=np.array([r.repetition_penalty for r in rows], np.float32),
    seed=np.array([r.seed for r in rows], np.uint32),
    candidates=candidates,
  )


def penalise(logits: Float[Array, 'B V'], seen: Bool[Array, 'B V'], penalty: Float[Array, ' B']) -> Float[Array, 'B V']:
  """Logits of tokens already seen, divided by the penalty if positive, multiplied if negative."""
  penalty = penalty[:, None]
  return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def sample(logits: Float[Array, 'B V'], rows: SamplingRows, step: Int[Array, ' B'], stream: int = 0) -> Int[Array, ' B']:
  """One token per row. step: how many tokens the row has drawn; stream: keeps independent draws of one step apart.

  Order as in the reference: (penalty before this call,) temperature, top-k, top-p over what top-k left.
  """
  greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)
  if not rows.candidates:
    return greedy
  widths = rows.candidates if isinstance(rows.candidates, tuple) else (rows.candidates,)
  drawn = _draw(logits, rows, step, stream, widths[-1])
  for width in widths[-2::-1]:
    drawn = jnp.where(rows.top_k <= width, _draw(logits, rows, step, stream, width), drawn)
  return jnp.where(rows.temperature > 0, drawn, greedy)


def _draw(logits: Float[Array, 'B V'], rows: SamplingRows, step: Int[Array, ' B'], stream: int, width: int) -> Int[Array, ' B']:
  """A draw of every row from its `width` largest logits."""
  temperature = jnp.where(rows.temperature > 0, rows.temperature, 1.0)
  values, tokens = jax.lax.top_k(logits.astype(jnp.float32) / temperature[:, None], width)
  rank = jnp.arange(width)
  values = jnp.where(rank < rows.top_k[:, None], values, -jnp.inf)
  probs = jax.nn.softmax(values, axis=-1)
  before = jnp.cumsum(probs, axis=-1) - probs
  probs = jnp.where(before < rows.top_p[:, None], probs, 0)  # the most probable token always stays

  def uniform(seed, step):
    return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step))

  cumulative = jnp.cumsum(probs, axis=-1)
  target = jax.vmap(uniform)(rows.seed, step)[:, None] * cumulative[:, -1:]
  chosen = jnp.sum(cumulative <= target, axis=-1)  # first candidate whose cumulative probability passes the target
  chosen = jnp.minimum(chosen, jnp.sum(probs > 0, axis=-1) - 1)
  return jnp.take_along_axis(tokens, chosen[:, None], axis=-1)[:, 0].astype(jnp.int32)
