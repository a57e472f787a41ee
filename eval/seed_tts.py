"""SEED-TTS-eval: the texts of `meta.lst` spoken, recognised, and compared; the mean of each utterance's error rate.

The official recognisers are Whisper-large-v3 (en) and Paraformer (zh). Ours is one of eval.recognise, or a file of transcripts;
which one made them belongs to the score. Speaker similarity is an external step over the manifest that a run
writes (`wav|reference wav|text`, the official form): the published figures clone the prompt's voice, which the released model's
fixed voices do not, so that they are not expected to be reached.
"""

import functools
import pathlib
from collections.abc import Sequence

from .benchmark import Benchmark, Item, Row, Scores, Scoring, ratio_scores
from .wer import seed_tts_edits

SCORER = 'seed-tts-eval run_wer.py process_one, average_wer.py @ 752f4297'


def load(folder: pathlib.Path, language: str) -> list[Item]:
  """`<language>/meta.lst`: `utt|prompt text|prompt wav|text[|wav]`, or `utt|text`."""
  path = folder / language / 'meta.lst'
  if not path.is_file():
    raise ValueError(f'{path}: no such file; see docs/evaluation.md for the files expected there')
  items = []
  for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
    parts = line.strip().split('|')
    if not line.strip():
      continue
    if not 2 <= len(parts) <= 5:
      raise ValueError(f'{path}: line {number} has {len(parts)} columns; expected 2 to 5')
    text = parts[1] if len(parts) < 4 else parts[3]
    prompt = path.parent / parts[2] if len(parts) >= 3 else None
    fields = {'language': language, 'prompt_wav': None if prompt is None else str(prompt)}
    items.append(Item(parts[0], [{'role': 'assistant', 'content': text}], text, {'language': language}, fields))
  return items


def score(items: Sequence[Item], replies: Sequence[str | None], scoring: Scoring) -> Scores:
  """replies: what a recogniser heard. Each row's rate has weight 1: a long utterance counts no more than a short one."""
  rows = []
  for item, heard in zip(items, replies, strict=True):
    counts = seed_tts_edits(item.reference, heard or '', item.fields['language'])
    if not counts.length:
      raise ValueError(f'{item.id}: the text {item.reference!r} has no words')
    rows.append(Row(item.id, counts.total / counts.length, 1.0, heard, heard is not None))
  return ratio_scores(rows, SCORER, name='mean wer', lower_is_better=True)


def manifest(items: Sequence[Item], waves: Sequence[pathlib.Path]) -> str:
  """The official list of results: `wav|prompt wav|text` lines, for its WER and similarity scripts."""
  lines = []
  for item, wave in zip(items, waves, strict=True):
    prompt = item.fields.get('prompt_wav') or item.fields.get('recording')
    lines.append('|'.join([str(wave), *([str(prompt)] if prompt else []), item.reference]))
  return '\n'.join(lines) + '\n'


BENCHMARKS = [
  Benchmark(
    f'seed-tts-{lang}',
    f'SEED-TTS test-{lang}',
    'speech',
    'seed_tts',
    functools.partial(load, language=lang),
    score,
    SCORER,
    expected=number,
    max_new_tokens=512,
    answer='speak',
  )
  for lang, number in (('en', 1088), ('zh', 2020))
]
