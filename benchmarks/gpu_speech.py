"""Part `speech` of gpu.py: a spoken frame, the vocoder, and what the first packet of sound waits for, stage by stage."""

import collections
import contextlib
import time

import gpu
import gpu_model
from gpu_thinker import kernels

ROWS = (1, 16, 64, 256)
FRAMES, BEFORE = 32, 256  # frames a call; cache slots in use before
QUESTION_S = 5


def speech() -> None:
  omni = gpu_model.omni()
  for rows in ROWS:
    gpu.tried('frame', lambda rows=rows: _frame(omni, rows), rows=rows, before=BEFORE)
  for rows in ROWS:
    for frames in (1, 25):
      gpu.tried('vocoder', lambda rows=rows, frames=frames: _vocoder(omni, rows, frames), rows=rows, frames=frames)
  gpu.tried('first packet', lambda: _first_packet(omni), question_s=QUESTION_S)


def _frame(omni, rows: int) -> dict:
  """Talker step, 15 codes of the predictor, all draws as published."""
  import jax.numpy as jnp

  from qwen3_omni_jax.infer import speech_slots
  from qwen3_omni_jax.infer.speech import RUNNING

  length = BEFORE + 8 * FRAMES
  state, text = speech_slots.empty_speech(omni.cfg, rows, length, omni.dtype)
  state = state.replace(
    reason=jnp.full(rows, RUNNING, jnp.int32),
    filled=jnp.full(rows, BEFORE, jnp.int32),
    position=jnp.full(rows, float(BEFORE), jnp.float32),
  )
  text = text.replace(count=jnp.full(rows, length, jnp.int32))
  draws, limits = omni.voice.draws(omni.cfg, list(range(rows))), omni.voice.limits([length] * rows)

  def frames(n: int) -> float:
    nonlocal state
    started = time.perf_counter()
    state, run = speech_slots.speak_slots(
      omni.params, omni.cfg, omni.predictor, state, text, draws, limits, jnp.int32(n), jnp.int32(rows)
    )
    assert int(run) == n, f'{int(run)} of {n} frames'
    return (time.perf_counter() - started) / n

  frames(FRAMES)
  ms = 1e3 * min(frames(FRAMES) for _ in range(3))
  return {'ms': round(ms, 3), 'audio_s_per_s': round(80 * rows / ms, 1), 'kernels': kernels(lambda: frames(4), 4)}


def _vocoder(omni, rows: int, frames: int) -> dict:
  import jax
  import jax.numpy as jnp
  import numpy as np

  from qwen3_omni_jax.infer import speech_slots
  from qwen3_omni_jax.models.code2wav import init_state

  cfg = omni.cfg.code2wav
  codes = np.random.default_rng(0).integers(0, cfg.codebook_size, (rows, frames, cfg.num_quantizers)).astype(np.int32)
  state, fresh = init_state(cfg, rows, omni.dtype), jnp.zeros(rows, bool)
  times = []
  for _ in range(6):
    started = time.perf_counter()
    wave, state = speech_slots.vocode_lanes(omni.params, omni.cfg, codes, state, fresh, omni.dtype)
    jax.block_until_ready((wave, state))
    times.append(time.perf_counter() - started)
  ms = 1e3 * min(times[1:])
  return {'ms': round(ms, 3), 'ms_per_frame': round(ms / frames / rows, 4)}


def _first_packet(omni) -> dict:
  """From the question to the first samples: as a stream does it, and once more with every stage waited for."""
  import numpy as np

  from qwen3_omni_jax.infer.voice import AudioChunk

  sound = 0.1 * np.random.default_rng(0).standard_normal(16_000 * QUESTION_S).astype(np.float32)
  parts = [{'type': 'audio', 'audio': sound}, {'type': 'text', 'text': 'Answer.'}]
  conversation = [{'role': 'user', 'content': parts}]

  def first() -> float:
    started = time.perf_counter()
    events = omni.stream(conversation, speech=True, max_new_tokens=64, max_frames=16, stop_token_ids=())
    with contextlib.closing(events):
      next(event for event in events if isinstance(event, AudioChunk))
      return time.perf_counter() - started

  compiled = [first(), first()][0]
  ms = sorted(1e3 * first() for _ in range(7))
  with _waited_for() as stages:
    for _ in range(3):
      first()
  return {
    'ms': round(ms[3], 1),
    'ms_least': round(ms[0], 1),
    'with_compilation_s': round(compiled, 1),
    'stages_ms': {name: round(1e3 * seconds / 3, 2) for name, seconds in stages.items()},
  }


@contextlib.contextmanager
def _waited_for():
  """Seconds in each function that a stream calls, its results waited for."""
  import jax

  from qwen3_omni_jax.infer import decode
  from qwen3_omni_jax.infer import speech as device
  from qwen3_omni_jax.media.processor import Processor

  seconds: dict[str, float] = collections.defaultdict(float)
  places = [
    ('processor', Processor, '__call__'),
    ('encoders', decode, 'encode_media'),
    ('prefill and first token', decode, 'prefill'),
    ('second token', decode, 'decode'),
    ('text of the reply', device, 'whole_text'),
    ('Talker prompt', device, 'begin_speech'),
    ('frame', device, 'speak'),
    ('vocoder', device, 'decode_wave_chunk'),
  ]

  def timed(name, function):
    def run(*args, **options):
      started = time.perf_counter()
      out = jax.block_until_ready(function(*args, **options))
      seconds[name] += time.perf_counter() - started
      return out

    return run

  originals = [getattr(owner, attribute) for _, owner, attribute in places]
  try:
    for (name, owner, attribute), original in zip(places, originals, strict=True):
      setattr(owner, attribute, timed(name, original))
    yield seconds
  finally:
    for (_, owner, attribute), original in zip(places, originals, strict=True):
      setattr(owner, attribute, original)
