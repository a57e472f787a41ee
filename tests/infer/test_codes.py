"""`qwen3-omni codes`: every recording gets the codes that it has alone, once, whoever makes them."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from qwen3_omni_jax.train.codes import open_codes

from qwen3_omni_jax.cli import main
from qwen3_omni_jax.infer.codes import make_codes
from qwen3_omni_jax.infer.recordings import find_recordings
from qwen3_omni_jax.models.codec_encoder import encode
from qwen3_omni_jax.weights.codec import load_codec, save_codec
from qwen3_omni_jax.weights.safetensors import Shard
from tests.models.codec_reference import OTHER_RATES, saved_codec

pytestmark = pytest.mark.quick_to_compile

LENGTHS = [1300, 240, 4000, 1199, 1200, 1201, 2500]  # a chunk is 1,200 samples with this codec


@pytest.fixture(scope='module')
def codec(tmp_path_factory):
  folder = tmp_path_factory.mktemp('codec') / 'mimi'
  saved_codec(folder, OTHER_RATES, seed=0)
  return folder


@pytest.fixture(scope='module')
def sounds(tmp_path_factory):
  folder = tmp_path_factory.mktemp('sounds')
  rng = np.random.default_rng(0)
  for i, length in enumerate(LENGTHS):
    soundfile.write(folder / f'{i}.wav', rng.uniform(-0.9, 0.9, length), 24000, subtype='FLOAT')
  return folder


def made(folder) -> tuple[dict, dict[str, np.ndarray]]:
  """The index, and the codes by key."""
  index = json.loads((folder / 'index.json').read_text())
  return index, {key: Shard(folder / entry['file']).read(key) for key, entry in index['files'].items()}


def part_bytes(folder) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in sorted(folder.glob('codes-*.safetensors'))}


def jobs(codec, sounds, **options):
  options = {'part_size': 3, 'slots': 2, 'media_root': sounds} | options
  return lambda out: make_codes(codec, [f'{sounds}/*.wav'], out, **options)


def test_every_recording_has_the_codes_that_it_has_alone(codec, sounds, tmp_path):
  summary = jobs(codec, sounds)(tmp_path)
  index, codes = made(tmp_path)
  params, cfg = load_codec(codec)
  assert summary['complete'] and list(codes) == [f'{i}.wav' for i in range(len(LENGTHS))]
  for i, length in enumerate(LENGTHS):
    wave = soundfile.read(sounds / f'{i}.wav', dtype='float32')[0]
    ours, frames = encode(params, cfg, wave[None])
    assert codes[f'{i}.wav'].dtype == np.int16 and codes[f'{i}.wav'].shape == (-(-length // 48), 4)
    np.testing.assert_array_equal(codes[f'{i}.wav'], ours[0])
    assert index['files'][f'{i}.wav'] == {'file': f'codes-0000{i // 3}-00003.safetensors', 'frames': frames[0]}
  assert {key: index[key] for key in ('format', 'num_code_groups', 'codebook_size', 'frame_rate', 'errors')} == {
    'format': 'qwen3_omni_jax.codes.v1',
    'num_code_groups': 4,
    'codebook_size': 32,
    'frame_rate': 500.0,
    'errors': {},
  }
  counts = np.bincount(np.concatenate([c[:, 1] for c in codes.values()]))
  share = counts[counts > 0] / counts.sum()
  assert index['entropy_bits'][1] == pytest.approx(-(share * np.log2(share)).sum(), abs=1e-3)
  shard = Shard(tmp_path / 'codes-00000-00003.safetensors')
  assert shard.metadata == {'format': index['format'], 'codec': index['codec'], 'frame_rate': '500', 'errors': '{}'}


def test_two_shards_make_what_one_process_makes(codec, sounds, tmp_path):
  jobs(codec, sounds)(tmp_path / 'one')
  first = jobs(codec, sounds, shard=(1, 2))(tmp_path / 'two')
  assert not first['complete'] and first['parts_missing'] == 2 and not (tmp_path / 'two' / 'index.json').exists()
  assert jobs(codec, sounds, shard=(0, 2))(tmp_path / 'two')['complete']
  assert part_bytes(tmp_path / 'one') == part_bytes(tmp_path / 'two')
  assert (tmp_path / 'one' / 'index.json').read_bytes() == (tmp_path / 'two' / 'index.json').read_bytes()


def test_an_interrupted_job_goes_on_and_repeats_nothing(codec, sounds, tmp_path):
  def interrupt(done, total, seconds):
    if done == 4:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    jobs(codec, sounds, on_progress=interrupt)(tmp_path / 'out')
  assert list(part_bytes(tmp_path / 'out')) == ['codes-00000-00003.safetensors']
  (tmp_path / 'out' / 'codes-00001-00003.safetensors.77.partial').write_bytes(b'cut')
  seen = []
  jobs(codec, sounds, on_progress=lambda done, total, seconds: seen.append(total))(tmp_path / 'out')
  assert seen == [4] * 4
  jobs(codec, sounds)(tmp_path / 'whole')
  assert part_bytes(tmp_path / 'out') == part_bytes(tmp_path / 'whole')
  assert jobs(codec, sounds, on_progress=interrupt)(tmp_path / 'out')['complete']  # nothing is left to do


@pytest.mark.slow
def test_a_killed_process_loses_at_most_a_part(codec, sounds, tmp_path):
  command = [sys.executable, '-m', 'qwen3_omni_jax.cli', 'codes', '--codec', codec, '--input', f'{sounds}/*.wav', '--part', '1']
  process = subprocess.Popen([*map(str, command), '--media-root', sounds, '--out', tmp_path / 'out'])
  while process.poll() is None and not part_bytes(tmp_path / 'out'):
    time.sleep(0.001)
  process.kill()
  process.wait()
  before = part_bytes(tmp_path / 'out')
  assert 0 < len(before) < len(LENGTHS)
  jobs(codec, sounds, part_size=1, slots=8)(tmp_path / 'out')
  jobs(codec, sounds, part_size=1, slots=8)(tmp_path / 'whole')
  after = part_bytes(tmp_path / 'out')
  assert before.items() <= after.items() and after.keys() == part_bytes(tmp_path / 'whole').keys()
  _, codes = made(tmp_path / 'out')
  np.testing.assert_equal(codes, made(tmp_path / 'whole')[1])


def test_a_bad_file_fails_alone(codec, sounds, tmp_path, capsys):
  (tmp_path / 'bad.wav').write_bytes(b'RIFFnothing')
  command = ['codes', '--codec', str(codec), '--input', str(sounds / '0.wav'), str(tmp_path / 'bad.wav'), str(sounds / '2.wav')]
  command += ['--out', str(tmp_path / 'out'), '--slots', '2']
  assert main(command) == 3
  out = capsys.readouterr().out
  assert '2 recordings' in out and '1 could not be read' in out and 'bad.wav' in out
  index, codes = made(tmp_path / 'out')
  assert set(codes) == {str(sounds / '0.wav'), str(sounds / '2.wav')} and list(index['errors']) == [str(tmp_path / 'bad.wav')]
  soundfile.write(tmp_path / 'bad.wav', np.random.default_rng(1).uniform(-1, 1, 700), 16000)
  assert main(command) == 3  # a finished part is left alone
  assert main([*command, '--retry-failed']) == 0
  index, codes = made(tmp_path / 'out')
  assert len(codes[str(tmp_path / 'bad.wav')]) == -(-700 * 3 // 2 // 48) and not index['errors']


def test_codebooks_that_say_one_thing_are_refused(codec, sounds, tmp_path):
  params, cfg = load_codec(codec)
  params['quantizer']['acoustic']['books']['embed_sum'][1] = 0  # as a codebook that was not loaded
  save_codec(tmp_path / 'unloaded', params, cfg)
  with pytest.raises(ValueError, match=r'codebooks 3 \(always 0\) are constant over .* no trained weights'):
    jobs(tmp_path / 'unloaded', sounds)(tmp_path / 'out')
  assert not part_bytes(tmp_path / 'out')
  jobs(tmp_path / 'unloaded', sounds, num_code_groups=3)(tmp_path / 'without')  # the other codebooks are good


def test_records_name_what_they_say_aloud(codec, sounds, tmp_path):
  say = lambda **turn: {'role': 'assistant', 'content': 'words', **turn}
  records = [
    {'messages': [{'role': 'user', 'content': [{'type': 'audio', 'audio': '1.wav'}]}, say(audio='0.wav')]},
    {
      'messages': [
        say(content=[{'type': 'text', 'text': 'words'}, {'type': 'audio', 'audio': './2.wav'}]),
        say(),
        say(audio='0.wav'),
      ]
    },
    {'text': 'words', 'audio': '3.wav', 'speaker': 'ethan'},
    {'messages': [say(audio='4.wav', codes=[[0, 0, 0, 0]])]},
    {'messages': [say(content=[{'type': 'audio_url', 'audio_url': {'url': '5.wav'}}]), {'role': 'system', 'audio': '6.wav'}]},
  ]
  file = sounds / 'records.jsonl'
  file.write_text('\n'.join(map(json.dumps, records)) + '\n')
  try:
    assert find_recordings([str(file)]) == {name: sounds / name for name in ('0.wav', './2.wav', '3.wav', '5.wav')}
    make_codes(codec, [str(file)], tmp_path / 'out', slots=2)
    codes = open_codes(tmp_path / 'out')  # as training reads them
    assert set(codes) == {'0.wav', './2.wav', '3.wav', '5.wav'} and (codes.num_code_groups, codes.frame_rate) == (4, 500)
    np.testing.assert_array_equal(codes['./2.wav'], made(tmp_path / 'out')[1]['./2.wav'])
  finally:
    file.unlink()


@pytest.mark.parametrize(
  'lines, message',
  [
    ('{"text": "a", "audio": "0.wav"}\n{"text"', r'r.jsonl:2: not valid JSON'),
    ('{"text": "a", "audio": {"bytes": "x"}}', r'r.jsonl:1: audio of an assistant is dict'),
    ('{"messages": [{"role": "user", "content": "a", "audio": "0.wav"}]}', 'no recordings'),
  ],
)
def test_records_that_cannot_be_read_are_named(tmp_path, lines, message):
  (tmp_path / 'r.jsonl').write_text(lines)
  with pytest.raises(ValueError, match=message):
    find_recordings([str(tmp_path / 'r.jsonl')])


def test_one_key_cannot_be_two_files(tmp_path):
  for name in 'ab':
    (tmp_path / name).mkdir()
    (tmp_path / name / 'r.jsonl').write_text('{"text": "a", "audio": "0.wav"}')
  with pytest.raises(ValueError, match=r'0.wav is .*b/0.wav here and .*a/0.wav before'):
    find_recordings([str(tmp_path / '*' / 'r.jsonl')])


def test_another_job_in_the_folder_is_refused(codec, sounds, tmp_path):
  jobs(codec, sounds)(tmp_path)
  with pytest.raises(ValueError, match=r'holds another job \(num_code_groups'):
    jobs(codec, sounds, num_code_groups=3)(tmp_path)
  with pytest.raises(ValueError, match=r'holds another job \(part_size differ'):
    jobs(codec, sounds, part_size=4)(tmp_path)
  with pytest.raises(ValueError, match=r'holds another job \(recordings, keys differ'):
    make_codes(codec, [str(sounds / '0.wav')], tmp_path, media_root=sounds, part_size=3)
