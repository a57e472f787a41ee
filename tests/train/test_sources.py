"""Every kind of file gives the same records by index; what is damaged fails alone."""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from qwen3_omni_jax.train.mask import SpecialIds
from qwen3_omni_jax.train.records import Rules, read_record
from qwen3_omni_jax.train.sources import open_source

from qwen3_omni_jax.media.processor import Processor
from tests.train.data_folder import write_jsonl


@pytest.fixture(scope='module')
def picture(samples) -> bytes:
  return samples['image'].read_bytes()


def record(i: int, **media) -> dict:
  return {'messages': [{'role': 'user', 'content': f'<image> {i}?'}, {'role': 'assistant', 'content': f'{i}!'}], **media}


def write_tar(path, members: dict[str, bytes]) -> None:
  with tarfile.open(path, 'w') as tar:
    for name, data in members.items():
      member = tarfile.TarInfo(name)
      member.size = len(data)
      tar.addfile(member, io.BytesIO(data))


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
    source = pickle.loads(pickle.dumps(open_source(tmp_path / name)))  # as a worker process gets it
    assert len(source) == 5
    found[name] = [read_record(source.read(i), Rules(), processor, special)[0] for i in (4, 0, 3, 1, 2)]
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
  (got,) = read_record(source.read(0), Rules(), processor, special)
  data = small.getvalue()
  parts = [{'type': 'image', 'image': data, 'max_pixels': 20_000}, {'type': 'video', 'video': [data, data], 'sample_fps': 4}]
  want = processor([{'role': 'user', 'content': parts}, {'role': 'assistant', 'content': 'y'}], add_generation_prompt=False)
  np.testing.assert_array_equal(got.inputs.ids, want.ids)
  np.testing.assert_array_equal(got.inputs.positions, want.positions)
  assert np.prod(got.inputs.visuals[0].grid) * 256 <= 20_000
  with pytest.raises(ValueError, match=r"images\[0\]: unknown keys 'max_pixel'; known are resized_height"):
    read_record(source.read(1), Rules(), processor, special)


def test_several_files_are_one_source_in_the_order_of_their_names(tmp_path):
  for name, number in (('b', 2), ('a', 3)):
    write_jsonl(tmp_path / f'{name}.jsonl', [{'text': f'{name}{i}'} for i in range(number)])
  source = open_source(tmp_path / '*.jsonl')
  assert [source.name(i) for i in range(len(source))] == ['a.jsonl:1', 'a.jsonl:2', 'a.jsonl:3', 'b.jsonl:1', 'b.jsonl:2']


def test_blank_lines_are_no_records_and_the_last_line_needs_no_end(tmp_path):
  (tmp_path / 'a.jsonl').write_text('\n{"text": "x"}\n\n{"text": "é"}')
  source = open_source(tmp_path / 'a.jsonl')
  assert [(source.read(i), source.name(i)) for i in range(len(source))] == [
    ({'text': 'x'}, 'a.jsonl:2'),
    ({'text': 'é'}, 'a.jsonl:4'),
  ]


def test_what_is_damaged_fails_alone(tmp_path, picture):
  write_tar(tmp_path / 'a.tar', {'1.png': picture, '2.json': b'[1]', '3.json': b'{"text": "x"}'})
  items = open_source(tmp_path / 'a.tar')
  with pytest.raises(ValueError, match='no 1.json in it'):
    items.read(0)
  with pytest.raises(ValueError, match='expected a JSON object, found list'):
    items.read(1)
  assert items.read(2) == {'text': 'x'}
  write_jsonl(tmp_path / 'b.jsonl', [{'text': 'x'}, {'text': 'y' * 100}])
  items = open_source(tmp_path / 'b.jsonl')
  (tmp_path / 'b.jsonl').write_bytes((tmp_path / 'b.jsonl').read_bytes()[:60])
  assert items.read(0) == {'text': 'x'}
  with pytest.raises(ValueError, match='has it changed'):
    items.read(1)


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
