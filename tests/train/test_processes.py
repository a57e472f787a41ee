"""Two processes train as one: no step waits for the one before it, and a signal to one of them ends both after the same step."""

import json
import pathlib
import signal
import sys
import time

import pytest
from qwen3_omni_jax.train.run import PREEMPTED

from tests.train.crash import check_every_record_once, data, environment
from tests.train.processes import log_of, start
from tests.train.records import write_records

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def stopped(tiny_folder, tmp_path_factory) -> pathlib.Path:
  """The folder of a run of two processes, of which the second was sent SIGTERM."""
  folder = tmp_path_factory.mktemp('processes')
  out, env = folder / 'run', environment(folder / 'cache')
  arguments = [
    *(sys.executable, '-m', 'tests.train.timed_run', f'model={tiny_folder}', f'out={out}', 'steps=100000', 'save.every=100000'),
    *(
      'mesh=fsdp',
      'log={tensorboard: false, records: true, every: 1}',
      'step={dtype: float32, remat: none, encoder_remat: none}',
    ),
    'parts=[{pattern: thinker/norm, lr: 1e-3}]',
    data(write_records(folder / 'data'), rows=4, lanes=4, length=512, audio_s=32, visual_patches=512),
  ]
  started = start(2, arguments, env, out)
  try:
    while '\nstep 4/' not in log_of(out, 0).read_text() and all(process.poll() is None for process in started):
      time.sleep(0.01)
    started[1].send_signal(signal.SIGTERM)
    codes = [process.wait(120) for process in started]
  finally:
    for process in started:
      process.kill()
  assert codes == [PREEMPTED, PREEMPTED], '\n'.join(log_of(out, i).read_text()[-3000:] for i in range(2))
  return out


def test_sigterm_to_one_process_ends_both_after_the_same_step_with_one_checkpoint(stopped):
  times = [json.loads((stopped / f'times-{process}.json').read_text()) for process in range(2)]
  last = len(times[0])
  assert len(times[1]) == last > 4
  assert [path.name for path in (stopped / 'checkpoints').iterdir() if path.name.isdigit()] == [str(last)]
  assert f'stopped by SIGTERM after step {last},' in log_of(stopped, 0).read_text()


def test_the_saved_position_is_that_of_the_batches_trained_on(stopped):
  assert check_every_record_once(stopped, len(json.loads((stopped / 'times-0.json').read_text()))) > 20


def test_a_step_is_dispatched_before_the_one_before_it_is_done_and_its_batch_waits_on_the_devices(stopped):
  for process in range(2):
    steps = json.loads((stopped / f'times-{process}.json').read_text())[2:]
    ahead = [after['dispatched'] < before['done'] for before, after in zip(steps, steps[1:], strict=False)]
    assert sum(ahead) > 0.8 * len(ahead), ahead
    assert sum(step['batch_waited'] for step in steps) > 0.8 * len(steps)
