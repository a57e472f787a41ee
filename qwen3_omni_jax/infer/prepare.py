"""Prepares a request on the host: checks it, decodes its media and cuts its prompt into pieces. Runs in threads.

A prompt is cut into pieces of two sizes by its length alone, and every piece has a key: a hash of everything that its keys and
values are computed from (the pieces before it, its tokens and positions, the contents of its media). Pieces with equal keys
have equal keys and values in the cache, so one row can compute them for another.
"""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from ..config import ThinkerConfig
from ..media.audio import audio_tokens
from ..media.inputs import ModelInputs
from ..media.messages import parse_messages
from ..media.turns import speaker_code, user_tokens
from .collate import bucket
from .sampling import Sampling
from .settings import merge_sampling
from .talker_inputs import assistant_header
from .voice import DEFAULT_SPEAKER, Voice

if TYPE_CHECKING:
  from .omni import Omni

SAMPLING_KEYS = ('temperature', 'top_k', 'top_p', 'repetition_penalty')


@dataclasses.dataclass(frozen=True)
class Row:
  """One conversation to be answered. Values that are None come from the engine's settings, then from the checkpoint.

  id: names the row in its result; the seed follows from it where none is given. prompt: for the processor (tools, fps,
  media, audio_in_video, enable_thinking).
  """

  id: str
  messages: Any
  max_new_tokens: int | None = None
  temperature: float | None = None
  top_k: int | None = None
  top_p: float | None = None
  repetition_penalty: float | None = None
  seed: int | None = None
  speech: bool = False
  speaker: str | None = None
  max_frames: int | None = None
  prompt: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class RowError(ValueError):
  """Why one row has no answer. kind: a word to count by ('messages', 'media', 'settings', 'too_long', …)."""

  def __init__(self, kind: str, message: str):
    super().__init__(message)
    self.kind = kind


@dataclasses.dataclass(frozen=True, eq=False)
class Item:
  """One audio window or video frame (an image is one frame). key: hash of its contents; payload: as collate packs it."""

  key: bytes
  kind: str  # 'audio' or 'visual'
  shape: int  # padded size: 1 s chunks, or patches
  tokens: int
  payload: tuple


@dataclasses.dataclass(frozen=True, eq=False)
class PromptPiece:
  """Tokens start .. start + length of a prompt, fed as `size`."""

  start: int
  length: int
  size: int
  key: bytes
  items: tuple[Item, ...]  # whose features it reads


@dataclasses.dataclass(eq=False)
class PreparedRow:
  """A row ready for the device."""

  row: Row
  inputs: ModelInputs
  sampling: Sampling
  max_new_tokens: int
  speech: bool
  speaker: str
  max_frames: int
  pieces: list[PromptPiece]
  items: list[Item]
  item_of: np.ndarray  # of each token, -1 for text
  feature_of: np.ndarray  # the row of its item's features
  number: int = -1  # given by the engine

  def length(self, room: int) -> int:
    """Tokens the row's first slot needs: the prompt and `room` tokens of its reply, or all of a shorter limit. The last piece's
    padding needs none."""
    return len(self.inputs.ids) + min(room, self.max_new_tokens)


def row_seed(id: str) -> int:
  """The seed of a row that names none: from its id alone, so that order, batch and process do not matter."""
  return zlib.crc32(id.encode('utf-8', 'surrogatepass'))


def prepare(omni: 'Omni', row: Row, sizes: Sequence[int], max_tokens: int, voice: Voice | None) -> PreparedRow:
  """Raises RowError. sizes: (small, large) pieces; max_tokens: of prompt and reply together; voice: None if nothing speaks."""
  sampling = _settings(omni, row, voice)
  try:
    parse_messages(row.messages)
  except ValueError as e:
    raise RowError('messages', str(e)) from e
  try:
    inputs = omni.processor(row.messages, **row.prompt)
  except ValueError as e:
    raise RowError('media' if str(e).startswith('messages[') else 'prompt', str(e)) from e
  limit = omni.defaults.max_new_tokens if row.max_new_tokens is None else row.max_new_tokens
  if len(inputs.ids) + limit > max_tokens:
    raise RowError(
      'too_long',
      f'{len(inputs.ids)} tokens of prompt and up to {limit} of reply; the longest slot has {max_tokens}: shorten the '
      'text, cut the audio, lower the video fps or max_new_tokens, or allow longer slots',
    )
  if row.speech:
    try:
      assistant_header(inputs.ids, omni.cfg)
    except ValueError as e:
      raise RowError('prompt', str(e)) from e
  frames = row.max_frames if row.max_frames is not None else (voice or omni.voice).max_frames
  items, item_of, feature_of = items_of(inputs, omni.cfg.thinker)
  pieces = cut_prompt(inputs, items, item_of, feature_of, sizes)
  speaker = row.speaker or DEFAULT_SPEAKER
  return PreparedRow(row, inputs, sampling, limit, row.speech, speaker, frames, pieces, items, item_of, feature_of)


