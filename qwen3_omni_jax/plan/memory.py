"""Memory of one device, counted from shapes: its arguments, and an estimate of the temporary memory."""

import math
import re

import jax
import jax.numpy as jnp

from qwen3_omni_jax.models.omni import omni_spec

from .programs import placed, program

_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


def tree_bytes(tree) -> int:
  """Of one device's share of arrays or shapes with shardings."""

  def share(x) -> int:
    shape = x.shape if getattr(x, 'sharding', None) is None else x.sharding.shard_shape(x.shape)
    return math.prod(shape) * x.dtype.itemsize

  return sum(map(share, jax.tree.leaves(tree)))


def needed_bytes(message: str) -> int | None:
  """How much memory the compiler says a program needs that does not fit; None if the message is about something else."""
  if 'RESOURCE_EXHAUSTED' not in message:
    return None
  for pattern in (r'[Uu]sed ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm', r'\(([\d.]+)([KMGT]?)B?\) exceeds available HBM'):
    if found := re.search(pattern, message):
      return int(float(found[1]) * _UNITS[found[2]])
  return 0


def held_bytes(cfg, job, mesh) -> dict[str, int]:
  """Of one device: the program's weights, optimiser state and other arguments, and the parts that stay loaded beside it."""
  held = {name: tree_bytes(tree) for name, tree in program(cfg, job, mesh)[2].items()}
  beside = ('audio', 'vision', 'talker', 'code_predictor', 'code2wav')
  idle = {'prefill': beside, 'decode': beside, 'speech': ('audio', 'vision', 'thinker', 'code2wav')}
  spec = omni_spec(cfg)
  others = {part: spec[part] for part in idle.get(job.kind, ()) if part in spec}
  return held | {'other_parts': tree_bytes(placed(others, mesh, jnp.bfloat16)) if others else 0}


def estimated_temporary(cfg, job, shape: dict[str, int]) -> int:
  """A model of what the program needs beside its arguments, in bytes per device; shape: sizes of the mesh axes. An estimate.

  Training: what backward keeps of each layer, gradients, one layer's gathered weights, the experts' buffers, a chunk of logits.
  """
  size = lambda *axes: math.prod(shape.get(axis, 1) for axis in axes)
  text = cfg.talker.text if job.kind == 'speech' else cfg.thinker.text
  D, F, E, A = text.hidden_size, text.moe_intermediate_size, text.num_experts, text.num_experts_per_tok
  L = text.num_hidden_layers
  share = math.gcd(job.batch, size('data', 'fsdp', 'expert')) * size('context')
  length = job.length if job.kind in ('train', 'prefill') else 1
  tokens = -(-job.batch * length // share)
  pairs = tokens * A
  group = size('expert')
  buffer = None if job.run is None else job.run.step.buffer
  room = group * tokens * min(A, max(1, E // group)) if buffer is None else math.ceil(buffer * pairs)
  buffers = room * (2 * D + 3 * F // size('tensor')) * 2
  layer_weights = 2 * (3 * E * D * F // (group * size('tensor')) + 2 * D * text.head_dim * (text.num_attention_heads + 4))
  gathered = layer_weights if size('fsdp') > 1 or job.kind != 'train' else 0
  if job.run is None:
    made = tokens * L * 4 * text.num_key_value_heads * text.head_dim if job.kind == 'prefill' else 0  # the cache
    return made + gathered + buffers + 6 * tokens * D * 4 + 4 * job.batch * text.vocab_size // size('tensor')
  remat = job.run.step.remat
  attended = text.num_attention_heads * text.head_dim
  by_expert = pairs * D + 2 * room * F // size('tensor')  # what came back, and the products with gate and up
  few = {'attention': tokens * attended, 'experts': tokens * attended + by_expert, 'dots': by_expert}.get(remat, 0)
  kept = 2 * L * (tokens * D * {'dots': 8, 'none': 24}.get(remat, 1) + few)
  gradients = 6 * 3 * L * E * D * F // size('fsdp', 'expert', 'tensor')  # bfloat16 weights and float32 gradients
  logits = 2 * 4 * 1024 * text.vocab_size // size('tensor')
  return kept + gradients + 2 * gathered + 2 * buffers + logits
