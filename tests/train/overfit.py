"""The tiny model learns 32 records by heart, stage by stage: `python -m tests.train.overfit [--stage NAME …] [--save]`.

Each stage is the configuration that ships, on its own data where it trains one encoder alone, with a learning rate for random
weights. What it freezes must not change by a bit. Results go to benchmarks/results/train_overfit.json with --save.
"""

import argparse
import dataclasses
import json
import pathlib
import string
import sys
import tempfile
import time

import numpy as np

from tests.train.crash import json_lines

RECORDS, SIDE, RATE_HZ = 32, 64, 16_000
EVERY = ('text', 'audio', 'image', 'video', 'audio_in_video')
# Learning rate and steps by configuration, and the kinds of records that what it trains can tell apart.
STAGES = {
  's1_audio_adapter': (5e-3, 3500, ('audio', 'audio_in_video')),
  's1_audio_encoder': (3e-3, 2500, ('audio', 'audio_in_video')),
  's1_vision_adapter': (1e-2, 400, ('image', 'video')),
  's1_vision_encoder': (3e-3, 400, ('image', 'video')),
  's2_general': (3e-3, 200, EVERY),
  'sft': (3e-3, 200, EVERY),
  'lora': (1e-2, 300, EVERY),
}
BOUND = 0.05


def write_records(folder: pathlib.Path, kinds: tuple[str, ...], number: int = RECORDS) -> pathlib.Path:
  """records.jsonl of these kinds in turn. The question is the same but for text alone: only the media tell which letter it is."""
  import soundfile
  from PIL import Image

  folder.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(0)
  lines = []
  for i in range(number):
    kind, name = kinds[i % len(kinds)], f'{i}.'
    record: dict = {}
    if kind == 'text':
      question = f'Number {i}?'
    elif kind == 'audio':
      soundfile.write(folder / f'{name}wav', _sound(rng, 0.5), RATE_HZ)
      question, record = '<audio>Say it.', {'audios': [f'{name}wav']}
    elif kind == 'image':
      Image.fromarray(_picture(rng)).save(folder / f'{name}png')
      question, record = '<image>Say it.', {'images': [f'{name}png']}
    else:
      _write_clip(folder / f'{name}mp4', _picture(rng), _picture(rng), _sound(rng, 1.0) if kind == 'audio_in_video' else None)
      question, record = '<video>Say it.', {'videos': [f'{name}mp4'], 'fps': 2, 'audio_in_video': kind == 'audio_in_video'}
    answer = string.ascii_letters[i]
    messages = [{'role': 'user', 'content': question}, {'role': 'assistant', 'content': answer}]
    lines.append(json.dumps({'id': i, 'messages': messages, **record}))
  (folder / 'records.jsonl').write_text('\n'.join(lines) + '\n')
  return folder / 'records.jsonl'


def _sound(rng: np.random.Generator, seconds: float) -> np.ndarray:
  """A chord of any twelve notes, 'W'."""
  at = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
  notes = np.sin(2 * np.pi * rng.uniform(100, 7000, 12)[:, None] * at + rng.uniform(0, 6, 12)[:, None])
  return (0.08 * notes.sum(axis=0)).clip(-1, 1).astype(np.float32)


def _picture(rng: np.random.Generator) -> np.ndarray:
  """Sixteen squares of any colour, uint8 'H W 3'."""
  return np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((SIDE // 4, SIDE // 4, 1), int)).astype(np.uint8)


def _write_clip(path: pathlib.Path, first: np.ndarray, last: np.ndarray, sound: np.ndarray | None) -> None:
  """A second of two pictures, half of it each, with a sound or without."""
  import av

  with av.open(str(path), 'w') as container:
    video = container.add_stream('mpeg4', rate=8, options={'qscale': '2'})
    video.height, video.width, video.pix_fmt = SIDE, SIDE, 'yuv420p'
    audio = container.add_stream('aac', rate=RATE_HZ, layout='mono') if sound is not None else None
    for i in range(8):
      container.mux(video.encode(av.VideoFrame.from_ndarray(first if i < 4 else last, format='rgb24')))
    container.mux(video.encode(None))
    if audio is not None and sound is not None:
      for start in range(0, len(sound), 1024):
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[None, start : start + 1024]), format='fltp', layout='mono')
        frame.sample_rate, frame.pts = RATE_HZ, start
        container.mux(audio.encode(frame))
      container.mux(audio.encode(None))


