"""A tiny model that speaks, and training batches with utterances, made without a data set."""

import dataclasses
import functools
import types

import numpy as np
from qwen3_omni_jax.tools.tiny import MEDIA_TOKEN_FIELDS, TOKEN_FIELDS, make_config
from qwen3_omni_jax.train.batch import SpeechRows, TrainBatch

from qwen3_omni_jax.config import OmniConfig
from qwen3_omni_jax.config_json import parse_config
from qwen3_omni_jax.infer.collate import AudioWindows, Media, VisualFrames
from qwen3_omni_jax.media.turns import speaker_code, user_positions, user_tokens
from qwen3_omni_jax.models.omni import omni_spec
from qwen3_omni_jax.models.thinker import ThinkerTokens
from tests.arrays import params_of

V, T, S, Q, CODES = 96, 120, 128, 4, 32
ROWS = 4  # lanes: a row of tokens and one of the Talker each
AUDIO, FEATURES = 13, 26  # tokens of each record; rows of features in each lane


@functools.cache
def config() -> OmniConfig:
  tokens = [*TOKEN_FIELDS.values(), *MEDIA_TOKEN_FIELDS.values()]
  data = make_config('tiny', 'instruct', {token: i for i, token in enumerate(tokens)})
  data['thinker_config']['text_config'] |= {'num_hidden_layers': 3, 'num_attention_heads': 8, 'vocab_size': V}
  data['thinker_config']['audio_config'] |= {'encoder_layers': 2}
  data['thinker_config']['vision_config'] |= {'depth': 3, 'deepstack_visual_indexes': [0, 2]}
  talker = data['talker_config']
  talker |= {'accept_hidden_layer': 2, 'num_code_groups': Q}
  talker['text_config'] |= {'num_hidden_layers': 2, 'num_experts': 8}
  talker['code_predictor_config'] |= {'num_hidden_layers': 2, 'num_code_groups': Q, 'vocab_size': CODES}
  data['code2wav_config'] |= {'num_quantizers': Q, 'codebook_size': CODES}
  return parse_config(data)


PARTS = ('audio', 'vision', 'thinker', 'talker', 'code_predictor')


def params(seed: int = 7) -> dict:
  spec = omni_spec(config())
  return params_of({part: spec[part] for part in PARTS}, seed)


@dataclasses.dataclass(frozen=True)
class Record:
  """prompt: ids up to the assistant's header, that included, and their positions. reply: tokens to say. codes: 'F Q'."""

  prompt: np.ndarray
  positions: np.ndarray
  reply: np.ndarray
  codes: np.ndarray
  speaker: str = 'ethan'

  @property
  def ids(self) -> np.ndarray:
    return np.concatenate([self.prompt, self.reply, [config().im_end_token_id]]).astype(np.int32)


def record(seed: int, frames: int = 5, words: int = 3, media: bool = True, user: bool = True) -> Record:
  """A system turn; a user's turn with 13 audio tokens and an image of 2 x 2 tokens; an answer."""
  cfg, rng = config(), np.random.default_rng(seed)
  thinker, text = cfg.thinker, lambda n: [*rng.integers(20, V, n)]
  start, end = cfg.im_start_token_id, cfg.im_end_token_id
  ids = [start, cfg.system_token_id, *text(3), end] if user else []
  at = list(np.broadcast_to(np.arange(len(ids), dtype=np.float32), (3, len(ids))).T)

  def add(tokens, positions=None):
    follow = at[-1].max() + 1 if at else 0
    ids.extend(tokens)
    at.extend(follow + (np.stack([np.arange(len(tokens))] * 3, axis=1) if positions is None else positions))

  if user:
    add([start, cfg.user_token_id])
    if media:
      add(
        [
          thinker.audio_start_token_id,
          *[thinker.audio_token_id] * AUDIO,
          thinker.audio_end_token_id,
          thinker.vision_start_token_id,
        ]
      )
      add([thinker.image_token_id] * 4, np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]))
      add([thinker.vision_end_token_id])
    add([*text(int(rng.integers(2, 6))), end])
  add([start, cfg.assistant_token_id, 20])
  codes = rng.integers(0, CODES, (frames, Q))
  return Record(np.array(ids, np.int32), np.array(at, np.float32).T, np.array(text(words), np.int32), codes.astype(np.int32))


