"""When the pictures of a container are shown and its sound is heard.

One rule, for every format:

- A picture is shown from its presentation time until the next one's; the last one for as long as the file says, or as long as the
  others usually are. What the file's own edit list cuts away is not shown.
- Frames are chosen by that time. Where they are equally spaced, as in most files, this is by number, as the reference does.
- The zero of a container is the beginning of the earlier of the two tracks that are used: sound that begins later has silence
  before it, pictures that begin later have later positions. A track that is used alone begins at its own zero.
- A hole in the sound is silence, so that what follows keeps its time; over a hole between pictures the earlier one stays.
- Tracks less than SLACK_S apart begin together, and smaller holes are none.
- A clock that runs backwards (two recordings joined end to end) is an error; so is a header that says more than there is.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from .source import Limits

SLACK_S = 0.04  # about half an audio token, the finest step of the clock that sound and pictures share
ROUNDING_S = 0.001  # many formats keep times in whole milliseconds
BACKWARDS_S = 0.5  # decoding times never run back in a sound file; damaged ones are a frame or two out of order
PRIMING_S = 0.5  # more than any sound decoder drops at the beginning
# Formats whose headers state a length. For others FFmpeg estimates it, or looks at the last packet.
_STATED = ('mov', 'matroska', 'avi', 'asf', 'flv')
_MATROSKA_DURATION = re.compile(rb'\x44\x89[\x84\x88]')  # the element, its size 4 or 8; live recordings have none


@dataclasses.dataclass(frozen=True)
class Timeline:
  """The frames of a video: frame i is shown from times[i] to times[i + 1], the last one to `end`; seconds, from the first on.

  steady: the frames are equally spaced. rate: frames per second; of a video that is not steady their mean.
  rounding_s: how far a time may be from what was meant. late_s: how long after the sound the picture begins; 0 if it does not,
  or there is no sound. stated_rate: frames per second by the file's header.
  """

  times: np.ndarray
  end: float
  rate: float
  steady: bool
  rounding_s: float = ROUNDING_S
  late_s: float = 0.0
  has_audio: bool = False
  stated_rate: float = 0.0

  @property
  def total(self) -> int:
    return len(self.times)

  @property
  def duration_s(self) -> float:
    return self.total / self.rate if self.steady else self.end

  def shown_at(self, seconds: Sequence[float] | np.ndarray) -> np.ndarray:
    """int32 index of the frame shown at each time: the first one before its time, the last one after its end."""
    found = np.searchsorted(self.times, np.asarray(seconds, np.float64) + self.rounding_s, 'right') - 1
    return np.maximum(found, 0).astype(np.int32)

  def counted(self) -> 'Timeline':
    """As if all frames were equally spaced at the stated rate."""
    times = np.arange(self.total) / self.stated_rate
    return dataclasses.replace(self, times=times, end=self.total / self.stated_rate, rate=self.stated_rate, steady=True)

  def stretch(self, start_s: float | None, end_s: float | None) -> tuple['Timeline', int]:
    """(the timeline of the frames from start_s to end_s by the container's clock, the index of the first of them).

    Of equally spaced frames those that begin inside count, both ends included, as in the published utilities
    (calculate_video_frame_range); of others those that are shown inside. Raises ValueError if there are none.
    """
    if start_s is None and end_s is None:
      return self, 0
    whole = self.duration_s
    begin = 0.0 if start_s is None else max(start_s - self.late_s, 0.0)
    end = whole if end_s is None else min(end_s - self.late_s, whole)
    if self.steady:
      first, last = math.ceil(min(begin, whole) * self.rate), min(math.floor(end * self.rate), self.total - 1)
    else:
      first = int(self.shown_at([begin])[0]) if begin < whole else self.total
      last = int(np.searchsorted(self.times, end, 'right')) - 1
    if first > last:
      until = 'to the end' if end_s is None else f'to {end_s:g} s'
      shown = f'from {self.late_s:.2f} s to {self.late_s + whole:.2f} s'
      raise ValueError(f'no frame from {start_s or 0:g} s {until}; the video has {self.total} frames {shown}')
    times = self.times[first : last + 1]
    late = max(self.late_s - (start_s or 0.0), 0.0)
    return dataclasses.replace(
      self,
      times=times - times[0] if self.steady else np.maximum(times - begin, 0.0),
      end=(last - first + 1) / self.rate if self.steady else end - begin,
      late_s=late if late >= SLACK_S else 0.0,
    ), first


def make_timeline(times: np.ndarray, end: float, stated_rate: float, tick_s: float = 0.0, **known: Any) -> Timeline:
  """The Timeline of frames shown at `times` (ascending, the first at 0) and until `end`: equally spaced, or not.

  stated_rate: frames per second by the file's header. tick_s: the unit its times are kept in. known: late_s, has_audio.
  """
  end = float(end)
  known['stated_rate'] = stated_rate
  gaps = np.diff(times, append=end)
  shortest = float(gaps[gaps > 0].min()) if (gaps > 0).any() else 1 / stated_rate
  rounding = min(1.01 * max(tick_s, ROUNDING_S), shortest / 4)
  mean = len(times) / max(end, shortest)
  for rate in (stated_rate, mean):
    spaced = np.abs(times - np.arange(len(times)) / rate).max() <= rounding
    if spaced and end < (len(times) + 1) / rate:
      return Timeline(times, end, rate, True, rounding, **known)
  return Timeline(times, end, mean, False, rounding, **known)


def decoded_timeline(line: Timeline, came: np.ndarray, limits: Limits, name: str) -> Timeline:
  """The timeline of the frames that a decoder gave, where packets and frames are not one to one.

  came: when each was shown, on the clock of `line`; not a number where the decoder does not know, then counted. The first is its
  new zero. Raises ValueError if frames are missing over more than a moment.
  """
  lost = len(line.times) - len(came)
  if np.isnan(came).any():
    came, hole = np.arange(len(came)) / line.rate, lost / line.rate
  else:
    came = np.sort(came)
    shown = np.searchsorted(came, line.times + line.rounding_s, 'right') - 1
    hole = float(np.abs(line.times - came[np.maximum(shown, 0)]).max())
  if lost > 2 and hole > limits.missing_s:
    raise ValueError(f'{name}: damaged: {len(came)} of {len(line.times)} frames could be decoded, and over {hole:.2f} s none')
  first, end = came[0], line.end if line.end > came[-1] else came[-1] + 1 / line.rate
  late = line.late_s + first if line.has_audio and line.late_s + first >= SLACK_S else 0.0
  found = make_timeline(came - first, end - first, line.rate, line.rounding_s, late_s=late, has_audio=line.has_audio)
  return dataclasses.replace(found, stated_rate=line.stated_rate)


class Track:
  """What the packets of one stream say about its time, as they come by."""

  def __init__(self, stream: Any, name: str):
    # Copied: a stream of a closed container is memory that is no more.
    self.kind, self.name = stream.type, name
    self._stated_start: int | None = stream.start_time
    self.tick_s = float(stream.time_base) if stream.time_base else 0.0
    # AVI keeps decoding times only, one after the other: frames come in that order, and their presentation times are guesses.
    self.counted = stream.container.format.name == 'avi'
    self.packets = 0
    self.shown: list[int] = []  # presentation times of pictures, in ticks
    self.timed = True  # every picture has one
    self._first: int | None = None
    self._last = (0, 0)  # presentation time and duration of what comes last
    self._end = 0  # of the last packet in decoding order or in presentation order, whichever is later
    self._decoded: int | None = None

  def see(self, packet: Any) -> None:
    """packet: the next one in the file; one without data is none."""
    if not packet.size:
      return
    self.packets += 1
    dts, duration = packet.dts, packet.duration or 0
    pts = dts if self.counted else packet.pts
    if dts is not None:
      self._check_clock(dts)
      self._end = max(self._end, dts + duration)
    if pts is None:
      self.timed = False
      return
    self._end = max(self._end, pts + duration)
    if packet.is_discard:
      return
    self._first = pts if self._first is None else min(self._first, pts)
    self._last = max(self._last, (pts, duration))
    if self.kind == 'video':
      self.shown.append(pts)

  def _check_clock(self, dts: int) -> None:
    before, self._decoded = self._decoded, dts
    if before is not None and self.kind in ('video', 'audio') and (before - dts) * self.tick_s > BACKWARDS_S:
      raise ValueError(
        f'{self.name}: its clock runs back from {before * self.tick_s:.2f} s to {dts * self.tick_s:.2f} s, as where two '
        'recordings were joined end to end; split them, or encode them as one'
      )

  @property
  def start_s(self) -> float | None:
    """When the first picture is shown, or the first sound is heard: what a decoder drops at its beginning is left out."""
    first, stated = self.first_s, self._stated_start
    if first is None or stated is None or self.kind != 'audio':
      return first
    # FFmpeg adds what is dropped; of a stream that it looks at in the middle it knows no beginning.
    return stated * self.tick_s if 0 <= stated * self.tick_s - first < PRIMING_S else first

  @property
  def first_s(self) -> float | None:
    """The presentation time of its first packet."""
    return None if self._first is None else self._first * self.tick_s

  @property
  def end_s(self) -> float:
    """The latest time that any packet speaks of."""
    return max(self._end * self.tick_s, self._last_end())

  def times(self, stated_s: float | None) -> tuple[np.ndarray, float]:
    """(when each picture is shown, ascending, and until when the last one is), seconds from the first on.

    stated_s: the end by the header. It counts unless packets end before it: they are then all that is known.
    """
    shown = np.sort(np.array(self.shown, np.int64))
    seconds = (shown - shown[0]) * self.tick_s
    last, start = shown[-1] * self.tick_s, shown[0] * self.tick_s
    end = stated_s if stated_s is not None and last < stated_s <= self.end_s + SLACK_S else self._last_end()
    return seconds, end - start

  def _last_end(self) -> float:
    """Until when the last picture is shown by its own packet; one that does not say is shown as long as most are."""
    pts, duration = self._last
    usual = float(np.median(np.diff(np.sort(self.shown)))) if not duration and len(self.shown) > 1 else 0.0
    return (pts + (duration or usual)) * self.tick_s


def see(tracks: dict[int, Track], packet: Any) -> None:
  """Shows the packet to its track, by the index of its stream. Streams that appear in the middle of a file do not count."""
  if packet.stream_index in tracks:
    tracks[packet.stream_index].see(packet)


def stated_end(container: Any, stream: Any, data: bytes) -> tuple[float | None, bool]:
  """(when the stream ends by the container's header, None if that does not say; is it the stream's own end or that of all)."""
  kind = container.format.name.split(',')[0]
  if kind == 'avi':  # of a cut file FFmpeg tells the length of what is there; its empty blocks of sound it does not count
    return max((float(s.frames * s.time_base) for s in container.streams.video), default=None), False
  if kind == 'mov' and stream.duration is not None:
    return float((stream.duration + (stream.start_time or 0)) * stream.time_base), True
  if kind not in _STATED or (kind == 'matroska' and not _MATROSKA_DURATION.search(data[: 2**16])):
    return None, False
  return (None if container.duration is None else container.duration / 1e6), False


def check_whole(stated_s: float | None, there_s: float, name: str, limits: Limits) -> None:
  """Raises ValueError if a medium ends before its header says."""
  if stated_s is not None and stated_s - there_s > limits.missing_s:
    raise ValueError(
      f'{name}: truncated: its header says {stated_s:.2f} s, {max(there_s, 0):.2f} s are there. Get the whole file, or encode '
      'what is there anew'
    )
