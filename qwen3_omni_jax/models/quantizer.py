"""Split residual vector quantisation: the latent of a frame to one code of each codebook, and back.

Two branches, semantic and acoustic, quantise the *same* latent, each in a space of its own (the acoustic one does not see what
the semantic one left over); within a branch every codebook quantises what those before it left.
Source: transformers 5.23, models/mimi/modeling_mimi.py.
"""

import jax
import jax.numpy as jnp

from ..codec_config import CodecConfig
from ..nn.params import Param, Spec, stack
from ..shapes import Array, Float, Int, Params

BRANCHES = ('semantic', 'acoustic')
LEAST_USAGE = 1e-5  # a codebook entry that nothing was assigned to is divided by this; of the reference


def quantizer_spec(cfg: CodecConfig) -> Spec:
  """The codebooks as the moving averages they were trained as: an entry is embed_sum / cluster_usage."""
  D, H = cfg.hidden_size, cfg.codebook_dim
  book: Spec = {
    'embed_sum': Param((cfg.codebook_size, H), ('vocab', 'embed'), fan_in=H),
    'cluster_usage': Param((cfg.codebook_size,), ('vocab',), 'ones'),
  }
  counts = (cfg.num_semantic_quantizers, cfg.num_quantizers - cfg.num_semantic_quantizers)
  spec: Spec = {}
  for branch, count in zip(BRANCHES, counts, strict=True):
    spec[branch] = {'books': stack(count, book)}
    if H != D:
      spec[branch]['input'] = {'kernel': Param((D, H), ('embed', 'mlp'), fan_in=D)}
      spec[branch]['output'] = {'kernel': Param((H, D), ('mlp', 'embed'), fan_in=H)}
  return spec


def codebook_vectors(params: Params) -> dict[str, Float[Array, 'L K H']]:
  """The entries of the L codebooks of each branch, float32. params: of the quantiser."""
  return {branch: _entries(params[branch]['books']) for branch in BRANCHES}


def _entries(books: Params) -> Float[Array, 'L K H']:
  usage = jnp.maximum(books['cluster_usage'].astype(jnp.float32), LEAST_USAGE)
  return books['embed_sum'].astype(jnp.float32) / usage[..., None]


def project(branch: Params, latents: Float[Array, '*b D']) -> Float[Array, '*b H']:
  """Latents in the space of a branch's codebooks, float32: nearest codes are a matter of the last digits."""
  x = latents.astype(jnp.float32)
  return _matmul(x, branch['input']['kernel'].astype(jnp.float32)) if 'input' in branch else x


def nearest(x: Float[Array, '*b H'], entries: Float[Array, 'K H']) -> Int[Array, '*b']:
  """The entry at the least distance, the first of equals. float32 throughout."""
  return jnp.argmin(jnp.sum(entries * entries, axis=-1) - 2 * _matmul(x, entries.T), axis=-1).astype(jnp.int32)


def residual_codes(x: Float[Array, '*b H'], entries: Float[Array, 'L K H']) -> tuple[Int[Array, ' L *b'], Float[Array, 'L *b H']]:
  """The code of each codebook, and what that codebook was given: what those before it left."""

  def book(left, entries):
    codes = nearest(left, entries)
    return left - entries[codes], (codes, left)

  return jax.lax.scan(book, x, entries)[1]


def quantise(params: Params, cfg: CodecConfig, latents: Float[Array, 'B F D']) -> Int[Array, 'B F Q']:
  """Codes of the first Q = num_code_groups codebooks, the semantic ones first. params: of the quantiser."""
  counts = (cfg.num_semantic_quantizers, cfg.num_code_groups - cfg.num_semantic_quantizers)
  found = []
  for branch, count in zip(BRANCHES, counts, strict=True):
    entries = codebook_vectors(params)[branch][:count]
    found.append(residual_codes(project(params[branch], latents), entries)[0])
  return jnp.moveaxis(jnp.concatenate(found), 0, -1)


def dequantise(params: Params, cfg: CodecConfig, codes: Int[Array, 'B F Q']) -> Float[Array, 'B F D']:
  """The latents that the first Q codebooks stand for, float32; Q may be anything from num_semantic_quantizers on."""
  vectors, begin, total = codebook_vectors(params), 0, 0.0
  for branch, count in zip(BRANCHES, (cfg.num_semantic_quantizers, codes.shape[-1] - cfg.num_semantic_quantizers), strict=True):
    ours = codes[..., begin : begin + count]
    summed = sum((vectors[branch][i][ours[..., i]] for i in range(count)), start=jnp.zeros((1, 1, cfg.codebook_dim)))
    output = params[branch].get('output')
    total = total + (summed if output is None else _matmul(summed, output['kernel'].astype(jnp.float32)))
    begin += count
  return jnp.broadcast_to(total, (*codes.shape[:2], cfg.hidden_size))


def _matmul(x: Array, y: Array) -> Array:
  """In full float32: the default of TPUs and GPUs keeps 8 or 10 bits of the factors."""
  return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)
