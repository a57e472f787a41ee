"""Broken, truncated and lying files: a ValueError that names the file, soon, in little memory; never a crash."""

import json
import pathlib
import shutil
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from qwen3_omni_jax.weights.folder import open_folder
from qwen3_omni_jax.weights.load import load_params
from qwen3_omni_jax.weights.safetensors import INDEX, Shard, write_shards
from qwen3_omni_jax.weights.to_jax import convert_to_jax

from .folders import odd_config, odd_dict, random_tensors, write

MEBI = 2**20


def file_of(header, data: bytes = b'', length: int | None = None) -> bytes:
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return (len(text) if length is None else length).to_bytes(8, 'little') + text + data


def entry(shape=(2, 3), offsets=(0, 24), dtype='F32', **more) -> dict:
  return {'dtype': dtype, 'shape': list(shape), 'data_offsets': list(offsets)} | more


GOOD = {'__metadata__': {'format': 'pt'}, 'a': entry()}
DEEP = b'[' * 100_000
SHARDS = {
  'empty': b'',
  'seven bytes': b'1234567',
  'length only': (0).to_bytes(8, 'little'),
  'header longer than the file': file_of(GOOD, b'x' * 24, length=10_000),
  'header of 2**64 - 1 bytes': b'\xff' * 8 + b'{}',
  'not json': file_of(b'hello world', b'x' * 24),
  'not utf-8': file_of(b'{"\xff\xfe": 1}'),
  'deeply nested': file_of(DEEP),
  'a pickle': b'\x80\x04\x95' + b'\x00' * 100,
  'a zip': b'PK\x03\x04' + b'\x00' * 100,
  'header is a list': file_of([1, 2]),
  'header is a number': file_of(b'12345678'),
  'header is null': file_of(b'null'),
  'a name twice': file_of(b'{"a":' + json.dumps(entry()).encode() + b',"a":' + json.dumps(entry()).encode() + b'}', b'x' * 24),
  'a key twice': file_of(b'{"a":{"dtype":"F32","dtype":"F16","shape":[2,3],"data_offsets":[0,24]}}', b'x' * 24),
  'entry is a list': file_of({'a': [1]}),
  'entry is null': file_of({'a': None}),
  'no dtype': file_of({'a': {'shape': [2, 3], 'data_offsets': [0, 24]}}, b'x' * 24),
  'no shape': file_of({'a': {'dtype': 'F32', 'data_offsets': [0, 24]}}, b'x' * 24),
  'no offsets': file_of({'a': {'dtype': 'F32', 'shape': [2, 3]}}, b'x' * 24),
  'unknown dtype': file_of({'a': entry(dtype='F4')}, b'x' * 24),
  'dtype is a number': file_of({'a': entry(dtype=32)}, b'x' * 24),
  'dtype is a list': file_of({'a': entry(dtype=['F32'])}, b'x' * 24),
  'shape is a number': file_of({'a': entry() | {'shape': 6}}, b'x' * 24),
  'shape of strings': file_of({'a': entry(('2', '3'))}, b'x' * 24),
  'shape of floats': file_of({'a': entry((2.0, 3.0))}, b'x' * 24),
  'shape of booleans': file_of({'a': entry((True, 6))}, b'x' * 24),
  'negative shape': file_of({'a': entry((-2, -3))}, b'x' * 24),
  'shape beyond 2**63': file_of({'a': entry((2**62, 2**62))}, b'x' * 24),
  'shape that overflows to the right size': file_of({'a': entry((2**32, 2**32, 6))}, b'x' * 24),
  'hundred dimensions': file_of({'a': entry([1] * 100)}, b'x' * 24),
  'shape larger than the data': file_of({'a': entry((20, 30))}, b'x' * 24),
  'shape and offsets larger than the data': file_of({'a': entry((20, 30), (0, 2400))}, b'x' * 24),
  'offsets are a number': file_of({'a': entry() | {'data_offsets': 24}}, b'x' * 24),
  'three offsets': file_of({'a': entry(offsets=(0, 12, 24))}, b'x' * 24),
  'offsets of strings': file_of({'a': entry(offsets=('0', '24'))}, b'x' * 24),
  'negative offsets': file_of({'a': entry(offsets=(-24, 0))}, b'x' * 24),
  'offsets into the header': file_of({'a': entry(offsets=(-8, 16))}, b'x' * 24),
  'offsets backwards': file_of({'a': entry(offsets=(24, 0))}, b'x' * 24),
  'overlap': file_of({'a': entry(), 'b': entry(offsets=(12, 36))}, b'x' * 36),
  'the same bytes twice': file_of({'a': entry(), 'b': entry()}, b'x' * 24),
  'gap': file_of({'a': entry(), 'b': entry(offsets=(28, 52))}, b'x' * 52),
  'gap at the start': file_of({'a': entry(offsets=(4, 28))}, b'x' * 28),
  'truncated data': file_of(GOOD, b'x' * 23),
  'no data': file_of(GOOD),
  'data left over': file_of(GOOD, b'x' * 25),
}


