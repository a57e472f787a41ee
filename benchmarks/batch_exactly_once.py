"""Robustness of a batch job on the `tiny` checkpoint: kills, several processes, broken rows; each row against its single call.

    python benchmarks/batch_exactly_once.py [--rows 500] [--kills 25] [--stages undisturbed,single,processes,broken,kills]

Rows: text, sound of 1 to 60 s, pictures, video, several turns; half are spoken, a third are drawn at random. Every stage runs
the real command. Results of each stage go into results/batch_exactly_once.json as they come; `single` and `kills` go on where
they were stopped. A row that differs from its single call is answered again with every weight moved by at most a unit in its
last place: if such a call gives the job's whole answer, `generate` itself gives both and rounding decides (a draw fell on a
tie); else the row is wrong.
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import common
import numpy as np

WORK = common.ROOT / '.cache' / 'exactly_once'
SLOTS, LENGTH = 16, 1024
MOVES = 64  # models beside the true one that a differing row is asked of
WORDS = 'The quick brown fox jumps over the lazy dog while children sing a song near the water and someone listens'.split()
SYSTEM = 'You are a helpful assistant that can listen, look, read, think and speak. ' * 5


def make_media(folder: pathlib.Path) -> dict[str, list[str]]:
  """Sounds of 1 to 60 s, pictures, a video."""
  import soundfile
  from PIL import Image
  from qwen3_omni_jax.tools.sample_media import RATE_HZ, melody, shapes, write_video

  folder.mkdir(parents=True, exist_ok=True)
  media: dict[str, list[str]] = {'audio': [], 'image': [], 'video': []}
  for seconds in (1, 2, 3, 5, 8, 9, 13, 20, 31, 45, 60):
    soundfile.write(folder / f'{seconds}s.wav', melody(seconds), RATE_HZ)
    media['audio'].append(f'{seconds}s.wav')
  for i, size in enumerate([(120, 160), (200, 300), (160, 120), (224, 224)]):
    Image.fromarray(shapes(*size, 0.1 + 0.2 * i)).save(folder / f'{i}.png')
    media['image'].append(f'{i}.png')
  write_video(folder / 'v.mp4', seconds=2.0, fps=8, sound=melody(2.0))
  media['video'].append('v.mp4')
  return media


def conversation(i: int, media: dict[str, list[str]]) -> dict:
  r = random.Random(i)
  parts: list[dict] = [{'type': 'text', 'text': ' '.join(r.choices(WORDS, k=r.randint(3, 60)))}]
  kind = r.choice(['text', 'text', 'audio', 'image', 'video', 'both', 'turns'])
  for k in {'both': ('audio', 'image'), 'turns': ('audio',)}.get(kind, (kind,) if kind != 'text' else ()):
    parts.insert(0, {'type': k, k: r.choice(media[k])})
  messages: list[dict] = [{'role': 'user', 'content': parts}]
  if kind == 'turns':
    messages += [{'role': 'assistant', 'content': 'I hear it.'}, {'role': 'user', 'content': 'And then?'}]
  if r.random() < 0.5:
    messages.insert(0, {'role': 'system', 'content': SYSTEM})
  body = {'messages': messages, 'max_tokens': r.choice([4, 8, 16]), 'speech': i % 2 == 0}
  body |= {'max_frames': r.choice([8, 16, 24]), 'speaker': r.choice(['Ethan', 'Chelsie', 'Aiden'])}
  if i % 3 == 0:
    body |= {'temperature': 0.9, 'top_k': 20}
  return {'custom_id': f'row-{i}', 'body': body}


BROKEN = {  # 20 ways to break a row, each with the kind that must be reported
  'json': [lambda row: '{"custom_id": "x", "body": ', lambda row: 'not json at all', lambda row: '"a"["b"]'],
  'request': [
    lambda row: '42',
    lambda row: json.dumps({'custom_id': 7, 'body': row['body']}),
    lambda row: {**row, 'body': 'x' and []},
    lambda row: _with(row, tempreature=1),
    lambda row: {**row, 'body': {k: v for k, v in row['body'].items() if k != 'messages'}},
    lambda row: _with(row, fps=-1),
    lambda row: _with(row, speech='yes'),
    lambda row: _with(row, modalities=['smell']),
  ],
  'messages': [
    lambda row: _with(row, messages=[]),
    lambda row: _with(row, messages=[{'role': 'wizard', 'content': 'hi'}]),
    lambda row: _with(row, messages=[{'role': 'user', 'content': [{'type': 'audio'}]}]),
  ],
  'media': [
    lambda row: _with(row, messages=[_ask({'type': 'audio', 'audio': 'nowhere.wav'})]),
    lambda row: _with(row, messages=[_ask({'type': 'image', 'image': '/etc/passwd'})]),
    lambda row: _with(row, messages=[_ask({'type': 'image', 'image': 'data:image/png;base64,AAAA'})]),
  ],
  'settings': [lambda row: _with(row, temperature=-1), lambda row: _with(row, speaker='Nobody')],
  'too_long': [lambda row: _with(row, max_tokens=200_000)],
}


def _with(row: dict, **changed) -> dict:
  return {**row, 'body': {**row['body'], **changed}}


def _ask(part: dict) -> dict:
  return {'role': 'user', 'content': [part, {'type': 'text', 'text': 'What is it?'}]}


def command(source: pathlib.Path, out: pathlib.Path, checkpoint: pathlib.Path, *more: str) -> list[str]:
  return [
    sys.executable,
    '-m',
    'qwen3_omni_jax.cli',
    'batch',
    '--model',
    str(checkpoint),
    '--dtype',
    'float32',
    '--input',
    str(source),
    '--output',
    str(out),
    '--media-root',
    str(WORK / 'media'),
    '--speech',
    '--slots',
    str(SLOTS),
    '--lengths',
    str(LENGTH),
    '--block-rows',
    '16',
    '--token-ids',
    '--compile-cache',
    str(WORK / 'programs'),
    '--json',
    *more,
  ]


def run(*args, **options) -> tuple[int, dict]:
  done = subprocess.run(command(*args, **options), capture_output=True, text=True, cwd=common.ROOT)
  if done.returncode not in (0, 3, 4):
    raise RuntimeError(done.stderr[-2000:])
  return done.returncode, json.loads(done.stdout)


def digest(out: pathlib.Path) -> tuple[str, int]:
  """Hash of all rows sorted by id, and of all sounds; and how many lines there are."""
  lines = sorted(line for f in sorted((out / 'rows').glob('*.jsonl')) for line in f.read_bytes().splitlines())
  whole = hashlib.sha256(b'\n'.join(lines))
  for file in sorted((out / 'audio').rglob('*')):
    if file.is_file():
      whole.update(file.name.encode() + file.read_bytes())
  return whole.hexdigest(), len(lines)


def rows_of(out: pathlib.Path) -> dict[str, dict]:
  return {r['custom_id']: r for f in (out / 'rows').glob('*.jsonl') for r in map(json.loads, f.read_text().splitlines())}


def undisturbed(args, source, checkpoint) -> dict:
  out = WORK / 'undisturbed'
  for name in ('undisturbed', 'killed'):
    shutil.rmtree(WORK / name, ignore_errors=True)
  for name in ('single.jsonl', 'kills.json'):
    (WORK / name).unlink(missing_ok=True)
  code, summary = run(source, out, checkpoint)
  bound = program_bounds(checkpoint)
  compiled = summary['own']['programs']
  kept = all(compiled[kind] <= most for kind, most in bound.items())
  print('undisturbed', summary['seconds'], 's', summary['own']['slot_use'], sum(compiled.values()), 'programs', kept)
  programs = {'programs': sum(compiled.values()), 'programs_at_most': sum(bound.values()), 'each_kind_within_its_bound': kept}
  return {'exit_code': code, 'digest': digest(out)[0], **programs, 'summary': summary}


def program_bounds(checkpoint: pathlib.Path) -> dict[str, int]:
  """What the command states when it starts."""
  from qwen3_omni_jax.config_json import load_config
  from qwen3_omni_jax.infer.batch_plan import EngineConfig, program_bound

  return program_bound(EngineConfig(slots=SLOTS, lengths=(LENGTH,)), load_config(checkpoint), speech=True)


def kills(args, source, checkpoint) -> dict:
  """kill -9 at random moments, each time the job goes on; then it is left to finish."""
  out, path = WORK / 'killed', WORK / 'kills.json'
  moments = json.loads(path.read_text()) if path.exists() else []
  while len(moments) < args.kills:
    child = subprocess.Popen(
      command(source, out, checkpoint), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=common.ROOT
    )
    before = _written(out)
    deadline = time.monotonic() + 300
    while _written(out) == before and child.poll() is None and time.monotonic() < deadline:
      time.sleep(0.02)  # the first row of this run is written: it is at work
    time.sleep(random.Random(f'{args.seed} {len(moments)}').uniform(0, args.pause))
    if child.poll() is not None:
      break  # finished before its kill
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    moments.append(_written(out))
    path.write_text(json.dumps(moments))
    print('killed', len(moments), 'rows written', moments[-1], flush=True)
  code, _ = run(source, out, checkpoint)
  ours, lines = digest(out)
  expected = digest(WORK / 'undisturbed')[0]
  print('kills', len(moments), 'equal', ours == expected)
  return {
    'kills': len(moments),
    'rows_written_at_each': moments,
    'exit_code': code,
    'lines': lines,
    'equal_byte_for_byte': ours == expected,
  }


def _written(out: pathlib.Path) -> int:
  if not out.exists():
    return 0
  return sum(f.read_bytes().count(b'\n') for f in (out / 'rows').glob('part-*') if f.suffix in ('.open', '.jsonl'))


def processes(args, source, checkpoint) -> dict:
  result, expected = {}, digest(WORK / 'undisturbed')[0]
  for number in (2, 4):
    out = WORK / f'processes{number}'
    shutil.rmtree(out, ignore_errors=True)
    quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
    began = time.monotonic()
    children = [subprocess.Popen(command(source, out, checkpoint), cwd=common.ROOT, **quiet) for _ in range(number)]
    codes = [child.wait() for child in children]
    code, summary = run(source, out, checkpoint, '--merge')
    equal = digest(out)[0] == expected
    print(number, 'processes', codes, 'took part', summary['processes'], 'equal', equal)
    result[str(number)] = {
      'exit_codes': codes,
      'took_part': summary['processes'],
      'equal_byte_for_byte': equal,
      'seconds': round(time.monotonic() - began, 1),
    }
  return result


def broken(args, source, checkpoint) -> dict:
  """2,000 rows, 200 of them broken in 20 ways."""
  flat = [(kind, way) for kind, ways in BROKEN.items() for way in ways]
  assert len(flat) == 20
  out, path, expected = WORK / 'broken', WORK / 'broken.jsonl', {}
  with path.open('w') as file:
    for i in range(2000):
      row = {
        'custom_id': f'row-{i}',
        'body': {'messages': [{'role': 'user', 'content': f'Question {i}?'}], 'max_tokens': 4, 'speech': False},
      }
      line = row
      if i % 10 == 7:
        kind, way = flat[(i // 10) % 20]
        line, expected[i] = way(row), kind
        if 'Nobody' in str(line):
          line['body']['speech'] = True
      file.write((line if isinstance(line, str) else json.dumps(line)) + '\n')
  shutil.rmtree(out, ignore_errors=True)
  code, summary = run(path, out, checkpoint)
  rows = [r for f in sorted((out / 'rows').glob('*.jsonl')) for r in map(json.loads, f.read_text().splitlines())]
  found = {r['row']: r['error']['kind'] for r in rows if 'error' in r}
  print('broken', code, summary['answered'], summary['failures'], 'as expected', found == expected)
  return {
    'exit_code': code,
    'answered': summary['answered'],
    'failed': summary['failed'],
    'failures': summary['failures'],
    'every_kind_as_expected': found == expected,
    'seconds': summary['seconds'],
  }


def single(args, source, checkpoint) -> dict:
  """Each row beside its single call of Omni.generate: tokens, text, frames and sound."""
  import jax

  from qwen3_omni_jax import Omni

  jax.config.update('jax_compilation_cache_dir', str(WORK / 'programs'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
  omni = Omni.load(checkpoint, dtype='float32', media_root=WORK / 'media')
  ours, path = rows_of(WORK / 'undisturbed'), WORK / 'single.jsonl'
  found = [json.loads(line) for line in path.read_text().splitlines()][: args.singles] if path.exists() else []
  rows = [json.loads(line) for line in source.read_text().splitlines()][: args.singles]
  known = len(found)
  with path.open('a') as file:
    for n, row in enumerate(rows[known:], known):
      mine = ours[row['custom_id']]
      reply = answer(omni, row)
      differs, worst = difference(reply, mine)
      one = {'row': row['custom_id'], 'spoken': reply.speech is not None, 'drawn': 'temperature' in row['body'], 'worst': worst}
      if differs:
        one['differs_in'] = differs
        print(one, flush=True)
      found.append(one)
      file.write(json.dumps(one) + '\n')
      file.flush()
      if n % 50 == 49:
        jax.clear_caches()  # each compiled program is mapped memory, and a process has a limited number of maps
        print('single', n + 1, 'differing', sum('differs_in' in f for f in found), flush=True)
  differing, wrong = [], 0
  for row, one in zip(rows, found, strict=True):
    if 'differs_in' in one:
      same = sum(difference(answer(moved(omni, n), row), ours[row['custom_id']])[0] is None for n in range(MOVES))
      differing.append({k: one[k] for k in ('row', 'drawn', 'differs_in')} | {'same_with_weights_moved': f'{same} of {MOVES}'})
      wrong += not same
      print(differing[-1], flush=True)
  return {
    'rows': len(found),
    'rows_of_earlier_runs': known,
    'spoken': sum(f['spoken'] for f in found),
    'equal': len(found) - len(differing),
    'differing': differing,
    'wrong': wrong,
    'largest_difference_of_samples': f'{max(f["worst"] for f in found)}/32768',
  }


def moved(omni, number: int):
  """omni with each weight one unit in its last place higher, lower, or as it was: a model that is the same but for rounding."""
  import jax

  rng = np.random.default_rng(number)

  def move(weight):
    weight = np.asarray(weight)
    return jax.numpy.asarray(np.nextafter(weight, weight + rng.integers(-1, 2, weight.shape).astype(weight.dtype)))

  params = jax.tree.map(move, omni.params)
  return type(omni)(omni.cfg, params, omni.processor, omni.defaults, omni.dtype, omni.voice)


def answer(omni, row: dict):
  """The row's reply in a call of its own."""
  from qwen3_omni_jax.infer.prepare import row_seed

  body = row['body']
  options = {'speaker': body['speaker'], 'max_frames': body['max_frames'], 'speech': True} if body['speech'] else {}
  return omni.generate(
    [body['messages']],
    max_new_tokens=body['max_tokens'],
    temperature=body.get('temperature'),
    top_k=body.get('top_k'),
    seed=row_seed(row['custom_id']),
    **options,
  )[0]


