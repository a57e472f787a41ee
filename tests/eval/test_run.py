"""A run keeps every reply, goes on after a kill, fails bad records alone, and ends in readable results."""

import dataclasses
import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from qwen3_omni_jax.eval import registry, report_html, report_table, run
from qwen3_omni_jax.eval.judge import EndpointJudge
from qwen3_omni_jax.eval.predict import Answer, EnginePredictor, OmniPredictor
from qwen3_omni_jax.eval.recognise import Recogniser

from qwen3_omni_jax.cli import main

pytestmark = pytest.mark.quick_to_compile


class Parrot:
  """Answers 'A' to everything; counts what it is asked, and may die after some calls."""

  def __init__(self, dies_after=None):
    self.asked, self.calls, self.dies_after = [], 0, dies_after

  def __call__(self, conversations, settings):
    self.calls += 1
    if self.dies_after is not None and self.calls > self.dies_after:
      raise KeyboardInterrupt
    self.asked += conversations
    return [Answer('A') for _ in conversations]

  def choose(self, conversations, letters, settings):
    return self(conversations, None)


def some(*names):
  return [registry.BENCHMARKS[n] for n in names]


def quiet(line):
  pass


def go(predict, names, root, out, **more):
  more = {'variant': 'instruct', 'model': 'parrot', 'limit': 2, 'log': quiet} | more
  return run.run_suite(predict, some(*names), root, out, **more)


def test_a_killed_run_goes_on_where_it_stopped(benchmark_root, tmp_path):
  names = ['mmau', 'mmsu', 'mmstar']
  with pytest.raises(KeyboardInterrupt):
    go(Parrot(dies_after=3), names, benchmark_root, tmp_path, batch=1)
  with (tmp_path / 'mmsu' / 'replies.jsonl').open('a') as file:
    file.write('{"id": "u2", "te')  # the kill came in the middle of a line
  second = Parrot()
  results = go(second, names, benchmark_root, tmp_path, batch=1)
  assert len(second.asked) == 3
  whole = go(Parrot(), names, benchmark_root, tmp_path / 'whole')
  assert [r.scores.metrics for r in results] == [r.scores.metrics for r in whole]


def test_replies_of_other_settings_are_not_mixed_in(benchmark_root, tmp_path):
  go(Parrot(), ['mmau'], benchmark_root, tmp_path)
  with pytest.raises(ValueError, match='other settings'):
    go(Parrot(), ['mmau'], benchmark_root, tmp_path, changes={'max_new_tokens': 9})


def test_a_broken_file_fails_alone_and_a_missing_one_stops_the_run_before_it_starts(benchmark_root, tmp_path):
  root = tmp_path / 'data'
  shutil.copytree(benchmark_root / 'librispeech', root / 'librispeech')
  first, second = sorted((root / 'librispeech' / 'test-clean').glob('**/*.flac'))
  second.unlink()
  parrot, said = Parrot(), []
  with pytest.raises(ValueError, match='--allow-missing'):
    go(parrot, ['librispeech-clean'], root, tmp_path / 'a', log=said.append)
  assert not parrot.asked and '1-2-1.flac' in said[0]
  (result,) = go(parrot, ['librispeech-clean'], root, tmp_path / 'a', allow_missing=True)
  assert len(result.items) == 1 and result.to_json('instruct')['items_without_media'] == 1


def test_an_unreadable_cell_is_an_error_of_its_item(benchmark_root, tmp_path):
  root = tmp_path / 'data'
  shutil.copytree(benchmark_root / 'wenetspeech', root / 'wenetspeech')
  (root / 'wenetspeech' / 'audio' / 'y1.wav').write_bytes(b'no sound')
  (result,) = go(Parrot(), ['wenetspeech-net'], root, tmp_path / 'out')
  assert result.answers[0].text is None and result.answers[0].finish_reason == 'error' and result.answers[0].error
  assert result.to_json('instruct')['errors'] == 1


def test_judged_sets_are_skipped_with_a_clear_word(benchmark_root, tmp_path):
  results = go(Parrot(), ['voicebench-commoneval', 'mmau'], benchmark_root, tmp_path)
  assert results[0].scores is None and '--judge-url' in results[0].skipped and results[1].scores is not None
  with pytest.raises(ValueError, match='nothing to run: voicebench-commoneval'):
    go(Parrot(), ['voicebench-commoneval'], benchmark_root, tmp_path)


def test_evaluators_are_functions_of_a_predictor(benchmark_root):
  """As training calls them by step: no file, no state."""
  scores = run.evaluate(Parrot(), some('mmau', 'mmstar'), benchmark_root, limit=1)
  assert {name: s.headline for name, s in scores.items()} == {'mmau': 100.0, 'mmstar': 100.0}


