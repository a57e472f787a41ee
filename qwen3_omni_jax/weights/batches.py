"""Published tensors shared out to threads: what is read, rearranged, hashed and put on disk together."""

import os
import threading
from collections.abc import Callable, Container, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np

BATCH_BYTES = 64 * 2**20  # a batch is put on disk at once; smaller ones would spend more on that than on their data
BATCH_TENSORS = 512
WORKERS = max(2, min(6, (os.cpu_count() or 1) + 2))  # two wait for the disk; each takes up to 200 MB

Batch = list[str]


_own = threading.local()


def scratch(size: int) -> np.ndarray:
  """Bytes that the calling thread gets again at its next call: the kernel clears every page of new memory first.

  More than a batch is new memory, so that a thread does not keep it.
  """
  if size > BATCH_BYTES:
    return np.empty(size, np.uint8)
  if getattr(_own, 'memory', None) is None:
    _own.memory = np.empty(BATCH_BYTES, np.uint8)
  return _own.memory[:size]


def share_out(sizes: dict[str, int], finished: Container[str] = ()) -> list[list[Batch]]:
  """Jobs, each some batches to be done in turn, of all tensors but the finished ones, in order.

  sizes: bytes of each tensor. Those larger than a batch are one job, so that memory holds only one of them at a time.
  """
  large: list[Batch] = []
  jobs: list[list[Batch]] = [large]
  batch, room = [], 0
  for name, size in sizes.items():
    if name in finished:
      continue
    if size > BATCH_BYTES:
      large.append([name])
      continue
    if batch and (room + size > BATCH_BYTES or len(batch) == BATCH_TENSORS):
      batch, room = [], 0
    if not batch:
      jobs.append([batch])
    batch.append(name)
    room += size
  return jobs if large else jobs[1:]


def run(jobs: list[list[Batch]], work: Callable[[Sequence[str]], None]) -> None:
  """Calls work(batch) for all of them on several threads. The first error, or Ctrl-C, ends it after the batches at work."""
  stop = threading.Event()

  def do(job: list[Batch]) -> None:
    for batch in job:
      if not stop.is_set():
        work(batch)

  with ThreadPoolExecutor(WORKERS) as pool:
    try:
      for done in as_completed([pool.submit(do, job) for job in jobs]):
        done.result()
    except BaseException:
      stop.set()
      pool.shutdown(cancel_futures=True)
      raise
