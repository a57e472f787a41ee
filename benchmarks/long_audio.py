"""Forty minutes of audio through the tiny model: time, peak memory, and no buffer that grows with the square of the length.

python benchmarks/long_audio.py [--minutes 40]
"""

import argparse
import resource
import time

import common
import numpy as np


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--minutes', type=float, default=40)
  parser.add_argument('--checkpoint', default=str(common.ROOT / '.cache' / 'tiny'))
  args = parser.parse_args()
  circumstances = common.circumstances()
  folder = common.small_checkpoint(args.checkpoint, 'tiny')
  import jax
  import jax.numpy as jnp

  from qwen3_omni_jax import Omni
  from qwen3_omni_jax.infer.collate import bucket
  from qwen3_omni_jax.models.thinker import Features, ThinkerTokens, thinker_prefill
  from qwen3_omni_jax.nn.cache import init_cache

  omni = Omni.load(folder, dtype='float32', speech=False)
  peak_mb = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
  loaded = peak_mb()
  wave = (0.1 * np.random.default_rng(0).standard_normal(int(args.minutes * 60 * 16_000))).astype(np.float32)
  started = time.perf_counter()
  question = [{'type': 'audio', 'audio': wave}, {'type': 'text', 'text': 'What is it?'}]
  reply = omni.generate([[{'role': 'user', 'content': question}]], max_new_tokens=4)[0]
  seconds, peak = time.perf_counter() - started, peak_mb()
  audio_tokens = len(wave) // 16_000 * 13

  # What the compiled prefill asks for beside its arguments, at this length and at half of it.
  cfg = omni.cfg.thinker

  def temporary(tokens: int) -> int:
    shape = lambda *dims, dtype=jnp.int32: jax.ShapeDtypeStruct(dims, dtype)
    batch = ThinkerTokens(shape(1, tokens), shape(3, 1, tokens, dtype=jnp.float32), shape(1, tokens))
    cache = jax.eval_shape(lambda: init_cache(cfg.text, 1, tokens, jnp.float32))
    run = lambda p, t, c: thinker_prefill(p, cfg, t, Features(), c)
    return jax.jit(run).lower(omni.params['thinker'], batch, cache).compile().memory_analysis().temp_size_in_bytes

  tokens = bucket(reply.prompt_tokens)
  whole, half = temporary(tokens), temporary(tokens // 2)
  print(
    f'{audio_tokens} audio tokens of {reply.prompt_tokens}; {seconds:.1f} s with compilation; peak {peak:.0f} MB '
    f'({loaded:.0f} MB before); prefill workspace {whole / 1e6:.0f} MB, at half the length {half / 1e6:.0f} MB'
  )
  result = circumstances | {
    'minutes': args.minutes,
    'audio_tokens': audio_tokens,
    'prompt_tokens': reply.prompt_tokens,
    'seconds': round(seconds, 1),
    'timings': reply.timings,
    'peak_rss_mb': round(peak),
    'rss_before_mb': round(loaded),
    'prefill_workspace_mb': {str(tokens): round(whole / 1e6), str(tokens // 2): round(half / 1e6)},
  }
  common.save('long_audio', result)


if __name__ == '__main__':
  main()
