"""MathVista testmini: 1,000 problems with the released query as prompt.

An answer is found by rule (the reply itself, a number, 'The answer is "x".'), else by the judge. Its instruction here is ours:
the official one shows worked examples, so that the official extraction may differ. Without a judge such replies are unreadable
and count as wrong.
"""

import pathlib
from collections.abc import Sequence

from . import answers, read
from .benchmark import Benchmark, Item, Row, Scores, Scoring, ratio_scores, user

SCORER = 'MathVista evaluation/extract_answer.py, calculate_score.py @ 53d52587'
EXTRACT = (
  "Below are a question and a model's response to it. Write the final answer of the response alone: a number, a list, or for "
  'a choice its letter in parentheses.\n\nQuestion: {query}\n\nModel response: {response}\n\nExtracted answer: '
)


def load(folder: pathlib.Path) -> list[Item]:
  """`testmini.json` with its `images/` (a query file beside it, `query.json`, if the problems have none), or Parquet."""
  if (folder / 'testmini.json').is_file():
    problems = read.json_file(folder / 'testmini.json')
    queries = read.json_file(folder / 'query.json') if (folder / 'query.json').is_file() else {}
    records = [
      {'pid': pid, **p, 'query': p.get('query') or queries.get(pid), 'image': folder / p['image']} for pid, p in problems.items()
    ]
  else:
    records = list(read.parquet(read.one_of(folder, 'testmini*.parquet', '**/testmini*.parquet')))
    records = [{**r, 'image': r.get('decoded_image', r['image'])} for r in records]
  items = []
  for record in records:
    ask = read.field(record, 'query', where=f'{folder}: problem {record["pid"]}')
    meta = record.get('metadata') or {}
    category = {k: str(meta[k]) for k in ('task', 'category', 'context', 'grade') if meta.get(k)} | {
      'answer': record['answer_type']
    }
    fields = {k: record.get(k) for k in ('choices', 'question_type', 'answer_type', 'precision', 'query', 'extraction')}
    items.append(Item(str(record['pid']), user(('image', record['image']), ask), record['answer'], category, fields))
  return items


def score(items: Sequence[Item], replies: Sequence[str | None], scoring: Scoring) -> Scores:
  rows = []
  for item, reply in zip(items, replies, strict=True):
    found = None if reply is None else item.fields.get('extraction') or answers.mathvista_extract(reply, item.fields)
    if found is None and reply and scoring.judge is not None:
      found = scoring.judge(EXTRACT.format(query=item.fields['query'], response=reply), temperature=0.0)[0].strip()
    said = None if found is None else answers.mathvista_normalise(found, item.fields)
    rows.append(Row(item.id, float(said is not None and said == item.reference), 1.0, said, found is not None))
  judge = f'|judge {scoring.judge.name}, our instruction' if scoring.judge else '|rules only'
  return ratio_scores(rows, SCORER + judge)


BENCHMARKS = [Benchmark('mathvista', 'MathVista mini', 'vision', 'mathvista', load, score, SCORER, 1000, max_new_tokens=4096)]
