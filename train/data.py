"""The input pipeline: sources → lanes of examples → packed batches, with a state that restores exactly.

The records of each source are shuffled anew for each epoch and assigned to *lanes* in turn: lane l takes every lanes-th record
from the l-th on. A lane mixes its parts of the sources by weight, decodes ahead, and packs its own rows of every batch. The
global batch is that of all lanes, so it does not depend on the number of processes: each makes the lanes it owns.

The state of a lane is the number of records read and the numbers of those that wait to be packed: a few hundred bytes.
"""

import copy
import dataclasses
import logging
import pathlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from qwen3_omni_jax.config import OmniConfig
from qwen3_omni_jax.media.processor import MEDIA, Media, Processor

from .batch import TrainBatch
from .mask import SpecialIds
from .packing import Bins, ExampleSize, LaneShape, PlacedExample, assemble_batch, choose_next, fill_stats
from .records import KINDS, Example, Form, Reader, Rules
from .sources import Source, open_source

log = logging.getLogger(__name__)

STATE_VERSION = 1
_MIN_RECORDS_FOR_SHARE = 100  # records after which the share of bad ones is compared with max_bad


@dataclasses.dataclass(frozen=True)
class SourceConfig:
  """Records of one kind. path: a file or a pattern with *; the ending says the format.

  weight: share among the sources, all or none have one; without, every record counts alike. form: 'chat' or 'document'.
  media_root: media paths are relative to it and must lie in it; default the file's folder. fps, audio_in_video: for videos,
  where a record says nothing. thinking: learn <think> … </think> too. ignore: keys of the records to pass over.
  """

  path: str = ''
  name: str = ''
  weight: float | None = None
  form: Form = 'chat'
  media_root: str | None = None
  fps: float | None = None
  audio_in_video: bool = False
  thinking: bool = True
  ignore: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """What is read and the one shape of every batch, over all processes.

  rows × length: tokens of a batch. lanes: independent packers that the rows are dealt to, at least as many as processes; each
  process must own the same number. audio_s: seconds of audio in a batch; visual_patches: patches of images and video frames in
  a batch, in encoder rows of visual_row (no picture may have more). 0 for none of them. buffer: records a lane chooses from; a
  larger one packs tighter and holds more decoded media. split_documents: cut documents longer than a row. epochs: end after so
  many (one process; without weights); None: endless. max_bad: bad records at which the job stops, as a share (below 1, judged
  from 100 records on) or a number, of those this process reads. workers: decoding processes of this process, 0: threads only.
  max_image_pixels, max_video_pixels: larger pictures (frames) are shrunk to it, as the processor shrinks to its own limit.
  media: who chooses frames and sizes, 'processor' or 'utils' (docs/data.md).
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
  max_image_pixels: int | None = None
  max_video_pixels: int | None = None
  media: Media = 'processor'

  def lane_shape(self, cfg: OmniConfig) -> LaneShape:
    """Room in one lane. Raises ValueError listing what does not go together."""
    chunks = cfg.thinker.audio.chunks_per_window
    audio_rows, visual_rows = -(-self.audio_s // chunks), -(-self.visual_patches // max(self.visual_row, 1))
    problems = [
      f'{name} {getattr(self, name)}: expected at least {low}'
      for name, low in (
        ('rows', 1),
        ('length', 2),
        ('lanes', 1),
        ('audio_s', 0),
        ('visual_patches', 0),
        ('buffer', 1),
        ('visual_row', cfg.thinker.vision.spatial_merge_size**2),
      )
      if getattr(self, name) < low
    ]
    if self.media not in MEDIA:
      problems.append(f'media {self.media!r}: expected {" or ".join(MEDIA)}')
    if not self.sources:
      problems.append('sources: none; give at least one')
    if len({source.weight is None for source in self.sources}) > 1:
      problems.append('weights: some sources have one and some do not')
    problems += [
      f'weight {s.weight} of {s.path}: expected a number above 0' for s in self.sources if s.weight is not None and s.weight <= 0
    ]
    if self.epochs is not None and self.sources and self.sources[0].weight is not None:
      problems.append('epochs: a mixture with weights has no end; give a number of steps instead')
    if self.visual_row % cfg.thinker.vision.spatial_merge_size**2:
      problems.append(f'visual_row {self.visual_row}: expected a multiple of {cfg.thinker.vision.spatial_merge_size**2}')
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


@dataclasses.dataclass
class LaneState:
  """taken: records taken from the lane's stream. waiting: (record, piece) of those not packed yet, in order of arrival."""

  taken: int = 0
  bad: int = 0
  waiting: list[tuple[int, int]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class _Waiting:
  key: tuple[int, int]
  name: tuple[str, str]  # source, id
  example: Example
  size: ExampleSize


class _Lane:
  """One packer and the stream it draws from."""

  def __init__(
    self,
    number: int,
    stream,
    state: LaneState,
    shape: LaneShape,
    cfg: DataConfig,
    model: OmniConfig,
    local: int,
    on_bad: Callable[[dict[str, str]], None],
  ):
    """local: lanes of this process, which share its threads and workers. on_bad: called with each bad record; may stop it."""
    self.number, self.shape, self.cfg, self.model, self.on_bad = number, shape, cfg, model, on_bad
    self.stream, self.state = stream, copy.deepcopy(state)
    self.bad_records: list[dict[str, str]] = []
    self.waiting = [self._reload(key) for key in self.state.waiting]
    self._elements = iter(self._open(stream, local))

  def _open(self, stream, local: int):
    """The stream from where the lane stands, decoded ahead by threads or worker processes."""
    import grain

    if self.state.taken >= len(stream):
      return iter(())
    workers, threads = self.cfg.workers, max(1, self.cfg.threads // local)
    ahead = max(2 * threads, 4)
    rest = stream.slice(slice(self.state.taken, None))
    dataset = rest.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead))
    if workers:
      from absl import flags

      if not flags.FLAGS.is_parsed():  # Grain asks for absl flags, and absl answers only programs that it has started
        flags.FLAGS.mark_as_parsed()
      dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=max(1, workers // local)))
    return dataset

  def _reload(self, key: tuple[int, int]) -> _Waiting:
    """A record that waited when the state was saved."""
    element = self.stream[key[0]]
    if 'error' in element:
      name = f'{element["source"]} {element["id"]}'
      raise ValueError(f'{name}: could be read before the state was saved, and now: {element["error"]}')
    return self._to_waiting(element, key[0])[key[1]]

  def _to_waiting(self, element: dict[str, Any], number: int) -> list[_Waiting]:
    name = (element['source'], element['id'])
    return [
      _Waiting((number, piece), name, example, ExampleSize.of(example, self.model.thinker))
      for piece, example in enumerate(element['examples'])
    ]

  def _refill(self) -> None:
    while len(self.waiting) < self.cfg.buffer and (element := next(self._elements, None)) is not None:
      number = self.state.taken
      self.state.taken += 1
      try:
        if 'error' in element:
          raise ValueError(element['error'])
        found = self._to_waiting(element, number)
        for item in found:
          item.size.check(self.shape)
        self.waiting += found
      except ValueError as e:
        self.state.bad += 1
        self.bad_records.append({'source': element['source'], 'id': element['id'], 'reason': str(e)})
        log.warning('bad record skipped: %s %s: %s', element['source'], element['id'], e)
        self.on_bad(self.bad_records[-1])

  def fill(self) -> list[tuple[_Waiting, PlacedExample]]:
    """The lane's examples of the next batch; empty at the end of the last epoch."""
    bins, chosen = Bins.of(self.shape), []
    while True:
      self._refill()
      # The oldest goes in first, so that none waits for ever.
      candidates = [item.size for item in (self.waiting if chosen else self.waiting[:1])]
      if (found := choose_next(bins, candidates)) is None:
        self.state.waiting = [item.key for item in self.waiting]
        return chosen
      which, where = found
      item = self.waiting.pop(which)
      chosen.append((item, PlacedExample(item.example, *where)))

  def close(self) -> None:
    close = getattr(self._elements, 'close', None)
    if close is not None:
      close()


class Loader:
  """Iterator of (TrainBatch of numpy arrays, stats): this process's rows of every batch, made in the background.

  `get_state()` belongs to the batch last handed out: a loader that is given it goes on with the next one. Feature indices in a
  batch count through the media of the whole batch, of which this process has the part beside its rows.

  stats: what `packing.fill_stats` counts, records by source and kind, `ids` ((source, id) of every record), `bad` and
  `bad_records` (new ones, with reasons).
  """

  def __init__(
    self, cfg: DataConfig, processor: Processor, process_index: int = 0, process_count: int = 1, state: dict | None = None
  ):
    self.shape = cfg.lane_shape(processor.cfg)
    if cfg.lanes % process_count:
      raise ValueError(f'data: lanes {cfg.lanes}: expected a multiple of the {process_count} processes')
    if cfg.epochs is not None and process_count > 1:
      raise ValueError('data: epochs: processes would end at different steps; give a number of steps instead')
    self.cfg, self.model = cfg, processor.cfg
    self.processor = _resized(processor, cfg)
    each = cfg.lanes // process_count
    self.owned = range(process_index * each, (process_index + 1) * each)
    self.sources = [open_source(source.path) for source in cfg.sources]
    self.fingerprint = _fingerprint(cfg, self.sources)
    self._thread: threading.Thread | None = None
    self._start(self._lane_states(state))

  def _lane_states(self, state: dict | None) -> dict[int, LaneState]:
    if state is None:
      return {lane: LaneState() for lane in self.owned}
    if state.get('version') != STATE_VERSION:
      raise ValueError(f'data state of version {state.get("version")!r}; this program reads version {STATE_VERSION}')
    saved, current = state['config'], self.fingerprint
    changed = [
      f'{key} was {saved.get(key)!r}, is {current.get(key)!r}'
      for key in sorted({*current, *saved})
      if saved.get(key) != current.get(key)
    ]
    if changed:
      raise ValueError('the data are not those the state was saved with: ' + '; '.join(changed))
    missing = [lane for lane in self.owned if str(lane) not in state['lanes']]
    if missing:
      raise ValueError(f'data state without lanes {missing}: merge the states of all processes first (merge_states)')
    found = {lane: state['lanes'][str(lane)] for lane in self.owned}
    return {lane: LaneState(s['taken'], s['bad'], [(r, p) for r, p in s['waiting']]) for lane, s in found.items()}

  def _start(self, states: dict[int, LaneState]) -> None:
    self._queue: queue.Queue = queue.Queue(maxsize=max(1, self.cfg.prefetch_batches))
    self._stop = threading.Event()
    self._last = self._saved(states)
    self._thread = threading.Thread(target=self._run, args=(states, self._queue, self._stop), daemon=True, name='data')
    self._thread.start()

  def _saved(self, states: dict[int, LaneState]) -> dict[str, Any]:
    lanes = {str(lane): {'taken': s.taken, 'bad': s.bad, 'waiting': [list(k) for k in s.waiting]} for lane, s in states.items()}
    return {'version': STATE_VERSION, 'config': self.fingerprint, 'lanes': lanes}

  def _run(self, states: dict[int, LaneState], out: queue.Queue, stop: threading.Event) -> None:
    """The background thread: batches into the queue, until it is told to stop, the data end, or something fails."""
    lanes: list[_Lane] = []

    def check(last: dict[str, str]) -> None:
      bad, taken = sum(lane.state.bad for lane in lanes), sum(lane.state.taken for lane in lanes)
      limit = self.cfg.max_bad
      share = 0 < limit < 1
      if (share and taken >= _MIN_RECORDS_FOR_SHARE and bad > limit * taken) or (not share and bad > limit):
        raise ValueError(
          f'{bad} of {taken} records are bad, more than max_bad {limit} allows; the last one is '
          f'{last["source"]} {last["id"]}: {last["reason"]}'
        )

    def put(item) -> bool:
      while not stop.is_set():
        try:
          out.put(item, timeout=0.1)
          return True
        except queue.Full:
          pass
      return False

    try:
      for lane in self.owned:
        stream = _stream(self.cfg, self.sources, self.processor, lane)
        lanes.append(_Lane(lane, stream, states[lane], self.shape, self.cfg, self.model, len(self.owned), check))
      while not stop.is_set():
        filled = [lane.fill() for lane in lanes]
        if not any(filled):
          if not any(lane.state.taken > lane.state.bad for lane in lanes):
            raise ValueError('no record of the sources can be used; see the reasons above')
          put(None)
          return
        batch = assemble_batch(
          [(lane.number, [p for _, p in chosen]) for lane, chosen in zip(lanes, filled, strict=True)],
          self.shape,
          self.model.thinker,
        )
        stats = fill_stats(batch) | _stats([item for chosen in filled for item, _ in chosen], lanes)
        if not put((batch, stats, self._saved({lane.number: lane.state for lane in lanes}))):
          return
    except Exception as e:
      put(e)
    finally:
      for lane in lanes:
        lane.close()

  def __iter__(self) -> Iterator[tuple[TrainBatch, dict[str, Any]]]:
    return self

  def __next__(self) -> tuple[TrainBatch, dict[str, Any]]:
    if self._thread is None:
      raise StopIteration
    item = self._queue.get()
    if item is None or isinstance(item, Exception):
      self.close()
      if item is None:
        raise StopIteration
      raise item
    batch, stats, self._last = item
    return batch, stats

  def get_state(self) -> dict[str, Any]:
    """Plain JSON: of the lanes of this process (see merge_states)."""
    return copy.deepcopy(self._last)

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes on from a state, of any number of processes, with the lanes of this one. Raises ValueError if the data differ."""
    states = self._lane_states(state)
    self.close()
    self._start(states)

  def close(self) -> None:
    """Ends the background thread and the workers."""
    if self._thread is not None:
      self._stop.set()
      self._thread.join()
      self._thread = None


def make_loader(
  cfg: DataConfig, processor: Processor, process_index: int = 0, process_count: int = 1, state: dict[str, Any] | None = None
) -> Loader:
  """The loader of one process. state: of an earlier run, merged over its processes."""
  return Loader(cfg, processor, process_index, process_count, state)


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """The state of the whole run from those of its processes."""
  return states[0] | {'lanes': {lane: value for state in states for lane, value in state['lanes'].items()}}


def example_stream(cfg: DataConfig, processor: Processor, lane: int = 0):
  """The examples of a lane by number, as the loader sees them: for inspection and measurements."""
  return _stream(cfg, [open_source(source.path) for source in cfg.sources], _resized(processor, cfg), lane)


def _stream(cfg: DataConfig, sources: Sequence[Source], processor: Processor, lane: int):
  """Everything one lane reads, as a Grain dataset with random access: [k] is its k-th record, decoded."""
  import grain

  special = SpecialIds.of(processor.cfg, processor.tokenizer)
  parts = []
  for source, files in zip(cfg.sources, sources, strict=True):
    root = source.media_root or files.shards[0].path.parent
    own = copy.copy(processor)
    own.media_root = pathlib.Path(root)
    rules = Rules(source.form, source.fps, source.audio_in_video, source.thinking, source.ignore, cfg.length, cfg.split_documents)
    parts.append(grain.MapDataset.source(files).map(Reader(source.name or source.path, rules, own, special)))
  lane_records = lambda dataset, seed: (dataset.shuffle(seed) if cfg.shuffle else dataset).repeat(cfg.epochs)[lane :: cfg.lanes]
  if cfg.sources[0].weight is None:
    return lane_records(grain.MapDataset.concatenate(parts) if len(parts) > 1 else parts[0], cfg.seed)
  return grain.MapDataset.mix([lane_records(part, cfg.seed + i) for i, part in enumerate(parts)], [s.weight for s in cfg.sources])


def _resized(processor: Processor, cfg: DataConfig) -> Processor:
  """The processor with the run's own sizes of pictures."""
  images, changes = processor.images, {}
  for prefix, limit in (('', cfg.max_image_pixels), ('video_', cfg.max_video_pixels)):
    if limit is not None:
      low, high = f'{prefix}min_pixels', f'{prefix}max_pixels'
      changes |= {low: min(limit, getattr(images, low)), high: min(limit, getattr(images, high))}
  out = copy.copy(processor)
  out.images = dataclasses.replace(images, **changes)
  out.media = cfg.media
  return out


def _fingerprint(cfg: DataConfig, sources: Sequence[Source]) -> dict[str, Any]:
  """Everything that the order of records and their packing depend on, except the paths: files may be moved."""
  irrelevant = {'sources', 'max_bad', 'workers', 'threads', 'prefetch_batches'}
  out: dict[str, Any] = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg) if f.name not in irrelevant}
  for i, (source, files) in enumerate(zip(cfg.sources, sources, strict=True)):
    same = {k: v for k, v in dataclasses.asdict(source).items() if k not in ('path', 'media_root', 'name')}
    out[f'sources[{i}]'] = same | {'ignore': list(source.ignore), 'records': len(files)}
  return out


def _stats(items: Sequence[_Waiting], lanes: Sequence[_Lane]) -> dict[str, Any]:
  by_source: dict[str, int] = {}
  by_kind = dict.fromkeys(KINDS, 0)
  for item in items:
    by_source[item.name[0]] = by_source.get(item.name[0], 0) + 1
    by_kind[KINDS[item.example.kind]] += 1
  bad_records = [record for lane in lanes for record in lane.bad_records]
  for lane in lanes:
    lane.bad_records = []
  return {
    'records': len(items),
    'by_source': by_source,
    'by_kind': by_kind,
    'ids': [item.name for item in items],
    'bad': sum(lane.state.bad for lane in lanes),
    'bad_records': bad_records,
  }
