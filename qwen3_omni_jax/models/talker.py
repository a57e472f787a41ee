"""The Talker: speech tokens (codebook 0, one per 80 ms frame) from the Thinker's states.

Its prompt is the user's turns as the Thinker saw them and the opening of the assistant's turn. From then on every input
is the sum of two tracks: the codes of the previous frame (see models.code_predictor) and the next token of the reply's
text.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from ..config import TalkerConfig
from ..nn.cache import KVCache
from ..nn.decoder import Trace, decoder_spec, extend, forward, prefill
from ..nn.expert_parallel import LOSSLESS, Dispatch
from ..nn.layers import linear, linear_spec, rms_norm, silu
from ..nn.params import Param, Spec, declare
from ..shapes import Array, Bool, Float, Int, Params
from ..sharding import shard_rows

HEADER = 3  # tokens of '<|im_start|>assistant\n'
OPENING = 9  # positions between the user's turns and the first code: the header, four pads, bos, the first text token
SUPPRESSED = 1024  # ids at the end of the vocabulary that are never codes; fixed in the reference


def talker_spec(cfg: TalkerConfig) -> Spec:
  D, V = cfg.text.hidden_size, cfg.text.vocab_size
  return {
    'embed': Param((V, D), ('vocab', 'embed'), fan_in=D),
    'layers': decoder_spec(cfg.text),
    'norm': Param((D,), ('embed',), 'ones'),
    'head': Param((D, V), ('embed', 'vocab'), fan_in=D),
    'text_projection': _projection_spec(cfg),
    'hidden_projection': _projection_spec(cfg),
  }


def _projection_spec(cfg: TalkerConfig) -> Spec:
  F = cfg.text.intermediate_size
  return {
    'fc1': linear_spec(cfg.thinker_hidden_size, F, ('embed', 'mlp')),
    'fc2': linear_spec(F, cfg.text.hidden_size, ('mlp', 'embed')),
  }


def project(p: Params, x: Float[Array, '*b I']) -> Float[Array, '*b D']:
  """From the Thinker's width to the Talker's. p: 'text_projection' or 'hidden_projection'."""
  return linear(silu(linear(x, p['fc1'])), p['fc2'])


class TextTrack(flax.struct.PyTreeNode):
  """The text to be said, at the Talker's width: row k is fed at the same time as frame k - 1 (row 0: in the prompt).

  Rows past a row's `count` are not read: the text is followed by one `eos` and then by `pad` for ever. While the
  Thinker is still writing, rows and count grow; the Talker must then not be run past row count - 1.
  """

  rows: Float[Array, 'B K D']
  count: Int[Array, ' B']  # tokens to say, the end-of-turn token not among them
  bos: Float[Array, ' D']
  eos: Float[Array, ' D']
  pad: Float[Array, ' D']

  def row(self, k: Int[Array, ' B']) -> Float[Array, 'B D']:
    at = jnp.clip(k, 0, self.rows.shape[1] - 1)
    rows = jnp.take_along_axis(self.rows, at[:, None, None], axis=1)[:, 0]
    after = jnp.where((k == self.count)[:, None], self.eos, self.pad)
    return jnp.where((k < self.count)[:, None], rows, after)


def text_track(params: Params, reply: Float[Array, 'B K I'], count: Int[Array, ' B'], special: Float[Array, '3 I']) -> TextTrack:
  """reply: Thinker embeddings of the reply's tokens. special: those of tts_bos, tts_eos and tts_pad."""
  bos, eos, pad = project(params['text_projection'], special)
  return TextTrack(project(params['text_projection'], reply), count, bos, eos, pad)


class ThinkerRows(flax.struct.PyTreeNode):
  """What the Talker's prompt takes from the Thinker, padded at the end of each row.

  Only tokens of user turns are kept (whole turns, markers included); system and earlier assistant turns are not. A
  media token (audio, image or video pad) is known by its tapped hidden state, any other token by its embedding.
  """

  embeds: Float[Array, 'B U I']
  tap: Float[Array, 'B U I']
  media: Bool[Array, 'B U']
  length: Int[Array, ' B']
  header: Float[Array, 'B 3 I']  # embeddings of '<|im_start|>assistant\n'


class TalkerPrompt(flax.struct.PyTreeNode):
  """Input embeddings, padded at the end; segment 1 = valid, 0 = padding."""

  embeds: Float[Array, 'B P D']
  segment: Int[Array, 'B P']
  length: Int[Array, ' B']


