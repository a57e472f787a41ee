"""Every kind of file gives the same records by index; what is damaged fails alone."""

import concurrent.futures
import errno
import io
import json
import os
import pickle
import re
import tarfile
import time
import types

import numpy as np
import pytest
from qwen3_omni_jax.train import decode, kept, sources, tar
from qwen3_omni_jax.train.data import DataConfig, Loader, SourceConfig
from qwen3_omni_jax.train.decode import Decoder, decode_record
from qwen3_omni_jax.train.mask import SpecialIds
from qwen3_omni_jax.train.records import Rules, read_record
from qwen3_omni_jax.train.sources import Parquet, Place, open_source

from qwen3_omni_jax.media.processor import Processor
from tests.train.data_folder import write_jsonl


@pytest.fixture(scope='module')
def picture(samples) -> bytes:
  return samples['image'].read_bytes()


def record(i: int, **media) -> dict:
  return {'messages': [{'role': 'user', 'content': f'<image> {i}?'}, {'role': 'assistant', 'content': f'{i}!'}], **media}


def write_tar(path, members: dict[str, bytes]) -> None:
  with tarfile.open(path, 'w') as out:
    for name, data in members.items():
      member = tarfile.TarInfo(name)
      member.size = len(data)
      out.addfile(member, io.BytesIO(data))


def write_parquet(path, picture: bytes) -> None:
  import pyarrow
  import pyarrow.parquet

  rows = [record(i, images=[{'bytes': picture, 'path': None}]) for i in range(5)]
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)


def write_array_record(path, picture: bytes) -> None:
  import base64

  from array_record.python.array_record_module import ArrayRecordWriter

  url = 'data:image/png;base64,' + base64.b64encode(picture).decode()
  writer = ArrayRecordWriter(str(path), 'group_size:1')
  for i in range(5):
    writer.write(json.dumps(record(i, images=[url])).encode())
  writer.close()


def write_all(folder, picture: bytes):
  (folder / 'p.png').write_bytes(picture)
  write_jsonl(folder / 'a.jsonl', [record(i, images=['p.png']) for i in range(5)])
  write_parquet(folder / 'b.parquet', picture)
  write_array_record(folder / 'c.array_record', picture)
  members = {}
  for i in range(5):  # media named by the record, by its member's ending, and not at all
    named = [{'images': ['0.png']}, {'images': [f'{i:03}.0.png']}, {}][i % 3]
    members[f'x/{i:03}.json'] = json.dumps(record(i, **named)).encode()
    members[f'x/{i:03}.0.png'] = picture
  write_tar(folder / 'd.tar', members)


def test_every_kind_of_file_gives_the_same_examples(tiny_folder, tmp_path, picture):
  write_all(tmp_path, picture)
  processor = Processor.from_folder(tiny_folder, media_root=tmp_path)
  special = SpecialIds.of(processor.cfg, processor.tokenizer)
  found = {}
  for name in ('a.jsonl', 'b.parquet', 'c.array_record', 'd.tar'):
    source = open_source(tmp_path / name)
    assert len(source) == 5
    places = [source.locate(i) for i in (4, 0, 3, 1, 2)]
    source = pickle.loads(pickle.dumps(source))  # as a worker process gets it
    found[name] = [read_record(source.read(place), Rules(), processor, special)[0] for place in places]
  for name, examples in found.items():
    for mine, expected in zip(examples, found['a.jsonl'], strict=True):
      np.testing.assert_array_equal(mine.inputs.ids, expected.inputs.ids, err_msg=name)
      np.testing.assert_array_equal(mine.inputs.visuals[0].patches, expected.inputs.visuals[0].patches, err_msg=name)


