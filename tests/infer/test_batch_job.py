"""Batch jobs: every row exactly once, whatever is killed and however many work on it; broken rows are errors of their own."""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tarfile
import time

import pytest
from qwen3_omni_jax.tools.batch import _tell

from qwen3_omni_jax.infer.job import JobConfig, merge, run_job, tool_calls
from qwen3_omni_jax.infer.job_rows import input_files, parse_row
from qwen3_omni_jax.infer.job_store import Store
from qwen3_omni_jax.infer.prepare import RowError
from tests.infer.batch_stub import run

pytestmark = pytest.mark.quick_to_compile

ROOT = pathlib.Path(__file__).parent.parent.parent


def question(i: int, **body) -> dict:
  return {'custom_id': f'id-{i}', 'body': {'messages': [{'role': 'user', 'content': f'Question {i}?'}], **body}}


def write(path: pathlib.Path, rows) -> pathlib.Path:
  path.write_text(''.join((row if isinstance(row, str) else json.dumps(row)) + '\n' for row in rows))
  return path


def contents(out: pathlib.Path) -> tuple[list[bytes], dict[str, bytes]]:
  """All rows sorted, and all sounds."""
  rows = [line for f in (out / 'rows').iterdir() for line in f.read_bytes().splitlines()]
  return sorted(rows), {str(f.relative_to(out)): f.read_bytes() for f in (out / 'audio').rglob('*') if f.is_file()}


@pytest.mark.parametrize('tar', [False, True])
def test_a_killed_job_goes_on_and_ends_as_an_undisturbed_one(tiny_folder, tmp_path, tar):
  """Two processes at a time, killed at random moments until the job is done."""
  source, rng = write(tmp_path / 'in.jsonl', map(question, range(60))), random.Random(3)
  run(tiny_folder, source, tmp_path / 'whole', tmp_path, speech=True, tar=tar)
  out, kills = tmp_path / 'killed', 0
  arguments = [sys.executable, '-m', 'tests.infer.batch_stub', tiny_folder, source, out, tmp_path, '0.02', *['tar'] * tar]
  start = lambda: subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
  lines = lambda: sum(f.read_bytes().count(b'\n') for f in (out / 'rows').glob('part-*')) if out.exists() else 0
  while kills < 3:
    before, child, other = lines(), start(), start() if kills == 0 else None
    while lines() == before and child.poll() is None:
      time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.3))
    for process in filter(None, (child, other)):
      os.kill(process.pid, signal.SIGKILL)
      process.communicate()
    kills += 1
  summary = run(tiny_folder, source, out, tmp_path, speech=True, tar=tar)
  assert summary['complete'] and summary['rows'] == summary['answered'] == 60
  assert contents(out) == contents(tmp_path / 'whole')
  assert summary['processes'] > 1 and not list((out / 'rows').glob('*.open'))


