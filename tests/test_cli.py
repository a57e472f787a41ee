"""The command line: contracts of flags and JSON, fast help, readable errors."""

import json
import os
import resource
import subprocess
import sys

import pytest

from qwen3_omni_jax.cli import COMMANDS, main

pytestmark = pytest.mark.quick_to_compile


def call(capsys, *args: str) -> tuple[int, str, str]:
  code = main([str(a) for a in args])
  out = capsys.readouterr()
  return code, out.out, out.err


def errors(err: str) -> list[str]:
  """Lines on stderr beside the one that says which devices are used."""
  return [line for line in err.splitlines() if not line.startswith('devices: ')]


@pytest.fixture(scope='module')
def converted(tiny_folder, tmp_path_factory):
  target = tmp_path_factory.mktemp('converted') / 'jax'
  assert main(['convert', 'to-jax', '--from', str(tiny_folder), '--to', str(target)]) == 0
  return target


@pytest.mark.parametrize('command', [[], *([name] for name in COMMANDS)])
def test_help_is_quick(command):
  """Half a second of processor time; importing jax alone takes more."""
  environment = {**os.environ, 'PYTHONDONTWRITEBYTECODE': '1'}
  used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
  before = used()
  run = [sys.executable, '-m', 'qwen3_omni_jax.cli', *command, '--help']
  done = subprocess.run(run, capture_output=True, text=True, env=environment)
  assert done.returncode == 0 and done.stdout.startswith('usage: qwen3-omni')
  assert used() - before < 0.5


def test_generate_prints_one_json_object_the_same_from_either_kind_of_folder(tiny_folder, converted, samples, capsys):
  replies = []
  for model in (tiny_folder, converted):
    code, out, _ = call(
      capsys,
      'generate',
      '--model',
      model,
      '--text',
      'Hello',
      '--audio',
      samples['audio'],
      '--image',
      samples['image'],
      '--video',
      samples['video'],
      '--audio-in-video',
      '--media',
      'utils',
      '--fps',
      '2',
      '--max-new-tokens',
      '6',
      '--dtype',
      'float32',
      '--json',
    )
    assert code == 0
    reply = json.loads(out)
    assert set(reply) == {'text', 'token_ids', 'prompt_tokens', 'finish_reason', 'timings'}
    del reply['timings']
    replies.append(reply)
  assert replies[0] == replies[1]
  assert len(replies[0]['token_ids']) == 6 and replies[0]['finish_reason'] == 'length'


def test_a_conversation_file_with_relative_paths(tiny_folder, samples, capsys, tmp_path):
  (tmp_path / 'sound.wav').write_bytes(samples['audio'].read_bytes())
  content = [{'type': 'audio', 'audio': 'sound.wav'}, {'type': 'text', 'text': 'What?'}]
  file = tmp_path / 'conversation.json'
  file.write_text(json.dumps({'messages': [{'role': 'user', 'content': content}]}))
  code, out, err = call(capsys, 'generate', '--model', tiny_folder, '--input', file, '--max-new-tokens', '3')
  assert code == 0 and 'prompt tokens, 3 new, length' in err and out.endswith('\n')


def test_media_outside_the_conversation_folder_need_permission(tiny_folder, samples, capsys, tmp_path):
  file = tmp_path / 'conversation.json'
  file.write_text(json.dumps([{'role': 'user', 'content': [{'type': 'audio', 'audio': str(samples['audio'])}]}]))
  run = ('generate', '--model', tiny_folder, '--input', file, '--max-new-tokens', '1')
  code, _, err = call(capsys, *run)
  assert code == 1 and 'outside the media folder' in err and len(errors(err)) == 1
  assert call(capsys, *run, '--media-root', samples['audio'].parent)[0] == 0


