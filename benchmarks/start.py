"""How long `qwen3-omni generate` takes to answer with compiled programs at hand (warm) and without (cold), on the nano model.

    python benchmarks/start.py [--repeats 5]

Each repeat starts four fresh processes in turn: sound and picture, each with an empty folder of compiled programs and again with
what that run left there. Seconds are counted from the start of the process to the first letter of the answer, and to its end.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import common
import numpy as np

NANO = common.ROOT / 'examples' / 'nano'
QUESTIONS = {
  'sound': ('--audio', 'stop_no_four_one_yes.wav', 'Write down the words.', 'stop no four one yes'),
  'picture': ('--image', 'three_red_triangles.png', 'What is there?', 'three red triangles'),
}


def answer(question: str, folder: pathlib.Path) -> dict[str, float]:
  """One process: wall seconds to the first letter and to the end, processor seconds."""
  flag, file, text, right = QUESTIONS[question]
  words = ['generate', '--model', NANO / 'model', flag, NANO / file, '--text', text, '--compile-cache', folder]
  started = time.perf_counter()
  process = subprocess.Popen(
    [sys.executable, '-m', 'qwen3_omni_jax.cli', *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
  )
  assert process.stdout is not None
  said = process.stdout.read(1)
  first = time.perf_counter() - started
  said += process.stdout.read()
  _, status, used = os.wait4(process.pid, 0)
  process.returncode = status
  assert status == 0 and said.decode().strip() == right, said
  seconds = {'first_letter_s': first, 'end_s': time.perf_counter() - started, 'processor_s': used.ru_utime + used.ru_stime}
  return {name: round(value, 3) for name, value in seconds.items()}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--repeats', type=int, default=5)
  args = parser.parse_args()
  circumstances = common.circumstances()
  clock, helpers, runs = common.Clock(), 0.0, []
  for _ in range(args.repeats):
    with tempfile.TemporaryDirectory() as folder:
      for question in QUESTIONS:
        own = pathlib.Path(folder) / question
        for state in ('cold', 'warm'):
          runs.append({'question': question, 'state': state, **answer(question, own)})
          helpers += runs[-1]['processor_s']
        size = sum(f.stat().st_size for f in own.rglob('*') if f.is_file())
        runs[-1]['programs_kB'] = round(size / 1e3)
        shutil.rmtree(own)
  others = clock.read(helpers)['others']
  print(f'{"":16}{"first letter":>14}{"end":>8}{"processor":>11}   s, medians of {args.repeats}; others had {others:.0%}')
  medians = {}
  for question in QUESTIONS:
    for state in ('cold', 'warm'):
      these = [run for run in runs if (run['question'], run['state']) == (question, state)]
      row = {name: float(np.median([run[name] for run in these])) for name in ('first_letter_s', 'end_s', 'processor_s')}
      medians[f'{question}, {state}'] = row
      print(f'{question}, {state:8}' + f'{row["first_letter_s"]:12.2f}{row["end_s"]:10.2f}{row["processor_s"]:10.2f}')
  common.save('start', circumstances | {'medians': medians, 'processors_that_others_had': others, 'runs': runs})


if __name__ == '__main__':
  main()
