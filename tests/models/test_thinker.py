"""The decoder's laws: caches change nothing, padding changes nothing, depth costs no compile time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_omni_jax.config import AudioConfig, TextConfig, ThinkerConfig, VisionConfig
from qwen3_omni_jax.models.thinker import (
  Features,
  Thinker,
  ThinkerTokens,
  thinker_extend,
  thinker_forward,
  thinker_prefill,
  thinker_spec,
)
from qwen3_omni_jax.nn.cache import init_cache
from qwen3_omni_jax.nn.params import abstract_params
from tests.arrays import normal, params_of

pytestmark = pytest.mark.quick_to_compile

B, T, D, SLOTS = 3, 11, 24, 16

forward = jax.jit(thinker_forward, static_argnames=('cfg', 'remat'))
prefill = jax.jit(thinker_prefill, static_argnames=('cfg', 'tap_layer'))
extend = jax.jit(thinker_extend, static_argnames=('cfg', 'tap_layer'))


def config(layers=5, shared=0) -> ThinkerConfig:
  text = TextConfig(
    vocab_size=50,
    hidden_size=D,
    intermediate_size=9,
    num_hidden_layers=layers,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    mrope_section=(2, 1, 1),
    num_experts=7,
    num_experts_per_tok=2,
    moe_intermediate_size=10,
    shared_expert_intermediate_size=shared,
  )
  ids = dict(vision_start_token_id=1, vision_end_token_id=2, audio_end_token_id=3)
  return ThinkerConfig(AudioConfig(output_dim=D), VisionConfig(out_hidden_size=D), text, **ids)


LENGTHS = np.array([11, 6, 9], np.int32)


@pytest.fixture(scope='module')
def inputs():
  cfg = config()
  params = params_of(thinker_spec(cfg))
  at = np.arange(T, dtype=np.int32)
  ids = np.random.default_rng(1).integers(0, 50, (B, T)).astype(np.int32)
  positions = np.broadcast_to(at * np.float32(1.5), (3, B, T))
  segment = (at < LENGTHS[:, None]).astype(np.int32)
  visual = np.where((at > 2) & (at < 5), at - 3, -1)[None].repeat(B, 0)
  audio = np.where(at == 1, 1, -1)[None].repeat(B, 0)
  features = Features(audio=normal(2, 2, D), visual=normal(3, 2, D), deepstack=normal(4, 3, 2, D))
  return cfg, params, ThinkerTokens(ids, positions, segment, audio, visual), features


def part(tokens: ThinkerTokens, start: int, stop: int) -> ThinkerTokens:
  return jax.tree.map(lambda x: x[..., start:stop], tokens)


@pytest.mark.parametrize('chunks', [(3, 1, 1, 1, 1, 1, 3), (3, 5, 3)])
def test_prefill_then_extend_equals_one_pass(inputs, chunks):
  cfg, params, tokens, features = inputs
  whole, trace = forward(params, cfg, tokens, features)
  cache = init_cache(cfg.text, B, SLOTS, jnp.float32)
  hidden, tap, at = [], [], 0
  for size in chunks:
    piece = part(tokens, at, at + size)
    if at == 0:
      out, cache = prefill(params, cfg, piece, features, cache, tap_layer=2)
    else:
      filled = np.minimum(at, LENGTHS)
      out, cache = extend(params, cfg, piece, features, filled, cache, tap_layer=2)
    hidden.append(out.hidden)
    tap.append(out.tap)
    at += size
  keep = np.asarray(tokens.segment, np.float32)[..., None]
  np.testing.assert_allclose(np.concatenate(hidden, 1) * keep, np.asarray(whole.hidden) * keep, atol=3e-6)
  np.testing.assert_allclose(np.concatenate(tap, 1) * keep, np.asarray(trace.hidden[1]) * keep, atol=3e-6)


def test_the_kernels_for_gpu_change_nothing(inputs, monkeypatch):
  """Prefill, a piece and a step through the cache, read in place, with experts in tiles; interpreted."""
  cfg, _, tokens, _ = inputs
  cfg = dataclasses.replace(cfg, text=dataclasses.replace(cfg.text, head_dim=16, mrope_section=(4, 2, 2)))
  params = params_of(thinker_spec(cfg))

  def run():
    cache, outs = init_cache(cfg.text, B, SLOTS, jnp.float32), []
    for start, stop in ((0, 5), (5, 10), (10, 11)):
      piece = part(tokens, start, stop).replace(audio_index=None, visual_index=None)
      if start == 0:
        out, cache = thinker_prefill(params, cfg, piece, Features(), cache)
      else:
        out, cache = thinker_extend(params, cfg, piece, Features(), np.minimum(start, LENGTHS), cache)
      outs.append(jnp.where(piece.segment[..., None] != 0, out.hidden, 0))
    return jnp.concatenate(outs, axis=1)

  expected = jax.jit(run)()
  monkeypatch.setenv('QWEN3_OMNI_KERNELS', 'attention=triton,experts=triton')
  np.testing.assert_allclose(jax.jit(lambda: run())(), expected, atol=3e-6)


def test_padding_and_neighbours_change_nothing(inputs):
  cfg, params, tokens, features = inputs
  whole, _ = forward(params, cfg, tokens, features)
  for b in (0, 1):  # a whole row, and one with padding
    n = LENGTHS[b]
    alone = jax.tree.map(lambda x, b=b, n=n: x[..., b : b + 1, :n], tokens)
    out, _ = forward(params, cfg, alone, features)
    np.testing.assert_allclose(out.hidden[0], whole.hidden[b, :n], atol=3e-6)


def test_segments_packed_in_one_row_do_not_see_each_other(inputs):
  cfg, params, tokens, features = inputs
  first, second = part(tokens, 0, 6), part(tokens, 0, 5)
  packed = jax.tree.map(lambda a, b: np.concatenate([a, b], axis=-1), first, second)
  packed = packed.replace(segment=np.concatenate([first.segment, 2 * second.segment], axis=-1))
  out, _ = forward(params, cfg, packed, features)
  for piece, start in ((first, 0), (second, 6)):
    alone, _ = forward(params, cfg, piece, features)
    length = piece.ids.shape[1]
    np.testing.assert_allclose(out.hidden[0, start : start + length], alone.hidden[0], atol=3e-6)


def test_remat_changes_no_gradient(inputs):
  cfg, params, tokens, features = inputs

  def loss(params, remat):
    return jnp.sum(jnp.sin(thinker_forward(params, cfg, tokens, features, remat=remat)[0].hidden))

  plain, remat = (jax.jit(jax.grad(loss), static_argnums=1)(params, r) for r in (False, True))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), plain, remat)


def test_the_module_declares_the_spec_and_calls_the_function(inputs):
  cfg, params, tokens, features = inputs
  shapes = jax.eval_shape(Thinker(cfg).init, jax.random.key(0), tokens, features)['params']
  assert jax.tree.map(lambda x: x.shape, shapes) == jax.tree.map(lambda x: x.shape, params)
  _, out, _ = jax.jit(Thinker(cfg).apply)({'params': params}, tokens, features)
  expected, _ = forward(params, cfg, tokens, features)
  np.testing.assert_allclose(out.hidden, expected.hidden, atol=1e-6)


def test_compile_time_work_is_flat_in_depth():
  """Layers are scanned: the program of 48 layers is the program of 8."""

  def instructions(layers: int) -> int:
    cfg = config(layers)
    params = abstract_params(thinker_spec(cfg))
    cache = jax.eval_shape(lambda: init_cache(cfg.text, 1, 32, jnp.float32))
    tokens = ThinkerTokens(
      jax.ShapeDtypeStruct((1, 16), jnp.int32),
      jax.ShapeDtypeStruct((3, 1, 16), jnp.float32),
      jax.ShapeDtypeStruct((1, 16), jnp.int32),
    )
    return prefill.lower(params, cfg, tokens, Features(), cache).compile().as_text().count('\n')

  assert instructions(48) == instructions(8)
