"""More than a hundred corrupted checkpoint folders: every command names what is wrong, and leaves nothing behind.

tests/weights/test_malformed.py has the readers' own cases; here whole folders go through the command line. A flipped bit
in the data of a published safetensors file is not among the refused ones: the format has no checksums, and only a
comparison with another copy can find it (the last test).
"""

import dataclasses
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts

from qwen3_omni_jax.cli import main
from qwen3_omni_jax.weights.safetensors import INDEX, write_shards
from qwen3_omni_jax.weights.table import published
from qwen3_omni_jax.weights.to_jax import convert_to_jax

from .folders import Tensors, fuse, odd_config, odd_dict, random_tensors, write
from .test_malformed import DEEP, SHARDS

CFG = odd_config('thinking')
NORM, EMBED = 'thinker.model.norm.weight', 'thinker.model.embed_tokens.weight'
GATE, UP = 'thinker.model.layers.2.mlp.experts.3.gate_proj.weight', 'thinker.model.layers.2.mlp.experts.3.up_proj.weight'
FUSED = 'thinker.model.language_model.layers.1.mlp.experts.gate_up_proj'
S1, S3 = (f'model-0000{i}-of-00003.safetensors' for i in (1, 3))
PUBLISHED_COMMANDS, CONVERTED_COMMANDS = ('to-jax', 'to-hf', 'verify'), ('to-hf', 'verify')


@dataclasses.dataclass(frozen=True)
class Case:
  """A good folder of this kind, what is done to it, what a message must say, and the commands that must refuse it."""

  kind: str
  change: Callable[[pathlib.Path], object]
  named: str  # regular expression
  commands: tuple[str, ...]


def tensors_of(kind: str) -> Tensors:
  tensors = random_tensors(CFG, dtype=ml_dtypes.bfloat16)
  return fuse(tensors) if kind == 'fused' else tensors


@pytest.fixture(scope='module')
def good(tmp_path_factory) -> dict[str, pathlib.Path]:
  root = tmp_path_factory.mktemp('good')
  for kind in ('published', 'fused'):
    write(root / kind, tensors_of(kind), odd_dict('thinking'), shard_bytes=200_000)
    assert (root / kind / S3).is_file() and len(list((root / kind).glob('*.safetensors'))) == 3
  convert_to_jax(root / 'published', root / 'converted')
  return {kind: root / kind for kind in ('published', 'fused', 'converted')}


def rewritten(kind: str, change: Callable[[Tensors], object]) -> Callable[[pathlib.Path], None]:
  """The folder written anew with other tensors."""

  def apply(folder: pathlib.Path) -> None:
    tensors = tensors_of(kind)
    change(tensors)
    for file in folder.glob('model*'):
      file.unlink()
    write_shards(folder, tensors.items(), {n: (v.dtype, v.shape) for n, v in tensors.items()}, shard_bytes=200_000)

  return apply


def bytes_of(file: str, change: Callable[[bytes], bytes]) -> Callable[[pathlib.Path], object]:
  return lambda folder: (folder / file).write_bytes(change((folder / file).read_bytes()))


def json_of(file: str, change: Callable[[dict], object]) -> Callable[[pathlib.Path], None]:
  def apply(folder: pathlib.Path) -> None:
    data = json.loads((folder / file).read_text())
    change(data)
    (folder / file).write_text(json.dumps(data))

  return apply


def flipped(data: bytes, at: int, bit: int = 1) -> bytes:
  return data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]


def header_bit(part: float) -> Callable[[bytes], bytes]:
  """A flipped bit in the header, behind its metadata."""

  def change(data: bytes) -> bytes:
    length = int.from_bytes(data[:8], 'little')
    header = data[8 : 8 + length].rstrip()
    start = header.index(b'}') + 1
    return flipped(data, 8 + start + int(part * (len(header) - start)))

  return change