def overfit(stage: str, model: pathlib.Path, folder: pathlib.Path, lr: float, steps: int, kinds: tuple[str, ...]) -> dict:
  """Trains a stage; returns what came of it. Raises AssertionError if something frozen changed."""
  from qwen3_omni_jax.train.config import Run
  from qwen3_omni_jax.train.config_file import read
  from qwen3_omni_jax.train.run import train
  from qwen3_omni_jax.train.state import PARTS, flatten

  from qwen3_omni_jax.weights.load import load_params

  records = write_records(folder / f'data-{stage}', kinds)
  run = read(
    Run,
    stage,
    [
      f'model={model}',
      f'out={folder / stage}',
      'mesh=single',
      f'steps={steps}',
      f'save.every={steps}',
      'log.every=20',
      'log.tensorboard=false',
      'step={dtype: float32, remat: none, encoder_remat: none}',
      'optimiser={warmup: 10, schedule: cosine, final: 0.01, clip: 1.0}',
      'data='
      + json.dumps(
        {
          'rows': 2,
          'length': 512,
          'lanes': 1,
          'audio_s': 0 if 'audio' not in kinds else 32 if 'image' in kinds else 64,
          'visual_patches': 768,
          'visual_row': 384,
          'buffer': RECORDS,
          'max_image_pixels': SIDE**2,
          'max_video_pixels': SIDE**2,
          'sources': [{'path': str(records)}],
        }
      ),
    ],
  )
  faster = lambda parts: tuple(dataclasses.replace(part, lr=lr if part.lr else 0.0) for part in parts)
  began = time.perf_counter()
  state = train(dataclasses.replace(run, parts=faster(run.parts), lora=faster(run.lora)))
  before = flatten(load_params(model, parts=PARTS))
  changed = [path for path, value in state.frozen.items() if not np.array_equal(np.asarray(value), np.asarray(before[path]))]
  assert not changed, f'frozen, but changed: {changed}'
  still = [
    path
    for path, value in state.trainable.items()
    if path in before and np.array_equal(np.asarray(value), np.asarray(before[path], np.float32))
  ]
  lines = json_lines(folder / stage / 'metrics.jsonl')
  last = lines[-10:]
  return {
    'learning_rate': lr,
    'steps': steps,
    'kinds': list(kinds),
    'records_a_step': float(np.mean([x['records'] for x in last])),
    'first_loss': round(lines[0]['loss'], 4),
    'largest_of_last_10_losses': round(max(x['loss'] for x in last), 5),
    'first_step_below': next((x['step'] for x in lines if x['loss'] < BOUND), None),
    'trained': len(state.trainable),
    'trained_but_unmoved': still,
    'frozen': len(state.frozen),
    'frozen_that_changed': 0,
    'seconds': round(time.perf_counter() - began),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--stage', nargs='+', default=list(STAGES), choices=list(STAGES))
  parser.add_argument('--lr', type=float)
  parser.add_argument('--steps', type=int)
  parser.add_argument('--save', action='store_true')
  args = parser.parse_args()
  from qwen3_omni_jax.tools.tiny import make_checkpoint

  from benchmarks import common

  circumstances = common.circumstances() | {'command': ' '.join(['python -m tests.train.overfit', *sys.argv[1:]])}
  with tempfile.TemporaryDirectory() as place:
    root = pathlib.Path(place)
    make_checkpoint(root / 'tiny')
    for stage in args.stage:
      lr, steps, kinds = STAGES[stage]
      result = overfit(stage, root / 'tiny', root, args.lr or lr, args.steps or steps, kinds)
      print(json.dumps({stage: result}), flush=True)
      if args.save:
        common.save('train_overfit', circumstances | result, stage)


if __name__ == '__main__':
  main()
