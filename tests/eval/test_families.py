"""Every family reads its released schema, asks as published, and scores right and wrong replies as such."""

import dataclasses

import numpy as np
import pytest
from qwen3_omni_jax.eval import asr, bootstrap, data_check, hallusionbench, mlvu, published, read, registry, voicebench
from qwen3_omni_jax.eval.benchmark import Row, Scoring, default_settings, ratio_scores
from qwen3_omni_jax.eval.run import score_predictions

JUDGED = {name for name, b in registry.BENCHMARKS.items() if b.needs_judge}


def items_of(name, root):
  benchmark = registry.BENCHMARKS[name]
  return benchmark, benchmark.read(root / benchmark.folder)


def perfect(item):
  """A reply that is right for every scorer."""
  options = item.fields.get('options')
  if isinstance(item.reference, list):
    return item.reference[0]
  if options and item.reference in options.values():
    return next(k for k, v in options.items() if v == item.reference)
  return 'I cannot do that' if item.reference is None else str(item.reference)


@pytest.mark.parametrize('name', sorted(set(registry.BENCHMARKS) - JUDGED))
def test_right_replies_score_best_and_silence_scores_worst(name, benchmark_root):
  benchmark, items = items_of(name, benchmark_root)
  if name in ('fleurs-en2xx', 'fleurs-zh2xx'):
    items = [i for i in items if not i.category['direction'].endswith('_ja')]  # MeCab is an extra
  right = benchmark.score(items, [perfect(item) for item in items], Scoring())
  silent = benchmark.score(items, [None] * len(items), Scoring())
  best, worst = (0.0, 100.0) if right.lower_is_better else (100.0, 0.0)
  if not name.startswith(('covost2', 'fleurs-xx', 'fleurs-en2', 'fleurs-zh2')):  # a three-word text has no four-grams
    assert right.headline == pytest.approx(best)
  assert silent.headline == pytest.approx(worst) and silent.unreadable == len(items)
  assert (right.unreadable, len(right.rows)) == (0, len(items))
  assert not data_check.check(benchmark, items).lost
  low, high = bootstrap.interval(right, samples=20)
  assert low <= right.headline + 1e-9 and high >= right.headline - 1e-9


@pytest.mark.parametrize('name', sorted(registry.BENCHMARKS))
def test_media_come_before_the_text_and_no_system_prompt(name, benchmark_root):
  benchmark, items = items_of(name, benchmark_root)
  assert items and len({item.id for item in items}) == len(items)
  for item in items:
    assert [m['role'] for m in item.messages] == (['assistant'] if benchmark.answer == 'speak' else ['user'])
    kinds = [p['type'] for m in item.messages if isinstance(m['content'], list) for p in m['content']]
    assert kinds == sorted(kinds, key=lambda kind: kind == 'text')
    for part in (p for m in read.with_media(item) if isinstance(m['content'], list) for p in m['content']):
      assert isinstance(part[part['type']], (str, bytes, tuple))


def test_published_prompts_are_verbatim(benchmark_root):
  ask = lambda name: items_of(name, benchmark_root)[1][0].messages[0]['content'][-1]['text']
  assert ask('librispeech-clean') == 'Transcribe the English audio into text.'
  assert ask('fleurs-zh') == '请将这段中文语音转换为纯文本。'
  assert ask('covost2-en-de') == 'Listen to the provided English speech and produce a translation in German text.'
  assert ask('mlvu') == 'Question: What?\nOptions:\n(A) a\n(B) b\nOnly give the best option.\nBest option: ('
  assert ask('video-mme').endswith('\nQuestion: How many?\nA. 1\nB. 2\nC. 3\nD. 4\nThe best answer is:')
  assert ask('mmmu') == (
    'Question: What is in <image 1>?\nOptions:\nA. a red disc\nB. a cat\nPlease select the correct answer from the options above.'
  )
  assert [p['type'] for p in items_of('voicebench-mmsu', benchmark_root)[1][0].messages[0]['content']] == ['audio']