def test_media_of_the_lists_have_keys_as_parts_of_messages_have(tiny_folder, tmp_path, picture):
  import io

  from PIL import Image

  small = io.BytesIO()
  Image.open(io.BytesIO(picture)).resize((320, 200)).save(small, 'PNG')
  said = lambda text, **media: {'messages': [{'role': 'user', 'content': text}, {'role': 'assistant', 'content': 'y'}], **media}
  listed = said(
    '<image><video>', images=[{'path': '0.png', 'max_pixels': 20_000}], videos=[{'video': ['0.png', '0.png'], 'sample_fps': 4}]
  )
  bad = said('<image>', images=[{'path': '0.png', 'max_pixel': 20_000}])
  write_tar(
    tmp_path / 'a.tar',
    {
      f'{i}.{k}': v
      for i, r in enumerate((listed, bad))
      for k, v in (('json', json.dumps(r).encode()), ('0.png', small.getvalue()))
    },
  )
  processor = Processor.from_folder(tiny_folder)
  special = SpecialIds.of(processor.cfg, processor.tokenizer)
  source = open_source(tmp_path / 'a.tar')
  (got,) = read_record(source.read(source.locate(0)), Rules(), processor, special)
  data = small.getvalue()
  parts = [{'type': 'image', 'image': data, 'max_pixels': 20_000}, {'type': 'video', 'video': [data, data], 'sample_fps': 4}]
  want = processor([{'role': 'user', 'content': parts}, {'role': 'assistant', 'content': 'y'}], add_generation_prompt=False)
  np.testing.assert_array_equal(got.inputs.ids, want.ids)
  np.testing.assert_array_equal(got.inputs.positions, want.positions)
  assert np.prod(got.inputs.visuals[0].grid) * 256 <= 20_000
  with pytest.raises(ValueError, match=r"images\[0\]: unknown keys 'max_pixel'; known are resized_height"):
    read_record(source.read(source.locate(1)), Rules(), processor, special)


def test_several_files_are_one_source_in_the_order_of_their_names(tmp_path):
  for name, number in (('b', 2), ('a', 3)):
    write_jsonl(tmp_path / f'{name}.jsonl', [{'text': f'{name}{i}'} for i in range(number)])
  source = open_source(tmp_path / '*.jsonl')
  assert [source.locate(i).name for i in range(len(source))] == ['a.jsonl:1', 'a.jsonl:2', 'a.jsonl:3', 'b.jsonl:1', 'b.jsonl:2']


def test_blank_lines_are_no_records_and_the_last_line_needs_no_end(tmp_path):
  (tmp_path / 'a.jsonl').write_text('\n{"text": "x"}\n\n{"text": "é"}')
  source = open_source(tmp_path / 'a.jsonl')
  assert [(source.read(source.locate(i)), source.locate(i).name) for i in range(len(source))] == [
    ({'text': 'x'}, 'a.jsonl:2'),
    ({'text': 'é'}, 'a.jsonl:4'),
  ]


def test_what_is_damaged_fails_alone(tmp_path, picture):
  write_tar(tmp_path / 'a.tar', {'1.png': picture, '2.json': b'[1]', '3.json': b'{"text": "x"}'})
  items = open_source(tmp_path / 'a.tar')
  with pytest.raises(ValueError, match='no 1.json in it'):
    items.read(items.locate(0))
  with pytest.raises(ValueError, match='expected a JSON object, found list'):
    items.read(items.locate(1))
  assert items.read(items.locate(2)) == {'text': 'x'}
  write_jsonl(tmp_path / 'b.jsonl', [{'text': 'x'}, {'text': 'y' * 100}])
  items = open_source(tmp_path / 'b.jsonl')
  (tmp_path / 'b.jsonl').write_bytes((tmp_path / 'b.jsonl').read_bytes()[:60])
  assert items.read(items.locate(0)) == {'text': 'x'}
  with pytest.raises(ValueError, match='has it changed'):
    items.read(items.locate(1))