def test_two_processes_share_the_blocks_and_agree_with_one(tiny_folder, tmp_path):
  source = write(tmp_path / 'in.jsonl', map(question, range(64)))
  run(tiny_folder, source, tmp_path / 'one', tmp_path, speech=True)
  out = tmp_path / 'two'
  arguments = [sys.executable, '-m', 'tests.infer.batch_stub', tiny_folder, source, out, tmp_path, '0.03']
  children = [subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
  said = [json.loads(child.communicate()[0]) for child in children]
  assert [child.returncode for child in children] == [0, 0]
  assert sum((s.get('own') or {}).get('rows', 0) for s in said) == 64
  assert merge(out)['complete'] and contents(out) == contents(tmp_path / 'one')


def test_fixed_shards_leave_the_rest_to_others(tiny_folder, tmp_path):
  source = write(tmp_path / 'in.jsonl', map(question, range(40)))
  first = run(tiny_folder, source, tmp_path / 'out', tmp_path, shard=(0, 2))
  assert not first['complete'] and first['open_blocks'] == 2 and _tell(first, False) == 4
  second = run(tiny_folder, source, tmp_path / 'out', tmp_path, shard=(1, 2))
  assert second['complete'] and second['rows'] == 40


def break_row(i: int):
  """20 ways to break a row: (row, kind of error)."""
  good = question(i)
  ask = lambda **part: question(i, messages=[{'role': 'user', 'content': [part, {'type': 'text', 'text': 'What?'}]}])
  ways = [
    ('{"custom_id": "x", "body": ', 'json'),
    ('"a"["b"]', 'json'),
    ('[' * 5000, 'json'),
    ('42', 'request'),
    ({**good, 'custom_id': 7}, 'request'),
    ({**good, 'body': []}, 'request'),
    (question(i, tempreature=1), 'request'),
    ({**good, 'body': {}}, 'request'),
    (question(i, fps=-1), 'request'),
    (question(i, media='both'), 'request'),
    (question(i, speech='yes'), 'request'),
    (question(i, speech=False, modalities=['smell']), 'request'),
    (question(i, messages=[]), 'messages'),
    (question(i, messages=[{'role': 'wizard', 'content': 'hi'}]), 'messages'),
    (ask(type='audio', audio='nowhere.wav'), 'media'),
    (ask(type='image', image='/etc/passwd'), 'media'),
    (ask(type='image', image='data:image/png;base64,AAAA'), 'media'),
    (question(i, temperature=-1), 'settings'),
    (question(i, speech=True, speaker='Nobody'), 'settings'),
    (question(i, max_tokens=100_000), 'too_long'),
  ]
  assert len(ways) == 20
  return ways[i // 10 % 20]


def test_two_thousand_rows_of_which_a_tenth_is_broken_in_twenty_ways(tiny_folder, tmp_path):
  rows, expected = [], {}
  for i in range(2000):
    row, kind = break_row(i) if i % 10 == 4 else (question(i), None)
    rows.append(row)
    expected |= {i: kind} if kind else {}
  summary = run(tiny_folder, write(tmp_path / 'in.jsonl', rows), tmp_path / 'out', tmp_path, speech=True, audio='wav')
  assert (summary['answered'], summary['failed']) == (1800, 200) and sum(summary['failures'].values()) == 200
  found = [r for f in sorted((tmp_path / 'out' / 'rows').iterdir()) for r in map(json.loads, f.read_text().splitlines())]
  assert [r['row'] for r in found] == list(range(2000))
  assert {r['row']: r['error']['kind'] for r in found if 'error' in r} == expected
  assert all(r['error']['message'] for r in found if 'error' in r)
  assert _tell(summary, False) == 3
  report = (tmp_path / 'out' / 'report.html').read_text()
  assert '<svg' in report and 'settings' in report


@pytest.mark.parametrize('tar', [False, True])
def test_the_report_shows_and_plays_the_first_answers_and_one_failure_of_each_kind(tiny_folder, tmp_path, tar):
  from qwen3_omni_jax.tools.sample_media import write_samples

  write_samples(tmp_path)
  part = lambda kind, file: {'type': kind, kind: file}
  ask = lambda *parts: [{'role': 'user', 'content': [*parts, {'type': 'text', 'text': 'What <b>is</b> it?'}]}]
  rows = [question(i, messages=ask(part('image', 'shapes.png'), part('audio', 'melody.wav'))) for i in range(2)]
  rows += [question(2, messages=ask(part('video', 'moving.mp4')))] + [question(i) for i in range(3, 20)]
  rows[9:12] = ['not <json>', question(10, messages=ask(part('image', '/etc/passwd'))), question(11, temperature=-1)]
  run(tiny_folder, write(tmp_path / 'in.jsonl', rows), tmp_path / 'out', tmp_path, speech=True, tar=tar)
  page = (tmp_path / 'out' / 'report.html').read_text()
  assert page.count('<audio') == 2 + 6 and page.count('<img') == 3  # two sounds of users, six of answers
  assert 'What &lt;b&gt;is&lt;/b&gt; it?' in page and '<b>' not in page and 'not &lt;json&gt;' in page
  assert 'answer to id-0' in page and 'answer to id-5' in page and 'answer to id-6' not in page
  assert 'image not shown: /etc/passwd: outside the media folder' in page and 'temperature -1' in page
  assert not re.search(r'(src|href)="(?!data:|#)', page)
  (tmp_path / 'in.jsonl').unlink()  # a report made anew does without what has gone
  assert merge(tmp_path / 'out')['complete']
  assert 'answer to id-0' in (again := (tmp_path / 'out' / 'report.html').read_text()) and 'What' not in again


def test_failed_rows_are_tried_again_only_when_asked(tiny_folder, tmp_path):
  from qwen3_omni_jax.tools.sample_media import write_samples

  ask = {'role': 'user', 'content': [{'type': 'image', 'image': 'shapes.png'}]}
  source = write(tmp_path / 'in.jsonl', [question(0), question(1, messages=[ask]), question(2)])
  options = dict(speech=True, tar=True)
  assert run(tiny_folder, source, tmp_path / 'out', tmp_path, **options)['failures'] == {'media': 1}
  write_samples(tmp_path)
  assert run(tiny_folder, source, tmp_path / 'out', tmp_path, **options)['failed'] == 1
  again = run(tiny_folder, source, tmp_path / 'out', tmp_path, retry_failed=True, **options)
  assert (again['failed'], again['own']['rows']) == (0, 1)
  with tarfile.open(tmp_path / 'out' / 'audio' / 'part-00000.tar') as tar:
    assert tar.getnames() == ['00000000.flac', '00000001.flac', '00000002.flac']


def test_another_job_is_not_mixed_into_an_output(tiny_folder, tmp_path):
  source = write(tmp_path / 'in.jsonl', map(question, range(3)))
  run(tiny_folder, source, tmp_path / 'out', tmp_path)
  with pytest.raises(ValueError, match=r'holds another job: temperature: was None, now 0\.5'):
    run(tiny_folder, source, tmp_path / 'out', tmp_path, temperature=0.5)
  write(source, map(question, range(4)))
  with pytest.raises(ValueError, match='the input files have changed'):
    run(tiny_folder, source, tmp_path / 'out', tmp_path)
  with pytest.raises(ValueError, match='no such input file'):
    run_job(JobConfig(model='x', input=('nowhere.jsonl',), output=str(tmp_path / 'x')))


def test_a_cut_line_and_missing_sound_are_noticed(tiny_folder, tmp_path):
  source = write(tmp_path / 'in.jsonl', map(question, range(3)))
  out = tmp_path / 'out'
  run(tiny_folder, source, out, tmp_path, speech=True)
  store = Store(out, 3, 8)
  (out / 'rows' / 'part-00000.jsonl').rename(out / 'rows' / 'part-00000.open')
  whole = store.path(0, 'open').read_bytes()
  store.path(0, 'open').write_bytes(whole[:-20])  # a kill in the middle of a write
  assert store.claim(0) == {0, 1}
  store.close()
  assert run(tiny_folder, source, out, tmp_path, speech=True)['complete']
  assert (out / 'rows' / 'part-00000.jsonl').read_bytes() == whole
  next((out / 'audio').rglob('*.flac')).unlink()
  with pytest.raises(ValueError, match=r'of part-00000.jsonl: .*flac is not there'):
    merge(out)


def test_parquet_and_bare_messages_are_read(tiny_folder, tmp_path):
  import pyarrow
  import pyarrow.parquet

  rows = [{'custom_id': f'p{i}', 'messages': [{'role': 'user', 'content': f'Number {i}'}], 'seed': i} for i in range(5)]
  rows[3]['seed'] = None
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / 'a.parquet', row_group_size=2)
  write(tmp_path / 'b.jsonl', [[{'role': 'user', 'content': 'bare'}], '', {'messages': [{'role': 'user', 'content': 'x'}]}])
  assert [f.name for f in input_files([str(tmp_path / '*.*')])] == ['a.parquet', 'b.jsonl']
  run(tiny_folder, tmp_path / '*.*', tmp_path / 'out', tmp_path)
  found = [json.loads(line) for line in (tmp_path / 'out' / 'rows' / 'part-00000.jsonl').read_text().splitlines()]
  assert [r['custom_id'] for r in found] == [*(f'p{i}' for i in range(5)), 'row-00000005', 'row-00000006']
  assert [r['seed'] for r in found[:3]] == [0, 1, 2] and found[3]['seed'] > 2 and all('error' not in r for r in found)


def test_rows_of_the_openai_form_are_understood():
  body = {'messages': 'x', 'max_completion_tokens': 5, 'modalities': ['text', 'audio'], 'audio': {'voice': 'Aiden'}, 'tools': []}
  row = parse_row({'custom_id': 'a', 'method': 'POST', 'url': '/v1', 'body': {**body, 'messages': []}}, 0, 'w', {}, False)
  assert (row.id, row.max_new_tokens, row.speech, row.speaker, dict(row.prompt)) == ('a', 5, True, 'Aiden', {'tools': []})
  row = parse_row({'messages': [], 'speech': False}, 0, 'where', {'speaker': 'Ethan', 'top_k': 3}, True)
  assert (row.id, row.speech, row.speaker, row.top_k) == ('where', False, 'Ethan', 3)
  with pytest.raises(RowError, match='give one of'):
    parse_row({'messages': [], 'max_tokens': 1, 'max_new_tokens': 2}, 0, 'w', {}, False)


def test_tool_calls_are_taken_out_of_the_text():
  call = '<tool_call>\n{"name": "look", "arguments": {"at": {"x": 1}}}\n</tool_call>'
  assert tool_calls(f'Wait.\n{call}') == ('Wait.', [{'name': 'look', 'arguments': {'at': {'x': 1}}}])
  assert tool_calls('<tool_call>{"name": }</tool_call>') == ('<tool_call>{"name": }</tool_call>', [])


def test_the_command_answers_a_file(tiny_folder, tmp_path, capsys):
  """The real engine, once, through the command."""
  from qwen3_omni_jax.cli import main

  source = write(tmp_path / 'in.jsonl', [question(0, max_tokens=2), 'broken', question(2, max_tokens=3)])
  command = [
    'batch',
    '--model',
    str(tiny_folder),
    '--dtype',
    'float32',
    '--input',
    str(source),
    '--output',
    str(tmp_path / 'o'),
    '--slots',
    '2',
    '--lengths',
    '256',
    '--compile-cache',
    '',
  ]
  assert main([*command, '--dry-run']) == 0
  assert 'total' in capsys.readouterr().out and not (tmp_path / 'o').exists()
  assert main([*command, '--json']) == 3
  summary = json.loads(capsys.readouterr().out)
  assert (summary['answered'], summary['failures'], summary['completion_tokens']) == (2, {'json': 1}, 5)
  assert main(['batch', '--output', str(tmp_path / 'o'), '--merge']) == 3


def test_a_pipeline_gets_columns_for_columns(tiny_folder):
  """As Ray Data hands a batch over: numpy columns, bodies as JSON text."""
  import numpy as np

  from qwen3_omni_jax.infer.batch_plan import EngineConfig
  from qwen3_omni_jax.infer.predict import Predictor

  bodies = [json.dumps(question(i, max_tokens=2 + i)['body']) for i in range(3)] + ['{broken']
  batch = {'custom_id': np.array(['a', 'b', 'c', 'd'], object), 'body': np.array(bodies, object)}
  predictor = Predictor(str(tiny_folder), dtype='float32', engine=EngineConfig(slots=2, lengths=(256,)))
  whole = predictor(batch)
  assert list(whole['custom_id']) == ['a', 'b', 'c', 'd'] and whole['finish_reason'][:3] == ['length'] * 3
  assert whole['error'][3].startswith('json: ') and not any(whole['error'][:3])
  parts = [predictor({k: v[s] for k, v in batch.items()}) for s in (slice(2, 4), slice(0, 2))]
  assert parts[1]['text'] + parts[0]['text'] == whole['text']
