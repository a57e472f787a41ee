"""MMAU v05.15.25 test-mini: 1,000 questions about sound, music and speech, scored by the words of the chosen text.

The official scorer compares texts; a letter is turned into its choice first (there, a bare letter is always wrong). The prompt is
ours: none is published.
"""

import pathlib
from collections.abc import Sequence

from . import read
from .answers import mmau_correct
from .benchmark import Benchmark, Item, Row, Scores, Scoring, ratio_scores, user
from .multiple_choice import choice_text, lettered

SCORER = 'MMAU evaluation.py string_match @ 110127f5, letters turned into choices first'


def load(folder: pathlib.Path) -> list[Item]:
  """`mmau-test-mini.json`; sounds at the paths that it gives."""
  items = []
  for record in read.json_file(folder / 'mmau-test-mini.json'):
    options = lettered(record['choices'])
    lines = '\n'.join(f'({letter}) {text}' for letter, text in options.items())
    ask = f"{record['question']}\n{lines}\nAnswer with the option's letter from the given choices directly."
    category = {k: str(record[k]) for k in ('task', 'difficulty', 'sub-category') if record.get(k)}
    item = Item(
      str(record['id']), user(('audio', folder / record['audio_id']), ask), record['answer'], category, {'options': options}
    )
    items.append(item)
  return items


def score(items: Sequence[Item], replies: Sequence[str | None], scoring: Scoring) -> Scores:
  rows = []
  for item, reply in zip(items, replies, strict=True):
    options = item.fields['options']
    text = choice_text(reply or '', options)
    right = mmau_correct(item.reference, text, list(options.values()))
    rows.append(Row(item.id, float(right), 1.0, text, bool(text.strip())))
  return ratio_scores(rows, SCORER)


BENCHMARKS = [Benchmark('mmau', 'MMAU v05.15.25 test-mini', 'audio', 'mmau', load, score, SCORER, 1000)]
