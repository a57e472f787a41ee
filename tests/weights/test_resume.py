"""A conversion may be stopped at any moment: it goes on without redoing what is finished, to the same result."""

import json
import pathlib
import shutil
import subprocess
import sys

import ml_dtypes
import pytest

from qwen3_omni_jax.config_json import parse_config
from qwen3_omni_jax.weights import batches, to_hf, to_jax, work
from qwen3_omni_jax.weights.load import load_params
from qwen3_omni_jax.weights.opened import open_checkpoint
from qwen3_omni_jax.weights.table import published_shapes
from qwen3_omni_jax.weights.work import Work, read_journal

from .folders import assert_same, contents, odd_dict, random_tensors, write

ROOT = pathlib.Path(__file__).parents[2]


CONFIG = odd_dict('thinking')  # without speech: fewer tensors, and what stops a conversion does not look at them
COUNT = len(published_shapes(parse_config(CONFIG)))


@pytest.fixture(scope='module')
def plain(tmp_path_factory) -> pathlib.Path:
  tensors = random_tensors(parse_config(CONFIG), dtype=ml_dtypes.bfloat16)
  return write(tmp_path_factory.mktemp('plain') / 'hf', tensors, CONFIG, shard_bytes=500_000)


@pytest.fixture(scope='module')
def converted(plain, tmp_path_factory) -> pathlib.Path:
  to_jax.convert_to_jax(plain, target := tmp_path_factory.mktemp('converted') / 'jax')
  return target


def assert_same_result(a: pathlib.Path, b: pathlib.Path) -> None:
  """Equal files; for a converted folder, equal values in params (tensorstore names its data files at random)."""
  ours, theirs = ({n: data for n, data in contents(f).items() if not n.startswith('params/')} for f in (a, b))
  assert ours == theirs
  if (a / 'params').exists():
    assert_same(load_params(a), load_params(b))


@pytest.mark.slow
@pytest.mark.parametrize('direction', ['to-jax', 'to-hf'])
def test_killed_twenty_times(plain, converted, tmp_path, direction):
  source = plain if direction == 'to-jax' else converted
  command = [sys.executable, '-m', 'tests.weights.killing', direction, str(source), str(tmp_path), '20', '0']
  done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
  assert done.returncode == 0, done.stderr
  first, *runs = map(json.loads, done.stdout.splitlines())
  assert first['how'] == 'finished' and len(first['read']) == COUNT
  assert sum(run['how'] == 'killed' for run in runs) == 20
  assert {run['how'] for run in runs} == {'killed', 'finished'}
  for run in runs:
    assert not set(run['read']) & set(run['finished_before'])  # nothing finished is done again
    if run['how'] == 'finished':
      assert len(set(run['read']) | set(run['finished_before'])) == COUNT or run['finished_before'] == []
  moments = sorted(len(run['finished_before']) for run in runs)
  print(f'finished when killed: {moments} of {COUNT}')
  assert any(0 < n < COUNT for n in moments)
  results = sorted(tmp_path.glob('done*'))
  assert results
  for result in results:
    assert_same_result(result, tmp_path / 'undisturbed')


class Killed(BaseException):
  """Ends a run as nothing in it expects."""


def kill_at(monkeypatch, where, name: str, call: int, before: bool) -> None:
  """The call-th call of where.name does not happen (before), or is the last thing that happens."""
  plain, calls = getattr(where, name), []

  def dying(*args, **kwargs):
    calls.append(name)
    now = len(calls) == call
    if now and before:
      raise Killed
    value = plain(*args, **kwargs)
    if now:
      raise Killed
    return value

  monkeypatch.setattr(where, name, dying)


JAX_STEPS = [
  (to_jax, 'create', 1),
  (to_jax, 'Writer', 1),
  (Work, 'begin', 1),
  (Work, 'add', 1),
  (Work, 'add', 20),
  (to_jax, 'keep_original', 1),
  (to_jax, 'write_manifest', 1),
  (work.os, 'rename', 1),
  (work.shutil, 'rmtree', 1),
]
HF_STEPS = [
  (Work, 'begin', 1),
  (Work, 'add', 1),
  (Work, 'add', 20),
  (to_hf.os, 'pwrite', 1),
  (to_hf.os, 'pwrite', 120),
  (to_hf, '_describe', 1),
  (work.os, 'rename', 1),
  (work.shutil, 'rmtree', 1),
]
STEPS = [('to-jax', *step) for step in JAX_STEPS] + [('to-hf', *step) for step in HF_STEPS]


