"""The held-out speech, pictures and read-aloud phrases of examples/nano/data.py, to test a small model with (docs/nano.md).

Outside the suites: there are no published figures to compare with.
"""

import functools
import pathlib
from collections.abc import Sequence

from . import read, voice_metrics
from .benchmark import Benchmark, Item, Row, Scores, Scoring, ratio_scores, user
from .wer import edits

WORDS, EXACT = 'words apart at spaces', 'the whole reply'
ASK_SPEECH = 'Write down the words.'  # what the model was taught with
VOICE = 20  # recordings by which a speaker is known


def load(folder: pathlib.Path, name: str, kind: str) -> list[Item]:
  """Chat records of one turn with one file of a kind, 'audio' or 'image'."""
  path = folder / f'{name}.jsonl'
  items = []
  for i, record in enumerate(read.json_lines(path)):
    media, messages = (read.field(record, key, where=str(path)) for key in (f'{kind}s', 'messages'))
    ask = messages[0]['content'].removeprefix(f'<{kind}>')
    items.append(Item(str(i), user((kind, folder / media[0]), ask), messages[1]['content']))
  return items


def load_texts(folder: pathlib.Path) -> list[Item]:
  """Read-aloud records of {'text', 'audio', 'speaker'}: each text is to be spoken by its own speaker.

  Raises ValueError if a recording is not there.
  """
  path = folder / 'read_aloud_held_out.jsonl'
  items: list[Item] = []
  voices: dict[str, list[pathlib.Path]] = {}  # of all items, whichever of them are spoken
  for i, record in enumerate(read.json_lines(path)):
    text, audio, speaker = (read.field(record, key, where=str(path)) for key in ('text', 'audio', 'speaker'))
    fields = {'speaker': speaker, 'recording': folder / audio, 'voices': voices}
    voices.setdefault(speaker, []).append(folder / audio)
    items.append(Item(str(i), [{'role': 'assistant', 'content': text}], text, {'speaker': speaker}, fields))
  if gone := [str(item.fields['recording']) for item in items if not item.fields['recording'].is_file()]:
    raise ValueError(f'{path}: {len(gone)} recordings are not there: {", ".join(gone[:5])}')
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


def measure(items: Sequence[Item], waves: Sequence[pathlib.Path], finish_reasons: Sequence[str]) -> dict[str, float]:
  """How speech ended and whose voice it is, beside the recordings of the same texts (eval.voice_metrics); in percent."""
  import soundfile

  recordings, speakers = [item.fields['recording'] for item in items], [item.fields['speaker'] for item in items]
  lengths = [[soundfile.info(file).duration for file in files] for files in (waves, recordings)]
  metrics = voice_metrics.ending(finish_reasons, *lengths)
  sound = voice_metrics.sound_of
  known = {name: [sound(file) for file in files[:VOICE]] for name, files in items[0].fields['voices'].items()}
  voices = voice_metrics.Voices.of(known)
  for of, files in (('', waves), (' of the recordings', recordings)):
    right, alike = voice_metrics.whose(voices, [sound(file) for file in files], speakers)
    metrics |= {f'speaker right{of}': right, f'speaker similarity{of}': alike}
  return metrics


def _benchmark(name: str, title: str, file: str, kind: str, score, scorer: str) -> Benchmark:
  reader = functools.partial(load, name=file, kind=kind)
  return Benchmark(name, title, 'nano', 'nano-data', reader, score, scorer, max_new_tokens=12)


_HEARD = {
  'nano-speech': ('held-out phrases', 'speech_held_out'),
  'nano-speech-silence': ('with silence before and after', 'speech_silence_held_out'),
  'nano-speech-level': ('at other levels', 'speech_level_held_out'),
  'nano-speech-noise': ('with noise', 'speech_noise_held_out'),
}

BENCHMARKS = [
  *(_benchmark(name, f'Nano: {title}', file, 'audio', word_errors, WORDS) for name, (title, file) in _HEARD.items()),
  _benchmark('nano-pictures', 'Nano: held-out pictures', 'pictures_held_out', 'image', exact, EXACT),
  Benchmark(
    'nano-voice',
    'Nano: phrases read aloud',
    'nano',
    'nano-data',
    load_texts,
    word_errors,
    WORDS,
    max_new_tokens=12,
    answer='speak',
    hear=ASK_SPEECH,
    measure=measure,
  ),
]
