"""WorldSense: 3,172 questions that need sound and picture of a video together, as VLMEvalKit asks and reads them."""

import pathlib
import re

from . import read
from .benchmark import Benchmark, Item, multiple_choice, user
from .multiple_choice import DIALECTS, lettered

PROMPT = (
  'Carefully watch this video and pay attention to every detail. Based on your observations, select the best option that '
  'accurately '
  'addresses the question.\nThese are the frames of a video and the corresponding audio. Select the best answer to the following '
  'multiple-choice question based on the video. Respond with only the letter (A, B, C, or D) of the correct option.\n'
  'Question: {}\n{}\nAnswer: '
)


def load(folder: pathlib.Path) -> list[Item]:
  """`worldsense_qa.json`; videos as `videos/<name>.mp4`."""
  items = []
  for name, video in read.json_file(folder / 'worldsense_qa.json').items():
    sounds = video.get('audio_class', '')
    shared = {
      'duration': str(video['duration']),
      'domain': str(video['domain']),
      'audio class': '+'.join(sounds) if isinstance(sounds, list) else str(sounds),
    }
    for task in sorted((k for k in video if re.fullmatch(r'task\d+', k)), key=lambda k: int(k[4:])):
      question = video[task]
      lines = [str(c) for c in question['candidates']]
      options = lettered([re.sub(r'^[A-Z][.)]\s*', '', line) for line in lines])
      category = {**shared, 'task domain': question['task_domain'], 'task type': question['task_type']}
      messages = user(('video', folder / 'videos' / f'{name}.mp4'), PROMPT.format(question['question'], '\n'.join(lines)))
      items.append(Item(f'{name}/{task}', messages, question['answer'], category, {'options': options}))
  return items


BENCHMARKS = [
  Benchmark(
    'worldsense',
    'WorldSense',
    'audiovisual',
    'worldsense',
    load,
    multiple_choice('video_mme'),
    DIALECTS['video_mme'].official,
    3172,
    audio_in_video=True,
  )
]