def test_settings_of_the_variants():
  instruct, thinking = default_settings('instruct', 512), default_settings('thinking', 512)
  assert (instruct.temperature, instruct.max_new_tokens, instruct.fps) == (0.0, 512, 2.0)
  assert (thinking.temperature, thinking.top_p, thinking.top_k, thinking.max_new_tokens) == (0.6, 0.95, 20, 32768)
  assert registry.BENCHMARKS['worldsense'].settings('instruct').audio_in_video
  assert not registry.BENCHMARKS['video-mme'].settings('instruct').audio_in_video
  with pytest.raises(ValueError, match='expected instruct'):
    default_settings('base', 5)


def test_judged_sets_average_ratings_and_votes(benchmark_root):
  class Judge:
    name = 'fixed'

    def __init__(self, *replies):
      self.replies = replies

    def __call__(self, prompt, *, system=None, n=1, **sampling):
      assert n == 3 and 'What is it?' in prompt and '{' not in prompt
      return list(self.replies)

  benchmark, items = items_of('voicebench-commoneval', benchmark_root)
  assert benchmark.score(items, ['x', 'y'], Scoring(Judge('4', '5', '3'))).headline == pytest.approx(80)
  some_unread = benchmark.score(items, ['x', 'y'], Scoring(Judge('4', 'fine', '2')))
  assert some_unread.headline == pytest.approx(60) and some_unread.unreadable == 0
  benchmark, items = items_of('voicebench-sd-qa', benchmark_root)
  scores = benchmark.score(items, ['x', 'y'], Scoring(Judge('Yes', 'No', 'yes')))
  assert scores.headline == 100 and 'without PEDANT' in scores.signature
  with pytest.raises(ValueError, match='--judge-url'):
    benchmark.score(items, ['x', 'y'], Scoring())


def test_a_judge_reads_what_no_rule_reads(benchmark_root):
  class Judge:
    name = 'reader'

    def __call__(self, prompt, *, system=None, n=1, **sampling):
      return [' (B) '] if 'negative {x}' in prompt else ['Yes' if 'affirmative' in prompt else 'Unknown']

  benchmark, items = items_of('mathvista', benchmark_root)
  scores = benchmark.score(items, ['two', 'It is the negative {x}'], Scoring(Judge()))
  assert [row.extracted for row in scores.rows] == [None, 'No'] and 'reader' in scores.signature
  benchmark, items = items_of('hallusionbench', benchmark_root)
  scores = benchmark.score(items, ['affirmative', 'hm', 'No', 'Yes'], Scoring(Judge()))
  assert [row.extracted for row in scores.rows] == ['Yes', None, 'No', 'Yes'] and scores.unreadable == 1


def test_voicebench_overall_is_that_of_the_published_rows():
  for variant, shown in (('instruct', 85.49), ('thinking', 88.83)):
    rows = {name: values[variant] for name, values in published.PUBLISHED.items() if name.startswith('voicebench-')}
    assert round(voicebench.overall(rows), 2) == shown
    assert abs(voicebench.overall(rows) - published.published('voicebench-overall', variant)) < 0.06
  with pytest.raises(ValueError, match='no score of'):
    voicebench.overall({'voicebench-mmsu': 1.0})


def test_hallusionbench_counts_answers_figures_and_questions(benchmark_root):
  _, items = items_of('hallusionbench', benchmark_root)
  assert len(items) == 4  # the one without a picture is left out
  scores = hallusionbench.score(items, ['Yes', 'Yes', 'No', 'Yes.'], Scoring())  # the second is wrong
  # Of three figures (set 0: 1, 2; set 1: 1) the first is wrong; of three questions (set 0: 0, 1; set 1: 0) the second.
  assert {k: round(v, 3) for k, v in scores.metrics.items()} == {
    'mean of three': round((75 + 200 / 3 + 200 / 3) / 3, 3),
    'aAcc': 75.0,
    'fAcc': 66.667,
    'qAcc': 66.667,
  }
  assert len(scores.units) == 2


