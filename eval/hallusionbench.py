"""HallusionBench, the part with pictures (951 questions): by question, by figure, and by question over all its figures.

Figures published for vision models, and most likely Qwen's single number, are VLMEvalKit's: yes or no by rule, and the mean of
the three.
"""

import collections
import pathlib
from collections.abc import Sequence

import numpy as np

from . import answers, read
from .benchmark import Benchmark, Item, Row, Scores, Scoring, user

SCORER = 'VLMEvalKit yorn.py YOrN_Extraction, Hallusion_rating @ e8e78f05'
ASK = ' Please answer yes or no.'


def load(folder: pathlib.Path) -> list[Item]:
  """`HallusionBench.json`, pictures at the `filename` it gives."""
  items = []
  for record in read.json_file(folder / 'HallusionBench.json'):
    if record['visual_input'] == '0':
      continue
    key = '_'.join(record[k] for k in ('category', 'subcategory', 'set_id', 'figure_id', 'question_id'))
    keys = {k: record[k] for k in ('subcategory', 'set_id', 'figure_id', 'question_id')}
    category = {'category': record['category'], 'subcategory': record['subcategory']}
    messages = user(('image', folder / record['filename']), record['question'] + ASK)
    items.append(Item(key, messages, 'Yes' if record['gt_answer'] == '1' else 'No', category, keys))
  return items


def score(items: Sequence[Item], replies: Sequence[str | None], scoring: Scoring) -> Scores:
  rows = []
  for item, reply in zip(items, replies, strict=True):
    said = None if reply is None else answers.yes_or_no(reply)
    if said is None and reply and scoring.judge is not None:
      said = answers.yes_or_no(
        scoring.judge(f'Does this reply mean Yes or No? Say one word, or Unknown.\n\n{reply}', temperature=0.0)[0]
      )
    rows.append(Row(item.id, float(said == item.reference), 1.0, said, said is not None))
  # Questions and figures of a set depend on each other: the set is the unit. Sums: right, all; of answers, figures, questions.
  units: dict[tuple, list[float]] = collections.defaultdict(lambda: [0.0] * 6)
  shared: dict[tuple, list[bool]] = collections.defaultdict(list)
  for item, row in zip(items, rows, strict=True):
    unit = (item.fields['subcategory'], item.fields['set_id'])
    units[unit][0] += row.value
    units[unit][1] += 1
    shared[(*unit, 'figure', item.fields['figure_id'])].append(bool(row.value))
    shared[(*unit, 'question', item.fields['question_id'])].append(bool(row.value))
  for (subcategory, number, kind, _), right in shared.items():
    at = 2 if kind == 'figure' else 4
    units[subcategory, number][at] += all(right)
    units[subcategory, number][at + 1] += 1
  table = np.array(list(units.values()))
  total = table.sum(axis=0)
  parts = {name: float(100 * total[i] / total[i + 1]) for name, i in (('aAcc', 0), ('fAcc', 2), ('qAcc', 4))}
  judge = f'|judge {scoring.judge.name}' if scoring.judge else '|rules only'
  return Scores(
    {'mean of three': _mean(total[None]), **parts}, rows, table, np.zeros(len(table), np.int64), _mean, SCORER + judge
  )


def _mean(sums: np.ndarray) -> float:
  return float(100 * np.mean(sums[0, 0::2] / sums[0, 1::2]))


BENCHMARKS = [Benchmark('hallusionbench', 'HallusionBench', 'vision', 'hallusionbench', load, score, SCORER, 951)]
