"""The input of a training step: packed rows of tokens, targets with weights, and the media of all rows."""

import flax.struct

from qwen3_omni_jax.infer.collate import Media
from qwen3_omni_jax.models.thinker import ThinkerTokens
from qwen3_omni_jax.shapes import Array, Float, Int

from .records import KINDS  # losses are reported by kind of record

__all__ = ['KINDS', 'TrainBatch']


class TrainBatch(flax.struct.PyTreeNode):
  """B rows of T tokens, several records to a row.

  tokens.segment numbers the records of a row from 1; 0 is padding. targets: the next token of the same record. weights: of each
  target in the loss, 0 where nothing is learnt (prompts, the last token of a record, padding). kind: of the record, an index
  into KINDS. source: of the record, an index into `sources`, the names of the run's sources; None where nothing is to be told of
  them.
  """

  tokens: ThinkerTokens
  media: Media
  targets: Int[Array, 'B T']
  weights: Float[Array, 'B T']
  kind: Int[Array, 'B T']
  source: Int[Array, 'B T'] | None = None
  sources: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())