def test_score_gives_a_logprob_for_every_token_of_the_last_turn(tiny_folder, capsys, tmp_path):
  file = tmp_path / 'conversation.json'
  turns = [{'role': 'user', 'content': 'What?'}, {'role': 'assistant', 'content': 'A red disc.'}]
  file.write_text(json.dumps(turns))
  code, out, _ = call(capsys, 'score', '--model', tiny_folder, '--input', file, '--json', '--dtype', 'float32')
  score = json.loads(out)
  assert code == 0
  assert ''.join(score['tokens']) == 'A red disc.<|im_end|>'
  assert len(score['logprobs']) == len(score['token_ids']) and all(p < 0 for p in score['logprobs'])
  assert score['total_logprob'] == pytest.approx(sum(score['logprobs']))


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (('generate', '--model', '/nowhere', '--text', 'x'), 'no such file'),
    (('generate', '--model', '{tiny}'), 'give either --input'),
    (('generate', '--model', '{tiny}', '--text', 'x', '--input', 'y'), 'give either --input'),
    (('generate', '--model', '{tiny}', '--input', '/nowhere.json'), '/nowhere.json: no such file'),
    (('generate', '--model', '{tiny}', '--audio', '/nowhere.wav'), 'messages[0].content[0]: /nowhere.wav: no such file'),
    (('generate', '--model', '{tiny}', '--text', 'x', '--top-p', '0'), 'top_p 0'),
    (('generate', '--model', '{tiny}', '--text', 'x', '--max-new-tokens', '0'), 'max_new_tokens 0'),
    (('convert', 'to-jax', '--from', '/nowhere', '--to', '{tmp}/new'), '/nowhere: no such folder'),
    (('convert', 'to-jax', '--from', '{tiny}', '--to', '{tiny}'), 'not empty'),
    (('tiny', '--out', '{tiny}'), 'not empty'),
    (('score', '--model', '{tiny}'), 'give --input'),
  ],
)
def test_errors_are_one_readable_line(tiny_folder, tmp_path, capsys, args, message):
  code, out, err = call(capsys, *(a.format(tiny=tiny_folder, tmp=tmp_path) for a in args))
  assert code == 1 and out == ''
  assert message in err and len(errors(err)) == 1, err


def test_debug_shows_the_trace(capsys):
  code, _, err = call(capsys, 'generate', '--model', '/nowhere', '--text', 'x', '--debug')
  assert code == 1 and 'Traceback' in err


@pytest.mark.parametrize('variant', ['thinking', 'captioner'])
def test_variants_without_talker_load_and_answer(tmp_path, capsys, variant):
  assert call(capsys, 'tiny', '--out', tmp_path / 'm', '--variant', variant, '--seed', '3')[0] == 0
  code, out, _ = call(capsys, 'generate', '--model', tmp_path / 'm', '--text', 'x', '--max-new-tokens', '4', '--json')
  assert code == 0 and json.loads(out)['finish_reason'] in ('length', 'stop')


def test_generate_speaks_into_a_file_and_streams_the_same(tiny_folder, capsys, tmp_path):
  import soundfile

  run = (
    'generate',
    '--model',
    tiny_folder,
    '--text',
    'Hello',
    '--max-new-tokens',
    '4',
    '--max-frames',
    '9',
    '--speaker',
    'Aiden',
    '--talker-temperature',
    '0',
    '--dtype',
    'float32',
  )
  code, out, _ = call(capsys, *run, '--speech', tmp_path / 'a.wav', '--json')
  reply = json.loads(out)
  assert code == 0 and len(reply['codes']) == 9 and len(reply['codes'][0]) == 16
  samples, rate = soundfile.read(tmp_path / 'a.wav')
  assert rate == 24_000 and len(samples) == 9 * 1920 - 555
  assert reply['audio_s'] == pytest.approx(len(samples) / rate, abs=1e-4)
  code, out, err = call(capsys, *run, '--speech', tmp_path / 'b.wav', '--stream')
  assert code == 0 and out.strip() == reply['text'].strip() and 'first audio' in err
  streamed, _ = soundfile.read(tmp_path / 'b.wav')
  assert abs(streamed - samples).max() <= 1 / 32768 + 1e-5  # 16-bit rounding
  assert call(capsys, *run, '--speech', '/nowhere/x.wav', '--json')[0] == 1
