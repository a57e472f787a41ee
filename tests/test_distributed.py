"""Several processes are one program: who the others are comes from the environment, and the result is that of one process."""

import logging
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from qwen3_omni_jax.distributed import Cluster, find_cluster, initialize
from tests.conftest import ROOT
from tests.models.training_step import WITHOUT_SPEECH, assert_same_step, config, params_and_batch, step

SLURM = {
  'SLURM_JOB_ID': '5000',
  'SLURM_NTASKS': '16',
  'SLURM_STEP_NODELIST': 'gpu[07-08],gpu12',
  'SLURM_PROCID': '9',
  'SLURM_LOCALID': '1',
  'SLURM_NODEID': '1',
  'SLURM_STEP_TASKS_PER_NODE': '8(x2)',
  'CUDA_VISIBLE_DEVICES': '0,1,2,3,4,5,6,7',
}


@pytest.mark.parametrize(
  ('processes', 'devices', 'mesh'),
  [
    (2, 4, 'data=2,fsdp=2,expert=2'),
    pytest.param(4, 1, 'fsdp=2,expert=2', marks=pytest.mark.slow),
  ],
)
def test_processes_together_take_the_step_of_one(tmp_path, processes, devices, mesh):
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  plain = {name: value for name, value in os.environ.items() if not name.startswith('SLURM_')}
  started = []
  for process in range(processes):
    environ = plain | {
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
      'COORDINATOR_ADDRESS': f'localhost:{port}',
      'NUM_PROCESSES': str(processes),
      'PROCESS_ID': str(process),
    }
    command = [sys.executable, '-m', 'tests.models.step_of_one_process', mesh, str(tmp_path / 'out.npz')]
    started.append(subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
  try:
    said = [process.communicate(timeout=500)[0] for process in started]
  finally:
    for process in started:
      process.kill()
      process.wait()
      process.stdout.close()
  assert not any(process.returncode for process in started), '\n'.join(said)
  expected = jax.device_get(step(*params_and_batch(WITHOUT_SPEECH), config()))
  with np.load(tmp_path / 'out.npz') as leaves:
    got = jax.tree.unflatten(jax.tree.structure(expected), [leaves[name] for name in leaves.files])
  assert_same_step(got, expected)


def test_a_process_alone_is_left_as_it_is():
  assert find_cluster({}) is None
  assert find_cluster({'COORDINATOR_ADDRESS': 'a:1', 'NUM_PROCESSES': '1', 'PROCESS_ID': '0'}) is None
  assert find_cluster({'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '1', 'SLURM_PROCID': '0'}) is None
  assert not initialize({}) and not jax.distributed.is_initialized()


def test_plain_variables_name_the_others():
  plain = {'COORDINATOR_ADDRESS': 'host:1234', 'NUM_PROCESSES': '4', 'PROCESS_ID': '3'}
  assert find_cluster(plain | SLURM) == Cluster('COORDINATOR_ADDRESS', 'host:1234', 4, 3)
  assert find_cluster({f'JAX_{name}': value for name, value in plain.items()}) == find_cluster(plain)


@pytest.mark.parametrize(
  ('environ', 'message'),
  [
    ({'NUM_PROCESSES': '2'}, 'NUM_PROCESSES=2 in the environment, but not COORDINATOR_ADDRESS, PROCESS_ID: set all'),
    ({'COORDINATOR_ADDRESS': 'host:1', 'PROCESS_ID': '0'}, 'but not NUM_PROCESSES'),
    ({'COORDINATOR_ADDRESS': 'host', 'NUM_PROCESSES': '2', 'PROCESS_ID': '0'}, 'COORDINATOR_ADDRESS=host: expected HOST:PORT'),
    ({'COORDINATOR_ADDRESS': 'host:1', 'NUM_PROCESSES': '2', 'PROCESS_ID': '2'}, 'PROCESS_ID=2: expected .* from 0'),
    ({'COORDINATOR_ADDRESS': 'host:1', 'NUM_PROCESSES': 'two', 'PROCESS_ID': '0'}, 'NUM_PROCESSES=two'),
    ({name: value for name, value in SLURM.items() if name != 'SLURM_PROCID'}, 'a Slurm step without SLURM_PROCID'),
  ],
)
def test_half_set_variables_are_refused_by_name(environ, message):
  with pytest.raises(ValueError, match=message):
    find_cluster(environ)


def test_a_slurm_step_names_its_first_host_and_each_tasks_gpu():
  assert find_cluster(SLURM) == Cluster('Slurm', 'gpu07:62344', 16, 9, (1,))
  hosts = {'node1,other2': 'node1', 'node[3,5-9]': 'node3', 'a-b[010-020]-x,c[1]': 'a-b010-x'}
  for nodes, first in hosts.items():
    assert find_cluster(SLURM | {'SLURM_STEP_NODELIST': nodes}).address == f'{first}:62344'


def test_one_slurm_task_on_a_host_has_all_its_gpus():
  assert find_cluster(SLURM | {'SLURM_STEP_TASKS_PER_NODE': '8,1'}).local_devices is None
  assert find_cluster(SLURM | {'CUDA_VISIBLE_DEVICES': '5'}).local_devices is None  # Slurm hid the others


def test_a_slurm_process_that_srun_did_not_start_says_that_it_is_alone(caplog):
  batch_script = {name: value for name, value in SLURM.items() if 'STEP' not in name}
  with caplog.at_level(logging.WARNING):
    assert find_cluster(batch_script) is None
  assert 'start it with srun' in caplog.text


def test_tpu_hosts_find_one_another(monkeypatch):
  from jax._src import cloud_tpu_init

  gke = {'TPU_WORKER_HOSTNAMES': 'a,b,c,d', 'TPU_WORKER_ID': '2'}
  assert find_cluster(gke) is None  # no TPU on this machine
  monkeypatch.setattr(cloud_tpu_init, 'running_in_cloud_tpu_vm', True)
  assert find_cluster(gke) == Cluster('TPU slices')
  assert find_cluster({}) == Cluster('TPU metadata')
  assert find_cluster(gke | {'JAX_PLATFORMS': 'cpu'}) is None
  assert find_cluster(gke | {'TPU_WORKER_HOSTNAMES': 'localhost'}) is None
  assert find_cluster(gke | {'TPU_WORKER_HOSTNAMES': 'a', 'MEGASCALE_NUM_SLICES': '2'}) == Cluster('TPU slices')
  with pytest.raises(ValueError, match='names 4 hosts, but TPU_WORKER_ID is not set'):
    find_cluster({'TPU_WORKER_HOSTNAMES': 'a,b,c,d'})
