"""A small data set of conversations with sounds and pictures in them, and clips where asked for."""

import json
import pathlib

import numpy as np

COLOURS = {'red': (220, 30, 30), 'green': (30, 200, 60), 'blue': (40, 60, 220), 'white': (240, 240, 240)}


def write_records(folder: pathlib.Path, number: int = 32, seed: int = 0) -> pathlib.Path:
  """chat.jsonl with text, audio, image and audio + image records in turn, and its media, which the answers tell of."""
  import soundfile
  from PIL import Image

  folder.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(seed)
  with (folder / 'chat.jsonl').open('w') as out:
    for i in range(number):
      has_audio, has_image = i % 4 in (1, 3), i % 4 in (2, 3)
      question, answer, record = f'Number {i}.', [str(i)], {}
      if has_audio:
        notes = rng.integers(1, 5)
        pitch = rng.uniform(200, 2000)
        wave = 0.3 * np.sin(2 * np.pi * pitch * np.arange(int(1600 * notes)) / 16_000)
        soundfile.write(folder / f'{i}.wav', wave, 16_000)
        question, record['audios'] = '<audio>' + question, [f'{i}.wav']
        answer.append(f'{notes} notes')
      if has_image:
        colour = list(COLOURS)[rng.integers(len(COLOURS))]
        Image.fromarray(np.full((64, 64, 3), COLOURS[colour], np.uint8)).save(folder / f'{i}.png')
        question, record['images'] = '<image>' + question, [f'{i}.png']
        answer.append(colour)
      messages = [{'role': 'user', 'content': question}, {'role': 'assistant', 'content': ', '.join(answer)}]
      out.write(json.dumps({'id': f'r{i}', 'messages': messages, **record}) + '\n')
  return folder / 'chat.jsonl'
