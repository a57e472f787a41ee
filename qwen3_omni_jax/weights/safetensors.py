"""Safetensors files, read and written without torch and without trusting their headers.

The format: 8 bytes of header length, a JSON header of {name: {dtype, shape, data_offsets}}, then the data. Only the
bytes asked for are read, into memory of their own: pages of a memory map would count as ours until the kernel takes
them back.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping

import ml_dtypes
import numpy as np

DTYPES = {
  'F64': np.dtype('<f8'),
  'F32': np.dtype('<f4'),
  'F16': np.dtype('<f2'),
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'F8_E4M3': np.dtype(ml_dtypes.float8_e4m3fn),
  'F8_E5M2': np.dtype(ml_dtypes.float8_e5m2),
  'F8_E8M0': np.dtype(ml_dtypes.float8_e8m0fnu),
  'I64': np.dtype('<i8'),
  'I32': np.dtype('<i4'),
  'I16': np.dtype('<i2'),
  'I8': np.dtype('i1'),
  'U64': np.dtype('<u8'),
  'U32': np.dtype('<u4'),
  'U16': np.dtype('<u2'),
  'U8': np.dtype('u1'),
  'BOOL': np.dtype('?'),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER = 100 * 2**20  # the format's own limit
INDEX = 'model.safetensors.index.json'
Memory = Callable[[int], np.ndarray]  # so many bytes, as an array of uint8


class Header:
  """What a safetensors file holds and where. Raises ValueError naming the file if anything about it is not right.

  raw: the start of the file, up to the data. size: bytes of data. metadata: texts by name.
  """

  def __init__(self, path: pathlib.Path, raw: bytes):
    self.path, self.raw = path, raw
    try:
      entries = json.loads(raw[8:], object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as e:
      raise ValueError(f'{path}: broken safetensors header ({e})') from e
    if not isinstance(entries, dict):
      raise ValueError(f'{path}: broken safetensors header: expected an object, found {type(entries).__name__}')
    metadata = entries.pop('__metadata__', None)
    self.metadata: dict[str, str] = metadata if isinstance(metadata, dict) else {}
    self._entries = {name: self._check(name, entry) for name, entry in entries.items()}
    self.size = self._check_offsets()

  def _check(self, name: str, entry) -> tuple[np.dtype, tuple[int, ...], int, int]:
    def fail(what):
      raise ValueError(f'{self.path}: tensor {name[:200]}: {what}')

    if not isinstance(entry, dict) or not {'dtype', 'shape', 'data_offsets'} <= entry.keys():
      fail('its header entry lacks dtype, shape or data_offsets')
    dtype, shape, offsets = entry['dtype'], entry['shape'], entry['data_offsets']
    if not isinstance(dtype, str) or dtype not in DTYPES:
      fail(f'dtype {str(dtype)[:40]} is not one of {", ".join(DTYPES)}')
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**40 for n in shape) or len(shape) > 16:
      fail(f'impossible shape {str(shape)[:80]}')
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int for n in offsets):
      fail(f'impossible data_offsets {str(offsets)[:80]}')
    begin, end = offsets
    if end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
      size = math.prod(shape) * DTYPES[dtype].itemsize
      fail(f'shape {shape} of {dtype} takes {size} bytes, its offsets span {end - begin}')
    return DTYPES[dtype], tuple(shape), begin, end

  def _check_offsets(self) -> int:
    """The tensors must tile the data exactly: no gap, no overlap. Returns where they end."""
    at = 0
    for name, (_, _, begin, end) in sorted(self._entries.items(), key=lambda item: (item[1][2], item[1][3])):
      if begin != at:
        what = 'overlapping or missing data'
        raise ValueError(f'{self.path}: tensor {name[:200]} starts at byte {begin}, expected {at}: {what}')
      at = end
    return at

  def names(self) -> list[str]:
    return list(self._entries)

  def shape(self, name: str) -> tuple[int, ...]:
    return self._entries[name][1]

  def dtype(self, name: str) -> np.dtype:
    return self._entries[name][0]

  def start(self, name: str) -> int:
    """Where the tensor starts in the file."""
    return len(self.raw) + self._entries[name][2]


class Shard(Header):
  """One safetensors file, opened for reading. Raises ValueError as Header does."""

  def __init__(self, path: pathlib.Path):
    if not path.is_file():
      raise ValueError(f'{path}: no such file')
    size = path.stat().st_size
    with path.open('rb') as file:
      start = file.read(8)
      length = int.from_bytes(start, 'little')
      if len(start) < 8 or length > min(_MAX_HEADER, size - 8):
        raise ValueError(f'{path}: not a safetensors file (its header claims {length} of {size} bytes)')
      super().__init__(path, start + file.read(length))
    if self.size != size - len(self.raw):
      what = 'truncated or padded'
      raise ValueError(f'{path}: the header describes {self.size} bytes of data, the file has {size - len(self.raw)}: {what}')

  def read(self, name: str, part: tuple[int | slice, ...] = (), memory: Memory | None = None) -> np.ndarray:
    """The tensor, or a part of it: indices into its leading axes, of which the last may be a slice of step 1.

    Reads only the bytes of the part. memory: gives bytes to read into; memory of its own otherwise. Raises ValueError if the
    file has become shorter since it was opened.
    """
    dtype, shape, _, _ = self._entries[name]
    first = 0  # element of the tensor
    for i in part:
      rows = range(*i.indices(shape[0])) if isinstance(i, slice) else range(i, i + 1)
      first += rows.start * math.prod(shape[1:])
      shape = (len(rows), *shape[1:]) if isinstance(i, slice) else shape[1:]
    size = math.prod(shape) * dtype.itemsize
    offset = self.start(name) + first * dtype.itemsize
    if memory is None:
      data = np.fromfile(self.path, np.uint8, size, offset=offset)
      got = data.size
    else:
      data = memory(size)
      with self.path.open('rb') as file:
        file.seek(offset)
        got = file.readinto(data.data)
    if got != size:
      raise ValueError(f'{self.path}: truncated since it was opened; tensor {name} needs {size} bytes, got {got}')
    return data.view(dtype).reshape(shape)


def no_duplicates(pairs):
  out = {}
  for key, value in pairs:
    if key in out:
      raise ValueError(f'{key[:200]!r} appears twice')
    out[key] = value
  return out


Declared = Mapping[str, tuple[np.dtype, tuple[int, ...]]]  # dtype and shape of every tensor, in the order of writing


@dataclasses.dataclass(frozen=True)
class Shards:
  """The files of a checkpoint without their values. headers: by file name. index: that file, None where there is none."""

  headers: dict[str, Header]
  index: bytes | None

  def declared(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    return {name: (h.dtype(name), h.shape(name)) for h in self.headers.values() for name in h.names()}


def plan_shards(shapes: Declared, shard_bytes: int = 5 * 10**9) -> Shards:
  """Numbered shards of at most that size (but for larger tensors), with an index."""
  groups: list[list[str]] = [[]]
  room = 0
  for name, (dtype, shape) in shapes.items():
    size = np.dtype(dtype).itemsize * math.prod(shape)
    if groups[-1] and room + size > shard_bytes:
      groups.append([])
      room = 0
    groups[-1].append(name)
    room += size
  files = {f'model-{i + 1:05d}-of-{len(groups):05d}.safetensors': names for i, names in enumerate(groups)}
  headers = {file: Header(pathlib.Path(file), _header(names, shapes)) for file, names in files.items()}
  return Shards(headers, index_of(headers))


def index_of(headers: Mapping[str, Header]) -> bytes:
  """The index file of these shards."""
  weight_map = {name: file for file, header in headers.items() for name in header.names()}
  index = {
    'metadata': {'total_size': sum(header.size for header in headers.values())},
    'weight_map': dict(sorted(weight_map.items())),
  }
  return (json.dumps(index, indent=2) + '\n').encode()


def _header(names: list[str], shapes: Declared, metadata: Mapping[str, str] = {'format': 'pt'}) -> bytes:
  header: dict[str, dict] = {'__metadata__': dict(metadata)}
  at = 0
  for name in names:
    dtype, shape = shapes[name]
    end = at + np.dtype(dtype).itemsize * math.prod(shape)
    header[name] = {'dtype': _NAMES[np.dtype(dtype)], 'shape': list(shape), 'data_offsets': [at, end]}
    at = end
  encoded = json.dumps(header, separators=(',', ':')).encode()
  encoded += b' ' * (-len(encoded) % 8)  # data starts at a multiple of 8 bytes
  return len(encoded).to_bytes(8, 'little') + encoded


def write_shards(
  folder: pathlib.Path, tensors: Iterable[tuple[str, np.ndarray]], shapes: Declared, shard_bytes: int = 5 * 10**9
) -> None:
  """Writes numbered shards, then their index. Memory holds one tensor.

  tensors: the values, in the order of `shapes`. Raises ValueError if they are not exactly those declared.
  """
  plan = plan_shards(shapes, shard_bytes)
  values = iter(tensors)
  for file, header in plan.headers.items():
    with (folder / file).open('wb') as out:
      out.write(header.raw)
      for expected in header.names():
        name, array = next(values, ('nothing', np.zeros(0)))
        dtype, shape = shapes[expected]
        if name != expected or array.shape != tuple(shape):
          found = f'{name} {list(array.shape)}'
          raise ValueError(f'{folder / file}: expected {expected} {list(shape)} next, got {found}')
        out.write(as_bytes(np.ascontiguousarray(array, dtype)))
  if (extra := next(values, None)) is not None:
    raise ValueError(f'{folder}: got {extra[0]} after the last declared tensor')
  (folder / INDEX).write_bytes(plan.index or b'')


def write_file(path: pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] = {'format': 'pt'}) -> None:
  """One file, all of it on disk before it has its name."""
  raw = _header(list(tensors), {name: (array.dtype, array.shape) for name, array in tensors.items()}, metadata)
  partial = path.with_name(f'{path.name}.{os.getpid()}.partial')
  with partial.open('wb') as out:
    out.write(raw)
    for array in tensors.values():
      out.write(as_bytes(np.ascontiguousarray(array)))
    out.flush()
    os.fsync(out.fileno())
  partial.replace(path)


def as_bytes(array: np.ndarray) -> memoryview:
  """The memory of a contiguous array."""
  return array.reshape(-1).view(np.uint8).data
