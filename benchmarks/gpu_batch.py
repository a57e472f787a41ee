"""Part `batch` of gpu.py: the batch engine over a model of released size with random weights, text and speech."""

import dataclasses
import random
import time

import gpu
import gpu_model

WORDS = 'The quick brown fox jumps over the lazy dog while children sing near the water and someone listens'.split()
TEXT = (1, 16, 64, 256)  # slots
SPEECH = (1, 16, 64, 256)
FRAMES_PER_TOKEN = 3  # speech takes 3 to 4


def batch() -> None:
  """Rows per second of text, seconds of sound per second of speech; every row has a given number of tokens and frames."""
  omni = gpu_model.omni()
  for slots in TEXT:
    rows = _rows(max(2, 2 * slots), tokens=64 if slots == 1 else 128)
    gpu.tried('batch of text', lambda rows=rows, slots=slots: _answered(omni, rows, slots), slots=slots, rows=len(rows))
  for slots in SPEECH:
    rows = _rows(slots, tokens=32, speech=True)
    gpu.tried('batch of speech', lambda rows=rows, slots=slots: _answered(omni, rows, slots), slots=slots, rows=len(rows))


def _rows(number: int, tokens: int, speech: bool = False) -> list:
  from qwen3_omni_jax.infer.prepare import Row

  rng = random.Random(0)
  says = lambda: [{'role': 'user', 'content': ' '.join(rng.choices(WORDS, k=rng.randint(20, 80)))}]
  spoken = {'speech': True, 'max_frames': FRAMES_PER_TOKEN * tokens} if speech else {}
  return [Row(str(i), says(), max_new_tokens=tokens, temperature=0.0, **spoken) for i in range(number)]


def _answered(omni, rows: list, slots: int) -> dict:
  """The second of two runs: the first compiles. What it has computed is forgotten, not what it has compiled."""
  from qwen3_omni_jax.infer.batch import Engine, Stats
  from qwen3_omni_jax.infer.batch_plan import EngineConfig

  speech = rows[0].speech
  config = EngineConfig(slots=slots, lengths=(512,), workers=8)
  voice = omni.voice if speech else None
  engine = Engine(omni, config, voice, stop_token_ids=())
  times = []
  for part in (rows[: max(2, slots // 2)], rows):
    engine.stats = Stats()
    engine.prefix_store.clear()
    started = time.perf_counter()
    results = list(engine.answer(dataclasses.replace(row) for row in part))
    times.append(time.perf_counter() - started)
    wrong = [r.error for r in results if r.error]
    assert not wrong, wrong[0]
  stats, seconds = engine.stats, times[-1]
  out = {
    'seconds': round(seconds, 2),
    'rows_per_s': round(len(rows) / seconds, 2),
    'first_run_s': round(times[0], 1),
    'tokens_per_s': round(stats.output_tokens / seconds, 1),
    'prompt_tokens': stats.prompt_tokens,
  }
  if speech:
    sound = sum(r.reply.speech.duration_s for r in results)
    out |= {'audio_s': round(sound, 1), 'audio_s_per_s': round(sound / seconds, 1)}
  return out
