"""python -m tests.models.step_of_one_process MESH OUT.npz: the step of training_step on a mesh over all processes.

Started once per process by tests/test_distributed.py; process 0 writes what came out.
"""

import sys

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from qwen3_omni_jax.distributed import initialize


def main(shape: str, out: str) -> None:
  jax.config.update('jax_numpy_dtype_promotion', 'strict')
  assert initialize() and initialize()  # the second call does nothing
  assert jax.device_count() == jax.process_count() * jax.local_device_count()
  from qwen3_omni_jax.sharding import make_mesh, mesh_shape
  from tests.models.training_step import WITHOUT_SPEECH, step_on

  mesh = make_mesh(mesh_shape(shape, jax.device_count()))
  everywhere = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))(step_on(mesh, WITHOUT_SPEECH))
  if jax.process_index() == 0:
    np.savez(out, *(np.asarray(leaf.addressable_data(0)) for leaf in jax.tree.leaves(everywhere)))
  jax.distributed.shutdown()


if __name__ == '__main__':
  main(*sys.argv[1:])
