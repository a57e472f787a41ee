"""Records of every kind made from the sample media, for the tests of the input pipeline."""

import json
import pathlib

from qwen3_omni_jax.train.data import DataConfig, SourceConfig

RECORDS = 12
VIDEO_PIXELS = 96 * 128


def chat_records(samples: dict[str, pathlib.Path]) -> list[dict]:
  """Conversations of unlike length: text alone, sound, picture, video with its sound, several turns."""
  media = {kind: samples[kind].name for kind in samples}
  records = []
  for i in range(RECORDS):
    user = {'role': 'user', 'content': f'Question {i}. ' * (i + 1)}
    record = {'id': i, 'messages': [user, {'role': 'assistant', 'content': f'Answer {i}, the {"long " * (i % 4)}one.'}]}
    if i % 3 == 0:
      user['content'] += '<audio> What is it?'
      record['audios'] = [media['audio']]
    if i % 4 == 1:
      user['content'] = '<image> and <image>: ' + user['content']
      record['images'] = [media['image'], media['image']]
    if i % 6 == 2:
      record['messages'] += [{'role': 'user', 'content': '<video>And this?'}, {'role': 'assistant', 'content': 'A disc.'}]
      record |= {'videos': [media['video']], 'audio_in_video': True, 'fps': 2}
    records.append(record)
  return records


def write_jsonl(path: pathlib.Path, records: list) -> pathlib.Path:
  path.write_text(''.join((r if isinstance(r, str) else json.dumps(r)) + '\n' for r in records), encoding='utf-8')
  return path


def small_config(path: pathlib.Path, media_root: pathlib.Path, **changes) -> DataConfig:
  """Rows small enough that several batches are needed, for the records above."""
  source = SourceConfig(path=str(path), name='all', media_root=str(media_root), ignore=('id',))
  base = {
    'sources': (source,),
    'rows': 2,
    'length': 512,
    'audio_s': 16,
    'visual_patches': 2048,
    'visual_row': 1024,
    'buffer': 5,
    'seed': 3,
    'threads': 2,
    'max_bad': 0,
    'max_video_pixels': VIDEO_PIXELS,
    'max_image_pixels': 256 * 256,
  }
  return DataConfig(**base | changes)
