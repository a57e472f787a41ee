"""Recordings to codes beside transformers' MimiModel, at the released size, on the same clips.

    python benchmarks/codes.py [--clips 24] [--repeats 3]

Random weights, clips of 1 to 8 s. Ours: the slots of `qwen3-omni codes`, without reading files. Theirs: one clip after the other,
as MimiModel has no mask for clips in a batch. In turns; processor seconds beside wall time, which other work stretches.
"""

import argparse
import tempfile
import time

import common


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--clips', type=int, default=24)
  parser.add_argument('--repeats', type=int, default=3)
  args = parser.parse_args()
  result = common.circumstances()
  import numpy as np
  import torch

  from qwen3_omni_jax.infer.codes import Encoder
  from qwen3_omni_jax.weights.codec import load_codec
  from tests.models.codec_reference import saved_codec

  rng = np.random.default_rng(0)
  with tempfile.TemporaryDirectory() as folder:
    model = saved_codec(folder, {}, seed=0)
    params, cfg = load_codec(folder)
  encoder = Encoder(params, cfg)
  waves = {str(i): _sound(rng, int(rng.uniform(1, 8) * cfg.sampling_rate)) for i in range(args.clips)}
  found: dict[str, dict] = {'ours': {}, 'theirs': {}}

  def ours():
    found['ours'] = dict(encoder.encode(iter(waves.items())))

  def theirs():
    with torch.no_grad():
      for key, wave in waves.items():
        codes = model.encode(torch.from_numpy(wave)[None, None], num_quantizers=cfg.num_code_groups).audio_codes
        found['theirs'][key] = codes[0].T.numpy()

  begun = time.perf_counter()
  ours()
  result['first_run_s'] = round(time.perf_counter() - begun, 1)
  theirs()
  seconds = sum(len(codes) for codes in found['ours'].values()) / cfg.frame_rate
  for name in ('ours', 'theirs'):
    result[name] = {'wall_s': [], 'processor_s': []}
  for _ in range(args.repeats):
    for name, run in (('ours', ours), ('theirs', theirs)):
      wall, processor = time.perf_counter(), time.process_time()
      run()
      result[name]['wall_s'].append(round(time.perf_counter() - wall, 2))
      result[name]['processor_s'].append(round(time.process_time() - processor, 2))
  result |= {'clips': args.clips, 'sound_s': round(seconds, 1)}
  equal = [found['ours'][key] == found['theirs'][key] for key in waves]
  result['equal_codes'] = round(float(np.mean(np.concatenate(equal))), 5)
  result['equal_first_codes'] = round(float(np.mean(np.concatenate([e[:, 0] for e in equal]))), 5)
  for name in ('ours', 'theirs'):
    median = float(np.median(result[name]['processor_s']))
    result[name]['processor_s_per_hour_of_sound'] = round(median * 3600 / seconds, 1)
    print(f'{name}: {median:.2f} s of processor for {seconds:.0f} s of sound; wall {np.median(result[name]["wall_s"]):.2f} s')
  print(f'equal codes: {result["equal_codes"]:.3%}, of the first codebook {result["equal_first_codes"]:.3%}')
  common.save('codes', result)


def _sound(rng, samples: int):
  """A gliding tone in noise."""
  import numpy as np

  t = np.arange(samples) / 24000
  return (0.3 * np.sin(2 * np.pi * 150 * t * (1 + 0.2 * t)) + 0.1 * rng.normal(size=samples)).astype(np.float32)


if __name__ == '__main__':
  main()
