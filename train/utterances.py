"""A spoken answer as the Talker learns it: the rows that `generate` gives it, and the codes that they predict.

Runs in worker processes: nothing here imports jax.
"""

import dataclasses

import numpy as np

from qwen3_omni_jax.config import OmniConfig
from qwen3_omni_jax.media.turns import user_positions, user_tokens

from .mask import SpecialIds

OPENING = 9  # positions between the user's turns and the first frame, as in models.talker
_PADS = 4  # of them, between the header of an answer and the mark before its text


@dataclasses.dataclass(frozen=True)
class Utterance:
  """One spoken answer as a sequence of S positions of the Talker: the user's turns before it, the opening, a row for each frame.

  The fields are those of batch.SpeechRows without the axis of rows. tap: among the example's own tokens. Row p predicts codes[p]:
  the last row of the opening the first frame, the row of the last frame the end.
  """

  text: np.ndarray  # int32 'S'
  tap: np.ndarray  # int32 'S'
  opening: np.ndarray  # int32 'S'
  codes: np.ndarray  # int16 'S Q'
  positions: np.ndarray  # float32 '3 S'

  def __len__(self) -> int:
    return len(self.text)

  @property
  def frames(self) -> int:
    return int((self.codes[:, 1] >= 0).sum())


def make_utterance(
  before: np.ndarray,
  positions: np.ndarray,
  said: np.ndarray,
  codes: np.ndarray,
  speaker: int,
  cfg: OmniConfig,
  special: SpecialIds,
) -> Utterance:
  """before: the tokens before the answer, and their positions '3 T'. said: those of the answer, without its end. codes: 'T Q'.

  As in models.talker: frame t is fed with token t + 1 of the text, then comes one mark of its end, then padding. Of a text that
  is longer than the speech, the rest is never fed. Source: transformers 5.23, modeling_qwen3_omni_moe.py, lines 3974 to 4052.
  """
  talker, t = cfg.talker, cfg.thinker
  assert talker is not None
  frames, Q = codes.shape
  user = user_tokens(before, cfg)
  U = len(user)
  opening = [-1] * 3 + [talker.codec_nothink_id, talker.codec_think_bos_id, talker.codec_think_eos_id]
  opening += [speaker, talker.codec_pad_id, talker.codec_bos_id]
  assert len(opening) == OPENING
  first = U + OPENING - 1  # the row that predicts the first frame
  S = first + 1 + frames

  track = np.full(1 + frames, cfg.tts_pad_token_id, np.int32)  # beside the last row of the opening, and beside each frame
  spoken = said[: 1 + frames]
  track[: len(spoken)] = spoken
  if len(spoken) <= frames:
    track[len(spoken)] = cfg.tts_eos_token_id
  header = [special.turn, special.assistant, special.newline]
  text = np.concatenate([before[user], header, [cfg.tts_pad_token_id] * _PADS, [cfg.tts_bos_token_id], track])

  tap, code_side = np.full(S, -1, np.int32), np.full(S, -1, np.int32)
  pads = np.isin(before[user], (t.audio_token_id, t.image_token_id, t.video_token_id))
  tap[:U][pads] = user[pads]
  code_side[U : first + 1] = opening
  target = np.full((S, Q), -1, np.int16)
  target[first : first + frames] = codes
  target[first + frames, 0] = talker.codec_eos_token_id
  at = np.zeros((3, S), np.float32)
  at[:, :U] = user_positions(positions, user)
  start = at[:, U - 1].max() + 1 if U else np.float32(0)
  at[:, U:] = start + np.arange(S - U, dtype=np.float32)
  return Utterance(text.astype(np.int32), tap, code_side, target, at)
