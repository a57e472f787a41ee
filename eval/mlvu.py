"""MLVU dev, multiple choice: M-Avg, the mean of seven task accuracies.

The two written tasks need a judge and are not in M-Avg.
"""

import pathlib

from . import read
from .benchmark import Benchmark, Item, multiple_choice, user
from .multiple_choice import DIALECTS, lettered

TASKS = ('1_plotQA', '2_needle', '3_ego', '4_count', '5_order', '6_anomaly_reco', '7_topic_reasoning')


def load(folder: pathlib.Path) -> list[Item]:
  """`json/<task>.json` with videos in `video/<task>/`."""
  items = []
  for task in TASKS:
    for i, record in enumerate(read.json_file(folder / 'json' / f'{task}.json')):
      options = lettered([str(c) for c in record['candidates']])
      lines = '\n'.join(f'({letter}) {text}' for letter, text in options.items())
      ask = f'Question: {record["question"]}\nOptions:\n{lines}\nOnly give the best option.\nBest option: ('
      right = [letter for letter, text in options.items() if text == str(record['answer'])]
      if not right:
        raise ValueError(f'{task}.json: record {i}: the answer {record["answer"]!r} is not among its candidates')
      messages = user(('video', folder / 'video' / task / record['video']), ask)
      items.append(Item(f'{task}/{i}', messages, right[-1], {'task': record['question_type']}, {'options': options}))
  return items


BENCHMARKS = [
  Benchmark('mlvu', 'MLVU dev M-Avg', 'vision', 'mlvu', load, multiple_choice('mlvu', 'task'), DIALECTS['mlvu'].official)
]
