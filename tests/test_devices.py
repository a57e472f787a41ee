"""A command starts quietly on what is there, says what that is, and keeps compiled programs by one rule."""

import os
import pathlib
import subprocess
import sys
import time

import jax
import pytest

from qwen3_omni_jax import compile_cache, devices
from tests.conftest import ROOT

# A first computation as a command makes it. The words before it: 'log' leaves XLA's log as it is.
COMPUTE = """
import sys
from qwen3_omni_jax import devices
if 'log' not in sys.argv:
  devices.hide_xla_log()
devices.start(sys.argv[1])
import jax, jax.numpy as jnp
print(jax.jit(lambda x: jnp.sin(x) * 2)(jnp.float32(1)))
"""
# Names an instruction that this processor lacks among the features of a program. With AVX-512, XLA's own compiler does so
# (prefer-no-gather).
TAMPER = """
import pathlib, sys
from jax._src import compilation_cache as cc
for file in pathlib.Path(sys.argv[1]).rglob('*-cache'):
  program = cc.decompress_executable(file.read_bytes())
  assert b'+cx16,' in program or b'+neon,' in program
  file.write_bytes(cc.compress_executable(program.replace(b'+cx16,', b'+cx99,').replace(b'+neon,', b'+ne99,')))
"""


def environment(**more: str) -> dict[str, str]:
  """Without settings of the user."""
  kept = {name: value for name, value in os.environ.items() if not name.startswith(('JAX_', 'QWEN3_', 'TF_', 'XLA_', 'TPU_'))}
  return kept | {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'} | more


def compute(folder, *words: str, **more: str) -> subprocess.Popen:
  run = [sys.executable, '-c', COMPUTE, str(folder), *words]
  return subprocess.Popen(run, cwd=ROOT, env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(devices.tpu_signs(), reason='there may be a TPU here')
def test_a_command_starts_quietly_and_says_its_devices_in_one_line(tiny_folder, tmp_path):
  (tmp_path / 'in.jsonl').write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
  words = ['batch', '--dry-run', '--model', tiny_folder, '--input', tmp_path / 'in.jsonl', '--output', tmp_path / 'out']
  run = [sys.executable, '-m', 'qwen3_omni_jax.cli', *map(str, words)]
  done = subprocess.run(run, env=environment(XDG_CACHE_HOME=str(tmp_path / 'cache')), capture_output=True, text=True)
  said, programs = done.stderr.splitlines()
  assert done.returncode == 0 and programs.startswith('programs: at most')
  assert said.startswith('devices: ') and f'compiled programs: {tmp_path}/cache/qwen3_omni_jax/programs/' in said


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='of programs for the processor')
def test_programs_from_the_disk_are_used_without_a_word_by_processes_side_by_side(tmp_path):
  cold = [compute(tmp_path) for _ in range(2)]
  said = [process.communicate() for process in cold]
  entries = {path.name: path.read_bytes() for path in tmp_path.rglob('*-cache')}
  assert entries and not list(tmp_path.glob('*-cache'))  # in a part of its own for this processor
  subprocess.run([sys.executable, '-c', TAMPER, str(tmp_path)], check=True)
  said += [compute(tmp_path).communicate(), compute(tmp_path, 'log').communicate()]
  for out, err in said[:3]:
    assert out.startswith('1.68') and len(err.splitlines()) == 1, err
  assert 'cpu_aot_loader' in said[3][1]  # they did come from the disk: unhidden, XLA's loader is heard


@pytest.fixture
def settings(monkeypatch):
  """jax's settings as they are at a start, and given back; a user without variables of ours."""
  names = (
    'enable_compilation_cache',
    'compilation_cache_dir',
    'compilation_cache_max_size',
    'persistent_cache_min_compile_time_secs',
  )
  before = {f'jax_{name}': getattr(jax.config, f'jax_{name}') for name in names}
  monkeypatch.delenv(compile_cache.VARIABLE, raising=False)
  monkeypatch.delenv('JAX_COMPILATION_CACHE_MAX_SIZE', raising=False)
  jax.config.update('jax_compilation_cache_dir', None)
  yield lambda: jax.config.jax_compilation_cache_dir
  for name, value in before.items():
    jax.config.update(name, value)


def test_the_flag_goes_before_the_variable_then_jax_then_the_users_cache(settings, tmp_path, monkeypatch):
  part = compile_cache.machine()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
  assert compile_cache.keep_programs().endswith(f'{tmp_path}/xdg/qwen3_omni_jax/programs/{part}')
  assert settings() == f'{tmp_path}/xdg/qwen3_omni_jax/programs/{part}' and jax.config.jax_compilation_cache_max_size > 0
  assert pathlib.Path(settings()).stat().st_mode & 0o777 == 0o700
  jax.config.update('jax_compilation_cache_dir', 'of-jax')
  assert compile_cache.keep_programs() == 'compiled programs: of-jax' and settings() == 'of-jax'
  monkeypatch.setenv(compile_cache.VARIABLE, str(tmp_path / 'variable'))
  compile_cache.keep_programs()
  assert settings() == f'{tmp_path}/variable/{part}'
  compile_cache.keep_programs(str(tmp_path / 'flag'))
  assert settings() == f'{tmp_path}/flag/{part}'
  compile_cache.keep_programs('gs://bucket/programs/')
  assert settings() == f'gs://bucket/programs/{part}'
  assert jax.config.jax_enable_compilation_cache and compile_cache.keep_programs('off') == ''
  assert not jax.config.jax_enable_compilation_cache


def test_a_folder_that_cannot_hold_programs_is_an_error_where_it_was_named_and_said_where_not(settings, tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match='compiled programs cannot be kept in .*file.*; name another folder, or off'):
    compile_cache.keep_programs(str(tmp_path / 'file'))
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  assert 'compiled programs are not kept' in compile_cache.keep_programs() and settings() is None
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  (compile_cache.default_folder() / compile_cache.machine()).mkdir(parents=True)
  (compile_cache.default_folder() / compile_cache.machine()).chmod(0o777)
  assert 'others may write there' in compile_cache.keep_programs() and settings() is None


def test_processes_of_one_program_keep_none_unless_a_folder_is_named(settings, tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  assert compile_cache.keep_programs(processes=2) == '' and settings() is None
  assert compile_cache.keep_programs(str(tmp_path / 'shared'), processes=2) and settings() is not None


def test_programs_half_written_by_a_killed_process_or_long_unused_are_removed(settings, tmp_path):
  folder = tmp_path / compile_cache.machine()
  folder.mkdir()
  for name in ('whole-cache', 'whole-atime', 'half-cache', 'old-cache', 'old-atime'):
    (folder / name).write_text('x')
  os.utime(folder / 'old-atime', times=(0, time.time() - (compile_cache.KEPT_DAYS + 1) * 86_400))
  compile_cache.keep_programs(str(tmp_path))
  assert {path.name for path in folder.iterdir() if path.name[0] != '.'} == {'whole-cache', 'whole-atime'}


@pytest.mark.parametrize(
  ('plugins', 'signs', 'libtpu', 'expected'),
  [
    ([], False, True, 'cpu'),
    (['cuda'], False, True, 'cuda,cpu'),
    ([], True, True, None),  # a TPU may be there: jax looks
    (None, False, True, None),  # a plugin for devices that are not known here
    ([], False, False, None),
  ],
)
def test_only_an_absent_tpu_is_left_out(monkeypatch, plugins, signs, libtpu, expected):
  monkeypatch.setattr(devices, '_plugins', lambda: plugins)
  monkeypatch.setattr(devices, '_nvidia', lambda: False)
  monkeypatch.setattr(devices, 'tpu_signs', lambda: signs)
  monkeypatch.setattr(devices.importlib.util, 'find_spec', lambda name: libtpu or None)
  before = jax.config.jax_platforms
  try:
    jax.config.update('jax_platforms', None)
    assert devices.without_absent_tpu() == expected
    jax.config.update('jax_platforms', 'tpu,cpu')  # chosen, or found by jax
    assert devices.without_absent_tpu() is None
  finally:
    jax.config.update('jax_platforms', before)


def test_signs_of_a_tpu_are_devices_and_what_its_hosts_set(monkeypatch):
  for name in devices._TPU_VARIABLES:
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(devices.glob, 'glob', lambda pattern: [])
  assert not devices.tpu_signs()
  monkeypatch.setenv('TPU_WORKER_ID', '0')
  assert devices.tpu_signs()
  monkeypatch.delenv('TPU_WORKER_ID')
  monkeypatch.setattr(devices.glob, 'glob', lambda pattern: ['/dev/accel0'] if 'accel' in pattern else [])
  assert devices.tpu_signs()
