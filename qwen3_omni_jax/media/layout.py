"""The prompt with its media spread out: one pad token per medium becomes one token per feature, and every token gets its
position.

Positions are (time, height, width), float32. Text and audio advance all three together; a picture's tokens share one time and
differ in height and width; a video's time runs at 13 positions a second, possibly between whole numbers. Text goes on after
the largest position so far. One pass over the prompt does both, so ids and positions cannot disagree.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ..config import ThinkerConfig


@dataclasses.dataclass(frozen=True)
class VideoSpan:
  """A video in the prompt. grid: patches (t, rows, columns). audio_tokens: of its own sound, None if it is not heard. late_s: how
  long after its sound the pictures begin."""

  grid: tuple[int, int, int]
  seconds_per_grid: float
  audio_tokens: int | None = None
  late_s: float = 0.0


def lay_out(
  ids: Sequence[int],
  audios: Sequence[int],
  images: Sequence[tuple[int, int, int]],
  videos: Sequence[VideoSpan],
  cfg: ThinkerConfig,
) -> tuple[np.ndarray, np.ndarray]:
  """(ids int32 'T', positions float32 '3 T') of the tokenised prompt `ids`, one pad token per medium in it.

  audios: tokens of each clip; images: grids. Raises ValueError if pad tokens and media do not match one to one.
  """
  prompt = np.asarray(ids, np.int32)
  _check_counts(prompt, audios, images, videos, cfg)
  audio_queue, image_queue, video_queue = iter(audios), iter(images), iter(videos)
  out_ids: list[np.ndarray] = []
  out_positions: list[np.ndarray] = []
  at = np.float32(0)

  def put(tokens, positions: np.ndarray, last_block: np.ndarray | None = None) -> None:
    nonlocal at
    out_ids.append(np.asarray(tokens, np.int32))
    out_positions.append(positions)
    at = np.float32((positions if last_block is None else last_block).max() + 1)

  done = 0
  for here in np.flatnonzero(np.isin(prompt, (cfg.audio_token_id, cfg.image_token_id, cfg.video_token_id))).tolist():
    text = prompt[done:here]
    if len(text):
      put(text, _sequence(len(text)) + at)
    done, token = here + 1, prompt[here]
    if token == cfg.audio_token_id:
      number = next(audio_queue)
      put(np.full(number, token), _sequence(number) + at)
    elif token == cfg.image_token_id:
      block = _visual_block(next(image_queue), 0.0, cfg)
      put(np.full(block.shape[1], token), block + at)
    else:
      video = next(video_queue)
      block = _visual_block(video.grid, video.seconds_per_grid, cfg, video.late_s)
      if video.audio_tokens is None:
        put(np.full(block.shape[1], token), block + at)
      else:
        put([cfg.audio_start_token_id], _sequence(1) + at)
        put(*_merge_by_time(block, _sequence(video.audio_tokens), video, cfg, at))
        put([cfg.audio_end_token_id], _sequence(1) + at)
  if done < len(prompt):
    put(prompt[done:], _sequence(len(prompt) - done) + at)
  return np.concatenate(out_ids), np.concatenate(out_positions, axis=1)


def _check_counts(ids: np.ndarray, audios, images, videos, cfg: ThinkerConfig) -> None:
  problems = []
  for kind, pad, media in (
    ('audio', cfg.audio_token_id, audios),
    ('image', cfg.image_token_id, images),
    ('video', cfg.video_token_id, videos),
  ):
    pads = np.count_nonzero(ids == pad)
    if pads != len(media):
      problems.append(f'{len(media)} {kind} items but {pads} {kind} placeholders in the prompt')
  if problems:
    raise ValueError(
      '; '.join(problems) + '. Does the chat template leave some out, or, with reference_exact, a text spell <|image_pad|>?'
    )


def _sequence(number: int) -> np.ndarray:
  return np.broadcast_to(np.arange(number, dtype=np.float32), (3, number))


def _visual_block(grid: tuple[int, int, int], seconds_per_grid: float, cfg: ThinkerConfig, late_s: float = 0.0) -> np.ndarray:
  """Positions of a picture's or video's tokens relative to its start, frame by frame, row by row; '3 P'."""
  t, h, w = grid[0], grid[1] // cfg.vision.spatial_merge_size, grid[2] // cfg.vision.spatial_merge_size
  clock = np.arange(t, dtype=np.float32) * np.float32(seconds_per_grid) * np.float32(cfg.position_id_per_seconds)
  time = np.repeat(clock + np.float32(late_s * cfg.position_id_per_seconds), h * w)
  row, col = np.divmod(np.tile(np.arange(h * w), t), w)
  return np.stack([time, row.astype(np.float32), col.astype(np.float32)]).astype(np.float32)


def _merge_by_time(
  video_block: np.ndarray, audio_block: np.ndarray, video: VideoSpan, cfg: ThinkerConfig, start: np.float32
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(tokens, positions, the block that ends the merge) of a video and its sound, each token at its time; video first on ties.

  The text after it starts from the largest position of whichever of the two goes on last, as in the reference.
  """
  per_grid = video_block.shape[1] // video.grid[0]
  clock = np.arange(video.grid[0]) * video.seconds_per_grid + video.late_s
  video_time = np.repeat(clock * cfg.position_id_per_seconds, per_grid)
  audio_time = np.arange(audio_block.shape[1], dtype=np.float64)
  time = np.concatenate([video_time, audio_time])
  is_audio = np.arange(len(time)) >= len(video_time)
  order = np.lexsort((is_audio, time))  # stable: by time, video before audio
  tokens = np.where(is_audio, cfg.audio_token_id, cfg.video_token_id)[order]
  positions = (np.concatenate([video_block, audio_block], axis=1) + start)[:, order]
  kinds = is_audio[order]
  tail = len(kinds) - int(np.argmax(kinds[::-1] != kinds[-1])) if (kinds != kinds[-1]).any() else 0
  return tokens, positions, positions[:, tail:]
