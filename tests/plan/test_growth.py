"""The memory of a training step grows with the length of its rows, not with its square: by what the compilers say.

By hand, temporary memory of rows of 8,192 and 16,384 tokens, MiB: heads of 128, TPU (splash) 96 and 219, CPU 409 and 811; heads
of 72, TPU (blocks) 81 and 149, CPU 245 and 485. Pictures of as many patches: TPU 31 and 49, CPU 100 and 194.
"""

import dataclasses

import jax
import pytest
from qwen3_omni_jax.train.config import Run
from qwen3_omni_jax.train.config_file import read

from qwen3_omni_jax.hardware import parse_topology
from qwen3_omni_jax.plan.compiler import compile_program
from qwen3_omni_jax.plan.job import Job
from qwen3_omni_jax.plan.topology import tpu_mesh
from qwen3_omni_jax.sharding import make_mesh
from tests.train import batches

pytestmark = pytest.mark.slow

LENGTH = 4096


def config(head_dim: int):
  cfg = batches.config()
  text = dataclasses.replace(cfg.thinker.text, head_dim=head_dim, num_hidden_layers=2)
  vision = dataclasses.replace(cfg.thinker.vision, depth=2, deepstack_visual_indexes=(0,))
  return dataclasses.replace(cfg, thinker=dataclasses.replace(cfg.thinker, text=text, vision=vision))


def temporary_bytes(platform: str, head_dim: int, tokens: int, patches: int) -> int:
  """Of a step on one row of so many tokens, and one encoder row of so many patches."""
  sizes = {'length': tokens, 'visual_patches': patches, 'visual_row': max(patches, 4), 'audio_s': 0, 'rows': 1, 'lanes': 1}
  run = read(Run, 's2_general', ['mesh=single', 'parts=[{pattern: ".*", lr: 1.0e-3}]', 'data.per_device=false'])
  run = dataclasses.replace(run, data=dataclasses.replace(run.data, **sizes))
  mesh = make_mesh({}, jax.devices('cpu')) if platform == 'cpu' else tpu_mesh(parse_topology('v5e:1x1'), 'single')
  return compile_program(config(head_dim), Job.of_run(run), mesh).memory['temporary']


@pytest.mark.parametrize(('platform', 'head_dim'), [('tpu', 128), ('cpu', 72)], ids=['splash on a TPU', 'blocks on a CPU'])
def test_a_row_of_twice_the_tokens_takes_twice_the_memory(platform, head_dim):
  one, two = (temporary_bytes(platform, head_dim, tokens, 0) for tokens in (LENGTH, 2 * LENGTH))
  assert two < 2.5 * one


def test_a_picture_of_twice_the_patches_takes_twice_the_memory():
  one, two = (temporary_bytes('cpu', 72, 256, patches) for patches in (LENGTH, 2 * LENGTH))
  assert two < 2.5 * one
