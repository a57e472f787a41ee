"""Where the time of a run goes, over all its restarts, and how much of it went to steps that counted."""

import json
import logging
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
from etils import epath

log = logging.getLogger(__name__)
FILE = 'goodput.json'
HEARTBEAT_S = 30.0  # between two writes of the file: what a killed process did after the last one counts as down
PHASES = ('restart', 'compile', 'input', 'step', 'checkpoint', 'evaluation', 'other', 'lost', 'down')


class Goodput:
  """Seconds by phase since the run was begun; together they are all the time that has passed.

  restart: from the start of a process to its first step (imports, weights, restoring). compile: calls of the step that compiled.
  input, step, checkpoint, evaluation: what the host waited for. other: going back to a checkpoint. lost: steps that were skipped,
  done again after a kill, or given up by going back. down: from the last sign of a process to the start of the next.

  file: where it is kept, so that a run that goes on counts on; None: not kept. began: when this process began, in seconds of
  `clock`; None: now.
  """

  def __init__(self, file: epath.Path | None, began: float | None = None, clock: Callable[[], float] = time.time):
    self._file, self._clock = file, clock
    self._last = clock() if began is None else began
    self.seconds = dict.fromkeys(PHASES, 0.0)
    self.lost_steps = 0
    self._counted, self._known = 0, 0.0  # steps that are known to be done and counted; seconds of steps up to the last known one
    self._at_checkpoint: dict[int, tuple[float, int]] = {0: (0.0, 0)}  # by step: seconds of steps, and steps, that counted
    self._written = self._last

  def resume(self, step: int) -> None:
    """The run begins or goes on after this step: counts on from what an earlier process left, whose steps since then are lost."""
    found = self._read()
    if found is None:
      self._counted, self._at_checkpoint = step, {step: (0.0, step)}
    else:
      self.seconds = {phase: found['seconds'].get(phase, 0.0) for phase in PHASES}
      self.seconds['down'] += max(0.0, self._last - found['at'])
      self._last = max(self._last, found['at'])
      self.lost_steps, self._counted = found['lost_steps'], found['counted']
      self._at_checkpoint = {int(number): (seconds, counted) for number, (seconds, counted) in found['at_checkpoint'].items()}
      self.go_back(step)
    self.write()  # from here on the run has been begun

  def spent(self, phase: str) -> None:
    """What passed since the last call was spent in this phase."""
    now = self._clock()
    self.seconds[phase] += max(0.0, now - self._last)
    self._last = now

  def done(self, *, skipped: bool) -> None:
    """The next step is known to be done. Writes the file if the last time is long ago."""
    passed = self.seconds['step'] - self._known
    self._counted += not skipped
    if skipped:
      self.lost_steps += 1
      self.seconds['step'] -= passed
      self.seconds['lost'] += passed
    self._known = self.seconds['step']
    if self._last - self._written >= HEARTBEAT_S:
      self.write()

  def saved(self, step: int) -> None:
    """A checkpoint after this step, which is done, is about to be written."""
    self._at_checkpoint[step] = self.seconds['step'], self._counted
    self.write()

  def go_back(self, step: int) -> None:
    """The run has the parameters of this step again: what was done since does not count."""
    kept = {number: found for number, found in self._at_checkpoint.items() if number <= step}
    seconds, counted = kept[max(kept)] if kept else (0.0, 0)
    self._at_checkpoint = kept
    self.seconds['lost'] += self.seconds['step'] - seconds
    self.lost_steps += self._counted - counted
    self.seconds['step'], self._known, self._counted = seconds, seconds, counted

  @property
  def share(self) -> float:
    """Time of steps that counted over all time since the run was begun, 0 to 1."""
    return self.seconds['step'] / max(sum(self.seconds.values()), 1e-9)

  def scalars(self) -> dict[str, float]:
    """For a line of metrics: the share, the steps lost, and seconds by phase."""
    by_phase = {f'time/{phase}': round(seconds, 3) for phase, seconds in self.seconds.items()}
    return {'goodput': self.share, 'lost_steps': self.lost_steps, **by_phase}

  def summary(self) -> str:
    """One line for the terminal."""
    total = sum(self.seconds.values())
    largest = sorted((phase for phase in PHASES if self.seconds[phase] > 0), key=lambda phase: -self.seconds[phase])
    parts = [f'{phase} {self.seconds[phase]:.1f} s ({self.seconds[phase] / max(total, 1e-9):.1%})' for phase in largest]
    return f'goodput {self.share:.1%} of {total:.1f} s: {", ".join(parts)}; {self.lost_steps} steps lost'

  def write(self) -> None:
    """Puts the file on disk, as a whole or not at all."""
    self._written = self._last
    if self._file is None:
      return
    held = {
      'at': self._last,
      'counted': self._counted,
      'lost_steps': self.lost_steps,
      'seconds': self.seconds,
      'at_checkpoint': self._at_checkpoint,
    }
    if '://' in str(self._file):  # an object in a bucket is replaced as a whole
      self._file.write_text(json.dumps(held))
      return
    part = self._file.with_suffix('.part')
    part.write_text(json.dumps(held))
    part.replace(self._file)

  def _read(self) -> dict[str, Any] | None:
    if self._file is None or not self._file.exists():
      return None
    try:
      found = json.loads(self._file.read_text())
      return found if {'at', 'counted', 'lost_steps', 'seconds', 'at_checkpoint'} <= found.keys() else None
    except (ValueError, AttributeError) as error:
      log.warning('%s cannot be read (%s); times are counted anew', self._file, error)
      return None


class Compiles:
  """How many programs this process has compiled, or read from the cache of compiled ones. Use it as a context."""

  def __init__(self):
    self.number = 0

  def _listen(self, event: str, _: float, **_more: Any) -> None:
    self.number += event == '/jax/core/compile/backend_compile_duration'

  def __enter__(self) -> 'Compiles':
    jax.monitoring.register_event_duration_secs_listener(self._listen)
    return self

  def __exit__(self, *_) -> None:
    jax.monitoring.unregister_event_duration_listener(self._listen)


def process_start() -> float:
  """When this process was started, as time.time() has it; now, where the system does not say."""
  try:
    ticks = int(pathlib.Path('/proc/self/stat').read_text().rsplit(')', 1)[1].split()[19])  # proc(5): field 22, since the boot
    age = float(pathlib.Path('/proc/uptime').read_text().split()[0]) - ticks / os.sysconf('SC_CLK_TCK')
  except (OSError, ValueError, IndexError):
    return time.time()
  return time.time() - max(age, 0.0)
