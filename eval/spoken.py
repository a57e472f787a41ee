"""Spoken benchmarks after the speaking: what recognisers hear in the waves, and the scores of that.

Where items bring a recording of their text (field `recording`), every recogniser also writes that down: its error rate on the
recordings says what is the recogniser's own.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence

from .benchmark import Benchmark, Item, Scores, Scoring
from .predict import Answer
from .recognise import Hear

Heard = list[str | None]


class NotWrittenDown(ValueError):
  """Speech without a recogniser."""

  def __init__(self):
    how = 'recognise the files of manifest.lst and pass --transcripts, or use --asr self or --asr sphinx'
    super().__init__(f'spoken, but not written down: {how}')


@dataclasses.dataclass(frozen=True)
class Ear:
  """A recogniser that is ready for a benchmark. file: where its texts are kept as they come; None: nowhere."""

  name: str
  hear: Hear
  file: pathlib.Path | None = None


def listen(ear: Ear, waves: Mapping[str, pathlib.Path], batch: int, log: Callable[[str], None]) -> dict[str, str]:
  """What an ear hears in each wave, by id; those in its file are not heard again. Nothing is heard in a file without a sample."""
  import soundfile

  known = {} if ear.file is None else {key: text for key, text in _kept(ear.file).items() if key in waves}
  left = [key for key in waves if key not in known]
  if gone := [str(waves[key]) for key in left if not waves[key].is_file()]:
    raise ValueError(f'{len(gone)} wave files are not there: {", ".join(gone[:5])}; speak them again, into another --out')
  for start in range(0, len(left), batch):
    keys = left[start : start + batch]
    sounding = [key for key in keys if soundfile.info(waves[key]).frames]
    new = dict.fromkeys(keys, '') | dict(zip(sounding, ear.hear([waves[key] for key in sounding]), strict=True))
    known |= new
    if ear.file is not None:
      with ear.file.open('a', encoding='utf-8') as file:
        file.writelines(json.dumps({'id': key, 'text': text}, ensure_ascii=False) + '\n' for key, text in new.items())
    log(f'heard by {ear.name}: {len(known)} of {len(waves)}')
  return known


def _kept(file: pathlib.Path) -> dict[str, str]:
  """Texts by id; the last line may have been cut by a kill, and is removed."""
  if not file.is_file():
    return {}
  whole = file.read_bytes()
  whole = whole[: whole.rfind(b'\n') + 1]
  file.write_bytes(whole)
  return {line['id']: line['text'] for line in map(json.loads, whole.decode('utf-8').splitlines())}


def recordings_of(items: Sequence[Item]) -> dict[str, pathlib.Path]:
  """Recordings of the items' own texts, by id of the item."""
  return {item.id: pathlib.Path(item.fields['recording']) for item in items if item.fields.get('recording')}


def score(
  benchmark: Benchmark,
  items: Sequence[Item],
  answers: Sequence[Answer],
  waves: Sequence[pathlib.Path],
  ears: Sequence[Ear],
  scoring: Scoring,
  *,
  given: Mapping[str, Heard] | None = None,
  batch: int = 16,
  log: Callable[[str], None] = lambda line: None,
) -> tuple[list[Answer], Scores]:
  """Answers with what the first ear heard, and its scores, with metrics of the other ears, the recordings and the sound itself.

  given: texts of recognisers elsewhere by their names, in the order of the items; they come before the ears.
  Raises ValueError where nothing was written down, and what the benchmark's own scorer raises.
  """
  made = {item.id: wave for item, a, wave in zip(items, answers, waves, strict=True) if a.finish_reason != 'error'}
  originals = recordings_of(items)
  heard, recordings = dict(given or {}), {}
  in_order = lambda found: [found.get(item.id) for item in items]
  for ear in ears:
    heard[ear.name] = in_order(listen(ear, made, batch, log))
    if originals:
      file = None if ear.file is None else ear.file.with_stem(f'{ear.file.stem}_recordings')
      recordings[ear.name] = in_order(listen(dataclasses.replace(ear, file=file), originals, batch, log))
  if all(text is None for texts in heard.values() for text in texts):
    raise NotWrittenDown
  first = next(iter(heard))
  written = [dataclasses.replace(a, text=text) for a, text in zip(answers, heard[first], strict=True)]
  scores = benchmark.score(items, heard[first], scoring)
  rate = next(iter(scores.metrics))
  extra: dict[str, float] = {}
  for name in heard:
    by = '' if name == first else f', heard by {name}'
    if by:
      extra[f'{rate}{by}'] = benchmark.score(items, heard[name], scoring).headline
    if name in recordings:
      extra[f'{rate} of the recordings{by}'] = benchmark.score(items, recordings[name], scoring).headline
  if benchmark.measure is not None and made:
    spoken = [i for i, item in enumerate(items) if item.id in made]
    reasons = [answers[i].finish_reason for i in spoken]
    extra |= benchmark.measure([items[i] for i in spoken], [waves[i] for i in spoken], reasons)
  signature = f'{scores.signature}|heard by {first}'
  return written, dataclasses.replace(scores, metrics=scores.metrics | extra, signature=signature)
