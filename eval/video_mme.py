"""Video-MME without subtitles: 2,700 questions on 900 videos, with the prompt of Qwen's harness."""

import pathlib

from . import read
from .benchmark import Benchmark, Item, multiple_choice, user
from .multiple_choice import DIALECTS, lettered

PROMPT = (
  'Select the best answer to the following multiple-choice question based on the video. Respond with only the letter (A, B, '
  'C, or D) of '
  'the correct option.\nQuestion: {}\n{}\nThe best answer is:'
)


def load(folder: pathlib.Path) -> list[Item]:
  """Parquet of `lmms-lab/Video-MME`; videos as `data/<videoID>.mp4`."""
  items = []
  for record in read.parquet(read.one_of(folder, '*.parquet', '*/*.parquet')):
    lines = [str(o) for o in record['options']]
    options = lettered([o.partition('. ')[2] or o for o in lines])
    category = {k: str(record[k]) for k in ('duration', 'domain', 'task_type', 'sub_category') if record.get(k)}
    messages = user(('video', folder / 'data' / f'{record["videoID"]}.mp4'), PROMPT.format(record['question'], '\n'.join(lines)))
    items.append(Item(str(record['question_id']), messages, record['answer'], category, {'options': options}))
  return items


BENCHMARKS = [
  Benchmark(
    'video-mme',
    'Video-MME w/o sub',
    'vision',
    'video_mme',
    load,
    multiple_choice('video_mme'),
    DIALECTS['video_mme'].official,
    2700,
  )
]
