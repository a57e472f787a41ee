"""Codebooks while they are trained: entries are moving averages of the latents that chose them.

van den Oord et al. 2017, arXiv:1711.00937, appendix A.1; residual as in SoundStream (Zeghidour et al. 2021, arXiv:2107.03312),
from which k-means at the start, the revival of dead entries and quantiser dropout are as well. The latent that the decoder gets
has the gradient of the one before quantisation (straight through).

Books: {branch: {'embed_sum' 'L K H', 'cluster_usage' 'L K'}}, as in models.quantizer.
"""

import flax.struct
import jax
import jax.numpy as jnp

from qwen3_omni_jax.codec_config import CodecConfig
from qwen3_omni_jax.models.quantizer import BRANCHES, LEAST_USAGE, nearest, project, residual_codes
from qwen3_omni_jax.shapes import Array, Bool, Float, Int, Params

ROUNDS = 12  # of k-means


class Quantised(flax.struct.PyTreeNode):
  """latents: what the decoder gets. commitment: mean squared distance of what each codebook was given from what it chose,
  relative to the variance of the latents. codes, given: by branch, 'L N' and 'L N H' of the N = B * F frames."""

  latents: Float[Array, 'B F D']
  commitment: Float[Array, '']
  codes: dict[str, Array]
  given: dict[str, Array]


def branch_counts(cfg: CodecConfig) -> dict[str, int]:
  return dict(zip(BRANCHES, (cfg.num_semantic_quantizers, cfg.num_quantizers - cfg.num_semantic_quantizers), strict=True))


def entries(book: Params) -> Float[Array, 'L K H']:
  return book['embed_sum'] / jnp.maximum(book['cluster_usage'], LEAST_USAGE)[..., None]


def quantise_through(
  projections: Params,
  books: Params,
  cfg: CodecConfig,
  latents: Float[Array, 'B F D'],
  keep: Int[Array, ' B'],
  quantised: Bool[Array, ' B'],
) -> Quantised:
  """projections: of models.quantizer, by branch. keep: each row sees only its first so many codebooks, in their order over both
  branches. quantised: rows where this is False are given on as they are, through the projections."""
  B, F, D = latents.shape
  flat, before, total, commitment = latents.reshape(B * F, D), 0, 0.0, 0.0
  codes, given = {}, {}
  for branch, count in branch_counts(cfg).items():
    x = project(projections[branch], flat)
    table = jax.lax.stop_gradient(entries(books[branch]))
    codes[branch], given[branch] = residual_codes(jax.lax.stop_gradient(x), table)
    chosen = jax.vmap(lambda table, codes: table[codes])(table, codes[branch])
    left = x - jnp.cumsum(chosen, axis=0) + chosen  # as `given`, with a gradient
    variance = jax.lax.stop_gradient(x.var(axis=0).mean()) + 1e-8
    commitment += jnp.mean((left - chosen) ** 2) * (count / cfg.num_quantizers) / variance
    seen = (jnp.arange(count)[:, None] + before < keep).repeat(F, axis=1)[..., None]
    sums = jnp.where(quantised.repeat(F)[:, None], jnp.sum(jnp.where(seen, chosen, 0), axis=0), x)
    through = x + jax.lax.stop_gradient(sums - x)
    output = projections[branch].get('output')
    total += through if output is None else jnp.matmul(through, output['kernel'], precision='highest')
    before += count
  return Quantised(jnp.reshape(total, (B, F, D)), jnp.asarray(commitment), codes, given)


def export_table(projections: Params, books: Params, cfg: CodecConfig) -> Float[Array, 'QK D']:
  """Code2Wav's embeddings: it takes their mean over the codebooks, which is the sum that the quantiser makes."""
  rows = []
  for branch in branch_counts(cfg):
    vectors, output = entries(books[branch]), projections[branch].get('output')
    rows.append(vectors if output is None else jnp.matmul(vectors, output['kernel'], precision='highest'))
  return jnp.concatenate(rows).reshape(cfg.num_quantizers * cfg.codebook_size, -1) * cfg.num_quantizers


def move_books(
  books: Params, codes: dict[str, Array], given: dict[str, Array], decay: float, dead: float, key: Array
) -> tuple[Params, Int[Array, ''], Float[Array, '']]:
  """(books after a batch, how many entries were dead, mean perplexity of the codes).

  An entry whose moving count has fallen below `dead` times the mean is put on something that its codebook was given in this
  batch, with the mean count.
  """
  moved, revived, perplexity = {}, jnp.int32(0), []
  for branch, book in books.items():
    _, frames, width = given[branch].shape
    size = book['cluster_usage'].shape[1]
    hot = jax.nn.one_hot(codes[branch], size, dtype=jnp.float32)
    counts = hot.sum(axis=1)
    usage = decay * book['cluster_usage'] + (1 - decay) * counts
    sums = jnp.einsum('LNK,LNH->LKH', hot, given[branch], precision='highest')
    sums = decay * book['embed_sum'] + (1 - decay) * sums
    mean = frames / size
    lost = usage < dead * mean
    key, own = jax.random.split(key)
    at = jax.random.randint(own, usage.shape, 0, frames)
    fresh = jnp.take_along_axis(given[branch], at[..., None].repeat(width, axis=-1), axis=1)
    moved[branch] = {
      'embed_sum': jnp.where(lost[..., None], fresh * mean, sums),
      'cluster_usage': jnp.where(lost, mean, usage),
    }
    revived += lost.sum()
    share = counts / frames
    perplexity.append(jnp.exp(-jnp.sum(share * jnp.log(share + 1e-9), axis=1)))
  return moved, revived, jnp.concatenate(perplexity).mean()


def first_books(projections: Params, cfg: CodecConfig, latents: Float[Array, 'N D'], count: float, key: Array) -> Params:
  """Codebooks by k-means of latents, each of what those before it left. count: that every entry begins with."""
  books = {}
  for branch, number in branch_counts(cfg).items():
    left, found = project(projections[branch], latents), []
    for _ in range(number):
      key, own = jax.random.split(key)
      centres = k_means(left, cfg.codebook_size, own)
      found.append(centres)
      left = left - centres[nearest(left, centres)]
    vectors = jnp.stack(found)
    books[branch] = {'embed_sum': vectors * count, 'cluster_usage': jnp.full(vectors.shape[:2], count, jnp.float32)}
  return books


def k_means(points: Float[Array, 'N H'], size: int, key: Array) -> Float[Array, 'K H']:
  """Lloyd's algorithm from random points; a centre without points goes to a random one."""
  first, later = jax.random.split(key)
  number = points.shape[0]

  def improve(i, centres):
    hot = jax.nn.one_hot(nearest(points, centres), size, dtype=jnp.float32)
    counts = hot.sum(axis=0)[:, None]
    means = jnp.einsum('NK,NH->KH', hot, points, precision='highest') / jnp.maximum(counts, 1)
    return jnp.where(counts > 0, means, points[jax.random.randint(jax.random.fold_in(later, i), (size,), 0, number)])

  start = points[jax.random.permutation(first, max(number, size))[:size] % number]
  return jax.lax.fori_loop(0, ROUNDS, improve, start)
