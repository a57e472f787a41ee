"""What was spoken is written down by recognisers, and measured beside the recordings of the same texts."""

import json
import shutil

import numpy as np
import pytest
import soundfile
from qwen3_omni_jax.eval import in_training, recognise, registry, report_html, run, spoken
from qwen3_omni_jax.eval.predict import Answer, OmniPredictor
from qwen3_omni_jax.eval.recognise import Recogniser
from qwen3_omni_jax.train.config import Benchmarks, SpokenTexts

from qwen3_omni_jax.cli import main
from qwen3_omni_jax.infer.reply import Reply
from qwen3_omni_jax.infer.voice import Speech
from tests.eval.fixtures import vowels


class Mouth:
  """An `Omni` that can only speak, and hears `hears` in everything."""

  def __init__(self, hears='one two', reason='stop', seconds=1.0, voice=None):
    self.hears, self.reason, self.seconds, self.voice, self.said, self.asked = hears, reason, seconds, voice, [], []

  def speak(self, texts, speakers, *, seed=0, max_frames):
    speakers = [speakers] * len(texts) if isinstance(speakers, str) else speakers
    self.said += zip(texts, speakers, strict=True)
    sound = lambda name: vowels(self.voice or name.lower(), self.seconds, 9) if self.seconds else np.zeros(0, np.float32)
    return [Speech(sound(name), np.zeros((1, 1), np.int32), self.reason, 16_000) for name in speakers]

  def generate(self, conversations, **settings):
    self.asked += conversations
    return [Reply(self.hears, [], 0, 'stop') for _ in conversations]


def ear(name, text):
  return Recogniser(name, lambda benchmark, items: lambda waves: [text for _ in waves])


def go(omni, root, out, *, speaker='ethan', name='nano-voice', **more):
  predict = OmniPredictor(omni, speaker=speaker)
  more = {'variant': 'instruct', 'model': 'mouth', 'log': lambda line: None} | more
  (result,) = run.run_suite(predict, [registry.BENCHMARKS[name]], root, out, **more)
  return result


def test_every_text_is_spoken_by_its_own_speaker(benchmark_root, tmp_path):
  omni = Mouth()
  go(omni, benchmark_root, tmp_path, recognisers=[ear('a', 'x')])
  assert omni.said == [('one two', 'ethan'), ('yes no go', 'chelsie'), ('one two', 'chelsie'), ('yes no go', 'ethan')]
  go(omni, benchmark_root, tmp_path, name='seed-tts-en', speaker='chelsie', recognisers=[ear('a', 'x')])
  assert omni.said[4:] == [('The disc is red.', 'chelsie')] * 2


def test_the_first_ear_makes_the_score_and_others_and_the_recordings_stand_beside_it(benchmark_root, tmp_path):
  result = go(Mouth(), benchmark_root, tmp_path, recognisers=[ear('good', 'one two'), ear('deaf', '')])
  metrics = result.scores.metrics
  assert result.scores.headline == metrics['wer'] == metrics['wer of the recordings'] == 60  # 6 of 10 words
  assert metrics['wer, heard by deaf'] == metrics['wer of the recordings, heard by deaf'] == 100
  assert result.scores.signature.endswith('|heard by good') and [a.text for a in result.answers] == ['one two'] * 4
  given = go(
    Mouth(), benchmark_root, tmp_path, recognisers=[ear('deaf', '')], transcripts={str(i): 'yes no go' for i in range(4)}
  )
  assert given.scores.headline == 60 and given.scores.metrics['wer, heard by deaf'] == 100
  assert given.scores.signature.endswith('|heard by transcripts') and 'wer of the recordings' not in given.scores.metrics


@pytest.mark.parametrize(
  ('mouth', 'expected'),
  [
    (Mouth(), {'runaways': 0, 'end right': 100, 'duration': 100, 'speaker right': 100}),
    (Mouth(reason='length'), {'runaways': 100, 'end right': 0, 'duration': 100, 'speaker right': 100}),
    (Mouth(reason='loop', seconds=3.0), {'runaways': 100, 'end right': 0, 'duration': 300, 'speaker right': 100}),
    (Mouth(seconds=0.5), {'runaways': 0, 'end right': 0, 'duration': 50, 'speaker right': 100}),
    (Mouth(voice='ethan'), {'runaways': 0, 'end right': 100, 'duration': 100, 'speaker right': 50}),
    (Mouth(seconds=0), {'runaways': 0, 'end right': 0, 'duration': 0, 'speaker right': 0, 'speaker similarity': 0}),
  ],
)
def test_how_speech_ends_and_whose_voice_it_is_are_measured(mouth, expected, benchmark_root, tmp_path):
  metrics = go(mouth, benchmark_root, tmp_path, recognisers=[ear('a', 'x')]).scores.metrics
  assert {name: metrics[name] for name in expected} == expected and metrics['speaker right of the recordings'] == 100


