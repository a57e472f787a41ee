"""LVBench: questions on hour-long videos; overall accuracy and by question type.

No prompt is published: the option letter is asked.
"""

import pathlib
import re

from . import read
from .benchmark import Benchmark, Item, multiple_choice, user
from .multiple_choice import DIALECTS

ASK = '\nAnswer the question with the option letter'


def load(folder: pathlib.Path) -> list[Item]:
  """`video_info.meta.jsonl`; videos as `videos/<key>.mp4`."""
  items = []
  for video in read.json_lines(folder / 'video_info.meta.jsonl'):
    for qa in video['qa']:
      options = dict(re.findall(r'\(([A-Z])\)\s*(.*)', qa['question']))
      kinds = qa['question_type']
      category = {'type': '+'.join(kinds) if isinstance(kinds, list) else str(kinds), 'video type': str(video.get('type', ''))}
      messages = user(('video', folder / 'videos' / f'{video["key"]}.mp4'), qa['question'] + ASK)
      items.append(Item(str(qa['uid']), messages, qa['answer'], category, {'options': options}))
  return items


BENCHMARKS = [
  Benchmark('lvbench', 'LVBench', 'vision', 'lvbench', load, multiple_choice('lvbench'), DIALECTS['lvbench'].official)
]
