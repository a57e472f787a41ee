"""Two or three invented items of every family, in the schema of its released files. Nothing here is anyone's benchmark data."""

import json
import pathlib
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from scipy import signal


def write_all(root: pathlib.Path, samples: dict[str, pathlib.Path]) -> pathlib.Path:
  """Writes every benchmark's folder under root. samples: audio, image, video (with sound), silent_video."""
  speech(root, samples)
  questions_about_sound(root, samples)
  pictures(root, samples)
  videos(root, samples)
  text(root)
  nano(root, samples)
  return root


def _put(target: pathlib.Path, content) -> pathlib.Path:
  target.parent.mkdir(parents=True, exist_ok=True)
  if isinstance(content, pathlib.Path):
    shutil.copy(content, target)
  elif isinstance(content, str):
    target.write_text(content, encoding='utf-8')
  else:
    target.write_text(json.dumps(content, ensure_ascii=False), encoding='utf-8')
  return target


def _lines(target: pathlib.Path, records: list[dict]) -> None:
  _put(target, ''.join(json.dumps(r, ensure_ascii=False) + '\n' for r in records))


def _parquet(target: pathlib.Path, records: list[dict]) -> None:
  target.parent.mkdir(parents=True, exist_ok=True)
  pq.write_table(pa.Table.from_pylist(records), target, row_group_size=1)


def _embedded(path: pathlib.Path) -> dict:
  return {'bytes': path.read_bytes(), 'path': path.name}


def speech(root, samples):
  wave = samples['audio']
  for split, word in (('test-clean', 'RED'), ('test-other', 'BLUE')):
    folder = root / 'librispeech' / split / '1' / '2'
    _put(folder / '1-2.trans.txt', f'1-2-0 A {word} DISC\n1-2-1 MISTER SQUARE IS BLUE\n')
    for i in range(2):
      _put(folder / f'1-2-{i}.flac', wave)  # the reader goes by content, not by name
  segments = [
    {'sid': 'S1', 'begin_time': 0.0, 'end_time': 1.0, 'subsets': ['TEST_NET'], 'confidence': 1.0, 'text': '红色的圆'},
    {'sid': 'S2', 'begin_time': 1.0, 'end_time': 2.5, 'subsets': ['TEST_MEETING'], 'confidence': 1.0, 'text': '二零零八年'},
  ]
  audios = [
    {'aid': 'Y1', 'path': 'audio/y1.wav', 'duration': 3.0, 'source': 'drama', 'tags': [], 'url': '', 'segments': segments}
  ]
  _put(root / 'wenetspeech' / 'WenetSpeech.json', {'dictionary': 'x', 'audios': audios})
  _put(root / 'wenetspeech' / 'audio' / 'y1.wav', wave)
  for folder, sentence in (('en', 'The disc is "red".'), ('zh-CN', '圆是红色的。')):
    _put(root / 'cv15' / folder / 'test.tsv', f'client_id\tpath\tsentence\tlocale\nc\tclip_1.mp3\t{sentence}\t{folder}\n')
    _put(root / 'cv15' / folder / 'clips' / 'clip_1.mp3', wave)
  from qwen3_omni_jax.eval.asr import FLEURS

  for code, (language, _) in FLEURS.items():
    text = {'zh': '圆是红色的', 'yue': '個圓係紅色', 'ja': '円は赤い', 'th': 'วงกลมสีแดง'}.get(language, 'the disc is red')
    _put(root / 'fleurs' / code / 'test.tsv', f'7\tw.wav\t{text}.\t{text}\tt h e\t48000\tMALE\n')
    _put(root / 'fleurs' / code / 'audio' / 'test' / 'w.wav', wave)
  for name in ('mir1k', 'opencpop'):
    _lines(root / name / 'manifest.jsonl', [{'audio': 'song.wav', 'gt': '紅色 的圓'}])
    _put(root / name / 'song.wav', wave)
  for direction in ('en_zh-CN', 'en_de', 'de_en', 'zh-CN_en', 'es_en', 'fr_en', 'it_en'):
    head, row = 'path\tsentence\ttranslation\tclient_id', 'c1.mp3\tThe disc is red.\tThe disc is red and round.\tc'
    _put(root / 'covost2' / f'covost_v2.{direction}.test.tsv', f'{head}\n{row}\n')
    _put(root / 'covost2' / 'clips' / direction.split('_')[0] / 'c1.mp3', wave)
  for language, said in (('en', 'The disc is red.'), ('zh', '圆是红色的。')):
    _put(root / 'seed_tts' / language / 'meta.lst', f'utt-1|prompt|prompt-wavs/p.wav|{said}\nutt-2|{said}\n')


