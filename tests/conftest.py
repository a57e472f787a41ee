"""Shared set-up: eight CPU devices, strict dtypes, a persistent compilation cache, and checkpoints made once a session."""

import contextlib
import os
import pathlib

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['XLA_FLAGS'] = (os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8').strip()
# Threads of jax's CPU client. One for each device would be too few: a device may wait in two collectives at once, and where all
# threads wait, nobody comes.
os.environ.setdefault('NPROC', '32')
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

import hypothesis
import jax
import pytest

from tests.quick import quick_to_compile

ROOT = pathlib.Path(__file__).parent.parent
CACHE = ROOT / '.cache' / 'jax'

# Generated cases are the same in every run; a failing one is printed, not stored.
hypothesis.settings.register_profile('same', derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile('same')

jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_compilation_cache_dir', str(CACHE))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)


@pytest.fixture(scope='module', autouse=True)
def _programs_of_one_module(request):
  """Compiles as the module's marks say, and drops its programs: each is mapped memory, of which Linux allows 65,530 pieces."""
  with quick_to_compile() if request.node.get_closest_marker('quick_to_compile') else contextlib.nullcontext():
    yield
  jax.clear_caches()


@pytest.fixture(scope='session')
def tiny_folder(tmp_path_factory) -> pathlib.Path:
  """A tiny Instruct checkpoint in the published layout."""
  from qwen3_omni_jax.tools.tiny import make_checkpoint

  folder = tmp_path_factory.mktemp('tiny') / 'hf'
  make_checkpoint(folder, preset='tiny', seed=0)
  return folder


@pytest.fixture(scope='session')
def samples(tmp_path_factory) -> dict[str, pathlib.Path]:
  """Sample media files by name (see tools.sample_media)."""
  from qwen3_omni_jax.tools.sample_media import write_samples

  return write_samples(tmp_path_factory.mktemp('samples'))


def pytest_addoption(parser):
  parser.addoption('--parity-report', metavar='JSON', help='write what the parity tests measured to this file')


def pytest_sessionfinish(session):
  if path := session.config.getoption('--parity-report'):
    from tests.parity import report

    report.write(path)
