"""What SnakeBeta's own derivatives are worth: processor seconds of one gradient of Code2Wav.

    python benchmarks/code2wav_gradient.py [--rows 8] [--frames 12] [--repeats 3]

A decoder of the size that a model of a few million parameters has, with the spectral losses. `plain`: as autodiff has it.
"""

import argparse
import time

import common


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--rows', type=int, default=8)
  parser.add_argument('--frames', type=int, default=12)
  parser.add_argument('--repeats', type=int, default=3)
  args = parser.parse_args()
  result = common.circumstances()
  import jax
  import jax.numpy as jnp
  import numpy as np
  from qwen3_omni_jax.train.vocoder.spectral import spectral_losses

  from qwen3_omni_jax.config import Code2WavConfig
  from qwen3_omni_jax.models import code2wav
  from qwen3_omni_jax.nn.params import init_params
  from qwen3_omni_jax.nn.snake import snake_beta

  cfg = Code2WavConfig(
    codebook_size=256,
    num_quantizers=4,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    sliding_window=10,
    decoder_dim=128,
  )
  params = init_params(code2wav.code2wav_spec(cfg), jax.random.key(0))
  rng = np.random.default_rng(0)
  frames = rng.normal(size=(args.rows, args.frames, cfg.hidden_size)).astype(np.float32)
  target = (0.1 * rng.normal(size=(args.rows, args.frames * cfg.samples_per_frame))).astype(np.float32)

  def loss(params):
    wave, _ = code2wav.decode_frames(params, cfg, jnp.asarray(frames), code2wav.init_state(cfg, args.rows))
    return sum(spectral_losses(wave, jnp.asarray(target)))

  for form in ('own', 'plain'):
    code2wav.snake_beta = snake_beta.fun if form == 'plain' else snake_beta
    jax.clear_caches()
    begun = time.perf_counter()
    gradient = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
    compile_s = time.perf_counter() - begun
    jax.block_until_ready(gradient(params))
    begun = time.process_time()
    for _ in range(args.repeats):
      jax.block_until_ready(gradient(params))
    seconds = (time.process_time() - begun) / args.repeats
    result[form] = {'processor_s': round(seconds, 3), 'compile_s': round(compile_s, 1)}
    print(f'{form:20s} {seconds:.3f} s of processor, compiled in {compile_s:.0f} s', flush=True)
  common.save('code2wav_gradient', result)


if __name__ == '__main__':
  main()