@pytest.mark.parametrize('content', SHARDS.values(), ids=SHARDS.keys())
def test_broken_shard(tmp_path, content):
  path = tmp_path / 'model.safetensors'
  path.write_bytes(content)
  tracemalloc.start()
  try:
    with pytest.raises(ValueError) as caught:
      Shard(path)
    assert tracemalloc.get_traced_memory()[1] < 8 * MEBI
  finally:
    tracemalloc.stop()
  assert str(caught.value).startswith(f'{path}: ') and len(str(caught.value)) < 700


def test_random_bytes_and_truncations(tmp_path):
  """Every prefix of a good file, and a good file with one byte changed, is refused or read; nothing else."""
  good = file_of(GOOD, np.arange(6, dtype=np.float32).tobytes())
  path = tmp_path / 'model.safetensors'
  for size in range(len(good)):
    path.write_bytes(good[:size])
    with pytest.raises(ValueError, match='model.safetensors: '):
      Shard(path)
  rng = np.random.default_rng(0)
  for _ in range(300):
    changed = bytearray(good)
    changed[rng.integers(len(good) - 24)] = rng.integers(256)
    path.write_bytes(changed)
    try:
      shard = Shard(path)
      assert [shard.read(name).size for name in shard.names()]
    except ValueError as error:
      assert str(error).startswith(f'{path}: ')


def test_a_file_cut_after_opening_is_noticed(tmp_path):
  path = tmp_path / 'model.safetensors'
  path.write_bytes(file_of(GOOD, b'x' * 24))
  shard = Shard(path)
  path.write_bytes(file_of(GOOD, b'x' * 20))
  with pytest.raises(ValueError, match='truncated since it was opened'):
    shard.read('a')


def test_an_empty_tensor_and_a_scalar_are_read(tmp_path):
  values = {'none': np.zeros((0, 5), np.float32), 'one': np.array(3, np.int64), 'b': np.ones(3, ml_dtypes.bfloat16)}
  write_shards(tmp_path, values.items(), {name: (value.dtype, value.shape) for name, value in values.items()})
  found = open_folder(tmp_path)
  for name, value in values.items():
    read = found[name].read(name)
    assert read.dtype == value.dtype and read.shape == value.shape and (read == value).all()


def test_the_writer_takes_exactly_what_was_declared(tmp_path):
  shapes = {name: (np.dtype(np.float32), (2, 3)) for name in 'ab'}
  one = np.zeros((2, 3), np.float32)
  for tensors in ([('a', one)], [('b', one), ('a', one)], [('a', one.T), ('b', one)], [(n, one) for n in 'abc']):
    with pytest.raises(ValueError, match=r'expected [ab] \[2, 3\] next, got|got c after the last'):
      write_shards(tmp_path, iter(tensors), shapes)


S1, S2 = 'model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'


def index_of(**files) -> bytes:
  return json.dumps({'metadata': {'total_size': 72}, 'weight_map': files}).encode()


