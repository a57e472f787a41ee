"""Media made small enough for a lane: what asks for more room is shrunk as the published limits shrink it, and never cut.

A picture gets fewer pixels; a video a limit of all its pixels (`total_pixels`), which makes its frames smaller, and where these
are at their smallest, fewer frames (`max_frames`). Sound cannot be shrunk. Runs in worker processes: nothing here imports jax.
"""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

from qwen3_omni_jax.config import ThinkerConfig
from qwen3_omni_jax.media.processor import Processor

from .mask import SpecialIds
from .records import Example, Rules, read_record
from .room import Bins, ExampleSize, LaneShape

_TRIES = 4
_MARGIN = 0.95


@dataclasses.dataclass(frozen=True)
class Reader:
  """How the records of a source are read."""

  source: str
  rules: Rules
  processor: Processor
  special: SpecialIds
  shape: LaneShape

  def read(self, record: dict[str, Any]) -> list[Example]:
    """As read_fitting."""
    return read_fitting(record, self.rules, self.processor, self.special, self.shape)


def read_fitting(
  record: dict[str, Any], rules: Rules, processor: Processor, special: SpecialIds, shape: LaneShape
) -> list[Example]:
  """The examples of a record, their pictures and videos as large as a lane can take them; all as they are where nothing helps.
  Raises ValueError as read_record does."""
  block = processor.cfg.thinker.vision.spatial_merge_size**2
  room = min(shape.visual_rows * shape.patches, (shape.length - 1) * block)
  if not room:
    return read_record(record, rules, processor, special)
  for _ in range(_TRIES):
    limited = _limited(processor, min(room, shape.patches), shape.patches)
    examples = read_record(record, rules, limited, special, room)
    smaller = [_smaller(example, room, shape, processor.cfg.thinker) for example in examples]
    if (least := min((s for s in smaller if s is not None), default=None)) is None:
      break
    room = least
  return examples


def _limited(processor: Processor, picture: int, frame: int) -> Processor:
  """With pictures and frames of at most so many patches."""
  images = processor.images
  area = images.patch**2
  high, video_high = min(images.max_pixels, picture * area), min(images.video_max_pixels, frame * area)
  if (high, video_high) == (images.max_pixels, images.video_max_pixels):
    return processor
  out = copy.copy(processor)
  low, video_low = min(images.min_pixels, high), min(images.video_min_pixels, video_high)
  out.images = dataclasses.replace(
    images, min_pixels=low, max_pixels=high, video_min_pixels=video_low, video_max_pixels=video_high
  )
  return out


def _smaller(example: Example, room: int, shape: LaneShape, cfg: ThinkerConfig) -> int | None:
  """The patches that each medium of an example may have for it to fit, below `room`, with which it does not; None if it does, or
  if nothing helps."""
  size = ExampleSize.of(example, cfg)
  media = [len(visual.patches) for visual in example.inputs.visuals]
  if not media or Bins.of(shape).fits(size):
    return None
  block, used = cfg.vision.spatial_merge_size**2, sum(media)
  over = max(size.tokens - shape.length, max(size.speech, default=0) - shape.speech_length, 0)  # the Talker sees them too
  within = min(shape.visual_rows * shape.patches, used - block * over)
  if within < block * len(media):
    return None
  if within < used:
    return min(level(media, within), int(_MARGIN * room * within / used))  # a video comes out larger than it was told to be
  if len(size.frames) == len(media):  # few enough patches, and yet not in these rows: as many pictures to each
    return min(room - 1, shape.patches // -(-len(media) // shape.visual_rows))
  return int(_MARGIN * room)


def level(sizes: Sequence[int], within: int) -> int:
  """The largest bound such that sizes cut to it sum to no more than `within`: the large ones pay."""
  left = sorted(sizes)
  for i, size in enumerate(left):
    share = within // (len(left) - i)
    if size > share:
      return share
    within -= size
  return left[-1]
