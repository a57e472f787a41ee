"""Our parameter tree in a checkpoint that Orbax itself wrote, as training leaves it: read tensor by tensor.

FOLDER is what `orbax.checkpoint.v1.save` was given, or holds it as `params`, or is a step folder with an item `params`;
the tree lies at its root or under `params`. config.json lies in FOLDER or beside it (of STEP/params: beside STEP).

A step folder of training may have an item `ema`, averages of the parameters that were trained. They are read in place of those
parameters; FOLDER/params by its own name is without them. An item `router_bias` (train.router_bias) is no parameter.
"""

import pathlib
from typing import Any

import numpy as np
import tensorstore as ts

from .remote import is_url
from .store import DAMAGED, PARAMS, Arrays, first_line, part_of

CACHE_BYTES = 2**30  # Orbax's chunks may hold many tensors: they stay at hand while one tensor after the other is read
AVERAGES = 'ema'
ROUTER_BIAS, _BIAS_PATH = 'router_bias', 'thinker/layers/moe/router_bias'
_DATABASE = 'manifest.ocdbt'
_NOT_PUBLISHED = ('commit_success.txt', 'orbax.checkpoint')  # Orbax's own files, beside those whose name starts with _


def find_database(folder: pathlib.Path) -> pathlib.Path | None:
  """The folder with the arrays of a checkpoint written by Orbax; None if there is none."""
  places = (folder / PARAMS / 'state', folder / PARAMS, folder / 'state', folder)
  return next((place for place in places if (place / _DATABASE).is_file()), None)


def find_averages(folder: pathlib.Path) -> pathlib.Path | None:
  """The folder with the averages of a step of training; None if there are none."""
  return folder / AVERAGES if (folder / AVERAGES / _DATABASE).is_file() else None


def largest_bias(folder: pathlib.Path) -> float:
  """The largest bias of expert selection in a step of training, or in the one that FOLDER is the params of; 0: there is none."""
  place = next((f / ROUTER_BIAS for f in (folder, folder.parent) if (f / ROUTER_BIAS / _DATABASE).is_file()), None)
  if place is None:
    return 0.0
  context = ts.Context()
  spec = _specs(place, {_BIAS_PATH: ()}, context)[_BIAS_PATH]
  return float(np.abs(ts.open(spec, open=True, read=True, context=context).result().read().result()).max())


def config_folder(folder: pathlib.Path) -> pathlib.Path | None:
  """Where config.json and the other small files lie; None if they do not, and in a bucket, of which only arrays are read."""
  if is_url(folder):
    return None
  places = (folder, folder.parent, *((folder.parent.parent,) if folder.name == PARAMS else ()))
  return next((place for place in places if (place / 'config.json').is_file()), None)


def is_orbax_file(name: str) -> bool:
  """Whether a file is Orbax's own, and says nothing outside its checkpoint."""
  return name.startswith('_') or name in _NOT_PUBLISHED


class PlainArrays(Arrays):
  """The arrays of such a checkpoint. Those that are not of our tree (an optimiser's state) are left alone.

  problems: of the parts that it holds, what is missing, of another shape, not floating point or damaged.
  """

  def __init__(
    self, folder: pathlib.Path, database: pathlib.Path, shapes: dict[str, tuple[int, ...]], averages: pathlib.Path | None = None
  ):
    """averages: a second database, whose arrays go before those of the first."""
    self.folder, self._arrays = folder, {}
    context = ts.Context({'cache_pool': {'total_bytes_limit': CACHE_BYTES}})
    specs = _specs(database, shapes, context)
    self.parts = tuple(dict.fromkeys(map(part_of, specs)))
    if averages is not None:
      specs |= _specs(averages, shapes, context)
    damaged, misshapen, integers = [], [], []
    for path, spec in specs.items():
      try:
        array = ts.open(spec, open=True, read=True, context=context).result()
      except DAMAGED as error:
        damaged.append(f'{path}: {first_line(error)}')
        continue
      self._arrays[path] = array
      if tuple(array.shape) != shapes[path]:
        misshapen.append(f'{path}: found {list(array.shape)}, expected {list(shapes[path])}')
      if array.dtype.name not in ('bfloat16', 'float16', 'float32', 'float64'):
        integers.append(f'{path}: {array.dtype.name}')
    self.problems = {
      'missing': [path for path in shapes if part_of(path) in self.parts and path not in specs],
      'of_another_shape': misshapen,
      'not_floating_point': integers,
      'damaged': damaged,
    }
    if not self.parts:
      expected = ', '.join(dict.fromkeys(map(part_of, shapes)))
      raise ValueError(f'{database}: holds none of the parameters; expected a tree with {expected}')


def _specs(database: pathlib.Path, shapes: dict[str, tuple[int, ...]], context: ts.Context) -> dict[str, dict[str, Any]]:
  """{our path: how tensorstore opens it} of the arrays there that are of our tree."""
  files = f'{database}/' if is_url(database) else {'driver': 'file', 'path': f'{database.absolute()}/'}
  base = {'driver': 'ocdbt', 'base': files}
  try:
    keys = [key.decode() for key in ts.KvStore.open(base, context=context).result().list().result()]
  except DAMAGED as error:
    raise ValueError(f'{database}: cannot be read ({first_line(error)})') from error
  drivers = {'zarr.json': 'zarr3', '.zarray': 'zarr'}
  found = {key.rsplit('/', 1)[0]: drivers[end] for key in keys if (end := key.rsplit('/', 1)[-1]) in drivers}
  prefix = next((p for p in ('', 'params.') if any(p + path.replace('/', '.') in found for path in shapes)), '')
  ours = {path: f'{prefix}{path.replace("/", ".")}' for path in shapes}
  return {
    path: {'driver': found[key], 'kvstore': {**base, 'path': f'{key}/'}, 'fill_missing_data_reads': False}
    for path, key in ours.items()
    if key in found
  }
