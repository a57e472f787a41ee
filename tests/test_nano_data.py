"""examples/nano: what a microphone does to a recording, and the records that are made."""

import argparse
import json
import random
import shutil

import numpy as np
import pytest
import soundfile
from qwen3_omni_jax.examples.nano import data
from qwen3_omni_jax.examples.nano.speech import EFFECTS, as_heard

RATE = 22_050


@pytest.fixture
def tone(tmp_path):
  """One second of a tone at half the full level."""
  path = tmp_path / 'tone.wav'
  soundfile.write(path, 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE), RATE)
  return path


def heard(tone, tmp_path, *effects, seed=0):
  as_heard(tone, tmp_path / 'heard.wav', effects, random.Random(seed))
  samples, rate = soundfile.read(tmp_path / 'heard.wav', dtype='float32')
  assert rate == RATE
  return samples


def test_silence_of_up_to_half_a_second_lies_before_and_after(tone, tmp_path):
  clean, _ = soundfile.read(tone, dtype='float32')
  leads, tails = set(), set()
  for seed in range(8):
    samples = heard(tone, tmp_path, 'silence', seed=seed)
    lead = int(np.argmax(np.abs(samples) > 0)) - 1  # the tone begins with a zero
    tail = len(samples) - len(clean) - lead
    assert 0 <= lead <= 0.5 * RATE and 0 <= tail <= 0.5 * RATE
    np.testing.assert_array_equal(samples[lead : lead + len(clean)], clean)
    leads.add(lead)
    tails.add(tail)
  assert max(leads) > 0.25 * RATE and max(tails) > 0.25 * RATE and leads != tails


def test_the_level_falls_by_at_most_20_db(tone, tmp_path):
  clean, _ = soundfile.read(tone, dtype='float32')
  falls = [20 * np.log10(np.std(clean) / np.std(heard(tone, tmp_path, 'level', seed=seed))) for seed in range(8)]
  assert -0.01 < min(falls) and max(falls) < 20.01 and max(falls) > 10


def test_noise_is_20_to_40_db_under_the_sound(tone, tmp_path):
  clean, _ = soundfile.read(tone, dtype='float32')
  below = [20 * np.log10(np.std(clean) / np.std(heard(tone, tmp_path, 'noise', seed=seed) - clean)) for seed in range(8)]
  assert 19.8 < min(below) < 30 < max(below) < 40.2


@pytest.mark.skipif(shutil.which('espeak-ng') is None, reason='NOT CHECKED: espeak-ng is not installed')
def test_held_out_phrases_are_in_no_training_record_and_every_file_is_there(tmp_path):
  out = tmp_path / 'nano-data'
  data.run(argparse.Namespace(out=out, words=3, speech=12, pictures=6, held_out=4, seed=3))
  lines = lambda name: [json.loads(line) for line in (out / f'{name}.jsonl').read_text().splitlines()]
  said = lambda record: record['text'] if 'text' in record else data.answer(record)
  trained = {said(r) for name in ('words', 'speech', 'read_aloud', 'answers') for r in lines(name)}
  tests = ['speech_held_out', *(f'speech_{effect}_held_out' for effect in EFFECTS), 'read_aloud_held_out']
  assert len({tuple(map(said, lines(name))) for name in tests}) == 1  # the same phrases in the same order
  assert not trained & {said(r) for r in lines('speech_held_out')}
  for name in (*tests, 'words', 'speech', 'pictures', 'read_aloud', 'answers', 'pictures_held_out'):
    for record in lines(name):
      files = [*record.get('audios', []), *record.get('images', []), *([record['audio']] if 'audio' in record else [])]
      files += [m['audio'] for m in record.get('messages', []) if 'audio' in m]
      assert files and all((out / file).is_file() for file in files)
  answers = lines('answers')
  assert len(answers) == 12 + 6 and {m['speaker'] for r in answers for m in r['messages'][1:]} == {'ethan', 'chelsie'}
  for record in answers:  # an answer is said in the words that it has
    [spoken] = [r for r in lines('read_aloud') if r['audio'] == record['messages'][1]['audio']] or [None]
    assert spoken is None or spoken['text'] == data.answer(record)