@pytest.mark.parametrize(
  'name, contents, complaint',
  [
    ('a.parquet', b'nonsense', 'not a Parquet file'),
    ('a.tar', b'nonsense' * 200, 'not an uncompressed tar file'),
    ('a.array_record', b'nonsense' * 20, 'not an ArrayRecord file|no records'),
    ('a.jsonl', b'\n\n', 'no records'),
    ('a.csv', b'x', 'records are read from'),
    ('b.jsonl', None, 'no such file'),
  ],
)
def test_a_file_that_is_not_one_is_refused_at_once(tmp_path, name, contents, complaint):
  if contents is not None:
    (tmp_path / name).write_bytes(contents)
  with pytest.raises(ValueError, match=complaint):
    open_source(tmp_path / name)


@pytest.fixture
def rows(tmp_path):
  """A Parquet file of 20 groups of 6 rows."""
  import pyarrow
  import pyarrow.parquet

  rows = [{'messages': [{'role': 'user', 'content': f'{i}'}, {'role': 'assistant', 'content': 'y'}]} for i in range(120)]
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / 'a.parquet', row_group_size=6)
  return tmp_path / 'a.parquet'


def test_shuffled_parquet_reads_each_group_once_an_epoch(rows, tiny_folder, monkeypatch):
  read = []
  whole = Parquet.read_group
  monkeypatch.setattr(Parquet, 'read_group', lambda self, group: read.append(group) or whole(self, group))
  cfg = DataConfig(sources=(SourceConfig(path=str(rows)),), rows=2, length=64, lanes=2, buffer=4, threads=4, max_bad=0, epochs=1)
  found = list(Loader(cfg, Processor.from_folder(tiny_folder)))
  ids = [record for _, stats in found for _, record in stats['ids']]
  assert sorted(read) == list(range(20)) and sorted(ids) == sorted(f'a.parquet:{i}' for i in range(120)) != ids


def test_records_of_a_group_go_to_the_worker_that_has_it(rows):
  source = open_source(rows)
  decoder = Decoder([source], [None], threads=1, workers=3)
  sent = [[] for _ in decoder._workers]
  for pool, places in zip(decoder._workers, sent, strict=True):
    pool.submit = lambda call, number, place, places=places: places.append(place.where[0])
  for index in range(len(source)):
    decoder.submit(0, index)
  decoder.close()
  groups = [set(places) for places in sent]
  assert sum(map(len, groups)) == 20 and min(map(len, groups)) > 2


def test_an_index_is_used_again_until_its_file_changes(tmp_path, monkeypatch, caplog):
  write_tar(tmp_path / 'a.tar', {f'{i:05}.{end}': b'{"text": "x"}' for i in range(500) for end in ('json', '0.wav')})
  write_jsonl(tmp_path / 'b.jsonl', [{'text': 'x'}, '', {'text': 'y'}])
  built = []
  monkeypatch.setattr(tar, '_index', lambda path, build=tar._index: built.append(path.name) or build(path))
  monkeypatch.setattr(sources, '_lines', lambda path, build=sources._lines: built.append(path.name) or build(path))
  index = tmp_path / 'run' / 'index'

  def opened() -> list[str]:
    built.clear()
    for name, last in (('a.tar', '00499'), ('b.jsonl', '3')):
      source = open_source(tmp_path / name, index)
      place = source.locate(len(source) - 1)
      assert place.name == f'{name}:{last}' and source.read(place)['text'] in 'xy'
    return built

  assert opened() == ['a.tar', 'b.jsonl']
  assert opened() == [] and len(list(index.iterdir())) == 2
  (tmp_path / 'b.jsonl').write_text('{"text": "y"}\n\n{"text": "x"}\n')  # of the same size
  os.utime(tmp_path / 'b.jsonl', ns=(1, 1))
  assert opened() == ['b.jsonl']
  for file in index.iterdir():
    file.write_bytes(file.read_bytes()[:100])
  assert opened() == ['a.tar', 'b.jsonl'] and 'built anew' in caplog.text
  assert opened() == []