def test_what_was_heard_is_not_heard_again_and_a_line_that_was_cut_is(benchmark_root, tmp_path):
  heard = []
  listening = Recogniser('a', lambda benchmark, items: lambda waves: heard.extend(waves) or ['one'] * len(waves))
  first = go(Mouth(), benchmark_root, tmp_path, recognisers=[listening], batch=3)
  assert len(heard) == 8  # four waves, four recordings
  file = tmp_path / 'nano-voice' / 'heard_a.jsonl'
  file.write_text(file.read_text()[:-4])
  again = go(Mouth(), benchmark_root, tmp_path, recognisers=[listening])
  assert [wave.parent.name for wave in heard[8:]] == ['waves'] and again.scores.metrics == first.scores.metrics
  assert [json.loads(line)['id'] for line in file.read_text().splitlines()] == ['0', '1', '2', '3']


def test_speech_in_another_voice_is_not_mixed_in(benchmark_root, tmp_path):
  go(Mouth(), benchmark_root, tmp_path, name='seed-tts-en', recognisers=[ear('a', 'x')])
  with pytest.raises(ValueError, match='other settings'):
    go(Mouth(), benchmark_root, tmp_path, name='seed-tts-en', speaker='chelsie', recognisers=[ear('a', 'x')])


def test_the_model_hears_itself_with_the_words_that_it_was_taught(benchmark_root, tmp_path):
  omni = Mouth()
  scores = run.evaluate(omni, [registry.BENCHMARKS['nano-voice']], benchmark_root)['nano-voice']
  assert scores.headline == 60 and scores.metrics['speaker right'] == 100
  assert {c[0]['content'][1]['text'] for c in omni.asked} == {'Write down the words.'} and len(omni.asked) == 8
  other = recognise.own_ear(omni).prepare(registry.BENCHMARKS['seed-tts-en'], [])
  assert other([tmp_path / 'x.wav']) == ['one two'] and 'Transcribe' in omni.asked[-1][0]['content'][1]['text']


def test_speech_without_a_recogniser_is_kept_and_says_how_to_go_on(benchmark_root, tmp_path):
  omni = Mouth()
  result = go(omni, benchmark_root, tmp_path)
  assert result.scores is None and '--asr self' in result.skipped and all(wave.is_file() for wave in result.waves)
  assert 'voices/0.wav|one two' in (tmp_path / 'nano-voice' / 'manifest.lst').read_text()
  assert go(omni, benchmark_root, tmp_path, recognisers=[ear('a', '')]).scores.headline == 100 and len(omni.said) == 4
  result.waves[1].unlink()
  (tmp_path / 'nano-voice' / 'heard_a.jsonl').unlink()
  gone = go(omni, benchmark_root, tmp_path, recognisers=[ear('a', '')])
  assert gone.scores is None and '1 wave files are not there' in gone.skipped


def test_an_item_that_could_not_be_spoken_counts_as_silent(benchmark_root, tmp_path):
  benchmark = registry.BENCHMARKS['nano-voice']
  items = benchmark.read(benchmark_root / benchmark.folder)[:1]
  wave, empty = tmp_path / 'none.wav', tmp_path / 'empty.wav'
  soundfile.write(empty, np.zeros(0, np.float32), 24_000)
  ears = [spoken.Ear('a', lambda waves: ['one two' for wave in waves if wave != empty])]
  answers, scores = spoken.score(benchmark, items * 1, [Answer(None, 'stop')], [items[0].fields['recording']], ears, None)
  assert answers[0].text == 'one two' and scores.headline == 0
  other = [*items, registry.BENCHMARKS['nano-voice'].read(benchmark_root / benchmark.folder)[1]]
  pair = [Answer(None, 'stop'), Answer(None, 'error', error='broken')]
  answers, scores = spoken.score(benchmark, other, pair, [items[0].fields['recording'], wave], ears, None)
  assert [a.text for a in answers] == ['one two', None] and scores.headline == 60 and scores.unreadable == 1
  answers, scores = spoken.score(benchmark, other, pair, [empty, wave], ears, None)
  assert [a.text for a in answers] == ['', None] and scores.headline == 100


