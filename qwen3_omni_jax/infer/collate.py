"""Collates conversations into padded arrays: a batch of tokens, and the media of all rows packed together.

Every size is rounded up to a bucket, so that few programs are compiled. Media are packed by shape, not by row: audio windows of
similar length together, video frames and images of similar size together; each token has the row number of its feature.
"""

import bisect
from collections.abc import Callable, Iterable, Sequence

import flax.struct
import numpy as np

from ..config import ThinkerConfig
from ..media.audio import audio_tokens
from ..media.inputs import ModelInputs
from ..models.thinker import ThinkerTokens
from ..shapes import Float, Int

_BUCKETS = sorted({1, 2, 3} | {m << e for e in range(1, 30) for m in (2, 3)})


def bucket(n: int, at_least: int = 1) -> int:
  """n rounded up to 1, 2, 3, 4, 6, 8, 12, 16, 24, …: at most a third of padding."""
  return _BUCKETS[bisect.bisect_left(_BUCKETS, max(n, at_least))]


class AudioWindows(flax.struct.PyTreeNode):
  """Log-mel windows of up to 8 s, all of the same number of 1 s chunks (see models.audio_encoder).

  segment: in training, where windows share a row: the window of each chunk; frames and conv_frames are then 'R X' too.
  """

  mel: Float[np.ndarray, 'R F M']
  frames: Int[np.ndarray, ' R']
  conv_frames: Int[np.ndarray, ' R']
  segment: Int[np.ndarray, 'R X'] | None = None


class VisualFrames(flax.struct.PyTreeNode):
  """Images and video frames padded to the same number of patches (see models.vision_encoder).

  segment: in training, where frames share a row: the frame of each patch; heights and widths are then 'R P' too.
  """

  patches: Float[np.ndarray, 'R P C']
  rows: Int[np.ndarray, 'R P']
  cols: Int[np.ndarray, 'R P']
  heights: Int[np.ndarray, ' R']
  widths: Int[np.ndarray, ' R']
  length: Int[np.ndarray, ' R']
  segment: Int[np.ndarray, 'R P'] | None = None


class Media(flax.struct.PyTreeNode):
  """The media of a batch, grouped by shape. Feature rows are numbered through the groups in order, padding included.

  lanes: in training, where there is one group of each kind: the media of each of so many equal parts of the batch's rows lie in
  the same part of the group's rows. 1: a row's media may lie anywhere.
  """

  audio: tuple[AudioWindows, ...] = ()
  visual: tuple[VisualFrames, ...] = ()
  lanes: int = flax.struct.field(pytree_node=False, default=1)


class Batch(flax.struct.PyTreeNode):
  """What prefill takes. length: tokens of each row; next_position: position of the first token after each row's prompt."""

  tokens: ThinkerTokens
  media: Media
  length: Int[np.ndarray, ' B']
  next_position: Float[np.ndarray, ' B']


def collate(rows: Sequence[ModelInputs], cfg: ThinkerConfig, pad_rows_to: int | None = None) -> Batch:
  """Pads and packs. pad_rows_to: at least this many rows; the extra ones are empty."""
  number = max(len(rows), pad_rows_to or 0)
  T = bucket(max(len(r.ids) for r in rows), 16)
  ids = np.zeros((number, T), np.int32)
  positions = np.zeros((3, number, T), np.float32)
  segment = np.zeros((number, T), np.int32)
  next_position = np.zeros(number, np.float32)
  for b, r in enumerate(rows):
    n = len(r.ids)
    ids[b, :n], positions[:, b, :n], segment[b, :n] = r.ids, r.positions, 1
    next_position[b] = r.positions.max() + 1
  audio_groups, audio_rows = _pack_audio([a for r in rows for a in r.audios], cfg)
  visual_groups, visual_rows = _pack_visual([v for r in rows for v in r.visuals], cfg)
  visual_ids = (cfg.image_token_id, cfg.video_token_id)
  tokens = ThinkerTokens(
    ids=ids,
    positions=positions,
    segment=segment,
    audio_index=_place(ids, segment, (cfg.audio_token_id,), audio_rows, 'audio') if audio_groups else None,
    visual_index=_place(ids, segment, visual_ids, visual_rows, 'visual') if visual_groups else None,
  )
  length = segment.sum(axis=1).astype(np.int32)
  return Batch(tokens, Media(audio_groups, visual_groups), length, next_position)


