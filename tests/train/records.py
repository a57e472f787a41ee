"""Small data sets: conversations with sounds and pictures in them, and conversations with spoken answers."""

import json
import pathlib
from collections.abc import Mapping

import numpy as np

from qwen3_omni_jax.infer.codes_store import FORMAT, INDEX
from qwen3_omni_jax.weights.safetensors import write_file

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


WORDS = 'the quick brown fox jumps over a lazy dog and sings one song near the water'.split()


def write_codes(
  folder: pathlib.Path, recordings: Mapping[str, np.ndarray], size: int = 256, rate: float = 12.5, codec: str = 'random'
) -> pathlib.Path:
  """A folder as `qwen3-omni codes` makes them. recordings: codes 'T Q' by key."""
  folder.mkdir(parents=True, exist_ok=True)
  file = 'codes-00000-00001.safetensors'
  write_file(
    folder / file, {key: codes.astype(np.int16) for key, codes in recordings.items()}, {'format': FORMAT, 'codec': codec}
  )
  index = {
    'format': FORMAT,
    'codec': codec,
    'num_code_groups': next(iter(recordings.values())).shape[1],
    'codebook_size': size,
    'frame_rate': rate,
    'errors': {'broken.wav': 'no sound in it'},
    'files': {key: {'file': file, 'frames': len(codes)} for key, codes in recordings.items()},
  }
  (folder / INDEX).write_text(json.dumps(index))
  return folder


def write_speech_records(
  folder: pathlib.Path,
  number: int = 16,
  *,
  seed: int = 0,
  codebooks: int = 16,
  size: int = 256,
  rate: float = 12.5,
  frames: tuple[int, int] = (1, 12),
  speakers: tuple[str, ...] = ('ethan', 'chelsie'),
) -> tuple[pathlib.Path, pathlib.Path, pathlib.Path]:
  """(spoken.jsonl, read.jsonl, codes): conversations with spoken answers, texts read aloud, the folder with the codes of both.

  The codes are random; frames: from so few to so many of an answer. Of the conversations every second has a spoken question,
  every third a system turn, every fourth two spoken answers. Recordings of the answers are named, and not there.
  """
  import soundfile

  folder.mkdir(parents=True, exist_ok=True)
  rng, recordings = np.random.default_rng(seed), {}
  say = lambda: ' '.join(rng.choice(WORDS, rng.integers(1, 7)))

  def recorded(key: str) -> str:
    recordings[key] = rng.integers(0, size, (rng.integers(frames[0], frames[1] + 1), codebooks)).astype(np.int16)
    return key

  with (folder / 'spoken.jsonl').open('w') as out:
    for i in range(number):
      record: dict = {'id': f's{i}', 'messages': []}
      if i % 3 == 0:
        record['messages'].append({'role': 'system', 'content': say()})
      for turn in range(2 if i % 4 == 3 else 1):
        question = say()
        if i % 2 and not turn:
          wave = 0.3 * np.sin(2 * np.pi * rng.uniform(200, 2000) * np.arange(int(1600 * rng.integers(1, 5))) / 16_000)
          soundfile.write(folder / f'{i}.wav', wave, 16_000)
          question, record['audios'] = f'<audio>{question}', [f'{i}.wav']
        answer = {'role': 'assistant', 'content': say(), 'audio': recorded(f'answers/{i}-{turn}.wav')}
        record['messages'] += [{'role': 'user', 'content': question}, answer | {'speaker': str(rng.choice(speakers))}]
      out.write(json.dumps(record) + '\n')
  with (folder / 'read.jsonl').open('w') as out:
    for i in range(number):
      record = {'id': f'a{i}', 'text': say(), 'audio': recorded(f'read/{i}.wav'), 'speaker': str(rng.choice(speakers))}
      out.write(json.dumps(record) + '\n')
  return folder / 'spoken.jsonl', folder / 'read.jsonl', write_codes(folder / 'codes', recordings, size, rate)