@pytest.mark.parametrize('before', [True, False], ids=['before', 'after'])
@pytest.mark.parametrize(('direction', 'where', 'name', 'call'), STEPS, ids=[f'{d} {name} {call}' for d, _, name, call in STEPS])
def test_stopped_at_a_step(plain, converted, tmp_path, monkeypatch, direction, where, name, call, before):
  monkeypatch.setattr(batches, 'BATCH_TENSORS', 8)
  convert, source, expected = (
    (to_jax.convert_to_jax, plain, converted) if direction == 'to-jax' else (to_hf.convert_to_hf, converted, plain)
  )
  target, partial = tmp_path / 'target', tmp_path / 'target.partial'
  with monkeypatch.context() as patch, pytest.raises(Killed):
    kill_at(patch, where, name, call, before)
    convert(source, target)
  finished = read_journal(partial)[1]
  if not target.exists():
    for folder in (partial, partial / 'data'):  # nothing half-written passes for complete
      with pytest.raises(ValueError):
        open_checkpoint(folder)
      with pytest.raises(ValueError):
        load_params(folder)
  again = []
  with monkeypatch.context() as patch:
    add = Work.add
    patch.setattr(Work, 'add', lambda self, entries: add(self, [again.append(e[0]) or e for e in list(entries)]))
    if partial.exists():
      convert(source, target)
  assert not set(again) & set(finished)
  assert_same_result(target, expected)
  assert [path.name for path in tmp_path.iterdir()] == ['target']


def test_a_journal_cut_at_any_byte_tells_no_lies(converted, tmp_path, monkeypatch):
  monkeypatch.setattr(batches, 'BATCH_TENSORS', 200)
  with monkeypatch.context() as patch, pytest.raises(Killed):
    kill_at(patch, to_hf, '_describe', 1, True)
    to_hf.convert_to_hf(converted, tmp_path / 'hf')
  partial = tmp_path / 'hf.partial'
  whole = (partial / 'journal').read_bytes()
  identity, finished, size = read_journal(partial)
  assert size == len(whole) and len(finished) == COUNT and identity is not None
  names = list(finished)
  header = whole.index(b'\n') + 1
  for cut in (*range(header + 2000), *range(header + 2000, size, 101)):
    (partial / 'journal').write_bytes(whole[:cut])
    found = read_journal(partial)
    lines = whole[:cut].count(b'\n')
    assert found[0] == (identity if lines else None) and list(found[1]) == names[: max(lines - 1, 0)]
    assert found[2] == whole[:cut].rfind(b'\n') + 1
  for cut in (0, 1, header - 1, header, header + 1, size - 1):
    (partial / 'journal').write_bytes(whole[:cut])
    with Work(tmp_path / 'hf', identity) as again:
      assert again.begun == (cut >= header) and len(again.finished) == whole[header:cut].count(b'\n')
      again.add([('one more', None)] if again.begun else [])
    assert len(read_journal(partial)[1]) == len(again.finished)


def test_work_for_another_source_or_options_is_begun_anew(plain, tmp_path, monkeypatch, capsys):
  def killed_run(*args, **options):
    with monkeypatch.context() as patch, pytest.raises(Killed):
      patch.setattr(batches, 'BATCH_TENSORS', 8)
      kill_at(patch, to_jax, 'keep_original', 1, True)
      to_jax.convert_to_jax(plain, tmp_path / 'jax', *args, **options)
    return capsys.readouterr().err

  assert 'begun anew' not in killed_run()
  assert 'begun anew' not in killed_run()
  assert 'another conversion (dtype, bytes differ); begun anew' in killed_run('float32')
  (plain / 'new_file.txt').write_text('new')
  assert 'another conversion (files differ); begun anew' in killed_run('float32')
  (plain / 'new_file.txt').unlink()
  to_jax.convert_to_jax(plain, tmp_path / 'jax')
  assert_same(load_params(tmp_path / 'jax'), load_params(plain))


def test_a_disk_that_is_full_by_now_does_not_cost_what_is_finished(plain, tmp_path, monkeypatch):
  with monkeypatch.context() as patch, pytest.raises(Killed):
    patch.setattr(batches, 'BATCH_TENSORS', 8)
    kill_at(patch, Work, 'add', 20, False)
    to_jax.convert_to_jax(plain, tmp_path / 'jax')
  finished = read_journal(tmp_path / 'jax.partial')[1]
  assert finished
  usage = shutil.disk_usage(tmp_path)
  with monkeypatch.context() as patch, pytest.raises(ValueError, match=r'the disk has 0\.0 GB free'):
    patch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=10_000))
    to_jax.convert_to_jax(plain, tmp_path / 'jax')
  assert read_journal(tmp_path / 'jax.partial')[1] == finished


def test_two_processes_do_not_work_on_one_target(tmp_path):
  with Work(tmp_path / 'x', {'a': 1}) as one:
    one.begin()
    with pytest.raises(ValueError, match='x.partial: another conversion is at work there'):
      Work(tmp_path / 'x', {'a': 1})
    one.add([('tensor', 'checksum')])
  with Work(tmp_path / 'x', {'a': 1}) as two:
    assert two.begun and two.finished == {'tensor': 'checksum'}


def test_a_link_to_an_empty_folder_is_filled_where_it_leads(plain, tmp_path):
  (tmp_path / 'disk' / 'jax').mkdir(parents=True)
  (tmp_path / 'link').symlink_to(tmp_path / 'disk' / 'jax')
  to_jax.convert_to_jax(plain, tmp_path / 'link')
  assert (tmp_path / 'link').is_symlink() and (tmp_path / 'disk' / 'jax' / 'manifest.json').is_file()
  assert sorted(path.name for path in tmp_path.rglob('*.partial')) == []
