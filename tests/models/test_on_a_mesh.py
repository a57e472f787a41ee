"""Whole networks on meshes: outputs, loss, every gradient and a step of the optimiser equal those of one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from qwen3_omni_jax.tools.tiny import MEDIA_TOKEN_FIELDS, TOKEN_FIELDS, make_config

from qwen3_omni_jax.config import parse_config
from qwen3_omni_jax.models.audio_encoder import encode_audio
from qwen3_omni_jax.models.omni import omni_spec
from qwen3_omni_jax.models.talker import code_logits, talker_forward
from qwen3_omni_jax.models.thinker import Features, ThinkerTokens, logits, thinker_forward
from qwen3_omni_jax.models.vision_encoder import encode_vision
from qwen3_omni_jax.nn.params import init_params
from qwen3_omni_jax.sharding import make_mesh, param_shardings

B, T, WINDOWS, FRAMES = 8, 32, 8, 8
MESHES = {
  'dp8': ({'data': 8}, 1), 'fsdp8': ({'fsdp': 8}, 1), 'ep8': ({'expert': 8}, 1), 'ep4 fsdp2': ({'expert': 4, 'fsdp': 2}, 1),
  'tp4 fsdp2': ({'tensor': 4, 'fsdp': 2}, 1), 'cp2 ep4': ({'context': 2, 'expert': 4}, 1),
  'dp2 fsdp2 ep2': ({'data': 2, 'fsdp': 2, 'expert': 2}, 1), '2 slices': ({'data': 2, 'fsdp': 2, 'expert': 2}, 2),
}  # fmt: skip


@functools.cache
def config():
  tokens = [*TOKEN_FIELDS.values(), *MEDIA_TOKEN_FIELDS.values()]
  data = make_config('tiny', 'instruct', {token: i for i, token in enumerate(tokens)})
  data['thinker_config']['text_config'] |= {'num_hidden_layers': 3, 'num_attention_heads': 8, 'vocab_size': 96}
  data['thinker_config']['audio_config'] |= {'encoder_layers': 2}
  data['thinker_config']['vision_config'] |= {'depth': 3, 'deepstack_visual_indexes': [0, 2]}
  data['talker_config'] |= {'accept_hidden_layer': 2}
  data['talker_config']['text_config'] |= {'num_hidden_layers': 2, 'num_experts': 8}
  return parse_config(data)


@functools.cache
def params_and_batch():
  cfg, rng = config(), np.random.default_rng(0)
  params = {part: init_params(omni_spec(cfg)[part], jax.random.key(7)) for part in ('audio', 'vision', 'thinker', 'talker')}
  index = np.full((2, B, T), -1, np.int32)
  for b in range(B):  # 13 audio tokens and 4 visual ones in each row
    index[0, b, 3:16] = b * 26 + np.arange(13)
    index[1, b, 18:22] = b * 4 + np.arange(4)
  rows, cols = (np.tile(at.reshape(1, -1), (FRAMES, 1)).astype(np.int32) for at in np.indices((4, 4)))
  segment = np.ones((B, T), np.int32)
  segment[2, 25:], segment[5, 20:] = 2, 0  # a packed row and a padded one
  batch = {
    'ids': rng.integers(0, 96, (B, T)).astype(np.int32),
    'positions': np.broadcast_to(np.arange(T, dtype=np.float32), (3, B, T)).copy(),
    'segment': segment, 'audio_index': index[0], 'visual_index': index[1],
    'mel': rng.standard_normal((WINDOWS, 200, 128), dtype=np.float32),
    'frames': np.full(WINDOWS, 200, np.int32), 'conv_frames': np.full(WINDOWS, 100, np.int32),
    'patches': rng.standard_normal((FRAMES, 16, cfg.thinker.vision.patch_dim), dtype=np.float32),
    'rows': rows, 'cols': cols, 'side': np.full(FRAMES, 4, np.int32),
    'codes': rng.standard_normal((B, T, cfg.talker.text.hidden_size), dtype=np.float32),
  }  # fmt: skip
  return params, batch


def loss(params, batch, cfg):
  """Cross-entropy of the Thinker over all media, and of the Talker; with the outputs."""
  thinker = cfg.thinker
  audio = encode_audio(params['audio'], thinker.audio, batch['mel'], batch['frames'], batch['conv_frames'])
  visual, deepstack = encode_vision(
    params['vision'], thinker.vision, batch['patches'], batch['rows'], batch['cols'], batch['side'], batch['side'],
    batch['side'] ** 2,
  )  # fmt: skip
  flat = lambda x: x.reshape(*x.shape[:-3], -1, x.shape[-1])
  tokens = ThinkerTokens(batch['ids'], batch['positions'], batch['segment'], batch['audio_index'], batch['visual_index'])
  out, _ = thinker_forward(params['thinker'], thinker, tokens, Features(flat(audio), flat(visual), flat(deepstack)))
  scores = logits(params['thinker'], out.hidden)
  spoken, _ = talker_forward(params['talker'], cfg.talker, batch['codes'], batch['positions'], batch['segment'])
  codes = code_logits(params['talker'], spoken)
  valid = batch['segment'] != 0
  cross = lambda s: -jnp.where(valid, jnp.take_along_axis(jax.nn.log_softmax(s), batch['ids'][..., None], -1)[..., 0], 0)
  return (cross(scores).sum() + cross(codes).sum()) / valid.astype(jnp.float32).sum(), (scores, codes)


OPTIMISER = optax.adamw(1e-3)


# Compiling takes far longer than running here: leave out what only makes programs fast.
@functools.partial(jax.jit, static_argnames='cfg', compiler_options={'xla_backend_optimization_level': 0})
def step(params, batch, cfg):
  (value, outputs), grads = jax.value_and_grad(loss, has_aux=True)(params, batch, cfg)
  with jax.numpy_dtype_promotion('standard'):  # inside optax
    updates, _ = OPTIMISER.update(grads, OPTIMISER.init(params), params)
  return value, outputs, grads, optax.apply_updates(params, updates)


@pytest.fixture(scope='module')
def expected():
  return jax.device_get(step(*params_and_batch(), config()))


@pytest.mark.parametrize('name', MESHES)
def test_a_step_equals_that_of_one_device(expected, name):
  (shape, slices), cfg, (params, batch) = MESHES[name], config(), params_and_batch()
  mesh = make_mesh(shape, slices=slices)
  onto = param_shardings({part: omni_spec(cfg)[part] for part in params}, mesh)
  with jax.set_mesh(mesh):
    got = step(jax.device_put(params, onto), batch, cfg)
  if shape.get('fsdp', 1) * shape.get('expert', 1) * shape.get('tensor', 1) > 1:
    gate = got[3]['thinker']['layers']['moe']['experts']['gate']
    assert gate.addressable_shards[0].data.size < gate.size  # what was cut stays cut
  grads = expected[2]
  largest = max(np.abs(g).max() for g in jax.tree.leaves(grads))
  # Key biases have no gradient in exact arithmetic: theirs is rounding on both sides. And Adam's first step is the
  # gradient's sign, whatever its size: only where that is certain can steps be compared.
  floors = (0, 0, 1e-7 * largest, 0)
  certain = jax.tree.map(lambda g: np.abs(g) > 1e-4 * np.abs(g).max() + 1e-6 * largest, grads)
  compared = (True, (True, True), jax.tree.map(lambda g: True, grads), certain)
  ours = jax.device_get(got)
  for part, floor in enumerate(floors):
    theirs, wheres = jax.tree.leaves(expected[part]), jax.tree.leaves(compared[part])
    for (path, a), b, where in zip(jax.tree.leaves_with_path(ours[part]), theirs, wheres, strict=True):
      difference = np.abs(a - b).max(where=where, initial=0)
      bound = max(1e-5 * np.abs(b).max(), floor)  # float32 sums in another order
      assert difference <= bound, f'{part}{jax.tree_util.keystr(path)}: {difference:.1e}, allowed {bound:.1e}'
