"""Batches wait ahead of need, in order, with errors in their turn; a mesh that would repeat work is refused."""

import threading
import time

import pytest
from qwen3_omni_jax.train.config import DataConfig, Run
from qwen3_omni_jax.train.config_file import read
from qwen3_omni_jax.train.feed import Prefetch, check_shared_out

from qwen3_omni_jax.sharding import make_mesh


def counting(made: list, stop_at: int = 100, error: Exception | None = None):
  for i in range(stop_at):
    made.append(i)
    yield i
  if error is not None:
    raise error


def settled(made: list) -> int:
  """How many were made, once no more are."""
  number = -1
  while number != len(made):
    number = len(made)
    time.sleep(0.05)
  return number


def test_so_many_are_made_ahead_and_no_more():
  made: list[int] = []
  with Prefetch(counting(made), depth=2) as items:
    assert settled(made) == 2
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    assert settled(made) == 5


def test_errors_and_the_end_come_in_their_turn():
  with Prefetch(counting([], 2, ValueError('bad record'))) as items:
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ValueError, match='bad record'):
      next(items)
  assert list(Prefetch(counting([], 3))) == [0, 1, 2]


def test_closing_ends_the_thread_also_when_the_body_fails():
  before = threading.active_count()
  with pytest.raises(ZeroDivisionError), Prefetch(counting([])) as items:
    next(items)
    raise ZeroDivisionError
  assert threading.active_count() == before and list(items) == []


@pytest.mark.parametrize(
  ('rows', 'length', 'lanes', 'complaint'),
  [
    (2, 64, 2, 'data: 2 rows of 64 tokens on a mesh of fsdp=2 expert=2 context=2: each is computed by 2 devices'),
    (3, 64, 3, 'by 4 devices, all the same. Make data.rows a multiple of 4, data.length a multiple of 2'),
    (4, 63, 4, 'by 2 devices'),
    (3, 63, 3, 'by 8 devices'),
    (8, 64, 2, 'data: 2 lanes on a mesh of .* make data.lanes a multiple of 4'),
  ],
)
def test_work_that_devices_would_repeat_is_refused_with_the_factor(rows, length, lanes, complaint):
  with pytest.raises(ValueError, match=complaint):
    check_shared_out(
      DataConfig(rows=rows, length=length, lanes=lanes, audio_s=1), make_mesh({'fsdp': 2, 'expert': 2, 'context': 2})
    )


def test_rows_that_all_devices_share_are_accepted():
  mesh = make_mesh({'fsdp': 2, 'expert': 2, 'context': 2})
  check_shared_out(DataConfig(rows=8, length=64, lanes=4, audio_s=1), mesh)
  check_shared_out(DataConfig(rows=4, length=64, lanes=1), mesh)
  check_shared_out(DataConfig(rows=1, length=63, lanes=1, audio_s=1), make_mesh({}))


HELD_OUT = 'evaluate={data: {rows: 2, sources: [{path: none.jsonl}]}}'


@pytest.mark.parametrize(
  ('rows', 'others', 'complaint'), [(2, [], '^data: 2 rows .* by 8 devices'), (8, [HELD_OUT], '^evaluate.data: 2 rows .* by 8')]
)
def test_a_run_is_refused_before_its_weights_are_read(rows, others, complaint, tmp_path, tiny_folder, monkeypatch):
  from qwen3_omni_jax.train import omni_task
  from qwen3_omni_jax.train.run import train

  monkeypatch.setattr(omni_task, 'load_params', None)
  data = f'data={{rows: {rows}, lanes: {rows}, audio_s: 64, visual_patches: 8192, sources: [{{path: none.jsonl}}]}}'
  settings = [f'model={tiny_folder}', f'out={tmp_path / "out"}', 'mesh=fsdp', data, *others]
  with pytest.raises(ValueError, match=complaint):
    train(read(Run, None, [*settings, 'parts=[{pattern: thinker/norm, lr: 1e-3}]']))
