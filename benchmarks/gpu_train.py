"""Part `train` of gpu.py: training steps at true widths, rows of 8,192 tokens, bfloat16: full and LoRA, text and all media."""

import time

import gpu

TOKENS = 8192
CLIPS, IMAGES = 11, 8  # of 8 s and of 512 × 512: 14 and 25 % of the tokens
CASES = (
  {'layers': 4, 'accumulate': 4},
  {'layers': 4, 'accumulate': 4, 'media': True},
  {'layers': 8, 'accumulate': 4},
  {'layers': 24, 'lora': True},
  {'layers': 24, 'lora': True, 'media': True},
  {'layers': 48, 'lora': True},
)


def train() -> None:
  for case in CASES:
    gpu.tried('train', lambda case=case: _steps(**case), tokens=TOKENS, **case)


def _steps(layers: int, lora: bool = False, media: bool = False, accumulate: int = 1) -> dict:
  """The fastest of four steps. Full: everything the batch passes through is trained; depth is cut so that its optimiser fits.
  peak_gb_so_far: of all cases up to this one, the device keeps no other count."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  from qwen3_omni_jax.train.config import Part, Recipe, Run, Step
  from qwen3_omni_jax.train.config_file import read
  from qwen3_omni_jax.train.state import PARTS, assign_roles, init_state
  from qwen3_omni_jax.train.step import compiled_step
  from qwen3_omni_jax.train.utilisation import peak, step_flops

  from qwen3_omni_jax.models.omni import omni_spec
  from qwen3_omni_jax.sharding import make_mesh

  cfg, mesh = gpu.config(layers), make_mesh({})
  how = Step(accumulate=accumulate)
  if lora:
    recipe = Recipe(lora=read(Run, 'lora').lora, step=how)
  else:
    recipe = Recipe(parts=tuple(Part(f'{part}/', 1e-4) for part in (PARTS if media else ('thinker',))), step=how)
  batch = _batch(cfg, media)
  flops = accumulate * step_flops(cfg, assign_roles(cfg, recipe), [batch])
  if accumulate > 1:
    batch = jax.tree.map(lambda x: np.stack([x] * accumulate), batch)
  params = gpu.cheap_params({part: omni_spec(cfg)[part] for part in PARTS}, jnp.bfloat16)
  state, step = init_state(params, cfg, recipe, mesh), compiled_step(cfg, recipe, mesh)
  del params
  times = []
  for _ in range(5):
    started = time.perf_counter()
    state, values = step(state, batch)
    loss = float(values['loss'])
    times.append(time.perf_counter() - started)
  seconds, most = min(times[1:]), peak()
  used = (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use', 0)
  return {
    'ms': round(1e3 * seconds, 1),
    'tokens_per_s': round(accumulate * TOKENS / seconds),
    'mfu': most and round(flops / seconds / most, 3),
    'peak_gb_so_far': round(used / 1e9, 1),
    'compile_s': round(times[0], 1),
    'loss': round(loss, 3),
  }


def _batch(cfg, media: bool):
  """One row; with media, clips and images stand before the text."""
  import numpy as np
  from qwen3_omni_jax.train.batch import TrainBatch

  from qwen3_omni_jax.infer.collate import collate
  from qwen3_omni_jax.media.audio import audio_tokens
  from qwen3_omni_jax.media.inputs import Audio, ModelInputs, Visual

  rng, thinker = np.random.default_rng(0), cfg.thinker
  ids = rng.integers(0, min(150_000, thinker.text.vocab_size // 2), TOKENS).astype(np.int32)
  audios: tuple = ()
  visuals: tuple = ()
  if media:
    audio, vision = thinker.audio, thinker.vision
    mel = rng.standard_normal((800, audio.num_mel_bins)).astype(np.float32)
    patches = rng.standard_normal((1024, vision.patch_dim)).astype(np.float32)
    audios = (Audio(mel, audio.chunk_frames),) * CLIPS
    visuals = (Visual(patches, (1, 32, 32), 'image'),) * IMAGES
    heard, seen = CLIPS * audio_tokens(800), IMAGES * 1024 // vision.spatial_merge_size**2
    ids[:heard], ids[heard : heard + seen] = thinker.audio_token_id, thinker.image_token_id
  places = np.broadcast_to(np.arange(TOKENS, dtype=np.float32), (3, TOKENS)).copy()
  batch = collate([ModelInputs(ids, places, audios, visuals)], thinker)
  weights = (~np.isin(np.roll(batch.tokens.ids, -1, 1), (thinker.audio_token_id, thinker.image_token_id))).astype(np.float32)
  return TrainBatch(batch.tokens, batch.media, np.roll(batch.tokens.ids, -1, 1), weights, np.zeros_like(batch.tokens.ids))
