"""The decoder's laws: caches change nothing, padding changes nothing, depth costs no compile time."""

import dataclasses
import time

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
from qwen3_omni_jax.nn.params import init_params

B, T, D, SLOTS = 3, 11, 24, 16


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


LENGTHS = jnp.array([11, 6, 9])


@pytest.fixture(scope='module')
def inputs():
  cfg = config()
  params = init_params(thinker_spec(cfg), jax.random.key(0))
  ids = jax.random.randint(jax.random.key(1), (B, T), 0, 50)
  positions = jnp.broadcast_to(jnp.arange(T, dtype=jnp.float32) * 1.5, (3, B, T))
  segment = (jnp.arange(T) < LENGTHS[:, None]).astype(jnp.int32)
  visual = jnp.where((jnp.arange(T) > 2) & (jnp.arange(T) < 5), jnp.arange(T) - 3, -1)[None].repeat(B, 0)
  audio = jnp.where(jnp.arange(T) == 1, 1, -1)[None].repeat(B, 0)
  features = Features(
    audio=jax.random.normal(jax.random.key(2), (2, D)),
    visual=jax.random.normal(jax.random.key(3), (2, D)),
    deepstack=jax.random.normal(jax.random.key(4), (3, 2, D)),
  )
  return cfg, params, ThinkerTokens(ids, positions, segment, audio, visual), features


def part(tokens: ThinkerTokens, start: int, stop: int) -> ThinkerTokens:
  return jax.tree.map(lambda x: x[..., start:stop], tokens)


@pytest.mark.parametrize('chunks', [(6, 1, 1, 1, 1, 1), (4, 7), (3, 5, 3)])
def test_prefill_then_extend_equals_one_pass(inputs, chunks):
  cfg, params, tokens, features = inputs
  whole, trace = thinker_forward(params, cfg, tokens, features)
  cache = init_cache(cfg.text, B, SLOTS, jnp.float32)
  hidden, tap, at = [], [], 0
  for size in chunks:
    piece = part(tokens, at, at + size)
    if at == 0:
      out, cache = thinker_prefill(params, cfg, piece, features, cache, tap_layer=2)
    else:
      filled = jnp.minimum(at, LENGTHS)
      out, cache = thinker_extend(params, cfg, piece, features, filled, cache, tap_layer=2)
    hidden.append(out.hidden)
    tap.append(out.tap)
    at += size
  keep = np.asarray(tokens.segment, np.float32)[..., None]
  np.testing.assert_allclose(jnp.concatenate(hidden, 1) * keep, whole.hidden * keep, atol=3e-6)
  np.testing.assert_allclose(jnp.concatenate(tap, 1) * keep, trace.hidden[1] * keep, atol=3e-6)


def test_the_kernels_for_gpu_change_nothing(inputs, monkeypatch):
  """Prefill, a piece and a step through the cache, read in place, with experts in tiles; interpreted."""
  cfg, _, tokens, _ = inputs
  cfg = dataclasses.replace(cfg, text=dataclasses.replace(cfg.text, head_dim=16, mrope_section=(4, 2, 2)))
  params = init_params(thinker_spec(cfg), jax.random.key(0))

  def run():
    cache, outs = init_cache(cfg.text, B, SLOTS, jnp.float32), []
    for start, stop in ((0, 5), (5, 10), (10, 11)):
      piece = part(tokens, start, stop).replace(audio_index=None, visual_index=None)
      if start == 0:
        out, cache = thinker_prefill(params, cfg, piece, Features(), cache)
      else:
        out, cache = thinker_extend(params, cfg, piece, Features(), jnp.minimum(start, LENGTHS), cache)
      outs.append(jnp.where(piece.segment[..., None] != 0, out.hidden, 0))
    return jnp.concatenate(outs, axis=1)

  expected = run()
  monkeypatch.setenv('QWEN3_OMNI_KERNELS', 'attention=triton,experts=triton')
  np.testing.assert_allclose(run(), expected, atol=3e-6)


def test_padding_and_neighbours_change_nothing(inputs):
  cfg, params, tokens, features = inputs
  whole, _ = thinker_forward(params, cfg, tokens, features)
  for b, n in enumerate(LENGTHS.tolist()):
    alone = jax.tree.map(lambda x, b=b, n=n: x[..., b : b + 1, :n], tokens)
    out, _ = thinker_forward(params, cfg, alone, features)
    np.testing.assert_allclose(out.hidden[0], whole.hidden[b, :n], atol=3e-6)


def test_segments_packed_in_one_row_do_not_see_each_other(inputs):
  cfg, params, tokens, features = inputs
  first, second = part(tokens, 0, 6), part(tokens, 0, 5)
  packed = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=-1), first, second)
  packed = packed.replace(segment=jnp.concatenate([first.segment, 2 * second.segment], axis=-1))
  out, _ = thinker_forward(params, cfg, packed, features)
  for piece, start in ((first, 0), (second, 6)):
    alone, _ = thinker_forward(params, cfg, piece, features)
    length = piece.ids.shape[1]
    np.testing.assert_allclose(out.hidden[0, start : start + length], alone.hidden[0], atol=3e-6)


def test_remat_changes_no_gradient(inputs):
  cfg, params, tokens, features = inputs

  def loss(params, remat):
    return jnp.sum(jnp.sin(thinker_forward(params, cfg, tokens, features, remat=remat)[0].hidden))

  plain, remat = (jax.grad(loss)(params, r) for r in (False, True))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), plain, remat)


def test_the_module_declares_the_spec_and_calls_the_function(inputs):
  cfg, params, tokens, features = inputs
  shapes = jax.eval_shape(Thinker(cfg).init, jax.random.key(0), tokens, features)['params']
  assert jax.tree.map(lambda x: x.shape, shapes) == jax.tree.map(lambda x: x.shape, params)
  _, out, _ = Thinker(cfg).apply({'params': params}, tokens, features)
  expected, _ = thinker_forward(params, cfg, tokens, features)
  np.testing.assert_allclose(out.hidden, expected.hidden, atol=1e-6)


def test_compile_time_is_flat_in_depth():
  def seconds(layers: int) -> float:
    cfg = config(layers)
    params = jax.eval_shape(lambda: init_params(thinker_spec(cfg), jax.random.key(0)))
    cache = jax.eval_shape(lambda: init_cache(cfg.text, 1, 32, jnp.float32))
    tokens = ThinkerTokens(
      jax.ShapeDtypeStruct((1, 16), jnp.int32),
      jax.ShapeDtypeStruct((3, 1, 16), jnp.float32),
      jax.ShapeDtypeStruct((1, 16), jnp.int32),
    )
    run = lambda p, t, c: thinker_prefill(p, cfg, t, Features(), c)
    started = time.process_time()  # not the clock: whatever else the machine does is not counted
    jax.jit(run).lower(params, tokens, cache).compile()
    return time.process_time() - started

  jax.config.update('jax_enable_compilation_cache', False)
  try:
    seconds(2)  # first use of the compiler
    shallow = min(seconds(8) for _ in range(3))
    deep = min(seconds(48) for _ in range(3))
  finally:
    jax.config.update('jax_enable_compilation_cache', True)
  assert deep <= 1.5 * shallow