def _place(ids: np.ndarray, segment: np.ndarray, pads: tuple[int, ...], rows: list[np.ndarray], kind: str) -> np.ndarray:
  """The feature row of every pad token, in reading order; -1 elsewhere."""
  index = np.full(ids.shape, -1, np.int32)
  mask = np.isin(ids, pads) & (segment != 0)
  features = np.concatenate(rows)
  if mask.sum() != len(features):
    raise ValueError(f'{mask.sum()} {kind} tokens in the prompt but {len(features)} {kind} features: were the inputs edited?')
  index[mask] = features
  return index


def _pack_audio(clips, cfg: ThinkerConfig) -> tuple[tuple[AudioWindows, ...], list[np.ndarray]]:
  """Groups of windows by chunk count, and for each clip the feature rows of its tokens."""
  chunk, most = cfg.audio.chunk_frames, cfg.audio.chunks_per_window
  windows = []  # (mel, conv_frames, clip)
  for c, clip in enumerate(clips):
    for start in range(0, len(clip.mel), chunk * most):
      windows.append((clip.mel[start : start + chunk * most], min(clip.conv_frames, chunk), c))
  tokens_per_chunk = audio_tokens(chunk)
  rows: list[list[np.ndarray]] = [[] for _ in clips]
  groups, base = [], 0
  chunks_of = [min(bucket(-(-len(mel) // chunk)), most) for mel, _, _ in windows]
  slot = {}
  for chunks, members in _by_key(range(len(windows)), lambda w: chunks_of[w]):
    R, F = bucket(len(members)), chunks * chunk
    group = AudioWindows(np.zeros((R, F, cfg.audio.num_mel_bins), np.float32), np.zeros(R, np.int32), np.full(R, chunk, np.int32))
    for i, w in enumerate(members):
      mel, conv_frames, _ = windows[w]
      group.mel[i, : len(mel)], group.frames[i], group.conv_frames[i] = mel, len(mel), conv_frames
      slot[w] = base + i * chunks * tokens_per_chunk
    base += R * chunks * tokens_per_chunk
    groups.append(group)
  for w, (mel, _, c) in enumerate(windows):
    rows[c].append(slot[w] + np.arange(audio_tokens(len(mel)), dtype=np.int32))
  return tuple(groups), [np.concatenate(r) for r in rows]


def _pack_visual(items, cfg: ThinkerConfig) -> tuple[tuple[VisualFrames, ...], list[np.ndarray]]:
  """Groups of frames by padded patch count, and for each image or video the feature rows of its tokens."""
  merge = cfg.vision.spatial_merge_size
  frames = []  # (patches, height, width, item)
  for i, item in enumerate(items):
    t, h, w = item.grid
    frames += [(patches, h, w, i) for patches in item.patches.reshape(t, h * w, -1)]
  rows: list[list[np.ndarray]] = [[] for _ in items]
  groups, base, slot = [], 0, {}
  for P, members in _by_key(range(len(frames)), lambda f: bucket(len(frames[f][0]), 16 * merge**2)):
    R = bucket(len(members))
    group = VisualFrames(
      np.zeros((R, P, cfg.vision.patch_dim), np.float32),
      np.zeros((R, P), np.int32),
      np.zeros((R, P), np.int32),
      np.full(R, merge, np.int32),
      np.full(R, merge, np.int32),
      np.zeros(R, np.int32),
    )
    for i, f in enumerate(members):
      patches, h, w, _ = frames[f]
      n = len(patches)
      group.patches[i, :n] = patches
      group.rows[i, :n], group.cols[i, :n] = patch_coordinates(h, w, merge)
      group.heights[i], group.widths[i], group.length[i] = h, w, n
      slot[f] = base + i * (P // merge**2)
    base += R * (P // merge**2)
    groups.append(group)
  for f, (patches, _, _, i) in enumerate(frames):
    rows[i].append(slot[f] + np.arange(len(patches) // merge**2, dtype=np.int32))
  return tuple(groups), [np.concatenate(r) for r in rows]


def patch_coordinates(height: int, width: int, merge: int) -> tuple[np.ndarray, np.ndarray]:
  """Row and column of every patch of a height × width grid, in merge-block order (the order of the patch rows)."""
  block = lambda a: a.reshape(height // merge, merge, width // merge, merge).transpose(0, 2, 1, 3).reshape(-1)
  row, col = np.indices((height, width), dtype=np.int32)
  return block(row), block(col)


def _by_key(items: Iterable[int], key: Callable[[int], int]) -> list[tuple[int, list[int]]]:
  groups: dict[int, list[int]] = {}
  for item in items:
    groups.setdefault(key(item), []).append(item)
  return sorted(groups.items())
