"""The converted checkpoint: a folder with an Orbax checkpoint of our parameter tree and the published folder's small files.

    DIR/config.json, generation_config.json, tokenizer and processor files
    DIR/params/      the Orbax checkpoint; `orbax.checkpoint.v1.load(DIR/params)` restores it onto any mesh

Arrays are written one published tensor at a time, each its own chunk of the stacked array, so that memory never holds a stack
and a host later reads only the layers and experts it needs.
"""

import json
import math
import pathlib
import warnings

import numpy as np
import tensorstore as ts

from ..shapes import Params

PARAMS = 'params'
_CHUNK_BYTES = 32 * 2**20  # larger tensors are cut along their first axis, so that hosts can read parts


def is_converted(folder: pathlib.Path) -> bool:
  return (folder / PARAMS).is_dir()


def create(folder: pathlib.Path, shapes: dict[str, tuple[tuple[int, ...], int]], dtype: np.dtype) -> dict[str, ts.TensorStore]:
  """Empty arrays in a new checkpoint at folder/params, by path ('thinker/layers/attn/q').

  shapes: full shape of each array and the number of its leading (stacked) axes. Orbax writes its own metadata for one-element
  placeholders; each is then replaced by an array of the real shape. tests/weights/test_store.py restores through Orbax,
  so that a change of Orbax's layout is noticed.
  """
  from orbax.checkpoint import v1 as ocp

  root = (folder / PARAMS).absolute()
  tree: Params = {}
  for path, (shape, _) in shapes.items():
    *parents, name = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = np.zeros((1,) * len(shape), dtype)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # Orbax warns that it runs outside a distributed job
    ocp.save(root, tree)
  base = _kvstore(root)
  context = ts.Context()  # one for all: arrays that share it are committed together
  metadata = ts.KvStore.open(base, context=context).result()
  arrays = {}
  for path, (shape, stacked) in shapes.items():
    key = path.replace('/', '.') + '/'
    meta = json.loads(metadata.read(f'{key}zarr.json').result().value)
    meta['shape'] = list(shape)
    meta['chunk_grid']['configuration']['chunk_shape'] = list(_chunk(shape, stacked, dtype.itemsize))
    meta['codecs'] = [{'name': 'bytes', 'configuration': {'endian': 'little'}}]  # bf16 weights hardly compress
    spec = {'driver': 'zarr3', 'kvstore': {**base, 'path': key}, 'metadata': meta}
    arrays[path] = ts.open(spec, create=True, delete_existing=True, context=context).result()
  return arrays


def _chunk(shape: tuple[int, ...], stacked: int, itemsize: int) -> tuple[int, ...]:
  inner = shape[stacked:]
  rows = 1
  if inner:
    row_bytes = math.prod(inner[1:]) * itemsize
    rows = max(1, min(inner[0], _CHUNK_BYTES // max(row_bytes, 1)))
  return (1,) * stacked + ((rows, *inner[1:]) if inner else ())


def open_arrays(folder: pathlib.Path, paths: list[str]) -> dict[str, ts.TensorStore]:
  """The arrays of a converted folder, opened but not read. Raises ValueError listing missing and unknown ones."""
  base = _kvstore((folder / PARAMS).absolute())
  try:
    context = ts.Context()
    keys = ts.KvStore.open(base, context=context).result().list().result()
  except ValueError as e:
    raise ValueError(f'{folder / PARAMS}: not a readable checkpoint ({e})') from e
  present = {key.decode().removesuffix('/zarr.json').replace('.', '/') for key in keys if key.endswith(b'/zarr.json')}
  missing, unknown = sorted(set(paths) - present), sorted(present - set(paths))
  if missing or unknown:
    raise ValueError(f'{folder}: the weights do not match config.json\n  missing: {missing}\n  unknown: {unknown}')
  spec = lambda path: {'driver': 'zarr3', 'kvstore': {**base, 'path': path.replace('/', '.') + '/'}}
  return {path: ts.open(spec(path), open=True, read=True, context=context).result() for path in paths}


def _kvstore(root: pathlib.Path) -> dict:
  return {'driver': 'ocdbt', 'base': f'file://{root}/state'}
