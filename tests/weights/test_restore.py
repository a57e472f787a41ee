"""One checkpoint onto any number of devices and hosts: the same values, and each host reads what it needs, once."""

import json
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import tensorstore as ts
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from qwen3_omni_jax.config_json import parse_config
from qwen3_omni_jax.models.omni import omni_spec
from qwen3_omni_jax.nn.params import is_param
from qwen3_omni_jax.weights import writer
from qwen3_omni_jax.weights.load import load_params
from qwen3_omni_jax.weights.to_jax import convert_to_jax

from .folders import assert_same, fuse, odd_dict, random_tensors, write

KINDS = ('published', 'fused', 'converted')


def config() -> dict:
  """Eight experts, with most of the weights in them."""
  config = odd_dict('thinking')
  config['thinker_config']['text_config'] |= {'num_experts': 8, 'num_experts_per_tok': 3, 'moe_intermediate_size': 64}
  return config


@pytest.fixture(scope='module')
def folders(tmp_path_factory) -> dict[str, pathlib.Path]:
  root = tmp_path_factory.mktemp('restore')
  tensors = random_tensors(parse_config(config()))
  write(root / 'published', tensors, config())
  write(root / 'fused', fuse(tensors), config())
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(writer, 'CHUNK_BYTES', 4096)  # as the released sizes: several chunks to a tensor
    convert_to_jax(root / 'published', root / 'converted')
  return {kind: root / kind for kind in KINDS}


@pytest.fixture(scope='module')
def expected(folders):
  return load_params(folders['published'])


class BytesRead:
  """Bytes of tensors read from files by either reader since `start`."""

  def __init__(self, monkeypatch):
    self._published: list[int] = []  # appended to by several threads
    plain = np.fromfile

    def fromfile(file, dtype, count, **options):
      self._published.append(count * np.dtype(dtype).itemsize)
      return plain(file, dtype, count, **options)

    monkeypatch.setattr(np, 'fromfile', fromfile)
    self._before = self._converted()

  def _converted(self) -> int:
    metrics = ts.experimental_collect_matching_metrics('/tensorstore/kvstore/file/bytes_read')
    return sum(value['value'] for metric in metrics for value in metric['values'])

  def count(self) -> int:
    return sum(self._published) + self._converted() - self._before


def bytes_of(params) -> int:
  return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('mesh_shape', [(1, 1), (2, 4), (8, 1), (1, 8)])
@pytest.mark.parametrize('first', [True, False])
def test_any_mesh_gets_the_same_values_and_nothing_is_read_twice(folders, expected, kind, mesh_shape, first, monkeypatch):
  """first: split the first axes that divide, or the last ones, which lie across the chunks."""
  devices = jax.devices()[: int(np.prod(mesh_shape))]
  mesh = jax.make_mesh(mesh_shape, ('x', 'y'), axis_types=(AxisType.Auto,) * 2, devices=devices)

  def split(param):
    axes: list = [None] * len(param.shape)
    for name, size in zip('xy', mesh_shape, strict=True):
      free = [i for i, n in enumerate(param.shape) if axes[i] is None and n % size == 0]
      if free:
        axes[free[0 if first else -1]] = name
    return NamedSharding(mesh, PartitionSpec(*axes))

  onto = jax.tree.map(split, omni_spec(parse_config(config())), is_leaf=is_param)
  read = BytesRead(monkeypatch)
  loaded = load_params(folders[kind], shardings=onto)
  total, count = bytes_of(expected), read.count()
  assert jax.tree.all(jax.tree.map(lambda a, s: a.sharding == s, loaded, onto))
  assert_same(loaded, expected)
  if kind == 'converted':  # with a checksum to each chunk, metadata, and the tree that finds the chunks
    assert total < count < 1.2 * total
  else:
    assert count == total


PROCESS = """
import json, sys
import jax

port, process, axes = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
jax.distributed.initialize(f'127.0.0.1:{port}', num_processes=2, process_id=process)

import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from qwen3_omni_jax.config_json import load_config
from qwen3_omni_jax.models.omni import omni_spec
from qwen3_omni_jax.nn.params import is_param
from qwen3_omni_jax.weights.load import load_params
from tests.weights.test_restore import BytesRead

assert jax.device_count() == 8 and jax.local_device_count() == 4
mesh = jax.make_mesh((2, 4), ('host', 'local'), axis_types=(AxisType.Auto,) * 2)  # host i holds row i
split = lambda param: NamedSharding(mesh, PartitionSpec(*(axes.get(axis) for axis in param.axes)))
for folder in sys.argv[4:]:
  onto = jax.tree.map(split, omni_spec(load_config(folder)), is_leaf=is_param)
  with pytest.MonkeyPatch.context() as patch:
    read = BytesRead(patch)
    loaded = load_params(folder, shardings=onto)
    print('bytes read:', read.count())
  whole = load_params(folder)
  for here, full in zip(jax.tree.leaves(loaded), jax.tree.leaves(whole), strict=True):
    for shard in here.addressable_shards:
      np.testing.assert_array_equal(np.asarray(shard.data), full[shard.index])
  up, full = (tree['thinker']['layers']['moe']['experts']['up'] for tree in (loaded, whole))
  total = jax.jit(lambda x: (x * x).sum(), out_shardings=NamedSharding(mesh, PartitionSpec()))(up)  # over both hosts
  np.testing.assert_allclose(float(total), (full * full).sum(dtype=np.float64), rtol=1e-5)
"""


def read_by_two_processes(folders: list[pathlib.Path], axes: dict[str, str]) -> list[list[int]]:
  """Bytes of each folder read by each of two processes with four devices each. axes: {logical axis: mesh axis 'host' or
  'local'}."""
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  root = pathlib.Path(__file__).parents[2]
  environment = {'XLA_FLAGS': '--xla_force_host_platform_device_count=4', 'JAX_PLATFORMS': 'cpu', 'PATH': '', 'HOME': str(root)}
  command = lambda process: [sys.executable, '-c', PROCESS, str(port), str(process), json.dumps(axes), *map(str, folders)]
  started = [
    subprocess.Popen(command(i), cwd=root, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for i in range(2)
  ]
  counts = []
  for process in started:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    said = [line for line in out.splitlines() if line.startswith('bytes read:')]  # gloo writes there too, when it likes
    counts.append([int(line.split()[-1]) for line in said])
  return counts


def test_each_of_two_hosts_reads_its_half_of_the_experts(folders, expected):
  """Of every kind of folder, one after another."""
  experts = sum(value.nbytes for value in expected['thinker']['layers']['moe']['experts'].values())
  rest = bytes_of(expected) - experts
  assert experts > 0.5 * bytes_of(expected)
  for of_kinds in read_by_two_processes([folders[kind] for kind in KINDS], {'expert': 'host', 'mlp': 'local'}):
    for kind, count in zip(KINDS, of_kinds, strict=True):
      if kind == 'converted':
        assert 0.5 * experts + rest < count < 1.2 * (0.5 * experts + rest), kind
      else:
        assert count == experts // 2 + rest, kind
