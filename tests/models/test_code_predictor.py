"""The code predictor against the reference: every code of a frame, greedily and under teacher forcing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from qwen3_omni_jax.config import TalkerConfig, TextConfig
from qwen3_omni_jax.models import code_predictor as cp
from qwen3_omni_jax.nn.params import abstract_params
from tests.arrays import params_of
from tests.models.speech_reference import talker_pair

pytestmark = pytest.mark.quick_to_compile


def talker_config(predictor: TextConfig, groups: int) -> TalkerConfig:
  text = TextConfig(
    vocab_size=40,
    hidden_size=predictor.hidden_size,
    intermediate_size=14,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=6,
    mrope_section=(1, 1, 1),
    num_experts=3,
    num_experts_per_tok=2,
    moe_intermediate_size=7,
    shared_expert_intermediate_size=9,
  )
  return TalkerConfig(
    text,
    predictor,
    groups,
    thinker_hidden_size=11,
    accept_hidden_layer=1,
    codec_pad_id=30,
    codec_bos_id=31,
    codec_eos_token_id=32,
    codec_nothink_id=33,
    codec_think_bos_id=34,
    codec_think_eos_id=35,
  )


CONFIGS = pytest.mark.parametrize(
  'cfg',
  [
    talker_config(
      TextConfig(
        vocab_size=31,
        hidden_size=12,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
      ),
      5,
    ),
    talker_config(
      TextConfig(
        vocab_size=53,
        hidden_size=24,
        intermediate_size=18,
        num_hidden_layers=5,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=10,
        rope_theta=1e4,
      ),
      16,
    ),
  ],
  ids=['five_codes', 'sixteen_codes'],
)


def inputs(cfg, batch, seed=0):
  rng = np.random.default_rng(seed)
  return (rng.standard_normal((batch, cfg.text.hidden_size)).astype(np.float32) for _ in range(2))


def greedy(logits, step):
  return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def predict(cfg, params, hidden, embedding, pick=greedy):
  run = lambda p, h, e: cp.predict_codes(cp.prepare_predictor(p), cfg, h, e, pick)
  return jax.jit(run)(params, hidden, embedding)


@CONFIGS
def test_greedy_codes_equal_the_reference_generate(cfg):
  module, _, params = talker_pair(cfg, seed=1)
  hidden, embedding = inputs(cfg, 6)
  with torch.no_grad():
    want = module.code_predictor.generate(
      inputs_embeds=torch.tensor(np.stack([hidden, embedding], axis=1)),
      max_new_tokens=cfg.num_code_groups - 1,
      do_sample=False,
    ).numpy()
  codes, total = predict(cfg, params, hidden, embedding)
  np.testing.assert_array_equal(codes, want)
  assert len(np.unique(want)) > 5  # not one code repeated
  rows = np.stack([params['embed'][q, want[:, q]] for q in range(want.shape[1])])
  np.testing.assert_allclose(total, embedding + rows.sum(axis=0), rtol=0, atol=1e-5)  # order of summation


@CONFIGS
def test_known_codes_in_one_pass_give_the_logits_of_the_steps(cfg):
  _, _, params = talker_pair(cfg, seed=2)
  hidden, embedding = inputs(cfg, 3)
  rng = np.random.default_rng(4)
  forced = rng.integers(0, cfg.code_predictor.vocab_size, (3, cfg.num_code_groups - 1)).astype(np.int32)
  seen = []

  def pick(logits, step):
    jax.debug.callback(lambda value, at: seen.append((int(at), np.array(value))), logits, step)
    return jnp.asarray(forced)[:, step]

  codes, _ = predict(cfg, params, hidden, embedding, pick)
  np.testing.assert_array_equal(codes, forced)
  jax.effects_barrier()
  steps = np.stack([value for _, value in sorted(seen, key=lambda item: item[0])], axis=1)
  whole = jax.jit(lambda p, h, e, c: cp.code_predictor_forward(p, cfg, h, e, c))(params, hidden, embedding, forced)
  np.testing.assert_allclose(whole, steps, rtol=0, atol=5e-5 * np.abs(steps).max())  # float32, other summation order


def test_in_bfloat16_the_sum_of_embeddings_is_rounded_once():
  cfg = CONFIGS.args[1][1]
  params = jax.tree.map(lambda w: jnp.asarray(w, jnp.bfloat16), params_of(cp.code_predictor_spec(cfg)))
  hidden, embedding = (jnp.asarray(x, jnp.bfloat16) for x in inputs(cfg, 6))
  run = lambda p, h, e: cp.predict_codes(cp.prepare_predictor(p, jnp.bfloat16), cfg, h, e, greedy)
  codes, total = jax.jit(run)(params, hidden, embedding)
  rows = [np.asarray(params['embed'][q, codes[:, q]], np.float32) for q in range(codes.shape[1])]
  exact = np.sum([np.asarray(embedding, np.float32), *rows], axis=0)
  np.testing.assert_array_equal(total, exact.astype(jnp.bfloat16))


def test_a_row_does_not_depend_on_its_neighbours():
  cfg = CONFIGS.args[1][0]
  _, _, params = talker_pair(cfg, seed=3)
  hidden, embedding = inputs(cfg, 4)
  together, _ = predict(cfg, params, hidden, embedding)
  alone, _ = predict(cfg, params, hidden[2:3], embedding[2:3])
  np.testing.assert_array_equal(together[2:3], alone)


def test_the_published_predictor_has_15_embeddings_and_heads():
  predictor = TextConfig(2048, 1024, 3072, 5, 16, 8, 128)
  cfg = talker_config(predictor, 16)
  shapes = jax.eval_shape(cp.prepare_predictor, abstract_params(cp.code_predictor_spec(cfg)))
  assert shapes.embed.shape == (15, 2048, 1024) and shapes.head.shape == (15, 1024, 2048)
  assert sum(x.size for x in jax.tree.leaves(shapes)) == 141_570_304


def test_the_module_is_the_function_over_its_own_parameters():
  cfg = CONFIGS.args[1][0]
  hidden, embedding = inputs(cfg, 3)
  codes = np.arange(12, dtype=np.int32).reshape(3, 4)
  module = cp.CodePredictor(cfg)
  params = params_of(cp.code_predictor_spec(cfg))
  declared = jax.eval_shape(module.init, jax.random.key(0), hidden, embedding, codes)
  assert jax.tree.map(jnp.shape, declared) == {'params': jax.tree.map(jnp.shape, params)}
  got = jax.jit(module.apply)({'params': params}, hidden, embedding, codes)
  want = jax.jit(lambda p, h, e, c: cp.code_predictor_forward(p, cfg, h, e, c))(params, hidden, embedding, codes)
  np.testing.assert_array_equal(got, want)
  assert got.shape == (3, 4, cfg.code_predictor.vocab_size)
