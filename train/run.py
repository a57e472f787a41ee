"""A training run from the configuration to the exported model, in order."""

import contextlib
import dataclasses
import json
import logging
import pathlib
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import yaml
from etils import epath

from qwen3_omni_jax import distributed
from qwen3_omni_jax.infer.omni import Omni
from qwen3_omni_jax.sharding import make_mesh, mesh_shape
from qwen3_omni_jax.weights.remote import is_url, located

from .agreement import merge_over_processes
from .checkpoint import Checkpoints
from .config import Run
from .config_file import to_data
from .feed import Prefetch
from .goodput import Compiles
from .metrics import Metrics
from .omni_task import OmniTask
from .profiler import Profiler
from .rollback import Rollback
from .samples import Speak, write_samples
from .save_times import SaveTimes
from .state import Roles, TrainState
from .task import Task
from .vocoder.task import VocoderTask
from .watchdog import Watchdog

log = logging.getLogger(__name__)
Score = Callable[[Omni], dict[str, float]]
PREEMPTED = 75  # exit code of a run that SIGTERM ended before its last step (EX_TEMPFAIL): start it again


def train(run: Run, *, began: float | None = None, score: Score | None = None, speak: Speak | None = None) -> TrainState:
  """Trains until run.steps, or until SIGTERM; saves; exports if asked to. Returns the last state.

  began: when the time of this run began, as time.time() has it (goodput.process_start); None: now. score: the
  benchmarks of run.evaluate, speak: its texts, as eval.in_training makes them.

  Raises ValueError for a configuration, model or data that cannot be trained with, before the first step; SystemExit(PREEMPTED)
  after SIGTERM with steps left.
  """
  began = time.time() if began is None else began
  run.check()
  distributed.initialize()
  asked = None if run.evaluate is None else run.evaluate.benchmarks
  if asked is not None and score is None:
    raise ValueError(
      'evaluate.benchmarks: needs train(run, score=eval.in_training.make_scorer(...)), as `qwen3-omni train` has it'
    )
  spoken = None if run.evaluate is None else run.evaluate.speech
  if spoken is not None and speak is None:
    raise ValueError('evaluate.speech: needs train(run, speak=eval.in_training.make_speaker(...)), as `qwen3-omni train` has it')
  if (asked is not None or spoken is not None) and jax.process_count() > 1:
    what = 'benchmarks' if asked is not None else 'speech'
    raise ValueError(f'evaluate.{what}: for one process, found {jax.process_count()}; score exports with `qwen3-omni eval`')
  with located(run.model) as place:
    return _train(run, place.folder, began, score, speak)


