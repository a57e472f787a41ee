"""The Talker's prompt from the Thinker's: tokens, positions and speaker.

**Positions.** The Talker sees the user's turns without what stood between them, so its positions are the Thinker's own,
closed up: each kept run of tokens starts where the one before it ended, and keeps the distances inside it. Since every
span's positions count from where it starts, this is what the reference computes afresh for text (0, 1, 2, …), audio,
images and videos, in any mix. It is also right for audio inside a video, where the reference does not forward the
switch to the Talker and counts 0, 1, 2, …; `reference_exact` reproduces that.
"""

from collections.abc import Sequence
from typing import Protocol

import flax.struct
import jax.numpy as jnp
import numpy as np

from ..config import OmniConfig
from ..media.turns import user_positions, user_tokens
from ..models.talker import HEADER, OPENING, TextTrack, ThinkerRows, text_track
from ..models.thinker import embed_tokens
from ..shapes import Array, Bool, Float, Int, Params
from .collate import bucket


class Prompt(Protocol):
  """One row's tokens and (time, height, width) positions, as made by the processor."""

  ids: Int[np.ndarray, ' T']
  positions: Float[np.ndarray, '3 T']


class TalkerInputs(flax.struct.PyTreeNode):
  """What a batch's Talker prompts take from its Thinker prompts, padded at the end of each row. P = U + 9."""

  index: Int[np.ndarray, 'B U']  # the user's tokens in the Thinker's prompt
  media: Bool[np.ndarray, 'B U']  # audio, image and video pads among them
  length: Int[np.ndarray, ' B']
  header: Int[np.ndarray, ' B']  # where the last '<|im_start|>assistant\n' begins in the Thinker's prompt
  positions: Float[np.ndarray, '3 B P']
  next_position: Float[np.ndarray, ' B']  # of the first frame's input


def talker_inputs(
  rows: Sequence[Prompt], cfg: OmniConfig, pad_rows_to: int | None = None, *, reference_exact: bool = False
) -> TalkerInputs:
  """Selects and places. Raises ValueError for a prompt that does not end with an assistant turn to be written."""
  number = max(len(rows), pad_rows_to or 0)
  kept = [user_tokens(row.ids, cfg) for row in rows]
  U = bucket(max(map(len, kept)), 16)
  media_ids = (cfg.thinker.audio_token_id, cfg.thinker.image_token_id, cfg.thinker.video_token_id)
  out = TalkerInputs(
    index=np.zeros((number, U), np.int32),
    media=np.zeros((number, U), bool),
    length=np.zeros(number, np.int32),
    header=np.zeros(number, np.int32),
    positions=np.zeros((3, number, U + OPENING), np.float32),
    next_position=np.full(number, OPENING, np.float32),
  )
  out.positions[:, len(rows) :, :OPENING] = np.arange(OPENING)
  for b, (row, index) in enumerate(zip(rows, kept, strict=True)):
    n = len(index)
    positions = user_positions(row.positions, index)
    if reference_exact:
      positions = _without_audio_in_video(row.ids[index], positions, cfg)
    start = positions[:, -1].max() + 1 if n else np.float32(0)
    out.index[b, :n], out.length[b], out.header[b] = index, n, assistant_header(row.ids, cfg)
    out.media[b, :n] = np.isin(row.ids[index], media_ids)
    out.positions[:, b, :n] = positions
    out.positions[:, b, n : n + OPENING] = start + np.arange(OPENING, dtype=np.float32)
    out.next_position[b] = start + OPENING
  return out


def assistant_header(ids: Int[np.ndarray, ' T'], cfg: OmniConfig) -> int:
  """Index of the last '<|im_start|>assistant\\n'. Tokens after its three belong to the reply and are spoken with it."""
  starts = np.flatnonzero((ids[:-1] == cfg.im_start_token_id) & (ids[1:] == cfg.assistant_token_id))
  if not len(starts) or starts[-1] + HEADER > len(ids):
    raise ValueError(
      f'the prompt of {len(ids)} tokens has no open assistant turn ("<|im_start|>assistant" and a line break), so '
      'there is nothing to say: render it with a generation prompt'
    )
  return int(starts[-1])


def _without_audio_in_video(ids: np.ndarray, positions: np.ndarray, cfg: OmniConfig) -> np.ndarray:
  """Positions as the reference's Talker counts them: a video with sound is audio and then text, one position per token.

  It does so unless a standalone image or video is still to come, whose presence makes its search take the right branch.
  """
  first = np.flatnonzero(ids == cfg.thinker.vision_start_token_id)
  with_sound = ids[np.minimum(first + 1, len(ids) - 1)] == cfg.thinker.audio_start_token_id
  last_plain = first[~with_sound].max(initial=-1)
  wrong = first[with_sound & (first > last_plain)]
  if not len(wrong):
    return positions
  begin = int(wrong[0])
  out = positions.copy()
  out[:, begin:] = positions[:, begin : begin + 1] + np.arange(len(ids) - begin, dtype=np.float32)
  return out


def thinker_rows(thinker_params: Params, ids: Int[Array, 'B T'], tap: Float[Array, 'B T I'], inputs: TalkerInputs) -> ThinkerRows:
  """Picks the Talker's rows from a prefilled batch, on device. tap: ThinkerOut.tap."""
  index = jnp.asarray(inputs.index)
  user_ids = jnp.take_along_axis(ids, index, axis=1)
  header = jnp.take_along_axis(ids, jnp.asarray(inputs.header)[:, None] + jnp.arange(HEADER, dtype=jnp.int32), axis=1)
  return ThinkerRows(
    embeds=embed_tokens(thinker_params, user_ids, tap.dtype),
    tap=jnp.take_along_axis(tap, index[..., None], axis=1),
    media=jnp.asarray(inputs.media),
    length=jnp.asarray(inputs.length),
    header=embed_tokens(thinker_params, header, tap.dtype),
  )


def reply_track(
  params: Params, cfg: OmniConfig, reply: Int[Array, 'B K'], count: Int[Array, ' B'], dtype=jnp.float32
) -> TextTrack:
  """The text track of replies given as token ids. count: tokens to say, without the end-of-turn token. params: whole
  tree."""
  special = jnp.array([cfg.tts_bos_token_id, cfg.tts_eos_token_id, cfg.tts_pad_token_id], jnp.int32)
  embed = lambda ids: embed_tokens(params['thinker'], ids, dtype)
  return text_track(params['talker'], embed(reply), count, embed(special))