@pytest.fixture
def endpoint():
  asked = []

  class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
      body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
      asked.append((self.path, self.headers['Authorization'], body))
      reply = json.dumps({'choices': [{'message': {'content': ' 4 '}}]}).encode()
      self.send_response(200)
      self.send_header('Content-Length', str(len(reply)))
      self.end_headers()
      self.wfile.write(reply)

    def log_message(self, *args):
      pass

  server = HTTPServer(('127.0.0.1', 0), Handler)
  thread = threading.Thread(target=server.serve_forever)
  thread.start()
  yield f'http://127.0.0.1:{server.server_port}/v1', asked
  server.shutdown()
  thread.join()
  server.server_close()


def test_a_judge_is_asked_once_and_its_key_is_kept_nowhere(endpoint, tmp_path):
  url, asked = endpoint
  cache = tmp_path / 'judge.jsonl'
  judge = EndpointJudge(url, 'grader', cache, 'secret')
  assert judge('Rate it', system='Be fair', n=3, temperature=0.5) == ['4', '4', '4']  # an endpoint that ignores n is asked thrice
  path, key, body = asked[0]
  assert path == '/v1/chat/completions' and key == 'Bearer secret' and body['model'] == 'grader' and body['temperature'] == 0.5
  before = len(asked)
  assert EndpointJudge(url, 'grader', cache, 'secret')('Rate it', system='Be fair', n=3, temperature=0.5) == ['4', '4', '4']
  assert len(asked) == before and 'secret' not in cache.read_text()


def test_an_endpoint_that_is_not_there_is_an_error_of_one_line(tmp_path, monkeypatch):
  monkeypatch.setattr('qwen3_omni_jax.eval.judge.time.sleep', lambda s: None)
  with pytest.raises(ValueError, match='judge grader at http://127.0.0.1:9'):
    EndpointJudge('http://127.0.0.1:9/v1', 'grader', tmp_path / 'c')('x')


def test_reports_name_every_number_and_show_the_media(benchmark_root, tmp_path):
  names = ['mmau', 'mmstar', 'worldsense', 'librispeech-clean', 'voicebench-wildvoice', 'mmsu']
  results = go(Parrot(), names, benchmark_root, tmp_path)
  summary = run.summary(results, 'instruct', 'parrot')
  text = report_table.markdown(summary)
  assert '| MMAU v05.15.25 test-mini | accuracy ↑ | 50.00 |' in text and '| 77.5 |' in text and 'Not scored:' in text
  page = report_html.page(results, summary)
  assert page.count('<audio') >= 2 and 'still of the video' in page and page.count('<svg') >= 3
  assert not re.search(r'(src|href)="(?!data:|#)', page) and 'unreadable' in page
  assert json.loads(json.dumps(summary))['results'][0]['settings']['fps'] == 2.0
  assert summary['results'][0]['settings']['media'] == 'utils'


def test_a_limit_takes_items_of_all_kinds(benchmark_root):
  items = some('mlvu')[0].read(benchmark_root / 'mlvu')
  assert [i.category['task'] for i in run.spread(items, 3)] == ['plotQA', 'ego', 'order']
  assert run.spread(items, 9) == items == run.spread(items, None)


def test_ids_cannot_leave_the_folder(tmp_path, benchmark_root):
  item = dataclasses.replace(some('gsm8k')[0].read(benchmark_root / 'gsm8k')[0], id='../../etc/x')
  assert run.wave_path(tmp_path, item).parent == tmp_path / 'waves'


@pytest.fixture(scope='module')
def omni(tiny_folder):
  from qwen3_omni_jax import Omni

  return Omni.load(tiny_folder, dtype='float32')


