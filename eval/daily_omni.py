"""Daily-Omni: 1,197 questions on videos of 30 or 60 seconds that need the sound and picture at the same time."""

import pathlib

from . import read
from .benchmark import Benchmark, Item, multiple_choice, user
from .multiple_choice import DIALECTS, lettered

PROMPT = (
  '\nYour task is to accurately answer multiple-choice questions based on the given video.\n'
  'Select the single most accurate answer from the given choices.\nQuestion: {}\nChoices: {}\n'
  "Your answer should be a capital letter representing your choice: A, B, C, or D. Don't generate any other text.\n"
)


def load(folder: pathlib.Path) -> list[Item]:
  """`qa.json`; videos as `Videos/<id>/<id>_video.mp4`."""
  items = []
  for i, record in enumerate(read.json_file(folder / 'qa.json')):
    name = record['video_id']
    options = lettered([str(c).partition('. ')[2] for c in record['Choice']])
    category = {'type': record['Type'], 'duration': record['video_duration'], 'category': record['video_category']}
    video = folder / 'Videos' / name / f'{name}_video.mp4'
    messages = user(('video', video), PROMPT.format(record['Question'], record['Choice']))
    items.append(Item(f'{i}:{name}', messages, record['Answer'], category, {'options': options}))
  return items


BENCHMARKS = [
  Benchmark(
    'daily-omni',
    'Daily-Omni',
    'audiovisual',
    'daily_omni',
    load,
    multiple_choice('daily_omni'),
    DIALECTS['daily_omni'].official,
    1197,
    audio_in_video=True,
  )
]
