"""Speech translation: FLEURS (15 languages, paired by sentence) and CoVoST 2; corpus BLEU of each direction.

The text is left as it is (`bleu.py`). Japanese targets need `sacrebleu[ja]`. FLEURS targets are the raw transcriptions, with
case and punctuation; which of the two fields the published figures use is not said.
"""

import functools
import pathlib
from collections.abc import Sequence

import numpy as np

from . import bleu, read
from .asr import FLEURS, fleurs_records
from .benchmark import Benchmark, Item, Row, Scores, Scoring, sums_by_group, user

SCORER = 'Qwen2-Audio eval_audio/evaluate_st.py, sacrebleu corpus_bleu @ 595360e8'
# The 15 languages of the published S2TT averages.
S2TT = [code for code, (language, _) in FLEURS.items() if language not in ('ms', 'nl', 'tr', 'ur')]
BY_LANGUAGE = {language: (code, name) for code, (language, name) in FLEURS.items()}


def prompt(source: str, target: str) -> str:
  """The published translation prompt, with names of languages."""
  return f'Listen to the provided {source} speech and produce a translation in {target} text.'


def fleurs(folder: pathlib.Path, *, source: str | None = None, target: str | None = None) -> list[Item]:
  """Every recording of each source language with the target's text of the same sentence. None: all but the other one."""
  others = [code for code in S2TT if FLEURS[code][0] not in (source, target)]
  pairs = [(BY_LANGUAGE[source][0], c) for c in others] if source else [(c, BY_LANGUAGE[target or ''][0]) for c in others]
  items = []
  for spoken, written in pairs:
    texts = {str(r['id']): r['raw_transcription'] for r in fleurs_records(folder / written)}
    direction = f'{FLEURS[spoken][0]}_{FLEURS[written][0]}'
    for i, record in enumerate(fleurs_records(folder / spoken)):
      if (text := texts.get(str(record['id']))) is not None:
        messages = user(('audio', record['audio']), prompt(FLEURS[spoken][1], FLEURS[written][1]))
        items.append(Item(f'{direction}/{i}', messages, text, {'direction': direction}))
  return items


def covost(folder: pathlib.Path, direction: str) -> list[Item]:
  """`covost_v2.<src>_<tgt>.test.tsv` with Common Voice 4 clips in `clips/<src>/`."""
  source, _, target = direction.partition('_')
  names = {language: name for language, name in FLEURS.values()}
  rows = read.tsv(folder / f'covost_v2.{direction}.test.tsv')
  ask = prompt(names[source.partition('-')[0]], names[target.partition('-')[0]])
  return [
    Item(row['path'], user(('audio', folder / 'clips' / source / row['path']), ask), row['translation'], {'direction': direction})
    for row in rows
  ]


def score(items: Sequence[Item], replies: Sequence[str | None], scoring: Scoring) -> Scores:
  """The mean over directions of corpus BLEU. A reply that failed counts as an empty translation."""
  directions = sorted({item.category['direction'] for item in items})
  groups = np.array([directions.index(item.category['direction']) for item in items])
  units = np.zeros((len(items), 2 * bleu.ORDER + 2))
  signatures, single = {}, {}
  for g, direction in enumerate(directions):
    members = [i for i, k in enumerate(groups) if k == g]
    said, right = [replies[i] or '' for i in members], [items[i].reference for i in members]
    target = direction.split('_')[1].partition('-')[0]
    units[members] = bleu.statistics(said, right, target)
    single[f'BLEU {direction}'], signatures[direction] = bleu.corpus_bleu(said, right, target)
  # A row's own figure is the share of its words that match: BLEU of one sentence means little.
  rows = [
    Row(item.id, unit[0], unit[bleu.ORDER], reply, reply is not None)
    for item, reply, unit in zip(items, replies, units, strict=True)
  ]
  mean = _mean_bleu(sums_by_group(units, groups, len(directions)))
  signature = '; '.join(sorted({f'{s} ({", ".join(d for d in directions if signatures[d] == s)})' for s in signatures.values()}))
  return Scores({'BLEU': mean, **single}, rows, units, groups, _mean_bleu, signature)


def _mean_bleu(sums: np.ndarray) -> float:
  return float(np.mean([bleu.from_statistics(total) for total in sums]))


def _benchmark(name: str, title: str, folder: str, reader) -> Benchmark:
  return Benchmark(name, title, 'audio', folder, reader, score, SCORER, max_new_tokens=1024)


BENCHMARKS = [
  _benchmark('fleurs-en2xx', 'FLEURS en to 14', 'fleurs', functools.partial(fleurs, source='en')),
  _benchmark('fleurs-xx2en', 'FLEURS 14 to en', 'fleurs', functools.partial(fleurs, target='en')),
  _benchmark('fleurs-zh2xx', 'FLEURS zh to 14', 'fleurs', functools.partial(fleurs, source='zh')),
  _benchmark('fleurs-xx2zh', 'FLEURS 14 to zh', 'fleurs', functools.partial(fleurs, target='zh')),
  *(
    _benchmark(f'covost2-{d.replace("_", "-")}', f'CoVoST 2 {d}', 'covost2', functools.partial(covost, direction=d))
    for d in ('en_zh-CN', 'en_de', 'de_en', 'zh-CN_en', 'es_en', 'fr_en', 'it_en')
  ),
]