def questions_about_sound(root, samples):
  wave = samples['audio']
  common = {'prompt': 'What is it?', 'audio': _embedded(wave)}
  subsets = {
    'alpacaeval_full': {},
    'commoneval': {},
    'wildvoice': {},
    'sd-qa': {'reference': 'a melody'},
    'mmsu': {'reference': 'A', 'domain': 'music'},
    'openbookqa': {'reference': 'B'},
    'bbh': {'reference': 'yes', 'id': 'navigate_1'},
    'ifeval': {'key': 1, 'instruction_id_list': ['punctuation:no_comma'], 'kwargs': [{'num_words': None}]},
    'advbench': {},
  }
  for name, fields in subsets.items():
    file = 'usa-00000-of-00001.parquet' if name == 'sd-qa' else 'test-00000-of-00001.parquet'
    _parquet(root / 'voicebench' / name / file, [{**common, **fields}, {**common, **fields}])
  record = {
    'id': 'm1',
    'audio_id': './test-mini-audios/m1.wav',
    'question': 'Who?',
    'choices': ['Man', 'Woman'],
    'answer': 'Man',
    'task': 'speech',
    'difficulty': 'easy',
    'sub-category': 'Speaker',
    'split': 'test-mini',
  }
  _put(root / 'mmau' / 'mmau-test-mini.json', [record, {**record, 'id': 'm2', 'task': 'music', 'answer': 'Woman'}])
  _put(root / 'mmau' / 'test-mini-audios' / 'm1.wav', wave)
  record = {
    'id': 'u1',
    'audio_path': 'audio/u1.wav',
    'question': 'Which?',
    'choice_a': 'x',
    'choice_b': 'y',
    'choice_c': 'z',
    'choice_d': 'w',
    'answer_gt': 'y',
    'task_name': 't',
    'category': 'Perception',
    'sub-category': 'Phonology',
  }
  _lines(root / 'mmsu' / 'mmsu.jsonl', [record, {**record, 'id': 'u2', 'category': 'Reasoning'}])
  _put(root / 'mmsu' / 'audio' / 'u1.wav', wave)


def pictures(root, samples):
  image = _embedded(samples['image'])
  record = {
    'id': 'validation_Art_1',
    'question': 'What is in <image 1>?',
    'options': "['a red disc', 'a cat']",
    'explanation': '',
    'image_1': image,
    'image_2': None,
    'answer': 'A',
    'topic_difficulty': 'Easy',
    'question_type': 'multiple-choice',
  }
  other = {**record, 'id': 'validation_Math_1', 'options': '[]', 'answer': '12', 'question_type': 'open', 'image_2': image}
  _parquet(root / 'mmmu' / 'Art' / 'validation-00000-of-00001.parquet', [record, other])
  meta = {'task': 'figure question answering', 'context': 'abstract scene', 'grade': 'daily life'}
  free = {
    'question': 'How many?',
    'image': 'images/1.png',
    'choices': None,
    'unit': None,
    'precision': None,
    'answer': '2',
    'question_type': 'free_form',
    'answer_type': 'integer',
    'metadata': meta,
    'query': 'Question: How many?',
  }
  choice = {**free, 'choices': ['Yes', 'No'], 'question_type': 'multi_choice', 'answer_type': 'text', 'answer': 'No'}
  _put(root / 'mathvista' / 'testmini.json', {'1': free, '2': choice})
  _put(root / 'mathvista' / 'images' / '1.png', samples['image'])
  records = [
    {
      'index': i,
      'question': 'What? Options: A: disc, B: cat',
      'image': image['bytes'],
      'answer': 'A',
      'category': category,
      'l2_category': 'x',
      'meta_info': {'source': 's'},
    }
    for i, category in enumerate(('math', 'logical reasoning'))
  ]
  _parquet(root / 'mmstar' / 'mmstar.parquet', records)
  record = {
    'category': 'VD',
    'subcategory': 'illusion',
    'visual_input': '1',
    'set_id': '0',
    'figure_id': '1',
    'sample_note': 'x',
    'question_id': '0',
    'question': 'Is the disc red?',
    'gt_answer': '1',
    'filename': './VD/1.png',
  }
  more = [
    {**record, 'question_id': '1', 'gt_answer': '0'},
    {**record, 'figure_id': '2', 'gt_answer': '0'},
    {**record, 'set_id': '1'},
    {**record, 'visual_input': '0', 'filename': None},
  ]
  _put(root / 'hallusionbench' / 'HallusionBench.json', [record, *more])
  _put(root / 'hallusionbench' / 'VD' / '1.png', samples['image'])


