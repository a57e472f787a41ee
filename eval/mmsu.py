"""MMSU (MMSU_Bench): 5,000 questions on spoken language in 47 tasks. Not VoiceBench's subset of that name.

Official accuracy leaves replies that cannot be read out of the total; `accuracy of all` counts them as wrong. For an empty
reply or 'None' the official code re-uses the previous row's letter; here they are unreadable.
"""

import pathlib
from collections.abc import Sequence

from . import read
from .benchmark import Benchmark, Item, Row, Scores, Scoring, choice_rows, ratio_scores, user
from .multiple_choice import DIALECTS, lettered

PROMPT = (
  'Choose the most suitable answer from options A, B, C, and D to respond the question in next line, **you should only '
  'choose A or B '
  'or C or D.** Do not provide any additional explanations or content.\n\nQuestion: {}\n\nA. {}\nB. {}\nC. {}\nD. {}'
)


def load(folder: pathlib.Path) -> list[Item]:
  """`*.jsonl` or `*.json` with paths of sounds, or Parquet."""
  files = read.one_of(folder, '*.jsonl', '*.json', '*.parquet', '**/*.parquet')
  if files[0].suffix == '.parquet':
    records = list(read.parquet(files))
  else:
    records = [r for f in files for r in (read.json_lines(f) if f.suffix == '.jsonl' else read.json_file(f))]
  items = []
  for record in records:
    options = lettered([str(record.get(f'choice_{c}') or '') for c in 'abcd'])
    right = [letter for letter, text in options.items() if text == record['answer_gt']]
    audio = read.field(record, 'audio_path', 'audio', where=str(folder))
    sound = folder / audio if isinstance(audio, str) else audio
    category = {k: str(record[k]) for k in ('category', 'sub-category', 'task_name') if record.get(k)}
    messages = user(('audio', sound), PROMPT.format(record['question'], *options.values()))
    items.append(Item(str(record['id']), messages, right, category, {'options': options}))
  return items


def score(items: Sequence[Item], replies: Sequence[str | None], scoring: Scoring) -> Scores:
  rows = choice_rows('mmsu', items, replies, scoring, [item.fields['options'] for item in items])
  of_all = 100 * sum(row.value for row in rows) / len(rows)
  counted = [row if row.readable else Row(row.id, 0.0, 0.0, None, False) for row in rows]
  extra = {'accuracy of all': of_all}
  return ratio_scores(counted if any(r.readable for r in rows) else rows, DIALECTS['mmsu'].official, extra=extra)


BENCHMARKS = [Benchmark('mmsu', 'MMSU', 'audio', 'mmsu', load, score, DIALECTS['mmsu'].official, 5000)]
