"""Records read and decoded ahead of need, by threads or worker processes that all lanes of a process share.

Worker processes import this module: nothing here imports jax.
"""

import dataclasses
import errno
import itertools
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor

from .fitting import Reader
from .records import Example
from .sources import Place, Source

log = logging.getLogger(__name__)

# What a network file system or a bucket's mount answers now and then; the same read may work a moment later.
_PASSING = {
  getattr(errno, name)
  for name in 'EIO EAGAIN EINTR ETIMEDOUT ESTALE EBUSY ENETDOWN ENETUNREACH ECONNRESET ECONNABORTED EHOSTUNREACH ENOTCONN'.split()
}
PAUSES_S = (0.5, 2.0)  # before the second and the third try


@dataclasses.dataclass(frozen=True)
class Decoded:
  """One record: its examples, or why there are none."""

  source: str
  id: str
  examples: tuple[Example, ...] = ()
  error: str | None = None


def decode_record(source: Source, reader: Reader, place: Place) -> Decoded:
  """The record of a source at a place. Whatever goes wrong with it is its `error`; what may pass is tried again."""
  name = place.name
  for pause in (*PAUSES_S, None):
    try:
      return Decoded(reader.source, name, tuple(reader.read(source.read(place))))
    except Exception as error:  # decoders of damaged media raise what they like; one record must not end the job
      if pause is None or not _may_pass(error):
        reason = str(error) if isinstance(error, ValueError) else f'{type(error).__name__}: {error}'
        return Decoded(reader.source, name, error=reason)
      log.warning('%s %s: %s; trying again in %g s', reader.source, name, error, pause)
      time.sleep(pause)
  raise AssertionError


def _may_pass(error: BaseException | None) -> bool:
  while error is not None:
    if isinstance(error, OSError) and error.errno in _PASSING:
      return True
    error = error.__cause__ or error.__context__
  return False


class Decoder:
  """Decodes on request. workers: processes; 0: threads instead, as many as `threads`. `parallel`: how many at once."""

  def __init__(self, sources: Sequence[Source], readers: Sequence[Reader], threads: int, workers: int):
    self.sources, self.readers = list(sources), list(readers)
    self.parallel = workers or threads
    self._turns = itertools.count()
    spawn = multiprocessing.get_context('spawn')  # a fork of a process with threads (jax's, ours) may hang
    self._threads = None if workers else ThreadPoolExecutor(threads, thread_name_prefix='decode')
    # Each worker is a pool of its own, so that it can be chosen: the records of a row group go to the one that has it.
    self._workers = [
      ProcessPoolExecutor(1, spawn, initializer=_begin_worker, initargs=(self.sources, self.readers)) for _ in range(workers)
    ]

  def submit(self, source: int, index: int) -> 'Future[Decoded]':
    place = self.sources[source].locate(index)
    if self._threads is not None:
      return self._threads.submit(decode_record, self.sources[source], self.readers[source], place)
    turn = next(self._turns) if place.group is None else place.group
    return self._workers[turn % len(self._workers)].submit(_decode_in_worker, source, place)

  def close(self) -> None:
    for pool in (self._threads, *self._workers):
      if pool is not None:
        pool.shutdown(cancel_futures=True)


_worker: tuple[list[Source], list[Reader]] | None = None  # of this worker process


def _begin_worker(sources: list[Source], readers: list[Reader]) -> None:
  global _worker
  _worker = sources, readers
  for number in (signal.SIGINT, signal.SIGTERM):  # of a whole process group: for the run, which ends its workers
    signal.signal(number, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  """A run that was killed ends no workers."""
  parent = multiprocessing.parent_process()
  assert parent is not None
  parent.join()
  os._exit(1)


def _decode_in_worker(source: int, place: Place) -> Decoded:
  assert _worker is not None
  sources, readers = _worker
  return decode_record(sources[source], readers[source], place)
