"""Text: word problems by exact match of the last number (GSM8K), and multiple choice by the more probable letter.

Choices are scored as the log-probability of the letter as the assistant's turn; nothing is generated.
"""

import pathlib
from collections.abc import Sequence

from . import answers, read
from .benchmark import Benchmark, Item, Row, Scores, Scoring, multiple_choice, ratio_scores, user
from .multiple_choice import lettered

ASK = '\nPlease reason step by step, and put your final answer within \\boxed{}.'


def load_gsm8k(folder: pathlib.Path) -> list[Item]:
  """`test.jsonl` (or Parquet) of {'question', 'answer'}, the answer ending in '#### number'."""
  return [
    Item(str(i), user(record['question'] + ASK), answers.last_number(record['answer']))
    for i, record in enumerate(_records(folder))
  ]


def score_gsm8k(items: Sequence[Item], replies: Sequence[str | None], scoring: Scoring) -> Scores:
  rows = []
  for item, reply in zip(items, replies, strict=True):
    said = None if reply is None else answers.last_number(reply)
    rows.append(Row(item.id, float(said is not None and said == item.reference), 1.0, said, said is not None))
  return ratio_scores(rows, 'exact match of the number after ####, in \\boxed{}, or last')


def load_choices(folder: pathlib.Path) -> list[Item]:
  """`test.jsonl` (or Parquet) of {'question', 'choices', 'answer' (index or letter), 'subject'?}: the form of MMLU."""
  items = []
  for i, record in enumerate(_records(folder)):
    options = lettered([str(c) for c in record['choices']])
    answer = record['answer']
    letter = list(options)[answer] if isinstance(answer, int) else str(answer)
    lines = '\n'.join(f'{k}. {text}' for k, text in options.items())
    messages = user(f'{record["question"]}\n{lines}\nAnswer with the letter of the right choice only.')
    category = {'subject': str(record['subject'])} if record.get('subject') else {}
    items.append(Item(str(record.get('id', i)), messages, letter, category, {'options': options}))
  return items


def _records(folder: pathlib.Path) -> list[dict]:
  files = read.one_of(folder, 'test.jsonl', 'test*.parquet', '*/test*.parquet', '*.jsonl')
  return list(read.parquet(files)) if files[0].suffix == '.parquet' else [r for f in files for r in read.json_lines(f)]


BENCHMARKS = [
  Benchmark('gsm8k', 'GSM8K', 'text', 'gsm8k', load_gsm8k, score_gsm8k, 'exact match', 1319),
  Benchmark(
    'mmlu-redux',
    'MMLU-Redux',
    'text',
    'mmlu_redux',
    load_choices,
    multiple_choice('qwen'),
    'most probable letter',
    answer='choose',
  ),
  Benchmark(
    'gpqa', 'GPQA diamond', 'text', 'gpqa', load_choices, multiple_choice('qwen'), 'most probable letter', 198, answer='choose'
  ),
]