def _settings(omni: 'Omni', row: Row, voice: Voice | None) -> Sampling:
  whole = ('max_new_tokens', 'top_k', 'seed', 'max_frames')
  for name in (*whole, *SAMPLING_KEYS):
    value = getattr(row, name)
    good = (int,) if name in whole else (int, float)
    if value is not None and (isinstance(value, bool) or not isinstance(value, good)):
      expected = 'a whole number' if name in whole else 'a number'
      raise RowError('settings', f'{name}: expected {expected}, found {str(value)[:40]!r}')
  for name in ('max_new_tokens', 'max_frames'):
    if getattr(row, name) is not None and not 0 < getattr(row, name) < 2**20:
      raise RowError('settings', f'{name} {getattr(row, name)}: expected 1 or more, below {2**20}')
  given = {name: getattr(row, name) for name in SAMPLING_KEYS}
  try:
    sampling = merge_sampling(omni.defaults.sampling, seed=row_seed(row.id) if row.seed is None else row.seed, **given)
    if row.speech:
      if voice is None or omni.cfg.talker is None:
        raise RowError('settings', 'speech was asked for, but no Talker is loaded (--speech loads it)')
      speaker_code(omni.cfg.talker, str(row.speaker or DEFAULT_SPEAKER))
  except RowError:
    raise
  except ValueError as e:
    raise RowError('settings', str(e)) from e
  return sampling


def items_of(inputs: ModelInputs, cfg: ThinkerConfig) -> tuple[list[Item], np.ndarray, np.ndarray]:
  """The windows and frames of a prompt, and for each token its item and the row of the item's features."""
  chunk, window_chunks, merge = cfg.audio.chunk_frames, cfg.audio.chunks_per_window, cfg.vision.spatial_merge_size
  audio_items, visual_items = [], []
  for clip in inputs.audios:
    for start in range(0, len(clip.mel), chunk * window_chunks):
      mel, conv_frames = clip.mel[start : start + chunk * window_chunks], min(clip.conv_frames, chunk)
      key = xxhash.xxh3_128_digest(np.ascontiguousarray(mel).tobytes() + bytes([conv_frames]))
      chunks = min(bucket(-(-len(mel) // chunk)), window_chunks)
      audio_items.append(Item(key, 'audio', chunks, audio_tokens(len(mel)), (mel, conv_frames)))
  for visual in inputs.visuals:
    t, h, w = visual.grid
    for patches in visual.patches.reshape(t, h * w, -1):
      key = xxhash.xxh3_128_digest(np.ascontiguousarray(patches).tobytes() + f'{h},{w}'.encode())
      visual_items.append(Item(key, 'visual', bucket(h * w, 16 * merge**2), h * w // merge**2, (patches, h, w)))
  item_of, feature_of = np.full(len(inputs.ids), -1, np.int32), np.zeros(len(inputs.ids), np.int32)
  pads = ((audio_items, (cfg.audio_token_id,), 0), (visual_items, (cfg.image_token_id, cfg.video_token_id), len(audio_items)))
  for items, ids, base in pads:
    where = np.flatnonzero(np.isin(inputs.ids, ids))
    counts = [item.tokens for item in items]
    assert len(where) == sum(counts), f'{len(where)} tokens for {sum(counts)} features: the processor makes them equal'
    if items:
      item_of[where] = base + np.repeat(np.arange(len(items)), counts)
      feature_of[where] = np.concatenate([np.arange(n) for n in counts])
  return audio_items + visual_items, item_of, feature_of


def cut_prompt(
  inputs: ModelInputs, items: list[Item], item_of: np.ndarray, feature_of: np.ndarray, sizes: Sequence[int]
) -> list[PromptPiece]:
  """The pieces of a prompt: large ones while more than two small ones are left. By the prompt alone."""
  small, large = sizes
  pieces, start, key, T = [], 0, b'', len(inputs.ids)
  while start < T:
    size = large if T - start > 2 * small else small
    end = min(T, start + size)
    used = [items[i] for i in dict.fromkeys(item_of[start:end][item_of[start:end] >= 0].tolist())]
    hashed = xxhash.xxh3_128(key + size.to_bytes(4, 'little'))
    for part in (inputs.ids[start:end], inputs.positions[:, start:end], feature_of[start:end]):
      hashed.update(np.ascontiguousarray(part).tobytes())
    for item in used:
      hashed.update(item.key)
    key = hashed.digest()
    pieces.append(PromptPiece(start, end - start, size, key, tuple(used)))
    start = end
  return pieces


def compact_prompt(prepared: PreparedRow, cfg) -> tuple[np.ndarray, int]:
  """What the Talker is given of a prompt: the indices of its user tokens, and where the assistant's header begins."""
  return user_tokens(prepared.inputs.ids, cfg), assistant_header(prepared.inputs.ids, cfg)
