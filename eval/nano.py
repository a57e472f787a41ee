"""The held-out speech and pictures of examples/nano/data.py, with which a small model of this project is tested (docs/nano.md).

Outside the suites: there are no published figures to compare with.
"""

import functools
import pathlib
from collections.abc import Sequence

from . import read
from .benchmark import Benchmark, Item, Row, Scores, Scoring, ratio_scores, user
from .wer import edits

WORDS, EXACT = 'words apart at spaces', 'the whole reply'


def load(folder: pathlib.Path, name: str, kind: str) -> list[Item]:
  """Chat records of one turn with one file of a kind, 'audio' or 'image'."""
  path = folder / f'{name}.jsonl'
  items = []
  for i, record in enumerate(read.json_lines(path)):
    media, messages = (read.field(record, key, where=str(path)) for key in (f'{kind}s', 'messages'))
    ask = messages[0]['content'].removeprefix(f'<{kind}>')
    items.append(Item(str(i), user((kind, folder / media[0]), ask), messages[1]['content']))
  return items


def word_errors(items: Sequence[Item], replies: Sequence[str | None], scoring: Scoring) -> Scores:
  rows = []
  for item, reply in zip(items, replies, strict=True):
    counts = edits(item.reference.split(), (reply or '').split())
    rows.append(Row(item.id, counts.total, counts.length, reply, reply is not None))
  return ratio_scores(rows, WORDS, name='wer', lower_is_better=True)


def exact(items: Sequence[Item], replies: Sequence[str | None], scoring: Scoring) -> Scores:
  pairs = zip(items, replies, strict=True)
  return ratio_scores([Row(i.id, float(reply == i.reference), 1.0, reply, reply is not None) for i, reply in pairs], EXACT)


def _benchmark(name: str, title: str, file: str, kind: str, score, scorer: str) -> Benchmark:
  reader = functools.partial(load, name=file, kind=kind)
  return Benchmark(name, title, 'nano', 'nano-data', reader, score, scorer, max_new_tokens=12)


BENCHMARKS = [
  _benchmark('nano-speech', 'Nano: held-out phrases', 'speech_held_out', 'audio', word_errors, WORDS),
  _benchmark('nano-pictures', 'Nano: held-out pictures', 'pictures_held_out', 'image', exact, EXACT),
]
