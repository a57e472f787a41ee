"""The converted folder: equal to the published one, restorable by Orbax onto any mesh, complete or plainly not."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts
import xxhash
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from qwen3_omni_jax.models.omni import omni_spec
from qwen3_omni_jax.nn.params import abstract_params, is_param
from qwen3_omni_jax.weights import batches, store, writer
from qwen3_omni_jax.weights.load import load_params
from qwen3_omni_jax.weights.table import published
from qwen3_omni_jax.weights.to_jax import convert_to_jax

from .folders import assert_same, fuse, odd_config, odd_dict, random_tensors, write

CLI = [sys.executable, '-m', 'qwen3_omni_jax.cli', 'convert', 'to-jax']


@pytest.fixture(scope='module')
def published_folder(tmp_path_factory) -> pathlib.Path:
  folder = write(tmp_path_factory.mktemp('odd') / 'hf', random_tensors(odd_config(), dtype=ml_dtypes.bfloat16))
  (folder / 'merges.txt').write_text('#version: 0.2\na b\n')
  return folder


@pytest.fixture(scope='module')
def converted(published_folder, tmp_path_factory) -> pathlib.Path:
  target = tmp_path_factory.mktemp('converted') / 'jax'
  convert_to_jax(published_folder, target)
  return target


@pytest.fixture
def copy(converted, tmp_path) -> pathlib.Path:
  return shutil.copytree(converted, tmp_path / 'copy')


def shardings(spec):
  """Every array split over two axes of a 2x4 mesh where its dimensions divide."""
  mesh = jax.make_mesh((2, 4), ('x', 'y'), axis_types=(AxisType.Auto,) * 2)

  def split(param):
    axes: list = [None] * len(param.shape)
    for axis, devices in (('x', 2), ('y', 4)):
      free = [i for i, n in enumerate(param.shape) if axes[i] is None and n % devices == 0]
      if free:
        axes[free[-1]] = axis
    return NamedSharding(mesh, PartitionSpec(*axes))

  return jax.tree.map(split, spec, is_leaf=is_param)


def test_converted_and_published_load_the_same(published_folder, converted):
  assert_same(load_params(converted), load_params(published_folder))
  assert (converted / 'config.json').read_bytes() == (published_folder / 'config.json').read_bytes()
  assert (converted / 'merges.txt').read_bytes() == (published_folder / 'merges.txt').read_bytes()
  assert not converted.with_name('jax.partial').exists()


def test_fused_experts_convert_to_the_same(converted, tmp_path):
  tensors = random_tensors(odd_config(), dtype=ml_dtypes.bfloat16)
  convert_to_jax(write(tmp_path / 'hf', fuse(tensors)), tmp_path / 'jax')
  assert_same(load_params(tmp_path / 'jax'), load_params(converted))


def test_small_pieces_write_the_same(published_folder, converted, tmp_path, monkeypatch):
  """Tensors cut into chunks along their first axis, and many commits: the path that full-size tensors take."""
  monkeypatch.setattr(writer, 'CHUNK_BYTES', 1000)
  monkeypatch.setattr(writer, 'COMMIT_BYTES', 100_000)
  monkeypatch.setattr(batches, 'BATCH_BYTES', 50_000)
  convert_to_jax(published_folder, tmp_path / 'jax')
  assert_same(load_params(tmp_path / 'jax'), load_params(converted))


@pytest.mark.filterwarnings('ignore')  # Orbax warns about restoring without a target
def test_plain_orbax_restores_it(converted):
  from orbax.checkpoint import v1 as ocp

  assert_same(ocp.load(converted / 'params'), load_params(converted))


def test_plain_orbax_restores_it_onto_a_mesh(converted):
  from orbax.checkpoint import v1 as ocp

  spec = omni_spec(odd_config())
  onto = shardings(spec)
  abstract = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, ml_dtypes.bfloat16, sharding=s), abstract_params(spec), onto)
  restored = ocp.load(converted / 'params', abstract)
  assert restored['thinker']['layers']['moe']['experts']['down'].sharding.num_devices == 8
  assert_same(restored, load_params(converted))


@pytest.mark.parametrize('kind', ['published', 'converted'])
def test_load_onto_a_mesh(published_folder, converted, kind):
  onto = shardings(omni_spec(odd_config()))
  loaded = load_params(published_folder if kind == 'published' else converted, shardings=onto)
  assert jax.tree.all(jax.tree.map(lambda a, s: a.sharding == s, loaded, onto))
  assert_same(loaded, load_params(converted))


def test_dtype_on_conversion_and_on_load_agree(published_folder, converted, tmp_path):
  convert_to_jax(published_folder, tmp_path / 'wide', 'float32')
  wide = load_params(tmp_path / 'wide')
  assert_same(wide, load_params(published_folder, dtype='float32'))
  assert_same(wide, load_params(converted, dtype='float32'))
  assert_same(load_params(tmp_path / 'wide', dtype='bfloat16'), load_params(converted))
  assert wide['thinker']['embed'].dtype == np.float32


def test_rounding_is_the_same_on_every_way(tmp_path):
  folder = write(tmp_path / 'hf', random_tensors(odd_config('thinking')), odd_dict('thinking'))
  convert_to_jax(folder, tmp_path / 'kept')
  convert_to_jax(folder, tmp_path / 'narrow', 'bfloat16')
  narrow = load_params(tmp_path / 'narrow')
  assert narrow['thinker']['embed'].dtype == ml_dtypes.bfloat16
  assert_same(load_params(folder, dtype='bfloat16'), narrow)
  assert_same(load_params(tmp_path / 'kept', dtype='bfloat16'), narrow)


def test_a_target_that_is_not_empty_is_refused(published_folder, tmp_path):
  (tmp_path / 'taken').mkdir()
  (tmp_path / 'taken' / 'file').write_text('mine')
  with pytest.raises(ValueError, match='taken: not empty'):
    convert_to_jax(published_folder, tmp_path / 'taken')
  assert [p.name for p in tmp_path.iterdir()] == ['taken']


def test_an_interrupted_conversion_is_plainly_unfinished_and_can_be_run_again(published_folder, converted, tmp_path, monkeypatch):
  written = []
  write_tensor = writer.Batch.write

  def fail_late(self, *args):
    written.append(args)
    if len(written) == 400:
      raise KeyboardInterrupt
    return write_tensor(self, *args)

  monkeypatch.setattr(writer.Batch, 'write', fail_late)
  with pytest.raises(KeyboardInterrupt):
    convert_to_jax(published_folder, tmp_path / 'jax')
  assert [p.name for p in tmp_path.iterdir()] == ['jax.partial']
  for folder in (tmp_path / 'jax.partial', tmp_path / 'jax.partial' / 'data'):
    with pytest.raises(ValueError, match=f'{folder}: the conversion did not finish; run it again'):
      load_params(folder)
  monkeypatch.undo()
  convert_to_jax(published_folder, tmp_path / 'jax')
  assert [p.name for p in tmp_path.iterdir()] == ['jax']
  assert_same(load_params(tmp_path / 'jax'), load_params(converted))


def test_a_folder_of_somebody_else_is_not_removed(published_folder, tmp_path):
  (tmp_path / 'jax.partial').mkdir()
  (tmp_path / 'jax.partial' / 'thesis.txt').write_text('mine')
  with pytest.raises(ValueError, match='jax.partial: in the way'):
    convert_to_jax(published_folder, tmp_path / 'jax')
  assert (tmp_path / 'jax.partial' / 'thesis.txt').read_text() == 'mine'


def test_a_full_disk_is_noticed_before_writing(published_folder, tmp_path, monkeypatch):
  usage = shutil.disk_usage(tmp_path)
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=10_000))
  with pytest.raises(ValueError, match=r'jax: takes .* GB more, the disk has 0\.0 GB free'):
    convert_to_jax(published_folder, tmp_path / 'jax')
  assert not list(tmp_path.iterdir())


def test_a_mismatch_leaves_nothing_behind(tmp_path):
  tensors = random_tensors(odd_config())
  del tensors['talker.model.norm.weight']
  folder = write(tmp_path / 'hf', tensors)
  with pytest.raises(ValueError, match=r'1 missing:\n +talker\.model\.norm\.weight'):
    convert_to_jax(folder, tmp_path / 'jax')
  assert [p.name for p in tmp_path.iterdir()] == ['hf']


def test_converting_a_converted_folder_is_refused(converted, tmp_path):
  with pytest.raises(ValueError, match='already converted'):
    convert_to_jax(converted, tmp_path / 'jax')


def test_another_config_than_the_arrays_is_an_error(copy):
  config = odd_dict()
  config['thinker_config']['text_config'] |= {'num_experts': 4}
  (copy / 'config.json').write_text(json.dumps(config))
  expected = r'4 of another shape:(.|\n)*experts/up: found \[4, 5, 52, 18\], expected \[4, 4, 52, 18\]'
  with pytest.raises(ValueError, match=expected):
    load_params(copy)
  (copy / 'config.json').write_text(json.dumps(odd_dict('thinking')))
  with pytest.raises(ValueError, match=r'unknown:\n +talker/embed'):
    load_params(copy)


def test_a_flipped_bit_is_noticed(copy):
  largest = max((copy / 'params').rglob('*'), key=lambda p: p.stat().st_size if p.is_file() else 0)
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 16
  largest.write_bytes(data)
  with pytest.raises(ValueError, match=r'is damaged \(.*\); convert again|not the checkpoint that manifest'):
    load_params(copy)


def test_a_lost_chunk_is_noticed_but_zeros_are_not_lost(tmp_path):
  tensors = random_tensors(odd_config('thinking')) | {'thinker.model.norm.weight': np.zeros(52, np.float32)}
  convert_to_jax(write(tmp_path / 'hf', tensors, odd_dict('thinking')), tmp_path / 'jax')
  assert not load_params(tmp_path / 'jax')['thinker']['norm'].any()
  kvstore = {'driver': 'ocdbt', 'base': f'file://{tmp_path}/jax/params/state'}
  chunks = ts.KvStore.open(kvstore).result()
  assert b'thinker.norm/c/0' in chunks.list().result()
  chunks.write('thinker.norm/c/0', None).result()  # deletes it
  with pytest.raises(ValueError, match=r'jax: thinker/norm is damaged \(.*missing.*\); convert again'):
    load_params(tmp_path / 'jax')


def test_command_line(published_folder, converted, tmp_path):
  arguments = ['--from', str(published_folder), '--to', str(tmp_path / 'jax'), '--dtype', 'float32']
  done = subprocess.run([*CLI, *arguments], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert f'{tmp_path / "jax"}: 0.0' in done.stdout and 'MB/s' in done.stdout
  assert_same(load_params(tmp_path / 'jax'), load_params(converted, dtype='float32'))
  again = subprocess.run([*CLI, *arguments], capture_output=True, text=True)
  assert again.returncode == 1
  assert again.stderr == f'qwen3-omni convert: {tmp_path / "jax"}: not empty; give a new folder\n'


def test_some_parts_alone(published_folder, converted, tmp_path):
  convert_to_jax(published_folder, tmp_path / 'jax', only=('talker', 'audio'))
  held = ('audio', 'talker', 'code_predictor')
  whole = load_params(converted)
  assert_same(load_params(tmp_path / 'jax', parts=held), {part: whole[part] for part in held})
  for parts, lacking in ((None, 'vision, thinker, code2wav'), (('audio', 'vision'), 'vision')):
    with pytest.raises(ValueError, match=f'jax: holds audio, talker, code_predictor alone, not {lacking}; ask for these parts'):
      load_params(tmp_path / 'jax', parts=parts)
  thinking = write(tmp_path / 'hf', random_tensors(odd_config('thinking')), odd_dict('thinking'))
  with pytest.raises(ValueError, match='has no code2wav; it has audio, vision, thinker'):
    convert_to_jax(thinking, tmp_path / 'other', only=('thinker', 'code2wav'))


def test_every_tensor_has_the_checksum_of_its_stored_bytes(converted):
  params, manifest = load_params(converted), store.read_manifest(converted)
  assert manifest.checksums.keys() == published(odd_config()).keys()
  for name, tensor in published(odd_config()).items():
    array = params
    for key in tensor.row.ours.split('/'):
      array = array[key]
    assert manifest.checksums[name] == xxhash.xxh3_128(np.ascontiguousarray(array[tensor.index]).tobytes()).hexdigest(), name


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(published_folder, tmp_path, capsys):
  convert_to_jax(published_folder, tmp_path / 'new' / 'jax', 'float32', dry_run=True)
  said = capsys.readouterr().out
  assert said.startswith(f'{tmp_path}/new/jax: 571 tensors, 0.00 GB\n  audio: ') and 'the disk has' in said
  assert not list(tmp_path.iterdir())
  (tmp_path / 'taken').mkdir()
  (tmp_path / 'taken' / 'file').write_text('mine')
  with pytest.raises(ValueError, match='taken: not empty'):
    convert_to_jax(published_folder, tmp_path / 'taken', dry_run=True)