def videos(root, samples):
  silent, heard = samples['silent_video'], samples['video']
  record = {
    'video_id': '1',
    'duration': 'short',
    'domain': 'Knowledge',
    'sub_category': 'Art',
    'url': '',
    'videoID': 'abc',
    'question_id': '1-1',
    'task_type': 'Counting',
    'question': 'How many?',
    'options': ['A. 1', 'B. 2', 'C. 3', 'D. 4'],
    'answer': 'A',
  }
  _parquet(root / 'video_mme' / 'test.parquet', [record, {**record, 'question_id': '1-2', 'duration': 'long'}])
  _put(root / 'video_mme' / 'data' / 'abc.mp4', silent)
  from qwen3_omni_jax.eval.mlvu import TASKS

  for task in TASKS:
    kind = task.split('_', 1)[1]
    record = {
      'video': 'v.mp4',
      'duration': 2.0,
      'question': 'What?',
      'candidates': ['a', 'b'],
      'answer': 'b',
      'question_type': kind,
    }
    _put(root / 'mlvu' / 'json' / f'{task}.json', [record])
    _put(root / 'mlvu' / 'video' / task / 'v.mp4', silent)
  qa = [
    {
      'uid': '11',
      'question': 'What?\n(A) x\n(B) y',
      'answer': 'B',
      'question_type': ['key information retrieval'],
      'time_reference': '00:01-00:02',
    }
  ]
  _lines(root / 'lvbench' / 'video_info.meta.jsonl', [{'key': 'k1', 'type': 'cartoon', 'video_info': {}, 'qa': qa}])
  _put(root / 'lvbench' / 'videos' / 'k1.mp4', silent)
  task = {
    'task_domain': 'Recognition',
    'task_type': 'Audio Counting',
    'question': 'How often?',
    'answer': 'A',
    'candidates': ['A. once', 'B. twice', 'C. never', 'D. always'],
  }
  shared = {'duration': '<1min', 'domain': 'Music', 'sub_category': 'Covers', 'audio_class': ['Music'], 'video_caption': ''}
  _put(root / 'worldsense' / 'worldsense_qa.json', {'w1': {**shared, 'task0': task, 'task1': {**task, 'answer': 'C'}}})
  _put(root / 'worldsense' / 'videos' / 'w1.mp4', heard)
  record = {
    'Question': 'When?',
    'Choice': ['A. now', 'B. then', 'C. soon', 'D. never'],
    'Answer': 'B',
    'video_id': 'd1',
    'Type': 'AV Event Alignment',
    'video_category': 'Howto',
    'video_duration': '30s',
  }
  _put(root / 'daily_omni' / 'qa.json', [record])
  _put(root / 'daily_omni' / 'Videos' / 'd1' / 'd1_video.mp4', heard)


def text(root):
  _lines(root / 'gsm8k' / 'test.jsonl', [{'question': 'What is 3 + 4?', 'answer': '3 + 4 = 7\n#### 7'}] * 2)
  record = {'question': 'Which is red?', 'choices': ['the disc', 'the square'], 'answer': 0, 'subject': 'colours'}
  for name in ('mmlu_redux', 'gpqa'):
    _lines(root / name / 'test.jsonl', [record, {**record, 'answer': 1}])


SPEAKERS = {'ethan': (105.0, (700.0, 1200.0, 2500.0)), 'chelsie': (210.0, (800.0, 1700.0, 3000.0))}


def vowels(speaker: str, seconds: float, seed: int = 0, rate_hz: int = 16_000) -> np.ndarray:
  """Sung by nobody: pulses at the speaker's pitch through three resonances, which move from one of five vowels to the next."""
  pitch_hz, formants = SPEAKERS[speaker]
  rng = np.random.default_rng(seed)
  pulses = np.diff(np.floor(np.arange(int(seconds * rate_hz)) * pitch_hz * rng.uniform(0.97, 1.03) / rate_hz), prepend=0.0)
  parts = []
  for part in np.array_split(pulses, 5):
    for formant in formants:
      pole = np.exp((-60 + 2j * formant * rng.uniform(0.85, 1.15)) * np.pi / rate_hz)
      part = signal.lfilter([1.0], np.poly([pole, pole.conj()]).real, part)
    parts.append(0.3 * part / np.abs(part).max())
  return np.concatenate(parts).astype(np.float32)


def nano(root, samples):
  for name, kind, ask, answer in (
    *((f'speech{effect}', 'audio', 'Write down the words.', 'two left') for effect in ('', '_silence', '_level', '_noise')),
    ('pictures', 'image', 'What is there?', 'one red disc'),
  ):
    file = f'{name.split("_")[0]}/{samples[kind].name}'
    _put(root / 'nano-data' / file, samples[kind])
    chat = [{'role': 'user', 'content': f'<{kind}>{ask}'}, {'role': 'assistant', 'content': answer}]
    _lines(root / 'nano-data' / f'{name}_held_out.jsonl', [{'messages': chat, f'{kind}s': [file]}] * 2)
  read_aloud = []
  for i, speaker in enumerate(('ethan', 'chelsie', 'chelsie', 'ethan')):
    path = root / 'nano-data' / 'voices' / f'{i}.wav'
    path.parent.mkdir(exist_ok=True)
    soundfile.write(path, vowels(speaker, 1.0, i), 16_000)
    read_aloud.append({'text': ('one two', 'yes no go')[i % 2], 'audio': f'voices/{i}.wav', 'speaker': speaker})
  _lines(root / 'nano-data' / 'read_aloud_held_out.jsonl', read_aloud)
