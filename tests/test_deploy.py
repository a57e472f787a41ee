"""Launch files are well formed, and call commands with flags that exist."""

import re
import shlex
import subprocess

import pytest
import yaml

from qwen3_omni_jax.cli import COMMANDS, build_parser
from qwen3_omni_jax.distributed import find_cluster
from tests.conftest import ROOT

DEPLOY = ROOT / 'deploy'
SCRIPTS = sorted([*DEPLOY.glob('*.sbatch'), *DEPLOY.glob('*.sh')])
JOBSETS = sorted(DEPLOY.glob('*.yaml'))
PLANNED = {'train', 'batch'}  # commands that may be named


def containers(path):
  for job in yaml.safe_load(path.read_text())['spec']['replicatedJobs']:
    yield job, job['template']['spec'], job['template']['spec']['template']['spec']['containers'][0]


def named_commands():
  """Words after `qwen3-omni`, in scripts, job sets and the README."""
  for path in (*SCRIPTS, DEPLOY / 'README.md'):
    for call in re.findall(r'qwen3-omni"? ((?:train|batch)[^\n`]*)', path.read_text()):
      yield path.name, shlex.split(call)
  for path in JOBSETS:
    for _, _, container in containers(path):
      program, *words = [*container['command'], *container['args']]
      assert program == 'qwen3-omni'
      yield path.name, words


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(path):
  done = subprocess.run(['bash', '-n', str(path)], capture_output=True, text=True)
  assert not done.returncode, done.stderr


def test_commands_and_flags_exist():
  subparsers = next(action for action in build_parser()._actions if action.dest == 'command').choices
  seen = set()
  for name, (command, *words) in named_commands():
    assert command in PLANNED, name
    seen.add(command)
    if command in COMMANDS:
      known = subparsers[command]._option_string_actions
      assert [word for word in words if word.startswith('--') and word not in known] == [], name
  assert seen == PLANNED


@pytest.mark.parametrize('path', JOBSETS, ids=lambda path: path.name)
def test_job_sets_ask_for_as_many_hosts_as_they_start(path):
  for job, spec, container in containers(path):
    assert spec['parallelism'] == spec['completions']
    assert container['resources']['requests'] == container['resources']['limits']
    selector = spec['template']['spec'].get('nodeSelector', {})
    if topology := selector.get('cloud.google.com/gke-tpu-topology'):
      chips = [int(side) for side in topology.split('x')]
      assert chips[0] * chips[1] == spec['parallelism'] * int(container['resources']['limits']['google.com/tpu'])
    environ = {entry['name']: entry.get('value', '1') for entry in container.get('env', [])}
    if environ:
      cluster = find_cluster(environ)
      assert cluster is not None and cluster.processes == spec['parallelism'] * job['replicas'] and cluster.process == 1
      port = int(cluster.address.rpartition(':')[2])
      assert {'containerPort': port} in container['ports']
      name = yaml.safe_load(path.read_text())['metadata']['name']
      assert cluster.address.startswith(f'{name}-{job["name"]}-0-0.{name}:')  # the first pod, as JobSet names it


def test_the_image_installs_extras_that_exist():
  import tomllib

  extras = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies']
  text = (DEPLOY / 'Dockerfile').read_text()
  assert {'train', 'eval', 'tpu', 'gpu'} <= set(extras)
  assert re.search(r'extras="train,eval', text) and 'constraints.txt' in text
