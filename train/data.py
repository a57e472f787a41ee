"""The input pipeline: sources → lanes of examples → packed batches, with a state that restores exactly.

The records of each source are shuffled anew for each epoch and dealt to *lanes* in turn. A lane mixes its parts of the sources by
tokens and packs its own rows of every batch. The global batch is that of all lanes, so it does not depend on the number of
processes: each makes the lanes it owns, and decodes for all of them together.

The state of a lane is how much it has read of each source, and the numbers of the records that wait to be packed: a few hundred
bytes.
"""

import copy
import dataclasses
import pathlib
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from qwen3_omni_jax.media.processor import Processor

from .bad_records import check_bad
from .batch import TrainBatch
from .codes import Codes, open_codes
from .config import DataConfig, SourceConfig, WeightAt
from .data_state import VERSION, Counts, LaneState, bad_and_read, fingerprint, merge_states, saved_lanes
from .decode import Decoded, Decoder, decode_record
from .fitting import Reader
from .geometry import lane_shape
from .lanes import Lane, Stream, Waiting
from .mask import SpecialIds
from .mixing import Mixture
from .order import WINDOW, Dealing, GroupOrder, Pieces, RecordOrder
from .packing import assemble_batch, fill_stats
from .records import KINDS, Rules
from .sources import Source, open_source
from .spoken import SpeechRules, check_codebooks

__all__ = ['DataConfig', 'ExampleStream', 'Loader', 'SourceConfig', 'WeightAt', 'make_loader', 'merge_states']


