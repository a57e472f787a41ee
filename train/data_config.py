"""The configuration of the input pipeline: sources, their shares, and the one shape of every batch."""

import dataclasses

from qwen3_omni_jax.config import OmniConfig
from qwen3_omni_jax.media.processor import MEDIA, Media

from .records import Form
from .room import LaneShape


@dataclasses.dataclass(frozen=True)
class WeightAt:
  """A point of a schedule: the weight that a source has once the run has read so many tokens, all sources and lanes together."""

  tokens: float
  weight: float


@dataclasses.dataclass(frozen=True)
class SourceConfig:
  """Records of one kind. path: a file or a pattern with *; the ending says the format.

  weight: share of the tokens (those of media included), relative to the other sources'. schedule: weights at points, linear
  between them and constant outside, in place of weight. All sources have one of the two or none has; without, every record counts
  alike. epochs: how often a source with a share may be read at most; then the others take its place. form: 'chat' or 'document'.
  media_root: media paths are relative to it and must lie in it; default the file's folder. fps, audio_in_video: for videos,
  where a record says nothing. thinking: learn <think> … </think> too. ignore: keys of the records to pass over.
  """

  path: str = ''
  name: str = ''
  weight: float | None = None
  schedule: tuple[WeightAt, ...] = ()
  epochs: int | None = None
  form: Form = 'chat'
  media_root: str | None = None
  fps: float | None = None
  audio_in_video: bool = False
  thinking: bool = True
  ignore: tuple[str, ...] = ()

  @property
  def weighted(self) -> bool:
    return self.weight is not None or bool(self.schedule)

  def weight_at(self, tokens: float) -> float:
    """Once the run has read so many tokens."""
    if self.weight is not None:
      return self.weight
    points = self.schedule
    after = next((i for i, point in enumerate(points) if point.tokens > tokens), len(points))
    if after in (0, len(points)):
      return points[min(after, len(points) - 1)].weight
    a, b = points[after - 1], points[after]
    return a.weight + (b.weight - a.weight) * (tokens - a.tokens) / (b.tokens - a.tokens)

  def problems(self) -> list[str]:
    found = []
    if self.weight is not None and self.schedule:
      found.append(f'{self.path}: weight and schedule; give one of the two')
    if self.weight is not None and self.weight <= 0:
      found.append(f'weight {self.weight} of {self.path}: expected a number above 0')
    points = [point.tokens for point in self.schedule]
    if self.schedule and (points != sorted(points) or any(p.weight < 0 for p in self.schedule) or self.schedule[-1].weight == 0):
      found.append(f'schedule of {self.path}: expected rising tokens and weights of at least 0, the last one above 0')
    if self.epochs is not None and self.epochs < 1:
      found.append(f'epochs {self.epochs} of {self.path}: expected at least 1')
    if self.epochs is not None and not self.weighted:
      found.append(f'epochs of {self.path}: for a source with a weight')
    return found


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """What is read and the one shape of every batch, over all processes.

  rows × length: tokens of a batch. lanes: independent packers that the rows are dealt to, at least as many as processes; each
  process must own the same number. audio_s: seconds of audio in a batch; visual_patches: patches of images and video frames in
  a batch, in encoder rows of visual_row (no picture may have more). 0 for none of them. buffer: records a lane chooses from; a
  larger one packs tighter and holds more decoded media. split_documents: cut documents longer than a row. epochs: end after so
  many (one process; without weights); None: endless. max_bad: bad records at which the job stops, as a number or as a share
  (below 1), over all processes; a share must be exceeded for certain. workers: decoding processes of this process; 0: `threads`
  threads instead. restart: if the data are not those of the checkpoint, begin them; otherwise that is an error.
  max_image_pixels, max_video_pixels: larger pictures (frames) are shrunk to it, as the processor shrinks to its own limit.
  media: who chooses frames and sizes, 'processor' or 'utils' (docs/data.md).
  per_device: rows, lanes, audio_s and visual_patches are for each device, or group of devices along the mesh axes context and
  tensor; a run multiplies them by their number (train.geometry).
  """

  sources: tuple[SourceConfig, ...] = ()
  rows: int = 1
  length: int = 8192
  lanes: int = 1
  audio_s: int = 0
  visual_patches: int = 0
  visual_row: int = 1024
  buffer: int = 64
  seed: int = 0
  shuffle: bool = True
  epochs: int | None = None
  split_documents: bool = True
  max_bad: float = 0.01
  workers: int = 0
  threads: int = 8
  prefetch_batches: int = 2
  restart: bool = False
  max_image_pixels: int | None = None
  max_video_pixels: int | None = None
  media: Media = 'processor'
  per_device: bool = False

  @property
  def weighted(self) -> bool:
    return any(source.weighted for source in self.sources)

  def lane_shape(self, cfg: OmniConfig) -> LaneShape:
    """Room in one lane. Raises ValueError listing what does not go together."""
    block = cfg.thinker.vision.spatial_merge_size**2
    chunks = cfg.thinker.audio.chunks_per_window
    audio_rows, visual_rows = -(-self.audio_s // chunks), -(-self.visual_patches // max(self.visual_row, 1))
    lowest = dict.fromkeys(('rows', 'lanes', 'buffer', 'threads', 'prefetch_batches'), 1)
    lowest |= {'length': 2, 'visual_row': block} | dict.fromkeys(('audio_s', 'visual_patches', 'workers', 'max_bad'), 0)
    if self.per_device:
      raise ValueError('data: sizes are per device (per_device); train.geometry.resolve makes them those of a batch')
    problems = [
      f'{name} {getattr(self, name)}: expected at least {low}' for name, low in lowest.items() if getattr(self, name) < low
    ]
    if self.media not in MEDIA:
      problems.append(f'media {self.media!r}: expected {" or ".join(MEDIA)}')
    if self.visual_row % block:
      problems.append(f'visual_row {self.visual_row}: expected a multiple of {block}')
    if self.lanes > 0 and self.rows % self.lanes:
      problems.append(f'rows {self.rows}: expected a multiple of lanes {self.lanes}')
    lanes = max(self.lanes, 1)
    for name, number, unit in (
      ('audio_s', audio_rows, f'{chunks} s'),
      ('visual_patches', visual_rows, f'visual_row {self.visual_row}'),
    ):
      if number % lanes:
        problems.append(
          f'{name} {getattr(self, name)} makes {number} encoder rows of {unit}: expected a multiple of lanes {lanes}'
        )
    if problems:
      raise ValueError('data: ' + '; '.join(problems))
    return LaneShape(self.rows // lanes, self.length, audio_rows // lanes, chunks, visual_rows // lanes, self.visual_row)

  def check_sources(self) -> None:
    """Raises ValueError if nothing can be read with these sources, listing why."""
    if problems := self._source_problems():
      raise ValueError('data: ' + '; '.join(problems))

  def _source_problems(self) -> list[str]:
    if not self.sources:
      return ['sources: none; give at least one']
    problems = [problem for source in self.sources for problem in source.problems()]
    if len({source.weighted for source in self.sources}) > 1:
      problems.append('weights: some sources have one and some do not')
    if self.weighted and self.epochs is not None:
      problems.append('epochs: a mixture with weights has no end; give a number of steps, or epochs to its sources')
    endless = [source for source in self.sources if source.epochs is None and source.weighted]
    points = {0.0, *(point.tokens for source in self.sources for point in source.schedule)}
    if self.weighted and (nothing := [at for at in sorted(points) if not any(source.weight_at(at) for source in endless)]):
      problems.append(f'no source without epochs has a weight at {nothing[0]:g} tokens, so the mixture may end')
    names = [source.name or source.path for source in self.sources]
    if twice := sorted({name for name in names if names.count(name) > 1}):
      problems.append(f'sources: {", ".join(twice)} twice; give them names')
    return problems
