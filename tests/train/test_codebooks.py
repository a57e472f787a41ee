"""Codebooks in training: moving averages, revival, k-means, and what the decoder gets of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from qwen3_omni_jax.train.vocoder import codebooks

from qwen3_omni_jax.codec_config import CodecConfig

pytestmark = pytest.mark.quick_to_compile
CFG = CodecConfig(
  hidden_size=6, codebook_size=5, codebook_dim=3, vector_quantization_hidden_dimension=3, num_quantizers=4, num_code_groups=4
)
B, F = 2, 7


def arrays():
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  projections = {b: {'input': {'kernel': draw(6, 3)}, 'output': {'kernel': draw(3, 6)}} for b in ('semantic', 'acoustic')}
  usage = lambda n: jnp.asarray(rng.uniform(1, 2, size=(n, 5)), jnp.float32)
  books = {b: {'embed_sum': draw(n, 5, 3), 'cluster_usage': usage(n)} for b, n in (('semantic', 1), ('acoustic', 3))}
  return projections, books, draw(B, F, 6)


def quantised(keep=4, use=True, latents=None):
  projections, books, z = arrays()
  return codebooks.quantise_through(
    projections, books, CFG, z if latents is None else latents, jnp.full(B, keep), jnp.full(B, use)
  )


def codes_of(found) -> np.ndarray:
  return np.concatenate([np.asarray(found.codes[b]) for b in ('semantic', 'acoustic')]).reshape(4, B, F)


def test_the_exported_table_of_integer_codes_is_what_the_decoder_was_trained_on():
  projections, books, _ = arrays()
  found = quantised()
  table = np.asarray(codebooks.export_table(projections, books, CFG)).reshape(4, 5, 6)
  mean = np.mean([table[q][codes_of(found)[q]] for q in range(4)], axis=0)
  np.testing.assert_allclose(mean, found.latents, atol=1e-5)


def test_rows_see_their_first_codebooks_alone_or_the_projected_latent():
  projections, books, z = arrays()
  table = np.asarray(codebooks.export_table(projections, books, CFG)).reshape(4, 5, 6) / 4
  two = sum(table[q][codes_of(quantised())[q]] for q in range(2))
  np.testing.assert_allclose(quantised(keep=2).latents, two, atol=1e-5)
  through = sum(z @ p['input']['kernel'] @ p['output']['kernel'] for p in projections.values())
  np.testing.assert_allclose(quantised(use=False).latents, through, atol=1e-5)


def test_the_gradient_passes_the_quantiser_as_if_it_were_not_there():
  projections, _, z = arrays()
  gradient = jax.grad(lambda z: quantised(latents=z).latents.sum())(z)
  wanted = sum((p['input']['kernel'] @ p['output']['kernel']).sum(axis=1) for p in projections.values())
  np.testing.assert_allclose(gradient, np.broadcast_to(wanted, z.shape), rtol=1e-4, atol=1e-5)


def test_commitment_does_not_change_with_the_scale_of_latents_and_books():
  projections, books, z = arrays()
  larger = {b: {**book, 'embed_sum': 30 * book['embed_sum']} for b, book in books.items()}
  whole, use = jnp.full(B, 4), jnp.full(B, True)
  found = codebooks.quantise_through(projections, larger, CFG, 30 * z, whole, use).commitment
  np.testing.assert_allclose(found, quantised().commitment, rtol=1e-4)
  pull = jax.grad(lambda z: codebooks.quantise_through(projections, books, CFG, z, whole, use).commitment)(z)
  assert np.abs(pull).max() > 1e-3


def test_books_move_as_in_the_textbook():
  _, books, _ = arrays()
  found = quantised()
  moved, revived, perplexity = codebooks.move_books(books, found.codes, found.given, 0.9, 0.0, jax.random.key(0))
  entropies = []
  for branch, book in books.items():
    for q in range(len(book['embed_sum'])):
      counts = np.zeros(5)
      for k in range(5):
        mine = np.asarray(found.given[branch][q])[np.asarray(found.codes[branch][q]) == k]
        counts[k] = len(mine)
        usage = 0.9 * book['cluster_usage'][q, k] + 0.1 * len(mine)
        sums = 0.9 * book['embed_sum'][q, k] + 0.1 * mine.sum(axis=0)
        np.testing.assert_allclose(moved[branch]['cluster_usage'][q, k], usage, rtol=1e-5)
        np.testing.assert_allclose(moved[branch]['embed_sum'][q, k], sums, rtol=1e-4, atol=1e-5)
      share = counts[counts > 0] / counts.sum()
      entropies.append(np.exp(-(share * np.log(share)).sum()))
  assert int(revived) == 0
  np.testing.assert_allclose(perplexity, np.mean(entropies), rtol=1e-4)


def test_a_dead_entry_is_put_on_something_that_its_codebook_was_given():
  _, books, _ = arrays()
  found = quantised()
  chosen = set(np.asarray(found.codes['acoustic'][1]).tolist())
  dead = next(k for k in range(5) if k not in chosen or len(chosen) == 5)
  books['acoustic']['cluster_usage'] = books['acoustic']['cluster_usage'].at[1, dead].set(-10.0)
  moved, revived, _ = codebooks.move_books(books, found.codes, found.given, 0.9, 0.1, jax.random.key(0))
  entry = codebooks.entries(moved['acoustic'])[1, dead]
  given = np.asarray(found.given['acoustic'][1])
  assert int(revived) == 1 and np.abs(given - entry).sum(axis=1).min() < 1e-4
  np.testing.assert_allclose(moved['acoustic']['cluster_usage'][1, dead], B * F / 5)


def test_k_means_finds_clusters_and_each_codebook_quantises_what_is_left():
  rng = np.random.default_rng(1)
  centres = 10 * rng.normal(size=(5, 6))
  points = jnp.asarray((centres[:, None] + 0.1 * rng.normal(size=(5, 40, 6))).reshape(-1, 6), jnp.float32)
  projections, _, _ = arrays()
  books = codebooks.first_books(projections, CFG, points, 2.0, jax.random.key(3))
  z = points[None]
  found = codebooks.quantise_through(projections, books, CFG, z, jnp.full(1, 4), jnp.full(1, True))
  left = {b: np.square(np.asarray(found.given[b])).mean(axis=(1, 2)) for b in found.given}
  assert left['acoustic'][0] > 2 * left['acoustic'][1] > 2 * left['acoustic'][2] > 0
  np.testing.assert_array_equal(books['semantic']['cluster_usage'], np.full((1, 5), 2.0))
