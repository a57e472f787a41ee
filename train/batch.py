"""The input of a training step: packed rows of tokens, targets with weights, and the media of all rows."""

import flax.struct

from qwen3_omni_jax.infer.collate import Media
from qwen3_omni_jax.models.thinker import ThinkerTokens
from qwen3_omni_jax.shapes import Array, Float, Int

from .records import KINDS  # losses are reported by kind of record

__all__ = ['KINDS', 'SpeechRows', 'TrainBatch']


class SpeechRows(flax.struct.PyTreeNode):
  """R rows of S positions of the Talker, several utterances to a row, Q codebooks.

  An utterance is a spoken answer: the user's turns before it, the nine rows of the opening, a row for each frame. The code side
  of position p is the sum of the Q embeddings of codes[p - 1] where the row before predicted a frame (in the same segment; not
  the end), else the embedding of opening[p], else nothing. Codes are targets of their own position: codes[p, 0] of the hidden
  state at p, the others of the code predictor that is given this very state. weights: of these targets. source: as in TrainBatch.
  """

  text: Int[Array, 'R S']  # token id on the text side
  tap: Int[Array, 'R S']  # in place of the text, the Thinker's tapped state at this token of the batch, row after row; -1: none
  opening: Int[Array, 'R S']  # codec id on the code side of the opening; -1: none
  codes: Int[Array, 'R S Q']  # the frame that is predicted; at the end (codec_eos, -1, …); all -1: none
  positions: Float[Array, '3 R S']
  segment: Int[Array, 'R S']  # utterances of a row from 1; 0: padding
  weights: Float[Array, 'R S']
  source: Int[Array, 'R S'] | None = None


class TrainBatch(flax.struct.PyTreeNode):
  """B rows of T tokens, several records to a row.

  tokens.segment numbers the records of a row from 1; 0 is padding. targets: the next token of the same record. weights: of each
  target in the loss, 0 where nothing is learnt (prompts, the last token of a record, padding). kind: of the record, an index
  into KINDS. source: of the record, an index into `sources`, the names of the run's sources; None where nothing is to be told of
  them. speech: what the Talker learns; None where a batch has no room for it. Its taps count the tokens of the whole batch, of
  which a process has its own rows, as feature indices do.
  """

  tokens: ThinkerTokens
  media: Media
  targets: Int[Array, 'B T']
  weights: Float[Array, 'B T']
  kind: Int[Array, 'B T']
  source: Int[Array, 'B T'] | None = None
  sources: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())
  speech: SpeechRows | None = None
