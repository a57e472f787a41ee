"""What a conversation becomes before it meets a network: token ids, positions, and decoded media. Plain numpy."""

import dataclasses
from typing import Literal

import numpy as np


@dataclasses.dataclass(frozen=True)
class Audio:
  """One clip. mel: float32 'T M' log-mel frames of 10 ms.

  conv_frames: the length in frames that the encoder's convolutions take a clip under 1 s to have (see
  models.audio_encoder); 100 for longer clips.
  """

  mel: np.ndarray
  conv_frames: int


@dataclasses.dataclass(frozen=True)
class Visual:
  """One image or video. patches: float32 'P 1536' in merge-block order, frame after frame, or uint8 before they are
  normalised (Processor.raw_patches); grid: (frames / 2, rows, columns)
  of patches."""

  patches: np.ndarray
  grid: tuple[int, int, int]
  kind: Literal['image', 'video']


@dataclasses.dataclass(frozen=True)
class ModelInputs:
  """One conversation. The k-th audio pad token stands for the k-th feature of `audios` (all clips in a row), the k-th image or
  video pad token for the k-th feature of `visuals` (images and videos together), in reading order.

  ids: int32 'T'. positions: float32 '3 T' (time, height, width).
  """

  ids: np.ndarray
  positions: np.ndarray
  audios: tuple[Audio, ...] = ()
  visuals: tuple[Visual, ...] = ()
