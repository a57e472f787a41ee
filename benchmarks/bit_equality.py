"""Rows that get the same bits alone, among others, as a batch job and as a stream, by dtype.

    python benchmarks/bit_equality.py [--model nano|tiny] [--dtype float32|bfloat16]

Eight rows are answered by each path and compared with the same rows answered alone by `generate`; the two batch jobs also with
each other. nano: the trained model hears and sees; greedy text. tiny: random weights, the hardest case, since no token is much
likelier than the next; text is greedy and speech is drawn with a seed per row.
"""

import argparse
import pathlib
import tempfile

import common
import numpy as np

from qwen3_omni_jax import Omni
from qwen3_omni_jax.infer.batch import Engine
from qwen3_omni_jax.infer.batch_plan import EngineConfig
from qwen3_omni_jax.infer.prepare import Row
from qwen3_omni_jax.infer.reply import Finished

NANO = common.ROOT / 'examples' / 'nano'
SOUND, PICTURE = (
  {'type': kind, kind: str(NANO / file)}
  for kind, file in (('audio', 'stop_no_four_one_yes.wav'), ('image', 'three_red_triangles.png'))
)
ENGINE = EngineConfig(slots=4, lengths=(256,), pieces=(32, 32), wave_frames=24, wave_lanes=2, encoder_lanes=4)
TOKENS, FRAMES = 8, 12


def rows_of(model: str) -> list[Row]:
  """Eight rows of several lengths; those of the tiny model are spoken."""
  nano = [
    ([SOUND], 'Write down the words.'),
    ([PICTURE], 'What is there?'),
    ([SOUND, PICTURE], 'What is there?'),
    ([], 'What is there?'),
  ]
  tiny = [([], 'Tell me more. ' * (1 + i)) for i in range(4)]
  ask = lambda media, text: [{'role': 'user', 'content': [*media, {'type': 'text', 'text': text}]}]
  return [
    Row(
      f'row {i}',
      ask(media, text + ' Please.' * (i > 3)),
      max_new_tokens=TOKENS,
      max_frames=FRAMES,
      speech=model == 'tiny',
      seed=i,
      temperature=0.0,
    )
    for i, (media, text) in enumerate((nano if model == 'nano' else tiny) * 2)
  ]


def answers(omni: Omni, rows: list[Row]) -> dict[str, list]:
  """The replies in the order of the rows, by path."""
  spoken = rows[0].speech
  options = {'temperature': 0.0, 'max_new_tokens': TOKENS, 'max_frames': FRAMES, 'speech': spoken}

  def job(rows: list[Row]) -> list:
    results = {r.row.id: r for r in Engine(omni, ENGINE, omni.voice if spoken else None).answer(rows)}
    assert not [r.error for r in results.values() if r.error]
    return [results[f'row {i}'].reply for i in range(len(rows))]

  def stream(row: Row):
    *_, last = omni.stream(row.messages, seed=row.seed, **options)
    assert isinstance(last, Finished)
    return last.reply

  return {
    'alone': [omni.generate([row.messages], seed=row.seed, **options)[0] for row in rows],
    'together': omni.generate([row.messages for row in rows], seed=[row.seed for row in rows], **options),
    'stream': [stream(row) for row in rows],
    'batch': job(rows),
    'batch, other neighbours': job(rows[::-1]),
  }


def compare(replies: list, expected: list) -> dict[str, int]:
  """Of how many rows text, codes and samples are the same."""
  equal = {'text': sum(a.token_ids == b.token_ids for a, b in zip(replies, expected, strict=True))}
  if replies[0].speech is not None:
    for what in ('codes', 'samples'):
      pairs = [(getattr(a.speech, what), getattr(b.speech, what)) for a, b in zip(replies, expected, strict=True)]
      equal[what] = sum(np.array_equal(a, b) for a, b in pairs)
  return equal


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--model', choices=('nano', 'tiny'))
  parser.add_argument('--dtype', choices=('float32', 'bfloat16'))
  args = parser.parse_args()
  circumstances, clock, table = common.circumstances(), common.Clock(), []
  with tempfile.TemporaryDirectory() as folder:
    for model in [args.model] if args.model else ['nano', 'tiny']:
      path = NANO / 'model' if model == 'nano' else common.small_checkpoint(pathlib.Path(folder) / 'tiny', 'tiny')
      for dtype in [args.dtype] if args.dtype else ['float32', 'bfloat16']:
        rows = rows_of(model)
        found = answers(Omni.load(path, dtype=dtype), rows)
        pairs = [(path, 'alone') for path in ('together', 'stream', 'batch')] + [('batch, other neighbours', 'batch')]
        for name, other in pairs:
          table.append(
            {'model': model, 'dtype': dtype, 'path': name, 'compared_with': other, **compare(found[name], found[other])}
          )
          equal = ', '.join(f'{what} {table[-1][what]}' for what in ('text', 'codes', 'samples') if what in table[-1])
          print(f'{model:5} {dtype:9} {name:24} as {other:6} {equal} of {len(rows)}', flush=True)
  common.save('bit_equality', circumstances | {'rows': 8, 'equal': table, **clock.read()})


if __name__ == '__main__':
  main()
