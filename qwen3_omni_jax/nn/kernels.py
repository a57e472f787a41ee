"""Chooses the kernels of attention and of the experts' grouped matmuls, by platform and shape.

    attention  dense      plain JAX, a few blocks of queries against all keys      anywhere
               blockwise  plain JAX, running softmax over tiles                    anywhere; no matrix of all scores
               splash     jax's Pallas kernel                                      TPU; head dims of 64 and multiples of 128
               cudnn      jax.nn.dot_product_attention and what is below it        GPU; bfloat16, float16
               triton     nn/cached_attention.py                                   GPU; new tokens to a filled cache
    experts    looped     plain JAX, see nn/expert_loop.py                         anywhere; the default on CPU
               triton     nn/grouped_matmul.py                                     GPU; the default there
               ragged     jax.lax.ragged_dot                                       anywhere (on GPU 30 times slower than triton)
               megablox   jax's Pallas kernel                                      TPU; widths that 128 divides, else ragged
               tokamax    tokamax.ragged_dot: Mosaic or Triton kernels, else XLA   where tokamax is installed

QWEN3_OMNI_KERNELS, as in `attention=blockwise,experts=ragged`, overrides the choice of a program wherever the named kernel can
do the shape; an explicit `backend` or `form` argument overrides both. It is read when a program is traced.
The defaults on GPU come from benchmarks/results/gpu.json; those on TPU have been compiled but not run.
"""

import functools
import importlib.util
import os

import jax.numpy as jnp

from ..sharding import current_mesh, platform

ATTENTION = ('dense', 'blockwise', 'splash', 'cudnn', 'triton')
EXPERTS = ('looped', 'ragged', 'triton', 'megablox', 'tokamax')
VARIABLE = 'QWEN3_OMNI_KERNELS'

# Above this many scores per head no kernel that builds a [T, S] matrix, of scores or as a mask, is used.
DENSE_SCORES = 2048 * 2048
CUDNN_SCORES = 16384 * 16384  # its mask takes two bytes a score
_SPLASH_SCORES = 256 * 256  # below, padding to blocks of 128 costs more than the kernel saves


def attention_kernel(q, k, *, plain_mask: bool, causal: bool = False, cuts: int = 1, requested: str | None = None) -> str:
  """For q 'B T N H' and k 'B S K H'.

  plain_mask: segments, and with `causal` index = slot, are all that is masked. cuts: devices over which T is cut.
  Raises ValueError if the `requested` kernel cannot do this.
  """
  if requested:
    if not _attends(requested, q, k, plain_mask, causal, cuts):
      raise ValueError(f'attention={requested}: not for queries {q.shape}, keys {k.shape}, {q.dtype}; see nn/kernels.py')
    return requested
  here = platform()
  named = overrides().get('attention')
  if named and _attends(named, q, k, plain_mask, causal, cuts):
    return named
  best = {'tpu': 'splash', 'gpu': 'cudnn'}.get(here)
  scores = q.shape[1] * k.shape[1]
  if best == 'splash' and scores >= _SPLASH_SCORES and _attends(best, q, k, plain_mask, causal, cuts):
    return best
  if best == 'cudnn' and q.shape[1] > 1 and _attends(best, q, k, plain_mask, causal, cuts):
    return best
  return 'dense' if scores <= DENSE_SCORES else 'blockwise'


def _attends(kernel: str, q, k, plain_mask: bool, causal: bool, cuts: int) -> bool:
  """Whether the kernel can do these shapes at all."""
  (T, N, H), (S, K) = q.shape[1:], k.shape[1:3]
  if kernel == 'splash':
    return plain_mask and N % K == 0 and (H == 64 or H % 128 == 0) and (cuts == 1 or T % (128 * cuts) == 0)
  if kernel == 'cudnn':  # see jax's check_is_flash_attention; training with a bias needs even lengths
    narrow = q.dtype in (jnp.bfloat16, jnp.float16) or platform() == 'cpu'  # where XLA's form stands in for it, in tests
    maskless = plain_mask and causal and T == S and cuts == 1
    return narrow and H % 8 == 0 and H <= 128 and T % 2 == S % 2 == 0 and (maskless or T * S <= CUDNN_SCORES)
  return kernel in ('dense', 'blockwise')  # triton is for a filled cache, see reads_cache_in_place


def reads_cache_in_place(cache, *, in_order: bool = True) -> bool:
  """Whether new tokens attend to a filled cache by nn/cached_attention.py, instead of to a copy of its layer by `attention`.

  in_order: row i of them is row i of the cache; on a mesh other rows may lie elsewhere.
  """
  H = cache.k.shape[-1]
  requested = overrides().get('attention', 'triton' if platform() == 'gpu' else None)
  return requested == 'triton' and (in_order or current_mesh() is None) and H >= 16 and H & (H - 1) == 0


def experts_kernel(D: int, F: int) -> str:
  """The form of the grouped matmul, of EXPERTS, for weights 'E D F'."""
  requested = overrides().get('experts') or {'tpu': 'megablox', 'gpu': 'triton'}.get(platform(), 'looped')
  if requested == 'tokamax':
    require_tokamax()
  if requested == 'megablox' and (D % 128 or F % 128):
    return 'ragged'  # tiles of such widths compile forward, not backward
  return requested


def overrides() -> dict[str, str]:
  """What QWEN3_OMNI_KERNELS says. Raises ValueError for what it does not understand."""
  return _parse(os.environ.get(VARIABLE, ''))


@functools.cache
def _parse(text: str) -> dict[str, str]:
  known = {'attention': ATTENTION, 'experts': EXPERTS}
  chosen: dict[str, str] = {}
  for item in filter(None, text.split(',')):
    part, _, kernel = item.partition('=')
    if kernel not in known.get(part, ()):
      names = '; '.join(f'{part}=' + ' | '.join(kernels) for part, kernels in known.items())
      raise ValueError(f'{VARIABLE}={text}: {item!r} is not understood; expected {names}, joined by commas')
    chosen[part] = kernel
  return chosen


@functools.cache
def _has_tokamax() -> bool:
  return importlib.util.find_spec('tokamax') is not None


def require_tokamax() -> None:
  """Raises ValueError where it is not installed."""
  if not _has_tokamax():
    raise ValueError('experts=tokamax: tokamax is not installed; pip install tokamax, or choose experts=ragged')