def difference(reply, line: dict) -> tuple[str | None, int]:
  """What of a reply the job's row does not have, and by how many of 32768 steps their sound differs (at most 2, by rounding)."""
  import soundfile

  if (reply.token_ids, reply.text, reply.finish_reason) != (line['token_ids'], line['text'], line['finish_reason']):
    return 'tokens', 0
  if (reply.speech is not None) != ('audio' in line):
    return 'speech or none', 0
  if reply.speech is None:
    return None, 0
  sound = line['audio']
  if (len(reply.speech.codes), reply.speech.finish_reason) != (line['usage']['audio_frames'], sound['finish_reason']):
    return 'frames', 0
  if 'path' not in sound:
    return None, 0
  samples = soundfile.read(WORK / 'undisturbed' / sound['path'], dtype='int16')[0].astype(int)
  expected = np.round(reply.speech.samples * 32768).astype(int)
  if len(samples) != len(expected):
    return 'samples', 0
  steps = int(np.abs(samples - expected).max(initial=0))
  return ('sound', 0) if steps > 2 else (None, steps)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rows', type=int, default=500)
  parser.add_argument('--singles', type=int, default=500)
  parser.add_argument('--kills', type=int, default=25)
  parser.add_argument('--pause', type=float, default=4.0, help='longest time between the first row of a run and its kill, s')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--stages', default='undisturbed,single,processes,broken,kills')
  args = parser.parse_args()
  circumstances = common.circumstances()
  checkpoint = common.small_checkpoint(common.ROOT / '.cache' / 'tiny', 'tiny')
  media = make_media(WORK / 'media')
  source = WORK / 'rows.jsonl'
  source.write_text(''.join(json.dumps(conversation(i, media)) + '\n' for i in range(args.rows)))
  for stage in args.stages.split(','):
    result = globals()[stage](args, source, checkpoint)
    common.save('batch_exactly_once', {**circumstances, **result}, stage)


if __name__ == '__main__':
  main()
