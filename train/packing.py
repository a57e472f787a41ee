"""Batches of one fixed shape: several examples to a row, several clips to an encoder row.

A *lane* packs its own records into its own rows of every batch and its own rows of the encoders. It is independent of the
others, so a batch is the same whichever process makes which lane.
"""

import concurrent.futures
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from qwen3_omni_jax.config import ThinkerConfig
from qwen3_omni_jax.infer.collate import AudioWindows, Media, VisualFrames, patch_coordinates
from qwen3_omni_jax.media.audio import audio_tokens
from qwen3_omni_jax.media.image import ImageSettings, normalise_rows
from qwen3_omni_jax.media.inputs import ModelInputs
from qwen3_omni_jax.models.thinker import ThinkerTokens

from .batch import SpeechRows, TrainBatch
from .records import Example
from .room import LaneShape, audio_windows, visual_frames
from .utterances import Utterance

_THREADS = 4  # that normalise patches


@dataclasses.dataclass(frozen=True)
class PlacedExample:
  """An example and where it lies in its lane."""

  example: Example
  row: int
  audio: list[int]
  visual: list[int]
  speech: list[int]
  source: int = 0


def assemble_batch(
  lanes: Sequence[tuple[int, Sequence[PlacedExample]]],
  shape: LaneShape,
  cfg: ThinkerConfig,
  images: ImageSettings,
  sources: tuple[str, ...] = (),
) -> TrainBatch:
  """The rows of these lanes, each given with its number among all lanes of the run. sources: their names; none: not told.

  Feature indices count through the media of all lanes in order of their numbers, whichever lanes are here, and so do taps through
  their tokens. images: how raw
  patches are normalised.
  """
  n, (R, T) = len(lanes), (shape.rows, shape.length)
  ids, segment, targets, kind, source = (np.zeros((n * R, T), np.int32) for _ in range(5))
  positions, weights = np.zeros((3, n * R, T), np.float32), np.zeros((n * R, T), np.float32)
  audio = _AudioRows(n, shape, cfg) if shape.audio_rows else None
  visual = _VisualRows(n, shape, cfg, images) if shape.visual_rows else None
  speech = _SpeechRows(n, shape) if shape.speech_rows else None
  audio_index, visual_index = np.full((n * R, T), -1, np.int32), np.full((n * R, T), -1, np.int32)
  visual_ids = (cfg.image_token_id, cfg.video_token_id)
  for here, (lane, placed) in enumerate(lanes):
    used, documents = [0] * R, [0] * R
    for item in placed:
      inputs, row = item.example.inputs, here * R + item.row
      begin, number = used[item.row], len(inputs.ids)
      if speech is not None:
        for utterance, where in zip(item.example.utterances, item.speech, strict=True):
          speech.add(here, utterance, where, (lane * R + item.row) * T + begin, item.source)
      if not number:  # text read aloud
        continue
      used[item.row] += number
      documents[item.row] += 1
      span = slice(begin, begin + number)
      ids[row, span], positions[:, row, span], segment[row, span] = inputs.ids, inputs.positions, documents[item.row]
      kind[row, span], source[row, span] = item.example.kind, item.source
      targets[row, begin : begin + number - 1] = inputs.ids[1:]
      weights[row, begin : begin + number - 1] = item.example.learn[1:]
      if audio is not None and inputs.audios:
        audio_index[row, span][inputs.ids == cfg.audio_token_id] = audio.add(here, lane, inputs, item.audio)
      if visual is not None and inputs.visuals:
        visual_index[row, span][np.isin(inputs.ids, visual_ids)] = visual.add(here, lane, inputs, item.visual)
  if visual is not None:
    visual.normalise()
  tokens = ThinkerTokens(
    ids, positions, segment, None if audio is None else audio_index, None if visual is None else visual_index
  )
  media = Media((audio.group,) if audio is not None else (), (visual.group,) if visual is not None else (), lanes=n)
  spoken = None if speech is None else speech.rows if sources else speech.rows.replace(source=None)
  return TrainBatch(tokens, media, targets, weights, kind, source if sources else None, sources, spoken)


