"""Rows per second of batch inference on CPU beside transformers, in one run: `small` checkpoint, float32, unequal lengths.

    python benchmarks/batch_vs_reference.py [--rows 64] [--no-speech] [--batch-sizes 8,16,32]

Three ways: our continuous batching, our static batches (`Omni.generate`), and transformers' own batched `generate`, each at the
best of the batch sizes. Limits of replies differ by row; a static batch runs to its longest. transformers speaks one
conversation at a time, so with speech its batch size is 1.
"""

import argparse
import random
import time

import common


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--checkpoint', default=str(common.ROOT / '.cache' / 'small'))
  parser.add_argument('--rows', type=int, default=64)
  parser.add_argument('--batch-sizes', default='8,16,32')
  parser.add_argument('--no-speech', action='store_true')
  args = parser.parse_args()
  circumstances = common.circumstances()
  import jax
  import torch

  from qwen3_omni_jax import Omni
  from qwen3_omni_jax.infer.batch import Engine
  from qwen3_omni_jax.infer.batch_plan import EngineConfig
  from qwen3_omni_jax.infer.prepare import Row
  from tests.reference import Reference

  jax.config.update('jax_compilation_cache_dir', str(common.ROOT / '.cache' / 'jax'))
  folder = common.small_checkpoint(args.checkpoint)
  omni, reference = Omni.load(folder, dtype='float32'), Reference.load(folder)
  words = 'The quick brown fox jumps over the lazy dog while children sing near the water and someone listens'.split()
  rng = random.Random(0)
  asked = [' '.join(rng.choices(words, k=rng.randint(4, 80))) for _ in range(args.rows)]
  limits = [rng.choice([8, 16, 32, 64, 96]) for _ in asked]
  frames = [min(48, 3 * n) for n in limits]
  conversations = [[{'role': 'user', 'content': text}] for text in asked]
  sizes = [int(n) for n in args.batch_sizes.split(',')]
  engine = EngineConfig(slots=32, lengths=(256,), pieces=(32, 128))
  voice = omni.voice.changed(temperature=0).without_guards()

  def continuous(speech: bool) -> None:
    rows = [
      Row(str(i), c, max_new_tokens=n, max_frames=f, speech=speech)
      for i, (c, n, f) in enumerate(zip(conversations, limits, frames, strict=True))
    ]
    work = Engine(omni, engine, voice if speech else None, stop_token_ids=())
    done = list(work.answer(rows))
    assert len(done) == len(rows) and not any(r.error for r in done)

  def static(speech: bool, size: int) -> None:
    spoken = {'speech': True, 'voice': voice, 'max_frames': frames} if speech else {}
    omni.generate(conversations, max_new_tokens=limits, stop_token_ids=(), batch_size=size, **spoken)

  def theirs(speech: bool, size: int) -> None:
    with torch.no_grad():
      for start in range(0, args.rows, size):
        batch = reference.inputs(conversations[start : start + size])
        most = max(limits[start : start + size])
        spoken = {'return_audio': False}
        if speech:
          spoken = {'return_audio': True, 'talker_max_new_tokens': frames[start] + 1, 'talker_do_sample': False}
        reference.model.generate(**batch, thinker_max_new_tokens=most, thinker_eos_token_id=-1, **spoken)

  def timed(run) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started

  result: dict = {'rows': args.rows, 'checkpoint': 'small preset, float32, 2 threads each'}
  for speech in (False,) if args.no_speech else (False, True):
    name = 'speech' if speech else 'text'
    continuous(speech)  # compiles
    ours = timed(lambda: continuous(speech))
    fixed = {}
    for size in sizes:
      static(speech, size)
      fixed[size] = timed(lambda size=size: static(speech, size))
    other = {size: timed(lambda size=size: theirs(speech, size)) for size in ([1] if speech else sizes)}
    best, their_best = min(fixed, key=fixed.get), min(other, key=other.get)
    result[name] = {
      'continuous_rows_per_s': round(args.rows / ours, 3),
      'static_rows_per_s': {n: round(args.rows / s, 3) for n, s in fixed.items()},
      'reference_rows_per_s': {n: round(args.rows / s, 3) for n, s in other.items()},
      'times_the_reference': round(other[their_best] / ours, 2), 'times_static': round(fixed[best] / ours, 2),
    }  # fmt: skip
    print(name, result[name], flush=True)
    common.save('batch_vs_reference', circumstances | result)


if __name__ == '__main__':
  main()
