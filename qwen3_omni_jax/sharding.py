"""Sharding on a mesh of devices: its axes, named strategies, and one table of rules.

Parameters name their dimensions (see nn.params.Param); RULES maps each to a mesh axis. Activations are sharded by rows over the
batch axes and by length over `context`. A mesh axis of size 1 does not shard, so the same program runs on a laptop and on a
pod. The current mesh is jax's own (`with jax.set_mesh(mesh):`); there is no other state.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

T = TypeVar('T')
MESH_AXES = ('data', 'fsdp', 'expert', 'tensor', 'context')
BATCH_AXES = ('data', 'fsdp', 'expert')  # rows are shared out over these: experts are reached from wherever a token is

# The mesh axis along which a dimension of a parameter is cut, by its name; None: every device holds all of it. Key-value
# heads are few (2 in the Talker) and small, so they stay whole.
RULES: dict[str, str | None] = {
  'layers': None,
  'embed': 'fsdp',
  'vocab': 'tensor',
  'heads': 'tensor',
  'kv_heads': None,
  'head_dim': None,
  'qkv': None,
  'mlp': 'tensor',
  'expert': 'expert',
  'expert_mlp': 'tensor',
  'expert_logits': None,
  'codebook': None,
  'positions': None,
  'patch': None,
  'mel': None,
  'conv_in': None,
  'conv_out': None,
  'conv_taps': None,
  'rank': None,
}

Shape = dict[str, int]  # size of each mesh axis; axes left out have size 1

_EXPERT_GROUP = 8  # devices that share one set of experts on a pod: near one another, and 16 experts each


_CONTEXT_GROUP = 4  # devices that share a long row


def _pod(devices: int, slices: int) -> Shape:
  group = math.gcd(devices // slices, _EXPERT_GROUP)
  return {'data': slices, 'fsdp': devices // slices // group, 'expert': group}


def _pod_long(devices: int, slices: int) -> Shape:
  context = math.gcd(devices // slices, _CONTEXT_GROUP)
  return _pod(devices // context, slices) | {'context': context}


def _serve(devices: int, slices: int) -> Shape:
  group = math.gcd(devices // slices, 128)
  return {'data': devices // group, 'expert': group}


# By name: (devices, slices) -> the shape of the mesh.
STRATEGIES: dict[str, Callable[[int, int], Shape]] = {
  'single': lambda devices, slices: {},  # one device, whatever there is
  'fsdp': lambda devices, slices: {'data': slices, 'fsdp': devices // slices},  # parameters cut, gathered layer by layer
  'expert': lambda devices, slices: {'data': slices, 'expert': devices // slices},  # experts stay, tokens travel
  'tensor': lambda devices, slices: {'data': slices, 'tensor': devices // slices},  # every matmul shared: lowest latency
  'pod': _pod,  # training: fsdp over groups of 8 devices that share the experts
  'pod_long': _pod_long,  # the same with every row cut over 4 devices
  'serve': _serve,  # inference: nothing is gathered; experts over as many devices as there are
}


def mesh_shape(text: str, devices: int, slices: int = 1) -> Shape:
  """The shape that a strategy's name or a list like 'fsdp=4,expert=2' asks for, on that many devices.

  Raises ValueError for unknown names and for sizes that do not multiply to the number of devices.
  """
  if text in STRATEGIES:
    return STRATEGIES[text](devices, slices)
  shape: Shape = {}
  for item in text.split(','):
    name, _, size = item.partition('=')
    if name not in MESH_AXES or not size.isdecimal() or int(size) < 1 or name in shape:
      raise ValueError(
        f'{text!r}: {item!r} is not understood; expected one of {", ".join(STRATEGIES)}, or sizes of mesh axes '
        f'({", ".join(MESH_AXES)}) as in fsdp=4,expert=2'
      )
    shape[name] = int(size)
  if math.prod(shape.values()) != devices:
    product = ' x '.join(map(str, shape.values()))
    raise ValueError(f'{text!r}: {product} = {math.prod(shape.values())} devices, there are {devices}')
  return shape


def make_mesh(shape: Mapping[str, int], devices: Sequence[Any] | None = None, slices: int = 1) -> Mesh:
  """A mesh with all of MESH_AXES. Several slices (joined by a slower network) are kept apart along `data`.

  devices: default all that jax has, or the first one for a shape of 1. Raises ValueError if the shape does not fit.
  """
  unknown = sorted(set(shape) - set(MESH_AXES))
  if unknown:
    raise ValueError(f'mesh axes {", ".join(unknown)}: expected some of {", ".join(MESH_AXES)}')
  sizes = [shape.get(axis, 1) for axis in MESH_AXES]
  devices = list(jax.devices() if devices is None else devices)
  if math.prod(sizes) == 1:
    devices = devices[:1]
  if math.prod(sizes) != len(devices):
    raise ValueError(f'a mesh of {_product(shape)} needs {math.prod(sizes)} devices, there are {len(devices)}')
  if sizes[0] % slices:
    raise ValueError(f'{slices} slices: data={sizes[0]} must be a multiple of them, so that only data crosses the slow network')
  types = (AxisType.Auto,) * len(MESH_AXES)
  if slices > 1 and getattr(devices[0], 'slice_index', None) is None:  # simulated slices: successive devices
    return Mesh(np.array(devices).reshape(sizes), MESH_AXES, axis_types=types)
  from jax.experimental import mesh_utils

  if slices > 1:
    grid = mesh_utils.create_hybrid_device_mesh(
      [sizes[0] // slices, *sizes[1:]], [slices, *(1,) * (len(sizes) - 1)], devices, allow_split_physical_axes=True
    )
  else:
    grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
  return Mesh(grid, MESH_AXES, axis_types=types)


def _product(shape: Mapping[str, int]) -> str:
  return ' x '.join(f'{axis} {size}' for axis, size in shape.items()) or 'one device'


def partition(axes: Sequence[str], mesh: Mesh) -> PartitionSpec:
  """Of a parameter with these dimension names. Raises ValueError for an unknown name, or one mesh axis used twice."""
  unknown = [axis for axis in axes if axis not in RULES]
  if unknown:
    raise ValueError(f'dimension names {", ".join(unknown)}: not in sharding.RULES; add a rule for each')
  chosen = [RULES[axis] for axis in axes]
  chosen = [axis if axis is not None and mesh.shape[axis] > 1 else None for axis in chosen]
  used = [axis for axis in chosen if axis is not None]
  if len(set(used)) != len(used):
    raise ValueError(f'dimensions {tuple(axes)}: two would be cut along one mesh axis ({used}); change a rule in sharding.RULES')
  return PartitionSpec(*chosen)


def param_shardings(spec: Mapping[str, Any], mesh: Mesh) -> Any:
  """A NamedSharding for every parameter of a spec (nested dict of nn.params.Param), in the same tree.

  Raises ValueError listing every dimension that the mesh does not divide.
  """
  indivisible: list[str] = []
  fitting: dict[str, int] = {}  # by mesh axis, the largest size that divides them all

  def walk(node, path: str):
    if not isinstance(node, Mapping):
      cut = partition(node.axes, mesh)
      for name, size, axis in zip(node.axes, node.shape, cut, strict=True):
        if axis is not None and size % mesh.shape[axis]:
          indivisible.append(f'{path}: {name} {size} over {axis}={mesh.shape[axis]}')
          fitting[axis] = math.gcd(fitting.get(axis, mesh.shape[axis]), size)
      return NamedSharding(mesh, cut)
    return {name: walk(child, f'{path}/{name}' if path else name) for name, child in node.items()}

  tree = walk(spec, '')
  if indivisible:
    fix = ','.join(f'{axis}={size}' for axis, size in fitting.items())
    raise ValueError(
      f'{len(indivisible)} dimensions cannot be cut evenly; choose a mesh whose axes divide them, as {fix} does:\n  '
      + '\n  '.join(indivisible)
    )
  return tree


def current_mesh():
  """The (abstract) mesh set by jax.set_mesh; None without one, or if it is of a single device."""
  mesh = jax.sharding.get_abstract_mesh()
  return None if mesh.empty or mesh.size == 1 or mesh.are_all_axes_manual else mesh


def follow_params(function: Callable[..., T]) -> Callable[..., T]:
  """function(params, ...), run with the mesh of the parameters as the current one: the computation follows them."""

  @functools.wraps(function)
  def call(params, *args, **kwargs):
    sharding = getattr(jax.tree.leaves(params)[0], 'sharding', None)
    if not isinstance(sharding, NamedSharding) or sharding.mesh.size == 1:
      return function(params, *args, **kwargs)
    with jax.set_mesh(sharding.mesh):
      return function(params, *args, **kwargs)

  return call


def jitted(function: Any) -> Any:
  """The function of `jax.jit` that `follow_params` wraps, or the function itself: to lower it, or to count its programs."""
  return function if hasattr(function, 'lower') else function.__wrapped__


def batch_axes(rows: int, mesh, axes: Sequence[str] = BATCH_AXES) -> tuple[str, ...]:
  """The mesh axes over which that many rows are shared out: of `axes`, in order, as long as they divide the rows.

  So a few rows to be decoded lie on as many devices as they fill, and the others help with experts and heads.
  """
  chosen: list[str] = []
  for axis in axes:
    if rows % math.prod(mesh.shape[a] for a in (*chosen, axis)):
      break
    chosen.append(axis)
  return tuple(axis for axis in chosen if mesh.shape[axis] > 1)


def length_axis(length: int, mesh) -> str | None:
  """'context' if sequences of that length are cut along it."""
  return 'context' if mesh.shape['context'] > 1 and length % mesh.shape['context'] == 0 else None


def item_axes(items: int, mesh) -> tuple[str, ...]:
  """The mesh axes over which what an encoder takes (audio windows, video frames) is shared out: `context` too."""
  return batch_axes(items, mesh, (*BATCH_AXES, 'context'))


def shard_items(x):
  """x, 'R S ...', held by what an encoder takes; by length only where that leaves `context` unused. Without a mesh, x itself."""
  mesh = current_mesh()
  if mesh is None:
    return x
  axes = item_axes(x.shape[0], mesh)
  length = None if 'context' in axes else length_axis(x.shape[1], mesh)
  return jax.lax.with_sharding_constraint(x, PartitionSpec(axes or None, length))


def shard_rows(x):
  """x, 'B T ...', held by rows and by length. Without a mesh, x itself."""
  mesh = current_mesh()
  if mesh is None:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(batch_axes(x.shape[0], mesh) or None, length_axis(x.shape[1], mesh)))


def shard_looked_up(x):
  """x, 'B T D', rows of a table whose width is cut over `fsdp`, held as shard_rows says. Without a mesh, x itself.

  In two steps, each of which the partitioner knows how to do; in one, on some meshes, every device would hold all of x.
  """
  mesh = current_mesh()
  if mesh is None:
    return x
  rows, length = batch_axes(x.shape[0], mesh), length_axis(x.shape[1], mesh)
  if 'fsdp' in rows and x.shape[2] % mesh.shape['fsdp'] == 0:
    others = tuple(axis for axis in rows if axis != 'fsdp')
    x = jax.lax.with_sharding_constraint(x, PartitionSpec(others or None, length, 'fsdp'))
  return shard_rows(x)


def everywhere(x):
  """x, whole on every device: for small tables that rows are looked up in."""
  return x if current_mesh() is None else jax.lax.with_sharding_constraint(x, PartitionSpec())


def shard_cache(cache):
  """A cache of 'L B S ...' arrays, held by rows. Without a mesh, the cache itself."""
  mesh = current_mesh()
  if mesh is None:
    return cache
  cut = lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec(None, batch_axes(x.shape[1], mesh) or None))
  return jax.tree.map(cut, cache)


def platform() -> str:
  """'cpu', 'gpu' or 'tpu': of the mesh in force (also when compiling for devices that are not there), else of jax."""
  mesh = jax.sharding.get_abstract_mesh()
  device = None if mesh.empty else mesh.abstract_device
  name = (device and device.platform) or jax.default_backend()
  return {'cuda': 'gpu', 'rocm': 'gpu'}.get(name, name)
