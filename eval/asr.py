"""Speech recognition: LibriSpeech, WenetSpeech, Common Voice 15, FLEURS, and sung lyrics.

Error rates as Qwen2-Audio's `evaluate_asr.py` counts them (words; characters for Chinese and Cantonese). The FLEURS average
over 19 languages also counts Japanese and Thai by character: they have no spaces, and the published figure says nothing of them.
Every folder may hold a `manifest.jsonl` of {'audio', 'gt'} instead of the released files.
"""

import functools
import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from . import read
from .benchmark import Benchmark, Item, Row, Scores, Scoring, ratio_scores, user
from .normalise import UNSPACED_LANGUAGES, simplified, strip_markup, tokens, transcript_tokens
from .normalise_zh import spell_out
from .wer import edits

SCORER = 'Qwen2-Audio eval_audio/evaluate_asr.py remove_sp, compute_wer @ 595360e8'
CHINESE_PROMPT = '请将这段中文语音转换为纯文本。'
LYRICS_PROMPT = (
  'Transcribe the song lyrics into text without any punctuation, separate lines with line breaks, '
  'and output only the lyrics without additional explanations.'
)
# FLEURS configuration -> (language code, its name in the prompt): the 19 languages of speech input.
FLEURS = {
  'ar_eg': ('ar', 'Arabic'),
  'de_de': ('de', 'German'),
  'en_us': ('en', 'English'),
  'es_419': ('es', 'Spanish'),
  'fr_fr': ('fr', 'French'),
  'id_id': ('id', 'Indonesian'),
  'it_it': ('it', 'Italian'),
  'ja_jp': ('ja', 'Japanese'),
  'ko_kr': ('ko', 'Korean'),
  'ms_my': ('ms', 'Malay'),
  'nl_nl': ('nl', 'Dutch'),
  'pt_br': ('pt', 'Portuguese'),
  'ru_ru': ('ru', 'Russian'),
  'th_th': ('th', 'Thai'),
  'tr_tr': ('tr', 'Turkish'),
  'ur_pk': ('ur', 'Urdu'),
  'vi_vn': ('vi', 'Vietnamese'),
  'yue_hant_hk': ('yue', 'Cantonese'),
  'cmn_hans_cn': ('zh', 'Chinese'),
}


def prompt(language: str, name: str) -> str:
  """The published recognition prompt."""
  return CHINESE_PROMPT if language == 'zh' else f'Transcribe the {name} audio into text.'


def utterance(key: str, audio: Any, text: str, language: str, name: str, **category: str) -> Item:
  return Item(key, user(('audio', audio), prompt(language, name)), text, {'language': language, **category})


def manifest(folder: pathlib.Path, language: str, name: str) -> list[Item] | None:
  """Items of `manifest.jsonl`, the form of Qwen2-Audio's evaluation files, if the folder has one."""
  path = folder / 'manifest.jsonl'
  if not path.is_file():
    return None
  items = []
  for i, record in enumerate(read.json_lines(path)):
    audio, text = (read.field(record, *names, where=str(path)) for names in (('audio',), ('gt', 'text')))
    source = {'source': str(record['source'])} if 'source' in record else {}
    items.append(utterance(str(record.get('id', i)), folder / audio, str(text), language, name, **source))
  return items


def librispeech(folder: pathlib.Path) -> list[Item]:
  """`*.trans.txt` files ('ID TEXT' lines) beside their flac files."""
  if (items := manifest(folder, 'en', 'English')) is not None:
    return items
  items = []
  for path in read.one_of(folder, '**/*.trans.txt'):
    for line in path.read_text(encoding='utf-8').splitlines():
      key, _, text = line.partition(' ')
      items.append(utterance(key, path.parent / f'{key}.flac', text, 'en', 'English', speaker=key.split('-')[0]))
  return items


def wenetspeech(folder: pathlib.Path, subset: str) -> list[Item]:
  """Segments of `WenetSpeech.json` in a subset (TEST_NET, TEST_MEETING), with the labels as first released."""
  if (items := manifest(folder / subset.lower(), 'zh', 'Chinese')) is not None:
    return items
  items = []
  for audio in _array(folder / 'WenetSpeech.json', 'audios'):
    for segment in audio['segments']:
      if subset in segment['subsets']:
        sound = read.Segment(folder / audio['path'], segment['begin_time'], segment['end_time'])
        items.append(utterance(segment['sid'], sound, segment['text'], 'zh', 'Chinese', source=str(audio.get('source', ''))))
  return items


def _array(path: pathlib.Path, key: str, chunk: int = 2**20) -> Iterator[dict[str, Any]]:
  """Elements of the array `key` of a JSON object, one at a time: the released file has gigabytes."""
  if not path.is_file():
    raise ValueError(f'{path}: no such file; see docs/evaluation.md for the files expected there')
  decoder = json.JSONDecoder()
  with path.open(encoding='utf-8') as file:
    buffer = file.read(chunk)
    while not (opened := re.search(rf'"{key}"\s*:\s*\[', buffer)):
      more = file.read(chunk)
      if not more:
        raise ValueError(f"{path}: no array '{key}'")
      buffer += more
    buffer = buffer[opened.end() :]
    while True:
      buffer = buffer.lstrip(' \r\n\t,')
      if buffer.startswith(']'):
        return
      try:
        value, end = decoder.raw_decode(buffer)
      except json.JSONDecodeError as e:
        more = file.read(max(chunk, len(buffer)))
        if not more:
          raise ValueError(f'{path}: cut off or not valid JSON ({e})') from e
        buffer += more
        continue
      buffer = buffer[end:]
      yield value