def utterance(item: Record, first: int) -> types.SimpleNamespace:
  """The Talker's rows of a record whose first token is number `first` of the batch, as generation feeds them."""
  cfg, talker = config(), config().talker
  kept = user_tokens(item.prompt, cfg)
  media = np.isin(item.prompt[kept], [cfg.thinker.audio_token_id, cfg.thinker.image_token_id, cfg.thinker.video_token_id])
  positions = user_positions(item.positions, kept)
  n, F = len(kept), len(item.codes)
  begin = positions.max(initial=-1) + 1
  said = [*item.reply, cfg.tts_eos_token_id, *[cfg.tts_pad_token_id] * F][: F + 1]
  opening = [talker.codec_nothink_id, talker.codec_think_bos_id, talker.codec_think_eos_id, speaker_code(talker, item.speaker)]
  header = item.prompt[-3:]
  codes = np.full((n + 9 + F, Q), -1, np.int32)
  codes[n + 8 : n + 8 + F] = item.codes
  codes[n + 8 + F, 0] = talker.codec_eos_token_id
  return types.SimpleNamespace(
    text=np.concatenate([item.prompt[kept], header, [cfg.tts_pad_token_id] * 4, [cfg.tts_bos_token_id], said]),
    tap=np.concatenate([np.where(media, first + kept, -1), np.full(9 + F, -1)]),
    opening=np.array([-1] * (n + 3) + [*opening, talker.codec_pad_id, talker.codec_bos_id] + [-1] * F),
    codes=codes,
    positions=np.concatenate([positions, np.broadcast_to(begin + np.arange(9 + F), (3, 9 + F))], axis=1),
    weights=(codes[:, 0] >= 0).astype(np.float32),
  )


def batch(rows, speech_rows=None, media: bool = True) -> TrainBatch:
  """rows: the records of each row of tokens, at most two. speech_rows: (row, number) of the utterances of each row of the Talker;
  default those of the tokens' row."""
  B, thinker = len(rows), config().thinker
  ids, segment, targets = (np.zeros((B, T), np.int32) for _ in range(3))
  positions, weights = np.zeros((3, B, T), np.float32), np.zeros((B, T), np.float32)
  index, firsts = np.full((2, B, T), -1, np.int32), {}
  for b, records in enumerate(rows):
    at = 0
    for k, item in enumerate(records):
      n = len(item.ids)
      span, reply = slice(at, at + n), slice(at + len(item.prompt) - 1, at + n - 1)
      ids[b, span], segment[b, span], firsts[b, k] = item.ids, k + 1, b * T + at
      last = item.positions.max() + 1 + np.arange(n - len(item.prompt))
      positions[:, b, span] = np.concatenate([item.positions, np.broadcast_to(last, (3, len(last)))], axis=1)
      targets[b, at : at + n - 1], weights[b, reply] = item.ids[1:], 1
      for of_kind, token, number in ((index[0], thinker.audio_token_id, AUDIO), (index[1], thinker.image_token_id, 4)):
        here = item.ids == token
        of_kind[b, span][here] = (2 * b + k) * number + np.arange(here.sum())
      at += n
  speech_rows = [[(b, k) for k in range(len(records))] for b, records in enumerate(rows)] if speech_rows is None else speech_rows
  speech = SpeechRows(
    *(np.full((len(speech_rows), S), value, np.int32) for value in (0, -1, -1)),
    np.full((len(speech_rows), S, Q), -1, np.int32),
    np.zeros((3, len(speech_rows), S), np.float32),
    np.zeros((len(speech_rows), S), np.int32),
    np.zeros((len(speech_rows), S), np.float32),
    np.zeros((len(speech_rows), S), np.int32),
  )
  for r, places in enumerate(speech_rows):
    at = 0
    for number, (b, k) in enumerate(places):
      made = utterance(rows[b][k], firsts[b, k])
      span = slice(at, at + len(made.text))
      for name in ('text', 'tap', 'opening', 'codes', 'weights'):
        getattr(speech, name)[r, span] = getattr(made, name)
      speech.positions[:, r, span], speech.segment[r, span], speech.source[r, span] = made.positions, number + 1, k
      at += len(made.text)
  tokens = ThinkerTokens(ids, positions, segment, index[0] if media else None, index[1] if media else None)
  kind = np.zeros((B, T), np.int32)
  return TrainBatch(tokens, media_of(B) if media else Media(), targets, weights, kind, kind, ('here', 'there'), speech)


def media_of(rows: int) -> Media:
  """Two records' of each row: 1 s of sound and a picture of 4 x 4 patches."""
  rng = np.random.default_rng(5)
  n = 2 * rows
  mel = rng.standard_normal((n, 100, 128), dtype=np.float32)
  audio = AudioWindows(mel, np.full(n, 100, np.int32), np.full(n, 100, np.int32))
  at_row, at_col = (np.tile(at.reshape(1, -1), (n, 1)).astype(np.int32) for at in np.indices((4, 4)))
  side = np.full(n, 4, np.int32)
  patches = rng.standard_normal((n, 16, config().thinker.vision.patch_dim), dtype=np.float32)
  return Media((audio,), (VisualFrames(patches, at_row, at_col, side, side, side**2),), lanes=rows)


def records(rows: int = ROWS) -> list[list[Record]]:
  """Two a row, with media: speech as long as the text, longer, shorter, of one frame."""
  sizes = [(5, 3), (1, 4), (7, 2), (2, 6)]
  return [[record(2 * b + k, *sizes[(b + k) % 4]) for k in range(2)] for b in range(rows)]
