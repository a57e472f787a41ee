"""Room in a lane and what an example needs of it: best-fit packing. Nothing here imports jax."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from qwen3_omni_jax.config import ThinkerConfig
from qwen3_omni_jax.media.inputs import ModelInputs

from .records import Example


@dataclasses.dataclass(frozen=True)
class LaneShape:
  """Room in one lane of a batch: rows × length tokens, audio rows of `chunks` 1 s chunks, visual rows of `patches` patches,
  speech_rows × speech_length positions of the Talker with so many codebooks."""

  rows: int
  length: int
  audio_rows: int
  chunks: int
  visual_rows: int
  patches: int
  speech_rows: int = 0
  speech_length: int = 0
  codebooks: int = 0


def audio_windows(inputs: ModelInputs, cfg: ThinkerConfig) -> list[tuple[np.ndarray, int]]:
  """(mel frames of a window, conv_frames) of every window of every clip, in order."""
  size = cfg.audio.chunk_frames * cfg.audio.chunks_per_window
  return [
    (clip.mel[start : start + size], min(clip.conv_frames, cfg.audio.chunk_frames))
    for clip in inputs.audios
    for start in range(0, len(clip.mel), size)
  ]


def visual_frames(inputs: ModelInputs) -> list[tuple[np.ndarray, int, int]]:
  """(patches, height, width) of every frame of every image and video, in order."""
  return [
    (patches, h, w) for visual in inputs.visuals for t, h, w in [visual.grid] for patches in visual.patches.reshape(t, h * w, -1)
  ]


@dataclasses.dataclass(frozen=True)
class ExampleSize:
  """Room that an example needs: tokens, chunks of each audio window, patches of each frame, positions of each utterance."""

  tokens: int
  windows: tuple[int, ...]
  frames: tuple[int, ...]
  speech: tuple[int, ...] = ()

  @property
  def cost(self) -> int:
    """Tokens of the Thinker and positions of the Talker: what a source pays in a mixture."""
    return self.tokens + sum(self.speech)

  @classmethod
  def of(cls, example: Example, cfg: ThinkerConfig) -> 'ExampleSize':
    windows = tuple(-(-len(mel) // cfg.audio.chunk_frames) for mel, _ in audio_windows(example.inputs, cfg))
    frames = tuple(h * w for visual in example.inputs.visuals for t, h, w in [visual.grid] for _ in range(t))
    return cls(len(example.learn), windows, frames, tuple(map(len, example.utterances)))

  def check(self, shape: LaneShape) -> None:
    """Raises ValueError if no batch can ever hold it, saying which size to raise."""
    if self.tokens > shape.length:
      raise ValueError(f'{self.tokens} tokens; a row has {shape.length} (length)')
    if self.frames and max(self.frames) > shape.patches:
      raise ValueError(f'a picture of {max(self.frames)} patches; an encoder row has {shape.patches} (visual_row)')
    if self.speech and max(self.speech) > shape.speech_length:
      raise ValueError(
        f"{max(self.speech)} positions of speech, the user's turns before it included; "
        f'a row has {shape.speech_length} (speech_length)'
      )
    empty = Bins.of(shape)
    if _best_fit(empty.speech, self.speech) is None:
      raise ValueError(
        f'{sum(self.speech)} positions of speech in {len(self.speech)} answers; a lane has {shape.speech_rows} rows of '
        f'{shape.speech_length} (speech_rows, speech_length)'
      )
    if not empty.fits(self):
      raise ValueError(
        f'{sum(self.windows)} s of audio in {len(self.windows)} windows and {sum(self.frames)} patches in {len(self.frames)} '
        f'frames; a lane has {shape.audio_rows} audio rows of {shape.chunks} s and {shape.visual_rows} visual rows of '
        f'{shape.patches} patches (audio_s, visual_patches)'
      )


# The row of an example, the audio row of each window, the visual row of each frame, the speech row of each utterance.
Where = tuple[int, list[int], list[int], list[int]]


@dataclasses.dataclass
class Bins:
  """Room left in a lane's rows while it is being filled."""

  text: list[int]
  audio: list[int]
  visual: list[int]
  speech: list[int]

  @classmethod
  def of(cls, shape: LaneShape) -> 'Bins':
    return cls(
      [shape.length] * shape.rows,
      [shape.chunks] * shape.audio_rows,
      [shape.patches] * shape.visual_rows,
      [shape.speech_length] * shape.speech_rows,
    )

  def fits(self, size: ExampleSize) -> bool:
    return self._find(size) is not None

  def place(self, size: ExampleSize) -> Where | None:
    """Takes the room for it; None if it does not fit."""
    found = self._find(size)
    if found is None:
      return None
    (row, self.text), (audio, self.audio), (visual, self.visual), (speech, self.speech) = found
    return row[0], audio, visual, speech

  def _find(self, size: ExampleSize):
    found = []
    for room, sizes in (
      (self.text, (size.tokens,)),
      (self.audio, size.windows),
      (self.visual, size.frames),
      (self.speech, size.speech),
    ):
      if (fit := _best_fit(room, sizes)) is None:
        return None
      found.append(fit)
    return found


def _best_fit(room: list[int], sizes: Sequence[int]) -> tuple[list[int], list[int]] | None:
  """(bin of each size, room left): largest first, each into the fullest bin that holds it, the first of equals."""
  room, chosen = list(room), [0] * len(sizes)
  for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
    best = min((b for b in range(len(room)) if room[b] >= sizes[i]), key=lambda b: room[b], default=None)
    if best is None:
      return None
    chosen[i] = best
    room[best] -= sizes[i]
  return chosen, room


def choose_next(bins: Bins, sizes: Sequence[ExampleSize]) -> tuple[int, Where] | None:
  """(which, where) of the next example to place, of those waiting in order of arrival; None if none fits.

  The first one of an empty lane goes in first, so that none waits for ever; then the longest that fits.
  """
  for i in sorted(range(len(sizes)), key=lambda i: -sizes[i].cost):
    if (where := bins.place(sizes[i])) is not None:
      return i, where
  return None