class _AudioRows:
  """The audio encoder's rows being filled."""

  def __init__(self, lanes: int, shape: LaneShape, cfg: ThinkerConfig):
    self.cfg, self.shape = cfg, shape
    rows, X, chunk = lanes * shape.audio_rows, shape.chunks, cfg.audio.chunk_frames
    self.group = AudioWindows(
      np.zeros((rows, X * chunk, cfg.audio.num_mel_bins), np.float32),
      np.zeros((rows, X), np.int32),
      np.full((rows, X), chunk, np.int32),
      np.zeros((rows, X), np.int32),
    )
    self.used, self.windows = [0] * rows, [0] * rows

  def add(self, here: int, lane: int, inputs: ModelInputs, rows: Sequence[int]) -> np.ndarray:
    """Writes the windows of an example; the feature row of each of its audio tokens, in reading order."""
    chunk, per_chunk = self.cfg.audio.chunk_frames, audio_tokens(self.cfg.audio.chunk_frames)
    group, segment, index = self.group, np.asarray(self.group.segment), []
    for (mel, conv_frames), row in zip(audio_windows(inputs, self.cfg), rows, strict=True):
      at, number = here * self.shape.audio_rows + row, -(-len(mel) // chunk)
      begin = self.used[at]
      self.used[at] += number
      self.windows[at] += 1
      group.mel[at, begin * chunk : begin * chunk + len(mel)] = mel
      span = slice(begin, begin + number)
      group.frames[at, span] = np.minimum(len(mel) - np.arange(number) * chunk, chunk)
      group.conv_frames[at, span], segment[at, span] = conv_frames, self.windows[at]
      first = ((lane * self.shape.audio_rows + row) * self.shape.chunks + begin) * per_chunk
      index.append(first + np.arange(audio_tokens(len(mel)), dtype=np.int32))
    return np.concatenate(index)


class _VisualRows:
  """The vision encoder's rows being filled."""

  def __init__(self, lanes: int, shape: LaneShape, cfg: ThinkerConfig, images: ImageSettings):
    self.images, self.raw = images, []
    self.merge, self.shape = cfg.vision.spatial_merge_size, shape
    rows, P = lanes * shape.visual_rows, shape.patches
    whole = lambda value: np.full((rows, P), value, np.int32)
    self.group = VisualFrames(
      np.zeros((rows, P, cfg.vision.patch_dim), np.float32),
      whole(0),
      whole(0),
      whole(self.merge),
      whole(self.merge),
      np.zeros(rows, np.int32),
      whole(0),
    )
    self.frames = [0] * rows

  def add(self, here: int, lane: int, inputs: ModelInputs, rows: Sequence[int]) -> np.ndarray:
    """Writes the frames of an example; the feature row of each of its visual tokens, in reading order."""
    group, segment, block, index = self.group, np.asarray(self.group.segment), self.merge**2, []
    for (patches, height, width), row in zip(visual_frames(inputs), rows, strict=True):
      at = here * self.shape.visual_rows + row
      begin, number = int(group.length[at]), len(patches)
      group.length[at] += number
      self.frames[at] += 1
      span = slice(begin, begin + number)
      segment[at, span] = self.frames[at]
      if patches.dtype == np.uint8:
        self.raw.append((patches, group.patches[at, span]))
      else:
        group.patches[at, span] = patches
      group.rows[at, span], group.cols[at, span] = patch_coordinates(height, width, self.merge)
      group.heights[at, span], group.widths[at, span] = height, width
      first = ((lane * self.shape.visual_rows + row) * self.shape.patches + begin) // block
      index.append(first + np.arange(number // block, dtype=np.int32))
    return np.concatenate(index)

  def normalise(self) -> None:
    """Writes the frames that waited as bytes. By threads: it is most of the work of making a batch."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      list(pool.map(lambda item: normalise_rows(item[0], self.images, item[1]), self.raw))


class _SpeechRows:
  """The Talker's rows being filled."""

  def __init__(self, lanes: int, shape: LaneShape):
    self.per_lane = shape.speech_rows
    R, S, Q = lanes * shape.speech_rows, shape.speech_length, shape.codebooks
    whole = lambda value: np.full((R, S), value, np.int32)
    self.rows = SpeechRows(
      text=whole(0),
      tap=whole(-1),
      opening=whole(-1),
      codes=np.full((R, S, Q), -1, np.int32),
      positions=np.zeros((3, R, S), np.float32),
      segment=whole(0),
      weights=np.zeros((R, S), np.float32),
      source=whole(0),
    )
    self.used, self.utterances = [0] * R, [0] * R

  def add(self, here: int, utterance: Utterance, row: int, first: int, source: int) -> None:
    """first: number of the example's first token among those of the whole batch."""
    rows, at = self.rows, here * self.per_lane + row
    span = slice(self.used[at], self.used[at] + len(utterance))
    self.used[at] += len(utterance)
    self.utterances[at] += 1
    rows.text[at, span], rows.opening[at, span] = utterance.text, utterance.opening
    rows.tap[at, span] = np.where(utterance.tap >= 0, first + utterance.tap, -1)
    rows.codes[at, span], rows.positions[:, at, span] = utterance.codes, utterance.positions
    rows.segment[at, span] = self.utterances[at]
    rows.weights[at, span] = utterance.codes[:, 0] >= 0
    assert rows.source is not None
    rows.source[at, span] = source


def fill_stats(batch: TrainBatch) -> dict[str, Any]:
  """How full a batch is: tokens, targets, audio chunks, patches and positions of speech used, and the room there was."""
  media = batch.media
  numbers = {
    'tokens': int((batch.tokens.segment != 0).sum()),
    'tokens_room': batch.tokens.ids.size,
    'targets': int((batch.weights != 0).sum()),
  }
  for name, groups in (('audio_s', media.audio), ('patches', media.visual)):
    for group in groups:
      segment = np.asarray(group.segment)
      numbers |= {name: int((segment != 0).sum()), f'{name}_room': segment.size}
  if (speech := batch.speech) is not None:
    segment = np.asarray(speech.segment)
    numbers |= {'speech': int((segment != 0).sum()), 'speech_room': segment.size}
    numbers |= {'speech_frames': int((np.asarray(speech.codes)[..., 1] >= 0).sum()), 'utterances': int(segment.max(axis=1).sum())}
  return numbers
