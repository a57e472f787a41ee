"""Kills an evaluation again and again: `python -m tests.eval.crash [--kills 6]` prints what became of it.

Every suite, on the invented items of fixtures.py, with the tiny model. The run that was killed with SIGKILL at random times must
end with the scores and the replies of one that was not.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from tests.eval.fixtures import write_all

CLI = [sys.executable, '-m', 'qwen3_omni_jax.cli']


def command(model: pathlib.Path, root: pathlib.Path, out: pathlib.Path) -> list[str]:
  return [
    *CLI,
    'eval',
    '--model',
    str(model),
    '--suite',
    'all',
    '--data',
    str(root),
    '--out',
    str(out),
    '--max-new-tokens',
    '3',
    '--max-frames',
    '4',
    '--asr',
    'self',
    '--dtype',
    'float32',
    '--batch-size',
    '2',
  ]


def replies(out: pathlib.Path) -> int:
  return sum(file.read_bytes().count(b'\n') for file in out.glob('*/replies.jsonl'))


def result(out: pathlib.Path) -> tuple:
  """(scores of every benchmark, text of every reply by benchmark and id; a reply that is there twice fails)."""
  found = json.loads((out / 'results.json').read_text())['results']
  scores = {r['benchmark']: (r.get('metrics'), r.get('skipped')) for r in found}
  texts: dict[tuple[str, str], str] = {}
  for file in sorted(out.glob('*/replies.jsonl')):
    for line in file.read_text(encoding='utf-8').splitlines():
      reply = json.loads(line)
      key = file.parent.name, reply['id']
      assert key not in texts, f'{key} was answered twice'
      texts[key] = reply['text']
  return scores, texts


def main() -> int:
  parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
  parser.add_argument('--kills', type=int, default=6)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  from qwen3_omni_jax.tools.sample_media import write_samples

  rng = random.Random(args.seed)
  with tempfile.TemporaryDirectory() as folder:
    at = pathlib.Path(folder)
    subprocess.run([*CLI, 'tiny', '--out', str(at / 'tiny')], check=True, stdout=subprocess.DEVNULL)
    root = write_all(at / 'data', write_samples(at / 'samples'))
    cached = {'JAX_COMPILATION_CACHE_DIR': str(at / 'cache'), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    env = {'JAX_PLATFORMS': 'cpu', **os.environ, **cached}
    quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
    subprocess.run(command(at / 'tiny', root, at / 'whole'), env=env, check=True, **quiet)
    total, killed_at = replies(at / 'whole'), []
    for kill in range(args.kills):
      wanted = rng.randint(1, total // args.kills)
      before = replies(at / 'killed')
      process = subprocess.Popen(command(at / 'tiny', root, at / 'killed'), env=env, **quiet)
      while process.poll() is None and replies(at / 'killed') < before + wanted:
        time.sleep(0.02)
      time.sleep(rng.random() / 2)
      assert process.poll() is None, f'the run ended before kill {kill}'
      process.send_signal(signal.SIGKILL)
      process.wait()
      killed_at.append(replies(at / 'killed'))
    subprocess.run(command(at / 'tiny', root, at / 'killed'), env=env, check=True, **quiet)
    whole, killed = result(at / 'whole'), result(at / 'killed')
  print(
    json.dumps(
      {
        'benchmarks': len(whole[0]),
        'replies': len(whole[1]),
        'killed_after_replies': killed_at,
        'scores_equal': whole[0] == killed[0],
        'replies_equal': whole[1] == killed[1],
      }
    )
  )
  return 0 if whole == killed else 1


if __name__ == '__main__':
  sys.exit(main())