class Loader:
  """Iterator of (TrainBatch of numpy arrays, stats): this process's rows of every batch, made in the background.

  `get_state()` belongs to the batch last handed out: a loader that is given it goes on with the next one. Feature indices in a
  batch count through the media of the whole batch, of which this process has the part beside its rows.

  stats: what `packing.fill_stats` counts, records by kind, records and tokens by source, `ids` ((source, id) of every record),
  `bad` (so far; those of other processes as far as they are known) and `bad_records` (new ones, with reasons).
  """

  def __init__(
    self,
    cfg: DataConfig,
    processor: Processor,
    process_index: int = 0,
    process_count: int = 1,
    state: dict | None = None,
    indices: Any = None,
  ):
    """indices: a folder for the indices of files (open_source)."""
    cfg.check_sources()
    self.shape = lane_shape(cfg, processor.cfg)
    if cfg.lanes % process_count:
      raise ValueError(f'data: lanes {cfg.lanes}: expected a multiple of the {process_count} processes')
    if cfg.epochs is not None and process_count > 1:
      raise ValueError('data: epochs: processes would end at different steps; give a number of steps instead')
    self.cfg, self.model = cfg, processor.cfg
    self.processor = _resized(processor, cfg)
    each = cfg.lanes // process_count
    self.owned = range(process_index * each, (process_index + 1) * each)
    self.sources = [open_source(source.path, indices) for source in cfg.sources]
    for source in self.sources:
      source.groups.size = (WINDOW + 1) * each  # what its lanes read at the same time, and a bit of the next window
    self.codes = _open_codes(cfg, processor)
    self.fingerprint = fingerprint(cfg, self.sources, self.codes)
    self._thread: threading.Thread | None = None
    self._start(state)

  def _start(self, state: dict | None) -> None:
    lanes = saved_lanes(state, self.fingerprint, self.cfg.restart)
    self._others = (0, 0)  # (bad, read) of the other processes' lanes, when they were last heard of
    if lanes is None:
      states = {lane: self._first_state(lane) for lane in self.owned}
    else:
      if missing := [lane for lane in self.owned if str(lane) not in lanes]:
        raise ValueError(f'data state without lanes {missing}: merge the states of all processes first (merge_states)')
      states = {lane: LaneState.from_json(lanes[str(lane)]) for lane in self.owned}
      self._others = bad_and_read({'lanes': {lane: s for lane, s in lanes.items() if int(lane) not in self.owned}})
    self._queue: queue.Queue = queue.Queue(maxsize=self.cfg.prefetch_batches)
    self._stop = threading.Event()
    self._last = self._saved(states)
    self._thread = threading.Thread(target=self._run, args=(states, self._queue, self._stop), daemon=True, name='data')
    self._thread.start()

  def _first_state(self, lane: int) -> LaneState:
    streams = len(self.sources) if self.cfg.weighted else 1
    accounts = _mixture(self.cfg, lane).begin() if self.cfg.weighted else []
    return LaneState([0] * streams, accounts, [Counts() for _ in self.sources])

  def _saved(self, states: dict[int, LaneState]) -> dict[str, Any]:
    return {
      'version': VERSION,
      'config': self.fingerprint,
      'lanes': {str(lane): state.to_json() for lane, state in states.items()},
    }

  def _run(self, states: dict[int, LaneState], out: queue.Queue, stop: threading.Event) -> None:
    """The background thread: batches into the queue, until it is told to stop, the data end, or something fails."""
    lanes: list[Lane] = []

    def check(last: dict[str, str]) -> None:
      bad, read = sum(lane.state.bad for lane in lanes), sum(sum(lane.state.taken) for lane in lanes)
      check_bad(bad + self._others[0], read + self._others[1], self.cfg.max_bad, last)

    def put(item) -> bool:
      while not stop.is_set():
        try:
          out.put(item, timeout=0.1)
          return True
        except queue.Full:
          pass
      return False

    decoder = None
    try:
      readers = _readers(self.cfg, self.sources, self.codes, self.processor)
      decoder = Decoder(self.sources, readers, self.cfg.threads, self.cfg.workers)
      depth = max(2, min(decoder.parallel, self.cfg.buffer))
      streams_of = _Streams(self.cfg, self.sources)
      for lane in self.owned:
        streams, mixture = streams_of.of_lane(lane), _mixture(self.cfg, lane) if self.cfg.weighted else None
        room = (self.shape, self.cfg.buffer, self.model.thinker)
        lanes.append(Lane(lane, streams, mixture, states[lane], *room, decoder, depth, check))
      for finish in [lane.reload() for lane in lanes]:
        finish()
      while not stop.is_set():
        filled = [lane.fill() for lane in lanes]
        if not any(filled):
          if not any(count.records for lane in lanes for count in lane.state.counts):
            raise ValueError('no record of the sources can be used; see the reasons above')
          put(None)
          return
        batch = assemble_batch(
          [(lane.number, [p for _, p in chosen]) for lane, chosen in zip(lanes, filled, strict=True)],
          self.shape,
          self.model.thinker,
          self.processor.images,
          tuple(map(_name, self.cfg.sources)),
        )
        stats = fill_stats(batch) | self._stats([item for chosen in filled for item, _ in chosen], lanes)
        if not put((batch, stats, self._saved({lane.number: lane.state for lane in lanes}))):
          return
    except Exception as e:
      put(e)
    finally:
      if decoder is not None:
        decoder.close()

  def _stats(self, items: Sequence[Waiting], lanes: Sequence[Lane]) -> dict[str, Any]:
    by_source = {_name(source): {'records': 0, 'tokens': 0} for source in self.cfg.sources}
    by_kind = dict.fromkeys(KINDS, 0)
    for item in items:
      by_source[item.name[0]]['records'] += 1
      by_source[item.name[0]]['tokens'] += item.size.tokens
      by_kind[KINDS[item.example.kind]] += 1
    bad_records = [record for lane in lanes for record in lane.bad_records]
    for lane in lanes:
      lane.bad_records = []
    return {
      'records': len(items),
      'by_source': by_source,
      'by_kind': by_kind,
      'ids': [item.name for item in items],
      'bad': sum(lane.state.bad for lane in lanes) + self._others[0],
      'bad_records': bad_records,
    }

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
    """Plain JSON: of the lanes of this process (see merge)."""
    return copy.deepcopy(self._last)

  def merge(self, states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The state of the whole run from those of its processes, this one's among them.

    From then on bad records are judged with those of the other processes. Raises ValueError, on all processes alike, if there are
    too many.
    """
    merged = merge_states(states)
    bad, read = bad_and_read(merged)
    own = bad_and_read({'lanes': {lane: state for lane, state in merged['lanes'].items() if int(lane) in self.owned}})
    self._others = (bad - own[0], read - own[1])
    check_bad(bad, read, self.cfg.max_bad)
    return merged

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes on from a state, of any number of processes, with the lanes of this one. Raises ValueError if the data differ."""
    saved_lanes(state, self.fingerprint, self.cfg.restart)
    self.close()
    self._start(state)

  def close(self) -> None:
    """Ends the background thread and the workers."""
    if self._thread is not None:
      self._stop.set()
      self._thread.join()
      self._thread = None


def make_loader(
  cfg: DataConfig,
  processor: Processor,
  process_index: int = 0,
  process_count: int = 1,
  state: dict[str, Any] | None = None,
  indices: Any = None,
) -> Loader:
  """The loader of one process. state: of an earlier run, merged over its processes. indices: a folder that keeps the indices of
  JSONL and tar files."""
  return Loader(cfg, processor, process_index, process_count, state, indices)


class ExampleStream:
  """The records of a lane by number, decoded, as the loader sees them: for inspection and measurements."""

  def __init__(self, cfg: DataConfig, processor: Processor, lane: int = 0, stream: int = 0):
    """stream: the number of the source in a mixture with weights, else 0."""
    self.sources = [open_source(source.path) for source in cfg.sources]
    self.readers = _readers(cfg, self.sources, _open_codes(cfg, processor), _resized(processor, cfg))
    self.stream = _Streams(cfg, self.sources).of_lane(lane)[stream]

  def __getitem__(self, k: int) -> Decoded:
    place = self.stream[k]
    if place is None:
      raise IndexError(k)
    source, index = place
    return decode_record(self.sources[source], self.readers[source], self.sources[source].locate(index))


def _name(source: SourceConfig) -> str:
  return source.name or source.path


def _mixture(cfg: DataConfig, lane: int) -> Mixture:
  return Mixture(cfg.sources, lane, cfg.lanes, cfg.length)


class _Streams:
  """What lanes read: a stream of each source with weights, else one of all of them."""

  def __init__(self, cfg: DataConfig, sources: Sequence[Source]):
    groups = [[i] for i in range(len(sources))] if cfg.weighted else [list(range(len(sources)))]
    self.parts: list[tuple[list[int], list[int], Dealing, Pieces | None]] = []
    for number, group in enumerate(groups):
      epochs = cfg.sources[number].epochs if cfg.weighted else cfg.epochs
      dealing = Dealing(cfg.lanes, (cfg.seed, number), cfg.shuffle, epochs)
      pieces = None
      if cfg.shuffle and any(sources[i].grouped for i in group):
        pieces = Pieces(np.concatenate([sources[i].group_sizes() for i in group]), cfg.lanes)
      self.parts.append((group, [len(sources[i]) for i in group], dealing, pieces))

  def of_lane(self, lane: int) -> list[Stream]:
    return [
      # With hardly more records than lanes, reading them twice costs nothing.
      Stream(group, sizes, RecordOrder(sum(sizes), lane, dealing))
      if pieces is None or len(pieces) < dealing.lanes
      else Stream(group, sizes, GroupOrder(pieces, lane, dealing))
      for group, sizes, dealing, pieces in self.parts
    ]


def _open_codes(cfg: DataConfig, processor: Processor) -> list[Codes | None]:
  """Of each source; None where it has none, and where there is no room for speech. Raises ValueError for codes that the
  checkpoint cannot say."""
  if not cfg.speech_rows:
    return [None] * len(cfg.sources)
  opened = [open_codes(source.codes) if source.codes else None for source in cfg.sources]
  for codes in opened:
    if codes is not None:
      check_codebooks(codes, processor.cfg)
  return opened


def _readers(cfg: DataConfig, sources: Sequence[Source], codes: Sequence[Codes | None], processor: Processor) -> list[Reader]:
  special, shape = SpecialIds.of(processor.cfg, processor.tokenizer), lane_shape(cfg, processor.cfg)
  readers = []
  for source, files, recordings in zip(cfg.sources, sources, codes, strict=True):
    own = copy.copy(processor)
    own.media_root = pathlib.Path(source.media_root or files.shards[0].path.parent)
    speech = SpeechRules(source.speaker, recordings) if cfg.speech_rows else None
    rules = Rules(
      source.form, source.fps, source.audio_in_video, source.thinking, source.ignore, cfg.length, cfg.split_documents, speech
    )
    readers.append(Reader(_name(source), rules, own, special, shape))
  return readers


def _resized(processor: Processor, cfg: DataConfig) -> Processor:
  """The processor with the run's own sizes of pictures; their patches wait as bytes."""
  images, changes = processor.images, {}
  for prefix, limit in (('', cfg.max_image_pixels), ('video_', cfg.max_video_pixels)):
    if limit is not None:
      low, high = f'{prefix}min_pixels', f'{prefix}max_pixels'
      changes |= {low: min(limit, getattr(images, low)), high: min(limit, getattr(images, high))}
  out = copy.copy(processor)
  out.images = dataclasses.replace(images, **changes)
  out.media = cfg.media
  out.raw_patches = True
  return out
