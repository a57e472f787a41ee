"""The peak memory of a conversion does not grow with the model: measured in a process of its own."""

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from qwen3_omni_jax.config_json import parse_config
from qwen3_omni_jax.weights.safetensors import write_shards
from qwen3_omni_jax.weights.table import published_shapes
from qwen3_omni_jax.weights.writer import COMMIT_BYTES

from .folders import odd_dict, write

MEASURE = """
import pathlib, sys
from qwen3_omni_jax.weights import batches
from qwen3_omni_jax.weights.to_hf import convert_to_hf
from qwen3_omni_jax.weights.to_jax import convert_to_jax

batches.WORKERS = 1  # each thread has a batch in hand; the bound is for one, whatever machine this is

def peak_mb():  # not ru_maxrss, which a child inherits from the process that started it
  return int(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1]) / 1e3

def there_and_back(size):
  folder = pathlib.Path(sys.argv[1])
  convert_to_jax(folder / size, folder / (size + '_jax'))
  convert_to_hf(folder / (size + '_jax'), folder / (size + '_back'))

there_and_back('small')  # everything is imported
before = peak_mb()
there_and_back('large')
print(before, peak_mb())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='peak memory is read from /proc')
def test_peak_memory_is_far_below_the_stacks(tmp_path):
  """1.0 GB of bf16 experts (three stacks of 340 MB); largest published tensor 17 MB.

  Bound, for one thread: what is committed at once, held twice (staged and encoded), and 250 MB that tensorstore, its
  threads and our own buffers keep whatever the size (160 MB seen). One stack held whole would pass it.
  """
  config = odd_dict('thinking')
  write(tmp_path / 'small', {n: np.ones(s, np.float32) for n, s in published_shapes(parse_config(config)).items()}, config)
  text, width = config['thinker_config']['text_config'], 1024
  text |= {'hidden_size': width, 'num_hidden_layers': 27, 'num_experts': 16, 'moe_intermediate_size': 384}
  text |= {'vocab_size': 8192}
  config['thinker_config']['vision_config'] |= {'out_hidden_size': width}
  config['thinker_config']['audio_config'] |= {'output_dim': width}
  bf16, shapes = np.dtype(ml_dtypes.bfloat16), published_shapes(parse_config(config))
  large = write(tmp_path / 'large', {}, config)
  values = ((name, np.full(shape, i % 250 + 1, bf16)) for i, (name, shape) in enumerate(shapes.items()))
  write_shards(large, values, {name: (bf16, shape) for name, shape in shapes.items()}, 400_000_000)
  size = sum(f.stat().st_size for f in large.iterdir())
  assert size > 1e9

  run = subprocess.run([sys.executable, '-c', MEASURE, str(tmp_path)], capture_output=True, text=True)
  assert run.returncode == 0, run.stderr
  before, peak = map(float, run.stdout.split()[-2:])
  print(f'{size / 1e6:.0f} MB converted; peak {peak:.0f} MB, of which {before:.0f} MB before')
  assert peak - before < 2 * COMMIT_BYTES / 1e6 + 250
