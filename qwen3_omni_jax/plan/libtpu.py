"""The surroundings in which libtpu compiles without a TPU. Imports nothing, since it must come before jax."""

import os


def prepare_libtpu() -> None:
  """Lets libtpu compile without a TPU, beside other processes that do. Before jax is imported."""
  quiet = {
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-16',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_WORKER_ID': '0',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'JAX_PLATFORMS': 'cpu',
  }
  for name, value in quiet.items():
    os.environ.setdefault(name, value)
