"""The counter of operations: equal to XLA's own count of every network, laid out without loops; sums and factors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from qwen3_omni_jax.tools.tiny import MEDIA_TOKEN_FIELDS, TOKEN_FIELDS, make_config

from qwen3_omni_jax.config_json import load_config, parse_config
from qwen3_omni_jax.flops import Work, by_part, causal_pairs, forward_flops, train_flops
from qwen3_omni_jax.hardware import accelerator, parse_topology, peak_flops
from qwen3_omni_jax.models import audio_encoder
from qwen3_omni_jax.models import code2wav as vocoder
from qwen3_omni_jax.models.audio_encoder import encode_audio
from qwen3_omni_jax.models.code2wav import code2wav
from qwen3_omni_jax.models.code_predictor import code_predictor_forward
from qwen3_omni_jax.models.omni import omni_spec
from qwen3_omni_jax.models.talker import code_logits, project, talker_forward
from qwen3_omni_jax.models.thinker import Features, ThinkerTokens, logits, thinker_forward
from qwen3_omni_jax.models.vision_encoder import encode_vision
from qwen3_omni_jax.nn import moe
from qwen3_omni_jax.nn.params import abstract_params
from tests.conftest import ROOT

pytestmark = pytest.mark.quick_to_compile


@functools.cache
def config():
  """Tiny, but wide enough that matrix products outweigh everything else; all sizes different."""
  data = make_config('tiny', 'instruct', {t: i for i, t in enumerate([*TOKEN_FIELDS.values(), *MEDIA_TOKEN_FIELDS.values()])})
  thinker, talker = data['thinker_config'], data['talker_config']
  wide = {'head_dim': 64, 'num_attention_heads': 6, 'num_key_value_heads': 2}
  rope = {'rope_type': 'default', 'rope_theta': 1e6, 'mrope_section': [12, 10, 10]}
  thinker['text_config'] |= wide | {
    'hidden_size': 384,
    'num_hidden_layers': 3,
    'num_experts': 8,
    'num_experts_per_tok': 3,
    'moe_intermediate_size': 320,
    'vocab_size': 640,
    'rope_parameters': rope,
  }
  thinker['audio_config'] |= {
    'd_model': 256,
    'encoder_layers': 2,
    'encoder_attention_heads': 4,
    'encoder_ffn_dim': 640,
    'downsample_hidden_size': 48,
    'output_dim': 384,
  }
  thinker['vision_config'] |= {
    'depth': 3,
    'hidden_size': 192,
    'num_heads': 4,
    'intermediate_size': 448,
    'out_hidden_size': 384,
    'deepstack_visual_indexes': [0, 1],
  }
  talker |= {'thinker_hidden_size': 384, 'accept_hidden_layer': 2, 'num_code_groups': 5}
  talker['text_config'] |= wide | {
    'hidden_size': 288,
    'num_hidden_layers': 2,
    'num_experts': 4,
    'num_experts_per_tok': 2,
    'moe_intermediate_size': 352,
    'shared_expert_intermediate_size': 416,
    'intermediate_size': 480,
    'vocab_size': 3000,
    'rope_parameters': rope,
  }
  talker['code_predictor_config'] |= {
    'hidden_size': 288,
    'num_hidden_layers': 2,
    'intermediate_size': 544,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'head_dim': 64,
    'vocab_size': 512,
    'num_code_groups': 5,
  }
  data['code2wav_config'] |= {
    'num_quantizers': 5,
    'hidden_size': 192,
    'intermediate_size': 448,
    'num_attention_heads': 4,
    'num_key_value_heads': 4,
    'num_hidden_layers': 2,
    'decoder_dim': 256,
    'upsample_rates': [3, 2],
    'upsampling_ratios': [2],
  }
  return parse_config(data)


B, T = 2, 24


def _thinker(params, cfg):
  ones = jnp.ones((B, T), jnp.int32)
  positions = jnp.broadcast_to(jnp.arange(T, dtype=jnp.float32), (3, B, T))
  out, _ = thinker_forward(params['thinker'], cfg.thinker, ThinkerTokens(ones, positions, ones), Features())
  return logits(params['thinker'], out.hidden[:, -5:])


def _talker(params, cfg):
  ones = jnp.ones((B, T), jnp.int32)
  positions = jnp.broadcast_to(jnp.arange(T, dtype=jnp.float32), (3, B, T))
  embeds = project(params['talker']['text_projection'], jnp.ones((B, T, cfg.talker.thinker_hidden_size)))
  hidden, _ = talker_forward(params['talker'], cfg.talker, embeds, positions, ones)
  return code_logits(params['talker'], hidden)


def _audio(params, cfg):
  mel, full = jnp.ones((3, 200, 128)), jnp.full(3, 200, jnp.int32)
  return encode_audio(params['audio'], cfg.thinker.audio, mel, full, jnp.full(3, 100, jnp.int32), windows_at_once=3)


def _vision(params, cfg):
  at, size = jnp.zeros((2, 64), jnp.int32), jnp.full(2, 8, jnp.int32)
  patches = jnp.ones((2, 64, 1536))
  return encode_vision(params['vision'], cfg.thinker.vision, patches, at, at, size, size, jnp.full(2, 64, jnp.int32))


def _predictor(params, cfg):
  x = jnp.ones((7, cfg.talker.text.hidden_size))
  return code_predictor_forward(params['code_predictor'], cfg.talker, x, x, jnp.ones((7, 4), jnp.int32))


def _wave(params, cfg):
  return code2wav(params['code2wav'], cfg.code2wav, jnp.ones((2, 11, 5), jnp.int32))


# The dense attention computes every pair of a block, seen or not: what XLA counts is `computed`.
NETWORKS = {
  'thinker': (_thinker, Work.of_lengths(config(), [T, T], logits=10), {'pairs': B * T * T}),
  'talker': (_talker, Work.of_lengths(config(), talker=[T, T]), {'talker_pairs': B * T * T}),
  'audio': (_audio, Work.of_lengths(config(), audio=[200, 200, 200]), {}),
  'vision': (_vision, Work.of_lengths(config(), frames=[64, 64]), {}),
  'code_predictor': (_predictor, Work.of_lengths(config(), code_frames=7), {}),
  'code2wav': (_wave, Work.of_lengths(config(), wave=[11, 11]), {'wave_pairs': 2 * 11 * (11 + 71)}),
}


@pytest.mark.parametrize('part', NETWORKS)
def test_the_count_is_that_of_xla_without_loops(part, monkeypatch):
  function, work, computed = NETWORKS[part]
  cfg = config()
  # XLA counts the body of a loop once, however often it runs; and experts by the pair are the only form without padding.
  monkeypatch.setattr(jax.lax, 'scan', functools.partial(jax.lax.scan, unroll=True))
  monkeypatch.setattr(moe, 'experts_form', lambda *sizes: 'gathered')
  monkeypatch.setattr(audio_encoder, 'gelu', lambda x: x)  # some 50 operations each, on the many outputs of convolutions
  monkeypatch.setattr(vocoder, '_snake', lambda x, p: x)
  params = {part: abstract_params(omni_spec(cfg)[part])}
  xla = jax.jit(function, static_argnums=1).lower(params, cfg).cost_analysis()['flops']
  ours = sum(forward_flops(cfg, dataclasses.replace(work, **computed)).values())
  # What is missing is element-wise: norms, rotations, activations, softmax, a few operations for each value.
  assert 0 <= xla - ours < 0.03 * xla, f'{part}: XLA counts {xla:.4g}, we {ours:.4g}, {ours / xla:.4f} of it'


def test_a_step_with_a_cache_adds_up_to_the_whole_sequence():
  cfg, n = config(), 9
  steps = sum((Work.of_step(2, context + 1) for context in range(n)), Work())
  assert forward_flops(cfg, steps) == forward_flops(cfg, Work.of_lengths(cfg, [n, n]))
  frames = sum((Work.of_frame(2, context + 1) for context in range(n)), Work())
  assert forward_flops(cfg, frames) == forward_flops(cfg, Work.of_lengths(cfg, talker=[n, n], code_frames=2 * n))


def test_pairs_are_those_that_see_one_another():
  for length, window in ((7, None), (7, 3), (3, 3), (2, 3)):
    query, key = np.indices((length, length))
    sees = (key <= query) & (True if window is None else query - key < window)
    assert causal_pairs(length, window) == sees.sum()
  packed, whole = Work.of_lengths(config(), [5, 3]), Work.of_lengths(config(), [8])
  assert packed.tokens == whole.tokens and packed.pairs == 15 + 6 < whole.pairs
  clip = Work.of_lengths(config(), audio=[1730])  # windows of 8 s, 8 s and 130 frames
  assert (clip.audio_chunks, clip.audio_tokens, clip.audio_pairs) == (18, 104 + 104 + 17, 2 * 104**2 + 17**2)


def test_backward_costs_twice_the_weights_that_learn_and_once_those_passed_through():
  cfg = config()
  work = Work.of_lengths(cfg, [64], audio=[400], frames=[64])
  once = forward_flops(cfg, work)
  assert train_flops(cfg, work) == {name: 3 * n for name, n in once.items()}
  aligned = train_flops(cfg, work, trained=('audio.projection',), passed=('thinker',))  # the adapter alone learns
  for name, n in once.items():
    times = {'audio.projection': 3, 'thinker.scores': 3}.get(name, 2 if name.startswith('thinker.') else 1)
    assert aligned[name] == times * n, name
  assert by_part(once)['vision'] == sum(n for name, n in once.items() if name.startswith('vision.'))
  with pytest.raises(ValueError, match='parts speech: expected some of audio, vision'):
    train_flops(cfg, work, trained=('speech',))


def test_the_released_model_has_the_published_active_size():
  """30B-A3B: 3.3 billion parameters work on a token, embedding left out and head included."""
  cfg = load_config(ROOT / 'configs' / 'model' / 'instruct.json')
  flops = forward_flops(cfg, Work(tokens=1, logits=1))
  assert 3.0e9 < sum(flops.values()) / 2 < 3.35e9


def test_hardware_is_found_by_name_and_by_what_jax_calls_it():
  assert peak_flops('TPU v5') == accelerator('V5P').flops and peak_flops('TPU v5 lite') == accelerator('v5e').flops
  assert peak_flops(jax.devices()[0]) is None
  pod, gpus = parse_topology('v6e:16x16', slices=2), parse_topology('gpu:8xh200')
  assert (pod.devices, pod.name, gpus.devices, gpus.name) == (512, 'v6e:16x16', 8, 'gpu:8xH200')
  assert parse_topology('tpu7x:2x2x1').devices == 8  # two devices a chip
  for text in ('v5p', 'v9:2x2', 'gpu:H200', 'gpu:8xv5p', 'v5p:0x2', 'H200:2x2'):
    with pytest.raises(ValueError, match='expected a TPU slice as in v5p:4x4x4'):
      parse_topology(text)
  with pytest.raises(ValueError, match='expected one of v5e, v5p'):
    accelerator('v4')
