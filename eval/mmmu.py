"""MMMU validation: 900 questions of 30 subjects, 847 with choices and 53 open.

Prompt of Qwen's own harness: pictures first, then question and options. Score of the official evaluation code; Qwen's rule,
which asks whether exactly one choice is named and makes open questions a choice between the answer and 'Other Answers', is
given beside it.
"""

import ast
import pathlib
import re
from collections.abc import Sequence

from . import answers, read
from .benchmark import Benchmark, Item, Row, Scores, Scoring, choice_rows, ratio_scores, user
from .multiple_choice import DIALECTS, lettered, read_choice

SCORER = 'MMMU mmmu/utils/eval_utils.py @ bb0b95a9'
MAX_IMAGES = 7


def load(folder: pathlib.Path) -> list[Item]:
  """Parquet of `MMMU/MMMU` (`*/validation-*.parquet`, or all in one folder)."""
  files = read.one_of(folder, '*/validation*.parquet', 'validation*.parquet', '*.parquet')
  return [_item(record) for record in read.parquet(files)]


def _item(record: dict) -> Item:
  choices = record['options']
  choices = ast.literal_eval(choices) if isinstance(choices, str) else list(choices or [])
  options = lettered([str(c) for c in choices])
  named = {int(n) for n in re.findall(r'<image (\d)>', ' '.join([record['question'], *options.values()]))}
  images = [('image', record[f'image_{n}']) for n in sorted(named or {1}) if n <= MAX_IMAGES and f'image_{n}' in record]
  ask = f'Question: {record["question"]}\n'
  if options:
    lines = ''.join(f'{letter}. {text}\n' for letter, text in options.items())
    ask += f'Options:\n{lines}Please select the correct answer from the options above.'
  answer = record['answer']
  answer = ast.literal_eval(answer) if isinstance(answer, str) and answer.startswith('[') else answer
  subject = re.sub(r'^(validation|dev|test)_|_\d+$', '', record['id'])
  category = {'subject': subject, 'difficulty': str(record.get('topic_difficulty', '')), 'type': record['question_type']}
  return Item(record['id'], user(*images, ask.rstrip()), answer, category, {'options': options})


def score(items: Sequence[Item], replies: Sequence[str | None], scoring: Scoring) -> Scores:
  official, qwen = [], 0
  chosen = [i for i, item in enumerate(items) if item.fields['options']]
  picked = choice_rows(
    'mmmu', [items[i] for i in chosen], [replies[i] for i in chosen], scoring, [items[i].fields['options'] for i in chosen]
  )
  rows = dict(zip(chosen, picked, strict=True))
  for i, (item, reply) in enumerate(zip(items, replies, strict=True)):
    options = item.fields['options'] or lettered([str(item.reference), 'Other Answers'])
    right = item.reference if item.fields['options'] else 'A'
    qwen += read_choice('qwen', reply, options) == right
    if i not in rows:
      correct = reply is not None and answers.mmmu_open_correct(reply, item.reference)
      rows[i] = Row(item.id, float(correct), 1.0, reply, bool(reply))
    official.append(rows[i])
  guesses = f'|random guesses, seed {scoring.seed}' if scoring.official_fallback else ''
  extra = {"accuracy by Qwen's rule, no judge": 100 * qwen / len(items)}
  return ratio_scores(official, f'{SCORER}{guesses}', extra=extra)


BENCHMARKS = [Benchmark('mmmu', 'MMMU val', 'vision', 'mmmu', load, score, DIALECTS['mmmu'].official, 900, max_new_tokens=4096)]
