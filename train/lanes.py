"""A lane: the records it reads from its streams, those that wait to be packed, and its rows of every batch."""

import collections
import copy
import dataclasses
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from qwen3_omni_jax.config import ThinkerConfig

from .data_state import Counts, LaneState
from .decode import Decoded, Decoder
from .mixing import Mixture
from .order import Order
from .packing import PlacedExample
from .records import Example
from .room import Bins, ExampleSize, LaneShape, choose_next

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Stream:
  """What one lane reads of some sources that count as one. order: of the records of all of them in a row; sizes: of each."""

  sources: Sequence[int]
  sizes: Sequence[int]
  order: Order

  def __getitem__(self, k: int) -> tuple[int, int] | None:
    """(source, index in it) of the lane's k-th record; None behind the last one."""
    index = self.order[k]
    if index is None:
      return None
    for source, size in zip(self.sources, self.sizes, strict=True):
      if index < size:
        return source, index
      index -= size
    raise AssertionError


@dataclasses.dataclass(frozen=True)
class Waiting:
  """An example that waits. key: (stream, number in it, piece)."""

  key: tuple[int, int, int]
  source: int
  name: tuple[str, str]  # source, id
  example: Example
  size: ExampleSize


class _Ahead:
  """A stream's records from one on, being decoded."""

  def __init__(self, stream: Stream, begin: int, decoder: Decoder, depth: int):
    self.stream, self.decoder, self.depth, self.next = stream, decoder, depth, begin
    self.pending: collections.deque[tuple[int, Future[Decoded]]] = collections.deque()

  def ended(self) -> bool:
    return not self.pending and self.stream[self.next] is None

  def take(self) -> tuple[int, Decoded]:
    """(source, record) of the next one."""
    while len(self.pending) < self.depth and (place := self.stream[self.next]) is not None:
      self.pending.append((place[0], self.decoder.submit(*place)))
      self.next += 1
    source, found = self.pending.popleft()
    return source, found.result()


class Lane:
  """One packer and the streams it draws from: one stream for each source of a mixture, else one of all sources."""

  def __init__(
    self,
    number: int,
    streams: Sequence[Stream],
    mixture: Mixture | None,
    state: LaneState,
    shape: LaneShape,
    buffer: int,
    model: ThinkerConfig,
    decoder: Decoder,
    depth: int,
    on_bad: Callable[[dict[str, str]], None],
  ):
    """depth: records of a stream that are decoded ahead. on_bad: called with each bad record; may raise."""
    self.number, self.shape, self.buffer, self.model, self.on_bad = number, shape, buffer, model, on_bad
    self.streams, self.mixture, self.decoder = streams, mixture, decoder
    self.state = copy.deepcopy(state)
    self.bad_records: list[dict[str, str]] = []
    self.ahead = [_Ahead(s, taken, decoder, depth) for s, taken in zip(streams, self.state.taken, strict=True)]
    self.waiting: list[Waiting] = []

  def reload(self) -> Callable[[], None]:
    """Begins to decode what waited when the state was saved; the result waits until it is there."""
    pending: dict[tuple[int, int], tuple[int, Future[Decoded]]] = {}
    for stream, record, _ in self.state.waiting:
      if (stream, record) not in pending:
        place = self.streams[stream][record]
        assert place is not None
        pending[stream, record] = place[0], self.decoder.submit(*place)

    def finish() -> None:
      pieces = {}
      for (stream, record), (source, future) in pending.items():
        found = future.result()
        if found.error is not None:
          raise ValueError(f'{found.source} {found.id}: could be read before the state was saved, and now: {found.error}')
        pieces |= {item.key: item for item in self._to_waiting(found, source, stream, record)}
      self.waiting = [pieces[key] for key in self.state.waiting]

    return finish

  def _to_waiting(self, found: Decoded, source: int, stream: int, record: int) -> list[Waiting]:
    return [
      Waiting((stream, record, piece), source, (found.source, found.id), example, ExampleSize.of(example, self.model))
      for piece, example in enumerate(found.examples)
    ]

  def _draw(self) -> bool:
    """Reads one record; False if there is no more."""
    state, stream = self.state, 0
    weights = [] if self.mixture is None else self.mixture.weights(state.tokens)
    if self.mixture is not None:
      weights = [0 if ahead.ended() else weight for ahead, weight in zip(self.ahead, weights, strict=True)]
      chosen = self.mixture.choose(state.accounts, weights)
      if chosen is None:
        return False
      stream = chosen
    elif self.ahead[0].ended():
      return False
    record = state.taken[stream]
    source, found = self.ahead[stream].take()
    state.taken[stream] += 1
    try:
      if found.error is not None:
        raise ValueError(found.error)
      items = self._to_waiting(found, source, stream, record)
      for item in items:
        item.size.check(self.shape)
    except ValueError as e:
      state.counts[source].bad += 1
      self.bad_records.append({'source': found.source, 'id': found.id, 'reason': str(e)})
      log.warning('bad record skipped: %s %s: %s', found.source, found.id, e)
      self.on_bad(self.bad_records[-1])
      return True
    self.waiting += items
    tokens = sum(item.size.cost for item in items)
    state.tokens += tokens
    if self.mixture is not None:
      self.mixture.pay(state.accounts, weights, stream, tokens)
    return True

  def fill(self) -> list[tuple[Waiting, PlacedExample]]:
    """The lane's examples of the next batch; empty at the end of the last epoch."""
    bins, chosen = Bins.of(self.shape), []
    while True:
      while len(self.waiting) < self.buffer and self._draw():
        pass
      # The oldest goes in first, so that none waits for ever.
      candidates = [item.size for item in (self.waiting if chosen else self.waiting[:1])]
      if (found := choose_next(bins, candidates)) is None:
        self.state.waiting = [item.key for item in self.waiting]
        return chosen
      which, where = found
      item = self.waiting.pop(which)
      count: Counts = self.state.counts[item.source]
      count.records += item.key[2] == 0  # a document is counted with its first piece
      count.tokens += item.size.tokens
      chosen.append((item, PlacedExample(item.example, *where, source=item.source)))
