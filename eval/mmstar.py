"""MMStar: 1,500 questions that need the picture, 250 in each of six categories. The released question holds its options."""

import base64
import pathlib

from . import read
from .benchmark import Benchmark, Item, multiple_choice, user
from .multiple_choice import DIALECTS, lettered

ASK = '\nAnswer with the option letter only.'


def load(folder: pathlib.Path) -> list[Item]:
  """Parquet of `Lin-Chen/MMStar`, or the VLMEvalKit table `MMStar.tsv` (pictures in base64)."""
  if (folder / 'MMStar.tsv').is_file():
    records = [{**r, 'image': base64.b64decode(r['image'])} for r in read.tsv(folder / 'MMStar.tsv', quoted=True)]
  else:
    records = list(read.parquet(read.one_of(folder, '*.parquet', '**/*.parquet')))
  items = []
  for record in records:
    question = record['question']
    letters = [c for c in 'ABCD' if record.get(c)]
    if letters:
      question = f'Question: {question}\nOptions:\n' + '\n'.join(f'{c}. {record[c]}' for c in letters)
    category = {'category': record['category'], 'l2_category': record['l2_category']}
    fields = {'options': lettered(['', '', '', ''])}
    items.append(Item(str(record['index']), user(('image', record['image']), question + ASK), record['answer'], category, fields))
  return items


BENCHMARKS = [
  Benchmark(
    'mmstar',
    'MMStar',
    'vision',
    'mmstar',
    load,
    multiple_choice('mmstar'),
    DIALECTS['mmstar'].official,
    1500,
    max_new_tokens=4096,
  )
]