def test_mlvu_is_the_mean_of_tasks_and_not_of_items(benchmark_root):
  benchmark, items = items_of('mlvu', benchmark_root)
  again = [dataclasses.replace(items[0], id=f'more/{i}') for i in range(3)]
  scores = benchmark.score([*items, *again], ['B'] + ['A'] * 6 + ['B'] * 3, Scoring())
  assert scores.headline == pytest.approx(100 / len(mlvu.TASKS))


def test_mmsu_leaves_unreadable_replies_out_of_the_total_as_its_authors_do(benchmark_root):
  benchmark, items = items_of('mmsu', benchmark_root)
  scores = benchmark.score(items, ['B', 'hm'], Scoring())
  assert (scores.metrics['accuracy'], scores.metrics['accuracy of all'], scores.unreadable) == (100.0, 50.0, 1)


def test_official_fallback_guesses_from_the_seed_and_says_so(benchmark_root):
  benchmark, items = items_of('voicebench-mmsu', benchmark_root)
  many = [dataclasses.replace(items[0], id=str(i)) for i in range(400)]
  silent = [''] * 400
  assert benchmark.score(many, silent, Scoring()).headline == 0
  guessed = benchmark.score(many, silent, Scoring(official_fallback=True))
  assert 15 < guessed.headline < 35 and guessed.unreadable == 400 and 'seed 42' in guessed.signature
  assert guessed.headline == benchmark.score(many, silent, Scoring(official_fallback=True)).headline


def test_bootstrap_interval_covers_the_binomial_one():
  rows = [dataclasses.replace(r, id=str(i)) for i, r in enumerate(_rows(200, 120))]
  low, high = bootstrap.interval(ratio_scores(rows, 'x'))
  spread = 1.96 * 100 * np.sqrt(0.6 * 0.4 / 200)
  assert low == pytest.approx(60 - spread, abs=1.5) and high == pytest.approx(60 + spread, abs=1.5)


def _rows(number, right):

  return [Row('', float(i < right), 1.0) for i in range(number)]


def test_missing_media_and_wrong_counts_are_named(benchmark_root):
  benchmark, items = items_of('librispeech-clean', benchmark_root)
  messages = [{'role': 'user', 'content': [{'type': 'audio', 'audio': benchmark_root / 'gone.flac'}]}]
  found = data_check.check(benchmark, [*items, dataclasses.replace(items[0], id='new', messages=messages)])
  lines = found.describe('librispeech-clean')
  assert lines[0] == 'librispeech-clean: 3 items, the released split has 2620' and 'gone.flac' in lines[1]
  with pytest.raises(ValueError, match='more than once'):
    data_check.check(benchmark, [items[0], items[0]])


def test_a_folder_without_files_says_what_is_expected(tmp_path):
  for benchmark in registry.BENCHMARKS.values():
    with pytest.raises(ValueError, match=r'docs/evaluation.md|no manifest.jsonl'):
      benchmark.read(tmp_path / benchmark.folder)


def test_wenetspeech_is_read_piece_by_piece(benchmark_root, monkeypatch):
  path = benchmark_root / 'wenetspeech' / 'WenetSpeech.json'
  assert list(asr._array(path, 'audios', chunk=7)) == list(asr._array(path, 'audios'))
  cut = benchmark_root / 'cut.json'
  cut.write_text(path.read_text()[:-40])
  with pytest.raises(ValueError, match='cut off'):
    list(asr._array(cut, 'audios'))


def test_predictions_of_others_are_scored_by_id(benchmark_root):
  said = []
  benchmark = registry.BENCHMARKS['mmau']
  result = score_predictions(benchmark, {'m1': 'A'}, benchmark_root, Scoring(), said.append)
  assert result.scores.headline == 50 and '1 of 2 items have no reply' in said[0]
  with pytest.raises(ValueError, match='not in the data: m9'):
    score_predictions(benchmark, {'m9': 'A'}, benchmark_root, Scoring())