def shard_cases() -> Iterator[tuple[str, Case]]:
  for name, content in SHARDS.items():
    yield f'shard: {name}', Case('published', lambda f, c=content: (f / S1).write_bytes(c), S1, PUBLISHED_COMMANDS)
  half = bytes_of(S3, lambda data: data[: len(data) // 2])
  one_less, one_more = bytes_of(S1, lambda data: data[:-1]), bytes_of(S1, lambda data: data + b'\0')
  for kind in ('published', 'fused'):
    yield f'{kind}: half of a shard', Case(kind, half, f'{S3}: .*truncated', PUBLISHED_COMMANDS)
    yield f'{kind}: a byte less', Case(kind, one_less, f'{S1}: .*truncated or padded', PUBLISHED_COMMANDS)
    yield f'{kind}: a byte more', Case(kind, one_more, f'{S1}: .*truncated or padded', PUBLISHED_COMMANDS)
    yield (
      f'{kind}: no shard',
      Case(kind, lambda f: (f / S3).unlink(), f'missing.*listed but not there.*{S3}, which does not exist', PUBLISHED_COMMANDS),
    )
  for i in range(12):
    named = f'{S1}|\\d+ (missing|unknown|of another shape)'
    yield f'flipped bit in a header {i}', Case('published', bytes_of(S1, header_bit(i / 12)), named, PUBLISHED_COMMANDS)


def index_cases() -> Iterator[tuple[str, Case]]:
  def index(name: str, change, named: str):
    return f'index: {name}', Case('published', change, named, PUBLISHED_COMMANDS)

  contents = {
    'empty': b'',
    'not json': b'hello',
    'not utf-8': b'\xff\xfe\x00',
    'deeply nested': DEEP,
    'a list': b'[]',
    'no weight map': b'{}',
    'an empty weight map': b'{"weight_map": {}}',
    'a number for a file': b'{"weight_map": {"a": 1}}',
    'a name twice': b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}',
  }
  for name, content in contents.items():
    yield index(name, lambda f, c=content: (f / INDEX).write_bytes(c), INDEX)
  paths = {
    'a parent folder': f'../{S1}',
    'a deep parent folder': f'x/../../{S1}',
    'an absolute path': '/etc/passwd',
    'a windows path': f'..\\{S1}',
    'a url': f'http://host/{S1}',
    'a pickle': 'pytorch_model.bin',
  }
  for name, path in paths.items():
    change = json_of(INDEX, lambda data, p=path: data['weight_map'].update({NORM: p}))
    yield index(name, change, f'{INDEX}: expected plain file names')


def tensor_cases() -> Iterator[tuple[str, Case]]:
  def changed(name: str, change, named: str, kind: str = 'published'):
    return f'{kind} tensors: {name}', Case(kind, rewritten(kind, change), named, PUBLISHED_COMMANDS)

  yield changed('one is missing', lambda t: t.pop(NORM), f'missing.*:\n +{NORM}')
  yield changed('an expert is missing', lambda t: t.pop(GATE), f'missing.*:\n +{GATE}')
  yield changed('one too many', lambda t: t.update({'thinker.new.weight': t[NORM]}), r'unknown.*:\n +thinker\.new')
  yield changed('a layer too many', lambda t: t.update({NORM.replace('norm', 'layers.4.x'): t[NORM]}), r'unknown.*:\n +\S+4\.x')
  yield changed('transposed', lambda t: t.update({GATE: t[GATE].T.copy()}), f'{GATE}: found \\[52, 18\\], expected \\[18, 52\\]')
  yield changed('a row less', lambda t: t.update({EMBED: t[EMBED][1:].copy()}), f'{EMBED}: found \\[69, 52\\]')
  yield changed('flattened', lambda t: t.update({UP: t[UP].reshape(-1)}), f'{UP}: found \\[936\\]')
  yield changed('empty', lambda t: t.update({NORM: t[NORM][:0]}), f'{NORM}: found \\[0\\]')
  yield changed('a scalar', lambda t: t.update({NORM: t[NORM][0].reshape(())}), f'{NORM}: found \\[\\]')
  for dtype in (np.int8, np.uint8, np.bool_, np.int64):
    named = f'not floating point.*:\n +{GATE}: {np.dtype(dtype).name}'
    yield changed(f'{dtype.__name__}', lambda t, d=dtype: t.update({GATE: np.ones(t[GATE].shape, d)}), named)
  yield changed('both layouts at once', lambda t: t.update({FUSED: fuse(dict(t))[FUSED]}), 'present twice')
  yield changed('one missing', lambda t: t.pop(FUSED), r'missing.*:\n +thinker\.model\.layers\.1\.mlp\.experts', 'fused')
  fewer = lambda t: t.update({FUSED: t[FUSED][:3].copy()})
  yield changed('fewer experts', fewer, r'missing.*:\n +thinker\.model\.layers\.1\.mlp\.experts\.\{?3', 'fused')
  odd = lambda t: t.update({FUSED: t[FUSED][:, 1:].copy()})
  yield changed('halves that do not divide', odd, r'of another shape.*:\n +thinker\.model\.layers\.1', 'fused')
  copied = lambda f: ((f / INDEX).unlink(), shutil.copy(f / S1, f / 'copy.safetensors'))
  yield 'every name of a shard twice', Case('published', copied, f'repeated.*:\n.*in both copy.* and {S1}', PUBLISHED_COMMANDS)


def config_cases() -> Iterator[tuple[str, Case]]:
  commands = {'published': PUBLISHED_COMMANDS, 'converted': CONVERTED_COMMANDS}
  for kind in commands:
    text = lambda **fields: json_of('config.json', lambda data, f=fields: data['thinker_config']['text_config'].update(f))
    cases = {
      'another width': (text(intermediate_size=0), 'intermediate_size: must be positive'),
      'fewer experts': (text(num_experts=4), r'unknown|of another shape'),
      'more layers': (text(num_hidden_layers=5), r'missing|of another shape'),
      'an unknown field': (text(mystery=1), 'text_config.mystery: unknown field'),
      'not json': (lambda f: (f / 'config.json').write_text('{'), 'config.json: not valid JSON'),
      'none': (lambda f: (f / 'config.json').unlink(), 'config.json: no such file'),
    }
    for name, (change, named) in cases.items():
      yield f'{kind} config: {name}', Case(kind, change, named, commands[kind])


def stored(name: str) -> bytes:
  """The bytes of a tensor as a converted folder stores them."""
  return np.ascontiguousarray(published(CFG)[name].to_ours(tensors_of('published')[name])).tobytes()


def data_file(folder: pathlib.Path, content: bytes) -> tuple[pathlib.Path, int]:
  """The data file of a converted folder that holds these bytes, and where."""
  for path in sorted((folder / 'params').rglob('*')):
    if path.is_file() and (at := path.read_bytes().find(content)) >= 0:
      return path, at
  raise AssertionError('no file holds these bytes')


def bit_of_data(name: str, part: float) -> Callable[[pathlib.Path], None]:
  def apply(folder: pathlib.Path) -> None:
    content = stored(name)
    path, at = data_file(folder, content)
    path.write_bytes(flipped(path.read_bytes(), at + int(part * (len(content) - 1)), 64))

  return apply


def chunk_key(name: str) -> bytes:
  tensor = published(CFG)[name]
  inner = len(tensor.row.layout.split(' -> ')[1].split())
  return '/'.join([tensor.row.ours.replace('/', '.'), 'c', *map(str, tensor.index), *'0' * inner]).encode()


def in_store(change: Callable[[ts.KvStore], object]) -> Callable[[pathlib.Path], object]:
  return lambda folder: change(ts.KvStore.open({'driver': 'ocdbt', 'base': f'file://{folder}/params/state'}).result())


def lose(store: ts.KvStore, key: bytes) -> None:
  assert store.read(key).result().state == 'value', key
  store.write(key, None).result()


def copy_chunk(store: ts.KvStore, a: str, b: str) -> None:
  store.write(chunk_key(b), store.read(chunk_key(a)).result().value).result()


def converted_cases() -> Iterator[tuple[str, Case]]:
  def case(name: str, change, named: str, commands=CONVERTED_COMMANDS):
    return f'converted: {name}', Case('converted', change, named, commands)

  of = lambda name: f'{published(CFG)[name].row.ours} is damaged'
  victims = [
    EMBED,
    GATE,
    UP,
    'thinker.lm_head.weight',
    'thinker.audio_tower.conv2d2.weight',
    'thinker.audio_tower.layers.0.fc1.weight',
    'thinker.visual.blocks.1.attn.qkv.weight',
    'thinker.visual.merger.mlp.0.weight',
    'thinker.model.layers.0.self_attn.q_proj.weight',
  ]
  for i, name in enumerate(victims):
    yield case(f'flipped bit {i}', bit_of_data(name, i / (len(victims) - 1)), of(name))
  for i, name in enumerate(victims[1::3]):
    yield case(f'lost chunk {i}', in_store(lambda s, n=name: lose(s, chunk_key(n))), of(name))
  yield case('a chunk of another tensor', in_store(lambda s: copy_chunk(s, UP, GATE)), f'{GATE} is damaged')
  yield case('lost metadata', in_store(lambda s: lose(s, b'thinker.norm/zarr.json')), 'damaged.*:\n +thinker/norm')
  metadata = b'thinker.norm/zarr.json'
  garbage = in_store(lambda s: s.write(metadata, b'{').result())
  yield case('metadata not json', garbage, 'damaged.*:\n +thinker/norm')

  def reshape(store: ts.KvStore) -> None:
    data = json.loads(store.read(metadata).result().value)
    store.write(metadata, json.dumps(data | {'shape': [53]}).encode()).result()

  yield case('metadata of another shape', in_store(reshape), r'damaged.*:\n +thinker/norm: \[53\]')
  each = lambda change: lambda f: [change(p) for p in (f / 'params').rglob('*') if p.is_file() and p.parent.name == 'd']
  yield case('no data files', each(pathlib.Path.unlink), 'params')
  yield case('empty data files', each(lambda p: p.write_bytes(b'')), 'params')
  yield case('half of every data file', each(lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2])), 'damaged|params')
  yield case('no state', lambda f: shutil.rmtree(f / 'params' / 'state'), 'params')
  root = 'params/state/manifest.ocdbt'
  yield case('a root overwritten', lambda f: (f / root).write_bytes(b'x' * 99), 'params')
  yield case('a root emptied', lambda f: (f / root).write_bytes(b''), 'params')
  yield case('a root cut', bytes_of(root, lambda data: data[:-3]), 'params')
  yield case('a flipped bit in the root', bytes_of(root, lambda data: flipped(data, len(data) // 2)), 'params')


def manifest_cases() -> Iterator[tuple[str, Case]]:
  def lie(name: str, change, named: str = 'manifest.json', commands=CONVERTED_COMMANDS):
    return f'manifest: {name}', Case('converted', change, named, commands)

  edited = lambda change: json_of('manifest.json', change)
  yield lie('none', lambda f: (f / 'manifest.json').unlink())
  for name, content in {'empty': b'', 'not json': b'{', 'not utf-8': b'\xff\xff', 'a list': b'[]', 'a number': b'7'}.items():
    yield lie(name, lambda f, c=content: (f / 'manifest.json').write_bytes(c))
  yield lie('halved', bytes_of('manifest.json', lambda data: data[: len(data) // 2]))
  yield lie('another format', edited(lambda d: d.update(format='torch')), 'format torch')
  yield lie('an earlier version', edited(lambda d: d.update(version=1)), 'version 1; expected')
  yield lie('a later version', edited(lambda d: d.update(version=3)), 'version 3; expected')
  yield lie('no arrays', edited(lambda d: d.pop('arrays')))
  yield lie('arrays a list', edited(lambda d: d.update(arrays=[])))
  yield lie('a shape of strings', edited(lambda d: d['arrays']['thinker/norm'].update(shape=['x'])))
  yield lie('an array without a shape', edited(lambda d: d['arrays'].update({'thinker/norm': {}})))
  yield lie('an array less', edited(lambda d: d['arrays'].pop('thinker/norm')), 'missing.*:\n +thinker/norm')
  more = edited(lambda d: d['arrays'].update({'thinker/more': {'shape': [1], 'dtype': 'bfloat16'}}))
  yield lie('an array more', more, 'unknown.*:\n +thinker/more')
  another = edited(lambda d: d['arrays']['thinker/norm'].update(shape=[51]))
  yield lie('another shape', another, r'of another shape.*:\n +thinker/norm: found \[51\], expected \[52\]')
  wide = edited(lambda d: d['arrays']['thinker/norm'].update(dtype='float32'))
  yield lie('another dtype', wide, r'damaged.*:\n +thinker/norm: \[52\] bfloat16 in params, \[52\] float32')
  yield lie('another checksum', edited(lambda d: d['tensors'].update({NORM: '0' * 64})), f'{NORM} is damaged')
  yield lie('no checksum', edited(lambda d: d['tensors'].pop(GATE)), f'{GATE} is damaged')


CASES = dict(
  [
    *shard_cases(),
    *index_cases(),
    *tensor_cases(),
    *config_cases(),
    *converted_cases(),
    *manifest_cases(),
  ]
)


def test_there_are_more_than_a_hundred():
  assert len(CASES) > 100


@pytest.mark.parametrize('case', CASES.values(), ids=CASES.keys())
def test_every_command_names_what_is_wrong_and_leaves_nothing(good, tmp_path, capsys, case):
  folder = shutil.copytree(good[case.kind], tmp_path / 'bad')
  case.change(folder)
  before = sorted(tmp_path.rglob('*'))
  for command in case.commands:
    if command == 'verify':
      code = main(['convert', 'verify', str(good['published']), str(folder)])
    else:
      code = main(['convert', command, '--from', str(folder), '--to', str(tmp_path / 'target')])
    text = ''.join(capsys.readouterr())
    assert code == 1, f'{command} took it: {text}'
    assert re.search(f'(?s){case.named}', text), f'{command} says: {text}'
    assert str(folder) in text and 'Traceback' not in text and len(text) < 6000
    assert sorted(tmp_path.rglob('*')) == before, f'{command} left something behind'


@pytest.mark.parametrize('kind', ['published', 'fused'])
def test_a_bit_flipped_in_published_data_is_found_by_comparing(good, tmp_path, capsys, kind):
  folder = shutil.copytree(good[kind], tmp_path / 'bad')
  value = tensors_of('published')[GATE].tobytes()
  for shard in folder.glob('*.safetensors'):
    data = shard.read_bytes()
    if (at := data.find(value)) >= 0:
      shard.write_bytes(flipped(data, at + 100))
  for other in good.values():
    assert main(['convert', 'verify', str(folder), str(other)]) == 1
    assert f'  1 of different values:\n    {GATE}\n' in capsys.readouterr().out
