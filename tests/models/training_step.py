"""A small model with encoders and Talker, a batch with all media, and one step of the optimiser: what meshes must not change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from qwen3_omni_jax.tools.tiny import MEDIA_TOKEN_FIELDS, TOKEN_FIELDS, make_config

from qwen3_omni_jax.config_json import parse_config
from qwen3_omni_jax.models.audio_encoder import encode_audio
from qwen3_omni_jax.models.omni import omni_spec
from qwen3_omni_jax.models.talker import code_logits, talker_forward
from qwen3_omni_jax.models.thinker import Features, ThinkerTokens, logits, thinker_forward
from qwen3_omni_jax.models.vision_encoder import encode_vision
from qwen3_omni_jax.sharding import param_shardings
from tests import quick
from tests.arrays import params_of

B, T, WINDOWS, FRAMES = 8, 32, 8, 8
WITHOUT_SPEECH = ('audio', 'vision', 'thinker')
PARTS = (*WITHOUT_SPEECH, 'talker')


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
def params_and_batch(parts=PARTS):
  cfg, rng = config(), np.random.default_rng(0)
  params = params_of({part: omni_spec(cfg)[part] for part in parts}, 7)
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
    'segment': segment,
    'audio_index': index[0],
    'visual_index': index[1],
    'mel': rng.standard_normal((WINDOWS, 200, 128), dtype=np.float32),
    'frames': np.full(WINDOWS, 200, np.int32),
    'conv_frames': np.full(WINDOWS, 100, np.int32),
    'patches': rng.standard_normal((FRAMES, 16, cfg.thinker.vision.patch_dim), dtype=np.float32),
    'rows': rows,
    'cols': cols,
    'side': np.full(FRAMES, 4, np.int32),
    'codes': rng.standard_normal((B, T, cfg.talker.text.hidden_size), dtype=np.float32),
  }
  return params, batch


def loss(params, batch, cfg):
  """Cross-entropy of the Thinker over all media, and of the Talker if it is there; with the outputs."""
  thinker = cfg.thinker
  audio = encode_audio(params['audio'], thinker.audio, batch['mel'], batch['frames'], batch['conv_frames'])
  visual, deepstack = encode_vision(
    params['vision'],
    thinker.vision,
    batch['patches'],
    batch['rows'],
    batch['cols'],
    batch['side'],
    batch['side'],
    batch['side'] ** 2,
  )
  flat = lambda x: x.reshape(*x.shape[:-3], -1, x.shape[-1])
  tokens = ThinkerTokens(batch['ids'], batch['positions'], batch['segment'], batch['audio_index'], batch['visual_index'])
  out, _ = thinker_forward(params['thinker'], thinker, tokens, Features(flat(audio), flat(visual), flat(deepstack)))
  scores = logits(params['thinker'], out.hidden)
  valid = batch['segment'] != 0
  cross = lambda s: -jnp.where(valid, jnp.take_along_axis(jax.nn.log_softmax(s), batch['ids'][..., None], -1)[..., 0], 0)
  total, outputs = cross(scores).sum(), [scores]
  if 'talker' in params:
    spoken, _ = talker_forward(params['talker'], cfg.talker, batch['codes'], batch['positions'], batch['segment'])
    outputs.append(code_logits(params['talker'], spoken))
    total += cross(outputs[-1]).sum()
  return total / valid.astype(jnp.float32).sum(), outputs


RATE = 1e-3  # of learning
OPTIMISER = optax.adamw(RATE)


@functools.partial(jax.jit, static_argnames='cfg', compiler_options=quick.OPTIONS)
def step(params, batch, cfg):
  (value, outputs), grads = jax.value_and_grad(loss, has_aux=True)(params, batch, cfg)
  with jax.numpy_dtype_promotion('standard'):  # inside optax
    updates, _ = OPTIMISER.update(grads, OPTIMISER.init(params), params)
  return value, outputs, grads, optax.apply_updates(params, updates)


def step_on(mesh, *parts):
  """(loss, outputs, gradients, parameters after the step) from parameters held as the mesh's rules say."""
  cfg, (params, batch) = config(), params_and_batch(*parts)
  onto = param_shardings({part: omni_spec(cfg)[part] for part in params}, mesh)
  put = lambda x, sharding: jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])
  with jax.set_mesh(mesh):
    return step(jax.tree.map(put, params, onto), batch, cfg)


def assert_same_step(got, expected) -> None:
  """Loss, outputs, gradients and the step itself, within what float32 sums in another order may differ by."""
  grads = expected[2]
  largest = max(np.abs(g).max() for g in jax.tree.leaves(grads))
  # Key biases have no gradient in exact arithmetic: theirs is rounding on both sides. And Adam's first step is the
  # gradient's sign, whatever its size: only where that is certain can steps be compared.
  floors = (0, 0, 1e-7 * largest, 1e-4 * RATE)  # the last: biases start at zero, so that only the step is seen
  certain = jax.tree.map(lambda g: np.abs(g) > 1e-4 * np.abs(g).max() + 1e-6 * largest, grads)
  compared = (True, jax.tree.map(lambda s: True, expected[1]), jax.tree.map(lambda g: True, grads), certain)
  for part, floor in enumerate(floors):
    theirs, wheres = jax.tree.leaves(expected[part]), jax.tree.leaves(compared[part])
    for (path, a), b, where in zip(jax.tree.leaves_with_path(got[part]), theirs, wheres, strict=True):
      difference = np.abs(a - b).max(where=where, initial=0)
      bound = max(1e-5 * np.abs(b).max(), floor)
      assert difference <= bound, f'{part}{jax.tree_util.keystr(path)}: {difference:.1e}, allowed {bound:.1e}'
