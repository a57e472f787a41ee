"""Joins several processes into one program: call `initialize` before anything else of jax.

The same command is started once on every host (deploy/ has launch files). The other processes are found from the environment,
in this order:

    COORDINATOR_ADDRESS, NUM_PROCESSES, PROCESS_ID   set by hand or by a launch file; also with JAX_ in front
    SLURM_…                                          steps started by srun
    TPU_WORKER_HOSTNAMES, MEGASCALE_NUM_SLICES       TPU slices on GKE (Job or JobSet)
    the metadata server                              TPU VMs

A single process needs nothing.
"""

import dataclasses
import logging
import os
import re
from collections.abc import Mapping

import jax

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Cluster:
  """What a process is told of the others. local_devices: numbers of this host's GPUs that are its own; None for all.

  found_by: what said so. Where jax itself asks around (TPU), address, processes and process are None.
  """

  found_by: str
  address: str | None = None
  processes: int | None = None
  process: int | None = None
  local_devices: tuple[int, ...] | None = None


def initialize(environ: Mapping[str, str] | None = None) -> bool:
  """Joins the processes that the environment names; True if there are others. A second call does nothing.

  Must come before the first computation. On CPU the processes talk through gloo.
  Raises ValueError for variables that are half set or contradict one another.
  """
  if jax.distributed.is_initialized():
    return jax.process_count() > 1
  cluster = find_cluster(os.environ if environ is None else environ)
  if cluster is None:
    return False
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  if cluster.address is None:
    jax.distributed.initialize()
  else:
    jax.distributed.initialize(
      cluster.address, cluster.processes, cluster.process, cluster.local_devices, cluster_detection_method='deactivate'
    )
  log.info('process %d of %d (by %s)', jax.process_index(), jax.process_count(), cluster.found_by)
  return jax.process_count() > 1


def find_cluster(environ: Mapping[str, str]) -> Cluster | None:
  """None for a process that is alone. Raises ValueError as `initialize` does; asks nobody."""
  return _plain(environ) or _slurm(environ) or _tpu(environ)


PLAIN = ('COORDINATOR_ADDRESS', 'NUM_PROCESSES', 'PROCESS_ID')


def _plain(environ: Mapping[str, str]) -> Cluster | None:
  found = {name: environ.get(name) or environ.get(f'JAX_{name}') for name in PLAIN}
  missing = [name for name, value in found.items() if not value]
  if len(missing) == len(PLAIN):
    return None
  if missing:
    given = ', '.join(f'{name}={value}' for name, value in found.items() if value)
    raise ValueError(f'{given} in the environment, but not {", ".join(missing)}: set all of {", ".join(PLAIN)}, or none of them')
  address, number, process = (found[name] or '' for name in PLAIN)
  if not re.fullmatch(r'\S+:\d+', address):
    raise ValueError(f'COORDINATOR_ADDRESS={address}: expected HOST:PORT of process 0, reached from every host')
  if not number.isdecimal() or not process.isdecimal() or int(process) >= int(number):
    raise ValueError(
      f'NUM_PROCESSES={number}, PROCESS_ID={process}: expected how many processes there are, and the number of this one, from 0'
    )
  return Cluster('COORDINATOR_ADDRESS', address, int(number), int(process)) if int(number) > 1 else None


def _slurm(environ: Mapping[str, str]) -> Cluster | None:
  if 'SLURM_JOB_ID' not in environ or int(environ.get('SLURM_NTASKS', 1)) == 1:
    return None
  if 'SLURM_STEP_NODELIST' not in environ:  # a batch script, or an allocation's shell: one process whatever was asked for
    log.warning('%s Slurm tasks, but this process is not one of them and runs alone: start it with srun', environ['SLURM_NTASKS'])
    return None
  needed = ('SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_LOCALID')
  missing = [name for name in needed if not environ.get(name, '').isdecimal()]
  if missing:
    raise ValueError(f'a Slurm step without {", ".join(missing)}: start with srun, and pass its variables on to the process')
  number, process, local = (int(environ[name]) for name in needed)
  if number == 1:
    return None
  host = _first_host(environ['SLURM_STEP_NODELIST'])
  port = environ.get('JAX_COORDINATOR_PORT') or 61440 + int(environ['SLURM_JOB_ID']) % 4096  # jobs that share a host differ
  return Cluster('Slurm', f'{host}:{port}', number, process, _gpus_of_task(environ, local))


def _first_host(nodes: str) -> str:
  """'gpu[003-005,7],login' -> 'gpu003'."""
  return re.sub(r'\[([^],-]+)[^]]*\]', r'\1', re.split(r',(?![^\[]*\])', nodes)[0])


def _gpus_of_task(environ: Mapping[str, str], local: int) -> tuple[int, ...] | None:
  """One task on a host has all its GPUs; of several, each has its own, unless Slurm already hid the others."""
  tasks = _tasks_on_hosts(environ.get('SLURM_STEP_TASKS_PER_NODE') or environ.get('SLURM_TASKS_PER_NODE') or '1')
  visible = [gpu for gpu in environ.get('CUDA_VISIBLE_DEVICES', '').split(',') if gpu]
  if tasks[int(environ.get('SLURM_NODEID', 0)) % len(tasks)] == 1 or len(visible) == 1:
    return None
  return (local,)


def _tasks_on_hosts(text: str) -> list[int]:
  """'8(x2),4' -> [8, 8, 4]."""
  parts = (re.fullmatch(r'(\d+)(?:\(x(\d+)\))?', part) for part in text.split(','))
  return [int(part[1]) for part in parts if part for _ in range(int(part[2] or 1))]


def _tpu(environ: Mapping[str, str]) -> Cluster | None:
  """Whether jax, which knows TPU slices and how they are joined, should look for the others."""
  from jax._src import cloud_tpu_init  # the only place that says whether this host has TPU chips and a library for them

  if not cloud_tpu_init.running_in_cloud_tpu_vm or 'tpu' not in (environ.get('JAX_PLATFORMS') or 'tpu').split(','):
    return None
  hosts = [host for host in environ.get('TPU_WORKER_HOSTNAMES', '').split(',') if host]
  slices = int(environ.get('MEGASCALE_NUM_SLICES') or 1)
  if hosts and not environ.get('TPU_WORKER_ID', '').isdecimal():
    raise ValueError(f'TPU_WORKER_HOSTNAMES names {len(hosts)} hosts, but TPU_WORKER_ID is not set: set both, or neither')
  if len(hosts) == 1 and slices == 1 or environ.get('TPU_SKIP_MDS_QUERY') and not hosts:
    return None
  return Cluster('TPU slices' if hosts else 'TPU metadata')