def test_missing_recordings_are_named(benchmark_root, tmp_path):
  shutil.copytree(benchmark_root / 'nano-data', tmp_path / 'nano-data')
  (tmp_path / 'nano-data' / 'voices' / '2.wav').unlink()
  with pytest.raises(ValueError, match=r'1 recordings are not there: .*2\.wav'):
    go(Mouth(), tmp_path, tmp_path / 'out')


def test_the_report_plays_what_was_spoken_beside_the_recording(benchmark_root, tmp_path):
  result = go(Mouth(), benchmark_root, tmp_path, recognisers=[ear('good', 'one two')])
  page = report_html.page([result], run.summary([result], 'instruct', 'mouth'))
  assert page.count('<audio') == 8 and page.count('>spoken<') == page.count('>recording<') == 4
  for name in (
    'wer of the recordings',
    'runaways',
    'end right',
    'speaker right',
    'speaker similarity',
    'by speaker',
    'heard by good',
  ):
    assert name in page, name


def test_results_say_whose_words_they_are(benchmark_root, tmp_path):
  result = go(Mouth(), benchmark_root, tmp_path, recognisers=[ear('good', 'one two')]).to_json('instruct')
  assert result['signature'].endswith('|heard by good') and result['metrics']['speaker right'] == 100
  assert soundfile.info(next((tmp_path / 'nano-voice' / 'waves').iterdir())).subtype == 'PCM_16'


def test_a_run_with_the_talker_is_scored_on_spoken_benchmarks(benchmark_root):
  wanted = Benchmarks(('nano-voice', 'nano-speech'), str(benchmark_root), limit=None)
  with pytest.raises(ValueError, match='nano-voice is spoken, and this run has no Talker'):
    in_training.make_scorer(wanted)
  assert in_training.make_scorer(wanted, speaks=True)(Mouth('two left')) == {'nano-voice': 100, 'nano-speech': 0}


def test_texts_spoken_in_training_are_compared_with_what_the_model_hears():
  speak = in_training.make_speaker(SpokenTexts(('One, two!', 'yes no'), 'ethan', hear='Listen.'))
  omni = Mouth('one two', reason='loop')
  samples, values = speak(omni)
  assert values == {'wer': 50, 'runaways': 100, 'seconds': 2} and omni.said == [('One, two!', 'ethan'), ('yes no', 'ethan')]
  assert [sample.heard for sample in samples] == ['one two'] * 2 and omni.asked[0][0]['content'][1]['text'] == 'Listen.'
  samples, values = speak(Mouth('one two', seconds=0))
  assert values == {'wer': 100, 'runaways': 0, 'seconds': 0} and [sample.heard for sample in samples] == ['', '']
  with pytest.raises(ValueError, match="no words in '!'"):
    in_training.make_speaker(SpokenTexts(('one', '!')))


@pytest.mark.slow
@pytest.mark.quick_to_compile
def test_the_command_speaks_and_hears_with_both_ears(tiny_folder, benchmark_root, tmp_path, capsys):
  pytest.importorskip('pocketsphinx', reason='NOT CHECKED: pocketsphinx is not installed')
  args = ['eval', '--model', str(tiny_folder), '--benchmark', 'nano-voice', '--data', str(benchmark_root), '--limit', '2']
  how = ['--max-frames', '4', '--dtype', 'float32', '--batch-size', '2', '--max-new-tokens', '3', '--out', str(tmp_path)]
  assert main([*args, *how, '--asr', 'none']) == 1  # spoken, not scored
  assert '--asr self or --asr sphinx' in capsys.readouterr().out
  assert main([*args, *how, '--asr', 'sphinx', '--asr', 'self', '--json']) == 0
  (result,) = json.loads(capsys.readouterr().out)['results']
  assert result['signature'].endswith('|heard by sphinx') and result['metrics']['runaways'] == 100
  assert {'wer, heard by self', 'wer of the recordings', 'wer of the recordings, heard by self'} < set(result['metrics'])