def test_an_index_is_small_and_stays_in_its_process(tmp_path):
  write_tar(tmp_path / 'a.tar', {f'shard/{i:09}.{end}': b'{}' for i in range(2000) for end in ('json', '0.wav')})
  write_jsonl(tmp_path / 'b.jsonl', [{'text': str(i)} for i in range(2000)])
  for name, members, most in (('a.tar', 4000, 24), ('b.jsonl', 2000, 8.1)):
    source = open_source(tmp_path / name)
    assert sum(array.nbytes for array in source.shards[0].index.values()) <= most * members
    assert len(pickle.dumps(source)) < 1000


def test_members_of_a_record_may_lie_apart(tmp_path):
  write_tar(tmp_path / 'a.tar', {'1.json': b'{"text": "x"}', '2.json': b'{"text": "y"}', '1.b.png': b'P', '1.a.png': b'Q'})
  source = open_source(tmp_path / 'a.tar')
  assert len(source) == 2
  assert source.read(source.locate(0)) == {'text': 'x', 'images': [b'Q', b'P']}
  assert source.read(source.locate(1)) == {'text': 'y'}


def test_a_file_is_opened_once(tmp_path, monkeypatch):
  opened = []
  monkeypatch.setattr(kept.os, 'open', lambda path, *a, open=os.open: opened.append(str(path)) or open(path, *a))
  for name in 'ab':
    write_jsonl(tmp_path / f'{name}.jsonl', [{'text': str(i)} for i in range(50)])
  source = open_source(tmp_path / '*.jsonl')
  opened.clear()
  assert [source.read(source.locate(i))['text'] for i in range(100)] == [str(i) for i in range(50)] * 2
  assert opened == [str(tmp_path / 'a.jsonl'), str(tmp_path / 'b.jsonl')]


def test_what_is_kept_is_made_once_by_all_threads_and_bounded():
  made = []

  def make(key):
    time.sleep(0.02)
    made.append(key)
    return key

  recent = kept.Recent(2)
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert list(pool.map(lambda key: recent.get(key, lambda: make(key)), [1, 1, 2, 2] * 4)) == [1, 1, 2, 2] * 4
  assert sorted(made) == [1, 2]
  for key in (1, 3, 1, 2):  # 3 took the place of 2, and 2 that of 3
    recent.get(key, lambda key=key: make(key))
  assert sorted(made) == [1, 2, 2, 3]
  with pytest.raises(ZeroDivisionError):
    recent.get(4, lambda: 1 / 0)
  assert recent.get(4, lambda: 5) == 5


@pytest.mark.parametrize(
  'errors, reads, error',
  [
    ([OSError(errno.EIO, 'later')] * 2, 3, None),
    ([OSError(errno.ESTALE, 'later')] * 3, 3, r'OSError: \[Errno 116\] later'),
    ([OSError(errno.ENOENT, 'gone')], 1, r'FileNotFoundError: \[Errno 2\] gone'),
    ([ValueError('damaged')], 1, 'damaged'),
  ],
)
def test_a_read_that_may_pass_is_tried_again(monkeypatch, errors, reads, error):
  calls = []

  def read(_):
    calls.append(1)
    if len(calls) > len(errors):
      return ['an example']
    try:
      raise errors[len(calls) - 1]
    except OSError as inner:
      if inner.errno == errno.EIO:
        raise ValueError('a medium could not be read') from inner  # as the readers of media do
      raise

  monkeypatch.setattr(decode, 'PAUSES_S', (0, 0))
  source, reader = types.SimpleNamespace(read=lambda place: place), types.SimpleNamespace(read=read, source='flaky')
  found = decode_record(source, reader, Place(0, 0, 'r1'))
  assert len(calls) == reads and (found.error is None) == (error is None)
  assert found.examples == ('an example',) if error is None else re.fullmatch(error, found.error)