INDEXES = {
  'empty': (b'', INDEX),
  'not json': (b'hello', INDEX),
  'not utf-8': (b'\xff\xfe\x00', INDEX),
  'deeply nested': (DEEP, INDEX),
  'a list': (b'[]', INDEX),
  'a string': (b'"weight_map"', INDEX),
  'no weight map': (b'{}', INDEX),
  'weight map is a list': (b'{"weight_map": []}', INDEX),
  'weight map is empty': (b'{"weight_map": {}}', INDEX),
  'file name is a number': (b'{"weight_map": {"a": 1}}', INDEX),
  'a name twice': (b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', INDEX),
  'parent folder': (index_of(a='../model.safetensors', b=S1, c=S2), r'\.\./model'),
  'deep parent folder': (index_of(a='x/../../../secret.safetensors', b=S1, c=S2), 'plain file names'),
  'absolute path': (index_of(a='/etc/passwd', b=S1, c=S2), 'plain file names'),
  'windows path': (index_of(a='..\\model.safetensors', b=S1, c=S2), 'plain file names'),
  'a url': (index_of(a='http://host/model.safetensors', b=S1, c=S2), 'plain file names'),
  'another kind of file': (index_of(a='model.bin', b=S1, c=S2), 'plain file names'),
  'a line break': (index_of(a=S1 + '\n', b=S1, c=S2), 'plain file names'),
}


@pytest.mark.parametrize(('content', 'expected'), INDEXES.values(), ids=INDEXES.keys())
def test_broken_index(tmp_path, content, expected):
  one = np.zeros((2, 3), np.float32)
  write_shards(tmp_path, [(n, one) for n in 'abc'], {n: (one.dtype, one.shape) for n in 'abc'}, shard_bytes=50)
  assert open_folder(tmp_path).keys() == {'a', 'b', 'c'}
  (tmp_path / INDEX).write_bytes(content)
  with pytest.raises(ValueError, match=f'(?s)^{tmp_path}.*{expected}'):
    open_folder(tmp_path)


def test_a_tensor_in_two_files_without_an_index(tmp_path):
  for name in ('model.safetensors', 'consolidated.safetensors'):
    (tmp_path / name).write_bytes(file_of(GOOD, b'x' * 24))
  with pytest.raises(ValueError, match='1 repeated:\n +a: in both consolidated.safetensors and model.safetensors'):
    open_folder(tmp_path)


def test_no_weights_at_all(tmp_path):
  (tmp_path / 'pytorch_model.bin').write_bytes(b'x')
  with pytest.raises(ValueError, match='no safetensors files; expected .*; found pytorch_model.bin: load it with what wrote it'):
    open_folder(tmp_path)


def test_a_fused_tensor_of_endless_empty_experts_does_not_hang(tmp_path):
  folder = write(tmp_path / 'hf', {'thinker.x.experts.down_proj': np.zeros((2**39, 0, 5), np.float32)})
  with pytest.raises(ValueError, match='1 unknown:\n +thinker.x.experts.down_proj'):
    load_params(folder)


@pytest.fixture(scope='module')
def converted(tmp_path_factory) -> pathlib.Path:
  root = tmp_path_factory.mktemp('converted')
  convert_to_jax(write(root / 'hf', random_tensors(odd_config('thinking')), odd_dict('thinking')), root / 'jax')
  return root / 'jax'


def edit(**changes):
  def change(folder):
    manifest = folder / 'manifest.json'
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changes))

  return change


def overwrite(file: str, content: bytes):
  return lambda folder: (folder / file).write_bytes(content)


def each_data_file(change):
  def apply(folder):
    for path in (folder / 'params' / 'state').rglob('*'):
      if path.is_file() and path.parent.name == 'd':
        change(path)

  return apply


CONVERTED = {
  'no manifest': lambda folder: (folder / 'manifest.json').unlink(),
  'manifest not json': overwrite('manifest.json', b'{'),
  'manifest not utf-8': overwrite('manifest.json', b'\xff\xff'),
  'manifest a list': overwrite('manifest.json', b'[]'),
  'manifest without arrays': overwrite('manifest.json', b'{"format": "qwen3_omni_jax", "version": 2}'),
  'an earlier version': edit(version=1),
  'a later version': edit(version=3),
  'parts a number': edit(parts=3),
  'tensors a list': edit(tensors=[]),
  'another format': edit(format='torch'),
  'arrays a list': edit(arrays=[]),
  'no arrays': edit(arrays={}),
  'array without shape': edit(arrays={'thinker/embed': {}}),
  'array of a strange shape': edit(arrays={'thinker/embed': {'shape': [[1]], 'dtype': 'float32'}}),
  'no state': lambda folder: shutil.rmtree(folder / 'params' / 'state'),
  'no data files': each_data_file(pathlib.Path.unlink),
  'empty data files': each_data_file(lambda path: path.write_bytes(b'')),
  'halved data files': each_data_file(lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])),
  'root overwritten': overwrite('params/state/manifest.ocdbt', b'x' * 100),
  'root emptied': overwrite('params/state/manifest.ocdbt', b''),
  'no config': lambda folder: (folder / 'config.json').unlink(),
  'config not json': overwrite('config.json', b'{'),
}


@pytest.mark.parametrize('change', CONVERTED.values(), ids=CONVERTED.keys())
def test_broken_converted_folder(converted, tmp_path, change):
  folder = shutil.copytree(converted, tmp_path / 'jax')
  change(folder)
  with pytest.raises(ValueError, match=f'^{folder}'):
    load_params(folder)


def test_no_folder_and_a_file_in_its_place(tmp_path):
  (tmp_path / 'file').write_text('x')
  for name in ('nowhere', 'file'):
    with pytest.raises(ValueError, match=f'{name}: no such folder; expected a checkpoint'):
      load_params(tmp_path / name)
    with pytest.raises(ValueError, match=f'{name}: no such folder; expected a checkpoint'):
      convert_to_jax(tmp_path / name, tmp_path / 'jax')