def common_voice(folder: pathlib.Path, language: str, name: str) -> list[Item]:
  """`test.tsv` with clips in `clips/`."""
  if (items := manifest(folder, language, name)) is not None:
    return items
  rows = read.tsv(folder / 'test.tsv')
  return [utterance(row['path'], folder / 'clips' / row['path'], row['sentence'], language, name) for row in rows]


FLEURS_COLUMNS = ['id', 'file_name', 'raw_transcription', 'transcription', 'characters', 'num_samples', 'gender']


def fleurs_records(folder: pathlib.Path) -> list[dict[str, Any]]:
  """Records with `id`, `audio`, `transcription`, `raw_transcription` of one language's test split."""
  if (folder / 'test.tsv').is_file():
    rows = read.tsv(folder / 'test.tsv', FLEURS_COLUMNS)
    return [{**row, 'audio': folder / 'audio' / 'test' / row['file_name']} for row in rows]
  return list(read.parquet(read.one_of(folder, 'test*.parquet', '**/test*.parquet')))


def fleurs(folder: pathlib.Path, codes: Sequence[str]) -> list[Item]:
  items = []
  for code in codes:
    language, name = FLEURS[code]
    listed = manifest(folder / code, language, name)
    if listed is None:
      records = fleurs_records(folder / code)
      listed = [utterance(f'{code}/{i}', r['audio'], r['transcription'], language, name) for i, r in enumerate(records)]
    items += listed
  return items


def score(items: Sequence[Item], replies: Sequence[str | None], scoring: Scoring, *, average: bool = False) -> Scores:
  """Error rate over the corpus, or its mean over languages. A reply that failed counts as an empty transcript."""
  rows = []
  for item, reply in zip(items, replies, strict=True):
    language = item.category['language']
    characters = language in UNSPACED_LANGUAGES if average else None
    counts = edits(*(transcript_tokens(t, language, characters) for t in (item.reference, reply or '')))
    rows.append(Row(item.id, counts.total, counts.length, reply, reply is not None))
  groups = [item.category['language'] for item in items] if average else None
  name = 'cer' if not average and items[0].category['language'] in ('zh', 'yue') else 'wer'
  characters = '|ja and th by character' if average else ''
  return ratio_scores(rows, f'{SCORER}|whisper-normalizer{characters}', name=name, groups=groups, lower_is_better=True)


def score_lyrics(items: Sequence[Item], replies: Sequence[str | None], scoring: Scoring) -> Scores:
  """Error rate of characters, both sides in simplified Chinese."""
  rows = []
  for item, reply in zip(items, replies, strict=True):
    texts = (simplified(strip_markup(t, 'zh')) for t in (item.reference, reply or ''))
    counts = edits(*(tokens(spell_out(t), 'zh') for t in texts))
    rows.append(Row(item.id, counts.total, counts.length, reply, reply is not None))
  return ratio_scores(rows, f'{SCORER}|simplified characters', name='cer', lower_is_better=True)


def lyrics(folder: pathlib.Path) -> list[Item]:
  """`manifest.jsonl` of {'audio', 'gt'}: neither test set is released in one agreed form."""
  items = manifest(folder, 'zh', 'Chinese')
  if items is None:
    raise ValueError(f"{folder}: no manifest.jsonl with a line {{'audio': FILE, 'gt': LYRICS}} for each song")
  return [Item(i.id, user(read.media(i)[0], LYRICS_PROMPT), i.reference, i.category) for i in items]


def _benchmark(name: str, title: str, folder: str, reader, expected: int | None = None, scorer=score) -> Benchmark:
  return Benchmark(name, title, 'audio', folder, reader, scorer, SCORER, expected, max_new_tokens=1024)


BENCHMARKS = [
  _benchmark('librispeech-clean', 'LibriSpeech test-clean', 'librispeech/test-clean', librispeech, 2620),
  _benchmark('librispeech-other', 'LibriSpeech test-other', 'librispeech/test-other', librispeech, 2939),
  _benchmark('wenetspeech-net', 'WenetSpeech test_net', 'wenetspeech', functools.partial(wenetspeech, subset='TEST_NET')),
  _benchmark(
    'wenetspeech-meeting', 'WenetSpeech test_meeting', 'wenetspeech', functools.partial(wenetspeech, subset='TEST_MEETING')
  ),
  _benchmark('cv15-en', 'Common Voice 15 en', 'cv15/en', functools.partial(common_voice, language='en', name='English')),
  _benchmark('cv15-zh', 'Common Voice 15 zh', 'cv15/zh-CN', functools.partial(common_voice, language='zh', name='Chinese')),
  _benchmark('fleurs-en', 'FLEURS en', 'fleurs', functools.partial(fleurs, codes=['en_us'])),
  _benchmark('fleurs-zh', 'FLEURS zh', 'fleurs', functools.partial(fleurs, codes=['cmn_hans_cn'])),
  _benchmark(
    'fleurs-avg19',
    'FLEURS, mean of 19 languages',
    'fleurs',
    functools.partial(fleurs, codes=list(FLEURS)),
    scorer=functools.partial(score, average=True),
  ),
  _benchmark('mir1k', 'MIR-1K, vocals only', 'mir1k', lyrics, scorer=score_lyrics),
  _benchmark('opencpop', 'Opencpop test', 'opencpop', lyrics, scorer=score_lyrics),
]