def talker_prompt(
  params: Params, cfg: TalkerConfig, thinker: ThinkerRows, text: TextTrack, speaker: Int[Array, ' B']
) -> TalkerPrompt:
  """The prompt: P = U + 9. speaker: each row's codec id from cfg.speaker_id.

  The nine last positions sum a text track `header header header pad pad pad pad bos text[0]` and a code track
  `0 0 0 nothink think_bos think_eos speaker codec_pad codec_bos`.
  """
  B, U = thinker.media.shape
  user = jnp.where(
    thinker.media[..., None],
    project(params['hidden_projection'], thinker.tap),
    project(params['text_projection'], thinker.embeds),
  )
  D = user.shape[-1]
  one = lambda row: jnp.broadcast_to(row, (B, 1, D))
  text_part = jnp.concatenate(
    [
      project(params['text_projection'], thinker.header),
      *(one(text.pad),) * 4,
      one(text.bos),
      text.row(jnp.zeros(B, jnp.int32))[:, None],
    ],
    axis=1,
  )
  constant = lambda token: jnp.full((B,), token, jnp.int32)
  ids = (cfg.codec_nothink_id, cfg.codec_think_bos_id, cfg.codec_think_eos_id)
  codes = [*map(constant, ids), speaker.astype(jnp.int32), constant(cfg.codec_pad_id), constant(cfg.codec_bos_id)]
  code_part = jnp.pad(embed_codes(params, jnp.stack(codes, axis=1), user.dtype), [(0, 0), (HEADER, 0), (0, 0)])
  opening = text_part + code_part

  slot = jnp.arange(U + OPENING, dtype=jnp.int32)
  joined = jnp.concatenate([user, opening], axis=1)
  source = jnp.where(slot < thinker.length[:, None], slot, slot - thinker.length[:, None] + U)
  length = thinker.length + OPENING
  segment = (slot < length[:, None]).astype(jnp.int32)
  rows = jnp.take_along_axis(joined, jnp.minimum(source, U + OPENING - 1)[..., None], axis=1)
  return TalkerPrompt(rows * segment[..., None].astype(rows.dtype), segment, length)


def embed_codes(params: Params, codes: Int[Array, '*b'], dtype=jnp.float32) -> Float[Array, '*b D']:
  """Embeddings of code 0, or of the Talker's special ids."""
  return jnp.take(params['embed'], codes, axis=0).astype(dtype)


def talker_prefill(
  params: Params, cfg: TalkerConfig, prompt: TalkerPrompt, positions: Float[Array, '3 B P'], cache: KVCache
) -> tuple[Float[Array, 'B D'], KVCache]:
  """Prompts into an empty cache. Returns the hidden state (after the final norm) that gives each row's first code 0."""
  x, cache, _ = prefill(params['layers'], cfg.text, prompt.embeds, positions, prompt.segment, cache)
  last = jnp.take_along_axis(x, (prompt.length - 1)[:, None, None], axis=1)[:, 0]
  return rms_norm(last, params['norm'], cfg.text.rms_norm_eps), cache


def talker_step(
  params: Params,
  cfg: TalkerConfig,
  x: Float[Array, 'B D'],
  position: Float[Array, ' B'],
  filled: Int[Array, ' B'],
  cache: KVCache,
  live: Bool[Array, ' B'] | None = None,
) -> tuple[Float[Array, 'B D'], KVCache]:
  """One frame. x: the sum of the last frame's code embeddings plus the text row fed with it; frame t's is text row t +
  1.

  position: that of the prompt's last token plus 1, 2, …, on all three axes. filled: cache slots in use. live: rows that mean
  something, default all. Returns the hidden state after the final norm, which gives the next code 0 and is the code predictor's
  first input.
  """
  positions = jnp.broadcast_to(position[None, :, None], (3, *position.shape, 1))
  segment = None if live is None else live[:, None].astype(jnp.int32)
  y, cache, _ = extend(params['layers'], cfg.text, x[:, None], positions, filled, cache, segment=segment)
  return rms_norm(y[:, 0], params['norm'], cfg.text.rms_norm_eps), cache


def code_logits(params: Params, hidden: Float[Array, '*b D']) -> Float[Array, '*b V']:
  """Logits of code 0, float32, from hidden states after the final norm."""
  return jnp.einsum('...D,DV->...V', hidden, params['head'].astype(hidden.dtype), preferred_element_type=jnp.float32)


def suppress_special(cfg: TalkerConfig, logits: Float[Array, '*b V']) -> Float[Array, '*b V']:
  """logits with the last 1024 ids (pads, speakers, reserved) at -inf, save the end of speech. After any repetition
  penalty."""
  ids = jnp.arange(cfg.text.vocab_size)
  banned = (ids >= cfg.text.vocab_size - SUPPRESSED) & (ids != cfg.codec_eos_token_id)
  return jnp.where(banned, -jnp.inf, logits)


def talker_forward(
  params: Params,
  cfg: TalkerConfig,
  embeds: Float[Array, 'B T D'],
  positions: Float[Array, '3 B T'],
  segment: Int[Array, 'B T'],
  *,
  remat: bool | str = False,
  dispatch: Dispatch = LOSSLESS,
  router_dtype: DTypeLike | None = None,
  observe: Callable = Trace,
) -> tuple[Float[Array, 'B T D'], Any]:
  """Whole sequences of input embeddings without a cache: (hidden after the final norm, what was observed, by default a Trace).
  dispatch, router_dtype, observe: see nn.decoder.forward."""
  x, trace, _ = forward(
    params['layers'],
    cfg.text,
    shard_rows(embeds),
    positions,
    segment,
    remat=remat,
    dispatch=dispatch,
    router_dtype=router_dtype,
    observe=observe,
  )
  return rms_norm(x, params['norm'], cfg.text.rms_norm_eps), trace


class Talker(nn.Module):
  """The Talker as a Flax module over input embeddings: gives (logits of code 0, hidden states, trace)."""

  cfg: TalkerConfig
  remat: bool = False

  @nn.compact
  def __call__(self, embeds: Float[Array, 'B T D'], positions: Float[Array, '3 B T'], segment: Int[Array, 'B T']):
    params = declare(self, talker_spec(self.cfg))
    hidden, trace = talker_forward(params, self.cfg, embeds, positions, segment, remat=self.remat)
    return code_logits(params, hidden), hidden, trace
