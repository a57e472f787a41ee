"""Which steps are traced, and by whom."""

import pathlib
import socket
import subprocess
import sys

import jax
import pytest
from qwen3_omni_jax.train.profiler import LOOK_S, Profiler

ROOT = pathlib.Path(__file__).parents[2]


class Shared:
  """The store of two processes, in one."""

  text = ''

  def write(self, text: str) -> None:
    self.text = text

  def read(self) -> str:
    return self.text


@pytest.fixture
def traces(monkeypatch) -> list[str]:
  """'+folder' and '-' as traces begin and end."""
  found: list[str] = []
  monkeypatch.setattr(jax.profiler, 'start_trace', lambda folder: found.append(f'+{pathlib.Path(folder).name}'))
  monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: found.append('-'))
  return found


def begun_and_ended(traces: list[str], profile: Profiler, steps: range, asked: tuple[int, ...] = ()) -> list[str]:
  found = []
  for step in steps:
    before = len(traces)
    profile(step, ask=step in asked)
    found += [f'{what[0]}{step}' for what in traces[before:]]
  return found


def test_a_trace_has_three_steps(tmp_path, traces):
  with Profiler(tmp_path, at=8) as profile:
    assert begun_and_ended(traces, profile, range(10), asked=(2,)) == ['+2', '-5', '+8']
  assert traces == ['+process-0', '-', '+process-0', '-']  # the last one ends with the run


def test_a_run_that_goes_on_after_the_step_to_trace_does_not_trace(tmp_path, traces):
  with Profiler(tmp_path, at=8) as profile:
    assert begun_and_ended(traces, profile, range(9, 15)) == []
  with Profiler(tmp_path, at=8) as profile:
    assert begun_and_ended(traces, profile, range(8, 15)) == ['+8', '-11']


@pytest.mark.parametrize('step_s', [0.02, 1.0, 20.0])
def test_two_processes_trace_the_same_steps_when_one_is_asked(tmp_path, traces, monkeypatch, step_s):
  """The one that is asked is a step ahead; the other looks now and then only. An old request of the same store is no request."""
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  now, shared = [0.0], Shared()
  shared.write('3 1')
  profiles = [Profiler(tmp_path, None, shared, lambda: now[0]) for _ in range(2)]
  reads = []
  monkeypatch.setattr(shared, 'read', lambda: reads.append(now[0]) or shared.text)
  found: list[list[str]] = [[], []]
  steps = 40 + int(4 * LOOK_S / step_s)
  for step in range(1, steps):
    now[0] += step_s if step > 1 else 300.0  # the first compiles
    for process, at in ((0, step), (1, step - 1)):
      found[process] += begun_and_ended(traces, profiles[process], range(at, at + 1), asked=(20,) if process == 0 else ())
  assert found[0] == found[1] and len(found[0]) == 2, found
  assert len(reads) <= 2 * (steps * step_s / LOOK_S + 2) + 1


def test_of_two_real_processes_both_trace_the_same_steps_into_their_own_folders(tmp_path):
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  command = [sys.executable, '-m', 'tests.train.two_profilers', str(port)]
  pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True, 'cwd': ROOT}
  started = [subprocess.Popen([*command, str(process), str(tmp_path)], **pipes) for process in range(2)]
  try:
    said = [process.communicate(timeout=120) for process in started]
  finally:
    for process in started:
      process.kill()
  assert [process.returncode for process in started] == [0, 0], said
  begun = [out.split() for out, _ in said]
  assert begun[0] == begun[1] and len(begun[0]) == 1, said
  for process in range(2):
    assert list((tmp_path / f'process-{process}').rglob('*.xplane.pb'))
