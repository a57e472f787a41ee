"""Parts `thinker` and `encoders` of gpu.py: prefill, decode with its kernels by time, and both media encoders."""

import collections
import glob
import os
import tempfile
import time

import gpu
import gpu_model

NEW_TOKENS = 64
PREFILL = (2048, 8192, 32768)
DECODE = ((1, 2048), (8, 2048), (64, 1024))  # rows, tokens before


def thinker() -> None:
  import jax.numpy as jnp
  import numpy as np

  from qwen3_omni_jax.infer import decode
  from qwen3_omni_jax.infer.collate import Batch, Media
  from qwen3_omni_jax.infer.sampling import Sampling, sampling_rows
  from qwen3_omni_jax.models.thinker import Features, ThinkerTokens
  from qwen3_omni_jax.nn.cache import init_cache

  omni = gpu_model.omni()
  cfg, params = omni.cfg.thinker, omni.params['thinker']
  V = cfg.text.vocab_size

  def prompt(B: int, T: int) -> Batch:
    ids = np.random.default_rng(0).integers(0, V, (B, T)).astype(np.int32)
    positions = np.broadcast_to(np.arange(T, dtype=np.float32), (3, B, T)).copy()
    tokens = ThinkerTokens(ids, positions, np.ones((B, T), np.int32))
    return Batch(tokens, Media(), np.full(B, T, np.int32), np.full(B, T, np.float32))

  def settings(B: int):
    limits = decode.Limits(stop=np.full(4, -1, np.int32), tokens=np.full(B, 4096, np.int32))
    return sampling_rows([Sampling()] * B, V), limits

  def prefill(T: int):
    sampling, limits = settings(1)
    batch = prompt(1, T).replace(media=())
    run = lambda: (
      decode.prefill(params, cfg, batch, Features(), sampling, limits, slots=T, outputs=64, penalised=False, dtype=jnp.bfloat16)[
        0
      ].token
    )
    return {'ms': gpu.median_ms(run, 5)}

  for T in PREFILL:
    gpu.tried('prefill', lambda T=T: prefill(T), tokens=T)

  def step(B: int, context: int):
    sampling, limits = settings(B)
    zeros = jnp.zeros(B, jnp.int32)
    state = decode.State(
      cache=init_cache(cfg.text, B, context + 512, jnp.bfloat16),
      filled=jnp.full(B, context, jnp.int32),
      position=jnp.full(B, context, jnp.float32),
      token=jnp.arange(B, dtype=jnp.int32),
      done=jnp.zeros(B, bool),
      output=jnp.zeros((B, 512), jnp.int32),
      count=zeros,
      seen=None,
    )

    def steps(n: int) -> float:
      nonlocal state
      started = time.perf_counter()
      state = decode.decode(params, cfg, state, sampling, limits, jnp.int32(n), dtype=jnp.bfloat16)
      state.token.block_until_ready()
      return (time.perf_counter() - started) / n

    steps(NEW_TOKENS)
    ms = 1e3 * min(steps(NEW_TOKENS) for _ in range(3))
    return {'ms_per_step': round(ms, 3), 'tokens_per_s': round(1e3 * B / ms, 1), 'kernels': kernels(lambda: steps(8), 8)}

  for B, context in DECODE:
    gpu.tried('decode', lambda B=B, context=context: step(B, context), batch=B, context=context)


def kernels(run, steps: int, most: int = 8) -> dict:
  """What one step launches: kernels, their time, and the names that take most of it (microseconds a step)."""
  import jax

  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      run()
    (file,) = glob.glob(os.path.join(folder, '**', '*.xplane.pb'), recursive=True)
    data = jax.profiler.ProfileData.from_file(file)
  total: collections.Counter = collections.Counter()
  count = 0
  for plane in data.planes:
    if '/device:GPU' not in plane.name:
      continue
    for line in plane.lines:
      if 'Stream' not in line.name:
        continue
      for event in line.events:
        total[event.name] += event.duration_ns
        count += 1
  return {
    'launched': round(count / steps, 1),
    'us': round(sum(total.values()) / steps / 1e3, 1),
    'by_name_us': {name[:60]: round(ns / steps / 1e3, 1) for name, ns in total.most_common(most)},
  }


def encoders() -> None:
  """AuT over 30 and 300 s of sound; the vision encoder over one and eight pictures of 1,024 × 1,024 pixels."""
  import jax.numpy as jnp
  import numpy as np

  from qwen3_omni_jax.infer import decode
  from qwen3_omni_jax.infer.collate import AudioWindows, VisualFrames, patch_coordinates

  omni = gpu_model.omni()
  cfg, params = omni.cfg.thinker, omni.params
  rng = np.random.default_rng(0)

  def audio(seconds: int):
    frames = cfg.audio.chunk_frames * cfg.audio.chunks_per_window
    R = -(-100 * seconds // frames)
    mel = rng.standard_normal((R, frames, cfg.audio.num_mel_bins)).astype(np.float32)
    lengths = np.full(R, frames, np.int32)
    lengths[-1] = 100 * seconds - (R - 1) * frames
    group = AudioWindows(jnp.asarray(mel), lengths, np.full(R, cfg.audio.chunk_frames, np.int32))
    return {'ms': gpu.median_ms(lambda: decode.encode_audio_windows(params['audio'], cfg, group, jnp.bfloat16), 5)}

  def vision(pictures: int, side: int = 64):
    merge, P = cfg.vision.spatial_merge_size, side * side
    rows, cols = (np.broadcast_to(x, (pictures, P)).copy() for x in patch_coordinates(side, side, merge))
    full = lambda n: np.full(pictures, n, np.int32)
    patches = jnp.asarray(rng.standard_normal((pictures, P, cfg.vision.patch_dim)).astype(np.float32))
    group = VisualFrames(patches, rows, cols, full(side), full(side), full(P))
    return {'ms': gpu.median_ms(lambda: decode.encode_visual_frames(params['vision'], cfg, group, jnp.bfloat16), 5)}

  for seconds in (30, 300):
    gpu.tried('AuT', lambda seconds=seconds: audio(seconds), seconds=seconds)
  for pictures in (1, 8):
    gpu.tried('vision', lambda pictures=pictures: vision(pictures), pictures=pictures, patches=4096)
