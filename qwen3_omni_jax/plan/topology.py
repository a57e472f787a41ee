"""Devices that are not there: libtpu compiles for a topology on any CPU; for GPUs shapes are counted on an abstract mesh."""

from typing import Any

from jax.experimental import topologies
from jax.sharding import AbstractMesh, AxisType

from qwen3_omni_jax.hardware import Topology
from qwen3_omni_jax.sharding import MESH_AXES, make_mesh, mesh_shape


def tpu_mesh(topology: Topology, strategy: str):
  """A mesh of the topology's devices. Raises ValueError for what libtpu does not know."""
  more: dict[str, Any] = {'num_slices': topology.slices} if topology.slices > 1 else {}
  if topology.shape == (1, 1):
    more['chips_per_host_bounds'] = (1, 1, 1)
  try:
    devices = topologies.get_topology_desc(platform='tpu', topology_name=topology.name, **more).devices
  except Exception as error:
    raise ValueError(f'{topology.name}: libtpu does not know this topology ({str(error).splitlines()[0]})') from error
  return make_mesh(mesh_shape(strategy, len(devices), topology.slices), devices, topology.slices)


def abstract_mesh(topology: Topology, strategy: str):
  """A mesh without devices, to count shapes on."""
  shape = mesh_shape(strategy, topology.devices, topology.slices)
  return AbstractMesh(tuple(shape.get(axis, 1) for axis in MESH_AXES), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
