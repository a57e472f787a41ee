"""Results of benchmarks name the one commit that gave them."""

import json
import shutil
import subprocess

import pytest

from benchmarks import common

pytestmark = pytest.mark.skipif(shutil.which('git') is None, reason='results are of commits')


@pytest.fixture
def root(tmp_path, monkeypatch):
  """A repository of one commit, taken for ours."""
  (tmp_path / 'train').mkdir()
  (tmp_path / 'train/step.py').write_text('1\n')
  subprocess.run(['git', 'init', '-q'], cwd=tmp_path, check=True)
  commit_all(tmp_path)
  monkeypatch.setattr(common, 'ROOT', tmp_path)
  return tmp_path


def commit_all(root):
  for command in (['add', '.'], ['commit', '-q', '-m', 'all']):
    subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *command], cwd=root, check=True)


def test_results_and_documents_may_change(root):
  assert common.save('speed', {'commit': common.commit(), 'ms': 3})
  (root / 'README.md').write_text('3 ms\n')
  assert common.save('speed', {'commit': common.commit(), 'ms': 4})
  assert json.loads((root / 'benchmarks/results/speed.json').read_text())['ms'] == 4


@pytest.mark.parametrize('changed', ['train/step.py', 'train/new.py'])
@pytest.mark.parametrize('when', ['before', 'meanwhile'])
def test_uncommitted_code_gives_no_result(root, capsys, changed, when):
  if when == 'before':
    (root / changed).write_text('2\n')
  begun = common.commit()
  (root / changed).write_text('2\n')
  assert not common.save('speed', {'commit': begun, 'ms': 3})
  assert not (root / 'benchmarks/results').exists() and (root / '.cache/benchmarks/speed.json').is_file()
  assert 'NOT a result' in capsys.readouterr().err


def test_a_commit_during_the_run_gives_no_result(root):
  begun = common.commit()
  (root / 'train/step.py').write_text('2\n')
  commit_all(root)
  assert not common.save('speed', {'commit': begun, 'ms': 3})


def test_stages_of_one_benchmark_share_a_file(root):
  for stage in ('first', 'second', 'first'):
    assert common.save('stages', {'commit': common.commit()}, stage)
  assert list(json.loads((root / 'benchmarks/results/stages.json').read_text())) == ['first', 'second']