@pytest.mark.slow
def test_every_family_runs_end_to_end_with_the_model(omni, benchmark_root, tmp_path):
  """One benchmark of each family (and the FLEURS reader once): same small media, so that few programs are compiled."""
  names = [
    'librispeech-clean',
    'wenetspeech-net',
    'covost2-en-de',
    'voicebench-bbh',
    'mmau',
    'mmsu',
    'mmmu',
    'mathvista',
    'mmstar',
    'hallusionbench',
    'video-mme',
    'mlvu',
    'lvbench',
    'worldsense',
    'daily-omni',
    'seed-tts-en',
    'gsm8k',
    'mmlu-redux',
  ]
  predict = EnginePredictor(omni, batch_size=2, max_frames=6)
  ears = [Recogniser('ear', lambda benchmark, items: lambda waves: ['the disc is red' for wave in waves if wave.is_file()])]
  results = go(predict, names, benchmark_root, tmp_path, batch=2, limit=1, changes={'max_new_tokens': 3}, recognisers=ears)
  assert [r.benchmark.name for r in results] == names
  for result in results:
    assert result.scores is not None and all(a.error is None and a.text is not None for a in result.answers), result
  seed = results[names.index('seed-tts-en')]
  assert seed.scores.headline == 0
  assert (tmp_path / 'seed-tts-en' / 'manifest.lst').read_text().count('|') == 2
  again = Parrot()
  again.voice = predict.voice
  deaf = [Recogniser('ear', lambda benchmark, items: None)]
  resumed = go(again, names, benchmark_root, tmp_path, limit=1, changes={'max_new_tokens': 3}, recognisers=deaf)
  assert [r.scores.metrics for r in resumed] == [r.scores.metrics for r in results]
  assert not again.asked


def test_the_engine_answers_as_generate_does(omni, benchmark_root, tmp_path):
  names = ['mmau']
  results = [
    go(make(omni, batch_size=2), names, benchmark_root, tmp_path / make.__name__, batch=2, changes={'max_new_tokens': 3})
    for make in (EnginePredictor, OmniPredictor)
  ]
  assert [[a.text for a in r.answers] for r in results[0]] == [[a.text for a in r.answers] for r in results[1]]


def test_the_command_writes_results_and_resumes(tiny_folder, benchmark_root, tmp_path, capsys):
  args = [
    'eval',
    '--model',
    str(tiny_folder),
    '--suite',
    'text',
    '--data',
    str(benchmark_root),
    '--out',
    str(tmp_path / 'out'),
    '--limit',
    '1',
    '--max-new-tokens',
    '3',
    '--dtype',
    'float32',
    '--batch-size',
    '2',
  ]
  assert main(args) == 0
  out = capsys.readouterr()
  assert '| GSM8K | accuracy ↑ |' in out.out and 'gsm8k: 1 of 1' in out.err
  assert main([*args, '--json']) == 0
  out = capsys.readouterr()
  found = json.loads(out.out)
  assert 'gsm8k: 1 of 1 replies are there already' in out.err
  assert found['variant'] == 'instruct' and [r['benchmark'] for r in found['results']] == ['gsm8k', 'mmlu-redux', 'gpqa']
  assert found['results'][0]['settings']['max_new_tokens'] == 3 and found['versions']['sacrebleu'] != 'not installed'
  for name in ('results.json', 'report.md', 'report.html'):
    assert (tmp_path / 'out' / name).is_file()


def test_the_command_prints_the_questions(benchmark_root, capsys):
  assert main(['eval', '--items', '--benchmark', 'mmau', '--benchmark', 'mmmu', '--data', str(benchmark_root)]) == 0
  records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert [r['id'] for r in records] == ['m1', 'm2', 'validation_Art_1', 'validation_Math_1'] and records[0]['reference'] == 'Man'
  assert main(['eval', '--list']) == 0
  assert len(capsys.readouterr().out.splitlines()) == len(registry.BENCHMARKS)


def test_the_command_scores_predictions_without_a_model(benchmark_root, tmp_path, capsys):
  (tmp_path / 'p.jsonl').write_text('{"id": "m1", "text": "(A) Man"}\n{"id": "m2", "text": "Woman"}')
  args = ['eval', '--from-predictions', str(tmp_path / 'p.jsonl'), '--benchmark', 'mmau', '--data', str(benchmark_root)]
  assert main([*args, '--out', str(tmp_path / 'out')]) == 0
  assert '| accuracy ↑ | 100.00 |' in capsys.readouterr().out
  assert (tmp_path / 'p.jsonl').read_text().endswith('"Woman"}')  # someone's file is only read


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    ((), 'give --suite'),
    (('--suite', 'text'), 'give --data'),
    (('--suite', 'text', '--data', '/x'), 'give either --model'),
    (('--benchmark', 'nope', '--data', '/x', '--model', 'y'), 'expected one of'),
    (('--suite', 'text', '--data', '/x', '--from-predictions', 'y'), 'scores one --benchmark'),
    (('--benchmark', 'mmau', '--data', '/x', '--from-predictions', '/nowhere'), '/nowhere: no such file'),
    (('--benchmark', 'mmau', '--data', '/x', '--model', 'y', '--limit', '0'), '--limit 0'),
  ],
)
def test_errors_are_one_line(args, message, capsys):
  assert main(['eval', *args]) == 1
  err = capsys.readouterr().err
  assert message in err and len(err.strip().splitlines()) == 1
