"""One side of a benchmark in one process for each core, which share its rows; for batch_vs_reference.py."""

import multiprocessing
import os
import time


class ProcessPerCore:
  """`make(folder, work)` in every process. A with-block, at the end of which they are gone."""

  def __init__(self, make, folder, work):
    context = multiprocessing.get_context('spawn')
    cores = sorted(os.sched_getaffinity(0))
    self.number, self.rows, self._next = len(cores), work.rows, context.Value('i', 0)
    self._pipes, self._processes = [], []
    for core in cores:
      here, there = context.Pipe()
      process = context.Process(target=_serve, args=(core, there, self._next, make, folder, work), daemon=True)
      process.start()
      self._pipes.append(here)
      self._processes.append(process)
    for pipe in self._pipes:
      pipe.recv()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for pipe in self._pipes:
      pipe.send(None)
    for process in self._processes:
      process.join()

  def share(self, method: str, *args) -> dict:
    """method(*args, rows): each process takes the next row whenever it has room for one."""
    self._next.value = 0
    return self._call([(method, args, len(self.rows))] * self.number)

  def divide(self, method: str, *args, rows=None) -> dict:
    """method(*args, rows): each process takes an equal part of the rows."""
    rows = list(self.rows if rows is None else rows)
    return self._call([(method, args, rows[i :: self.number]) for i in range(self.number)])

  def _call(self, calls: list[tuple]) -> dict:
    for pipe, call in zip(self._pipes, calls, strict=True):
      pipe.send(call)
    results = [pipe.recv() for pipe in self._pipes]
    for result in results:
      if isinstance(result, Exception):
        raise result
    rows = {i: row for result in results for i, row in result['rows'].items()}
    return {'rows': rows, 'processor_s': sum(result['processor_s'] for result in results)}


def _serve(core: int, pipe, following, make, folder, work) -> None:
  os.sched_setaffinity(0, {core})  # before a library counts the processors: it then starts one thread

  def taken(number: int):
    while True:
      with following.get_lock():
        i = following.value
        following.value += 1
      if i >= number:
        return
      yield i

  side = make(folder, work)
  pipe.send('ready')
  while (call := pipe.recv()) is not None:
    method, rest, rows = call
    try:
      began = time.process_time()
      result = getattr(side, method)(*rest, taken(rows) if isinstance(rows, int) else rows)
      pipe.send(result | {'processor_s': time.process_time() - began})
    except Exception as e:  # the caller raises it
      pipe.send(e)
