"""What is installed is the whole package: a wheel holds every file, and its commands run far from the repository."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.conftest import ROOT

# Folders of the repository that are installed, and where.
FOLDERS = {
  'qwen3_omni_jax': 'qwen3_omni_jax',
  **{name: f'qwen3_omni_jax/{name}' for name in ('train', 'eval', 'tools', 'configs', 'examples')},
}


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> zipfile.ZipFile:
  """Built from a copy of the sources, with every warning an error."""
  source, out = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('wheel')
  for name in (*FOLDERS, 'pyproject.toml', 'README.md', 'LICENSE'):
    if (ROOT / name).is_dir():
      shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    else:
      shutil.copy(ROOT / name, source)
  build = f'import setuptools.build_meta as backend; backend.build_wheel({str(out)!r})'
  done = subprocess.run([sys.executable, '-W', 'error', '-c', build], cwd=source, capture_output=True, text=True)
  assert not done.returncode, done.stderr[-3000:]
  assert 'Warning' not in done.stdout + done.stderr
  with zipfile.ZipFile(next(out.glob('*.whl'))) as file:
    yield file


def test_a_wheel_holds_every_file_of_the_package_and_no_other_top_level_name(wheel):
  expected = {
    f'{target}/{path.relative_to(ROOT / folder).as_posix()}'
    for folder, target in FOLDERS.items()
    for path in (ROOT / folder).rglob('*')
    if path.is_file() and '__pycache__' not in path.parts
  }
  found = {name for name in wheel.namelist() if '.dist-info/' not in name}
  assert found == expected


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
  """A function that runs `qwen3-omni` as the wheel alone has it, in an empty folder."""
  site, folder = tmp_path_factory.mktemp('site'), tmp_path_factory.mktemp('elsewhere')
  wheel.extractall(site)

  def run(*words: str) -> str:
    environment = {**os.environ, 'PYTHONPATH': str(site), 'PYTHONSAFEPATH': '1'}
    command = [sys.executable, '-m', 'qwen3_omni_jax.cli', *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout

  run.site, run.folder = site, folder
  return run


def test_an_installed_wheel_finds_its_own_configurations_and_help(installed):
  shown = installed('train', '--config', 'sft', '--show')
  assert 'steps: 2000' in shown and 'sources:' in shown
  assert '--benchmark' in installed('eval', '--help')
  assert 'nano-speech' in installed('eval', '--list')


@pytest.mark.slow
def test_the_demo_of_an_installed_wheel_hears_sees_and_speaks(installed):
  said = installed('demo')
  assert 'stop no four one yes' in said and 'three red triangles' in said
  assert str(installed.site) in said and (installed.folder / 'demo' / 'everything.wav').is_file()
  assert not (pathlib.Path(installed.site) / 'qwen3_omni_jax' / 'demo').exists()