def _train(run: Run, model: pathlib.Path, began: float, score: Score | None, speak: Speak | None) -> TrainState:
  """model: the folder with its small files (and its weights, unless they are in a bucket)."""
  mesh = make_mesh(mesh_shape(run.mesh, jax.device_count(), run.slices), slices=run.slices)
  out = epath.Path(run.out)
  task: Task = OmniTask(run, mesh, model) if run.vocoder is None else VocoderTask(run, mesh, model)
  _print(_summary(task.roles, mesh))

  out.mkdir(parents=True, exist_ok=True)
  keep = {'keep': run.save.keep, 'keep_every': run.save.keep_every, 'best': run.save.best}
  checkpoints = Checkpoints(out / 'checkpoints', **keep)
  task.describe(checkpoints)
  complete = max(checkpoints.steps(), default=0) >= run.steps
  if run.export is not None and not complete and list(pathlib.Path(run.export).glob('*')):
    raise ValueError(f'export {run.export}: not empty; give a new folder')
  task = task.resolved(_begun_with(out) if checkpoints.steps() else None)
  run, roles = task.run, task.roles
  state, data_state = begin_or_resume(task, checkpoints)
  _write_config(out, run)
  done = int(state.step)

  if done >= run.steps and data_state is not None:
    checkpoints.close()
    _print(f'{out}: complete, {done} of {run.steps} steps')
    task.finish(state)
    return state

  feed = task.batches(data_state)
  loader = feed.loader
  step = task.step()
  evaluate = task.evaluation()
  metrics = Metrics(
    out,
    run.steps,
    every=run.log.every,
    tensorboard=run.log.tensorboard,
    wandb=run.log.wandb,
    records=run.log.records,
    began=began,
  )
  metrics.resume(done)

  times = SaveTimes(run.save, done)
  rollback = Rollback(run.save.rollback, lambda: checkpoints.restore(task.abstract_state(), roles, run))

  def save(loss: float | None) -> None:
    metrics.write()  # a run that is killed after the checkpoint does not repeat this step
    metrics.time.saved(done)
    checkpoints.save(state, roles, merge_over_processes(data_state, loader.merge), to_data(run), loss)
    times.saved(done)
    metrics.time.spent('checkpoint')

  def evaluation(state: TrainState, step: int) -> float:
    metrics.flush()
    assert evaluate is not None
    losses = evaluate(state)
    metrics.time.spent('evaluation')
    metrics.evaluation(step, losses)
    return losses['loss']

  def benchmarks(state: TrainState, step: int) -> None:
    metrics.flush()
    assert score is not None
    scores = score(task.omni(state))
    metrics.time.spent('evaluation')
    metrics.benchmarks(step, scores)

  def samples(state: TrainState, step: int) -> None:
    metrics.flush()
    assert speak is not None
    spoken, values = speak(task.omni(state))
    write_samples(out / 'samples' / f'{step:06d}', spoken)
    metrics.time.spent('evaluation')
    metrics.samples(step, spoken, values)

  asked = None if run.evaluate is None else run.evaluate.benchmarks
  said = None if run.evaluate is None else run.evaluate.speech
  saved = done if data_state is not None else -1
  data_state = loader.get_state()  # of the batches trained on; more of them wait on the devices
  with (
    _handle_signals() as requests,
    Profiler(_profile_folder(out), run.log.profile) as profile,
    Watchdog(run.log.hang_s) as watchdog,
    Prefetch(feed) as batches,
    Compiles() as compiles,
  ):
    metrics.time.spent('restart')
    while done < run.steps:
      watchdog.enter('input', done + 1)
      fed = next(batches)
      metrics.time.spent('input')
      trace, requests.trace = requests.trace, False
      profile(done, trace)
      watchdog.enter('computation', done + 1)
      compiled = compiles.number
      state, values = step(state, fed.batch)
      metrics.time.spent('compile' if compiles.number > compiled else 'step')
      done, data_state = done + 1, fed.data_state
      metrics.step(done, values, fed.stats)
      del fed  # its memory is the batch's that is put on the devices next
      if rollback.is_due(metrics.skipped_in_a_row):
        metrics.flush()
        watchdog.enter('rollback', done)
        checkpoints.wait()
        counts = state.replace(trainable={}, optimiser=None, ema=None)
        del state
        state, to = rollback.go_back(counts)
        metrics.time.spent('other')
        metrics.rollback(done, to)
        _print(f'step {done}: too many steps skipped in a row; going on with the parameters of step {to} and new data')
      stop = _stop_requested(requests, done)
      loss = None
      evaluated = run.evaluate is not None and (done % run.evaluate.every == 0 or done == run.steps)
      if evaluated and not stop:  # before the checkpoint, which may be kept for its loss
        watchdog.enter('evaluation', done)
        loss = evaluation(state, done)
      if (times.due(done) and rollback.may_save(metrics.skipped_in_a_row)) or done == run.steps or stop:
        watchdog.enter('checkpoint', done)
        save(loss)
        saved = done
      if evaluated and stop:
        evaluation(state, done)
      if asked is not None and not stop and (done % asked.every == 0 or done == run.steps):
        watchdog.enter('benchmarks', done)
        benchmarks(state, done)
      if said is not None and not stop and (done % said.every == 0 or done == run.steps):
        watchdog.enter('samples', done)
        samples(state, done)
      if stop:
        break
  metrics.close()
  loader.close()
  if saved != done:
    save(None)
  checkpoints.close()
  metrics.time.spent('checkpoint')
  metrics.time.write()
  _print(metrics.time.summary())
  if done < run.steps:
    _print(
      f'stopped by SIGTERM after step {done}, {time.perf_counter() - requests.at:.1f} s ago; saved: the same command goes on'
    )
    raise SystemExit(PREEMPTED)
  task.finish(state)
  return state


