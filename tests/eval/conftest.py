"""The synthetic data of every family, made once a session."""

import pytest

from . import fixtures


@pytest.fixture(scope='session')
def benchmark_root(tmp_path_factory, samples):
  return fixtures.write_all(tmp_path_factory.mktemp('benchmarks'), samples)