def begin_or_resume(task: Task, checkpoints: Checkpoints) -> tuple[TrainState, dict[str, Any] | None]:
  """(state, position in the data): of the newest checkpoint; without one, the task's first state and None."""
  restored = checkpoints.restore(task.abstract_state(), task.roles, task.run)
  if restored is None:
    return task.first_state(), None
  may_change = ('out:', 'export', 'log.', 'save.', 'evaluate')
  changed = [text for text in restored.changed if not text.startswith(may_change)]
  if new := [text for text in changed if text.startswith('speakers:')]:
    raise ValueError(f'{new[0]}: a run keeps the speakers that it was begun with; begin a new one (another out=) from its export')
  words = [f'going on after step {int(restored.state.step)}', *(['changed since: ' + ', '.join(changed)] if changed else [])]
  _print('; '.join([*words, *restored.notes]))
  return restored.state.replace(frozen=restored.state.frozen | task.frozen_parts()), restored.data


@dataclasses.dataclass
class _Requests:
  """What was requested by signals. at: when SIGTERM came."""

  stop: bool = False
  trace: bool = False
  at: float = 0.0


@contextlib.contextmanager
def _handle_signals() -> Iterator[_Requests]:
  """SIGTERM: save and end after this step. SIGUSR1: trace some steps.

  Of several processes, jax's preemption service has had SIGTERM since they joined (see _stop_requested).
  """
  requests = _Requests()

  def stop(*_):
    requests.stop, requests.at = True, time.perf_counter()

  def trace(*_):
    requests.trace = True

  if threading.current_thread() is not threading.main_thread():
    yield requests
    return
  handlers = {signal.SIGUSR1: trace} if jax.process_count() > 1 else {signal.SIGUSR1: trace, signal.SIGTERM: stop}
  before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
  try:
    yield requests
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _stop_requested(requests: _Requests, step: int) -> bool:
  """Whether all processes end after this step, which was just dispatched, because one of them got SIGTERM.

  They agree on a step that none has passed through jax's preemption service: by messages between the hosts in the background,
  within seconds of the signal. No device takes part, so no step is waited for.
  """
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    if multihost_utils.reached_preemption_sync_point(step):
      requests.stop, requests.at = True, time.perf_counter()
  return requests.stop


def _profile_folder(out: epath.Path) -> pathlib.Path:
  """jax writes traces to disks alone."""
  return pathlib.Path(tempfile.gettempdir(), f'{out.name}-profile') if is_url(str(out)) else pathlib.Path(out, 'profile')


def _summary(roles: Roles, mesh) -> str:
  size = lambda paths: sum(int(np.prod(roles.specs[path].shape)) for path in paths)
  shape = ' '.join(f'{axis}={n}' for axis, n in mesh.shape.items() if n > 1) or 'one device'
  return f'{size(roles.trainable):,} parameters trained, {size(roles.frozen):,} frozen; {shape}'


def _begun_with(out: epath.Path) -> dict[str, Any] | None:
  """The configuration that the run in this folder was last started with."""
  path = out / 'config.yaml'
  return yaml.safe_load(path.read_text()) if path.exists() else None


def _write_config(out: epath.Path, run: Run) -> None:
  if jax.process_index() == 0:
    plain = json.loads(json.dumps(to_data(run)))
    (out / 'config.yaml').write_text(yaml.safe_dump(plain, sort_keys=False))


def _print(text: str) -> None:
  if jax.process_index() == 0:
    print(text, file=sys.stderr, flush=True)
