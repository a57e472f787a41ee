"""The model that is asked questions while it is trained."""

import jax
import numpy as np
import pytest
from qwen3_omni_jax.eval.in_training import make_speaker
from qwen3_omni_jax.train.config import LoraPart, Recipe, Speech, SpokenTexts
from qwen3_omni_jax.train.evaluate import omni_of
from qwen3_omni_jax.train.state import PARTS, SPEECH_PARTS, assign_roles, init_state, load_shardings

from qwen3_omni_jax.config_json import load_config
from qwen3_omni_jax.infer.omni import Omni
from qwen3_omni_jax.media.processor import Processor
from qwen3_omni_jax.nn.lora import Lora
from qwen3_omni_jax.sharding import make_mesh
from qwen3_omni_jax.weights.load import load_params

pytestmark = pytest.mark.quick_to_compile
CHAT = [[{'role': 'user', 'content': 'Who?'}], [{'role': 'user', 'content': 'And where is it?'}]]


def test_a_model_in_training_answers_as_the_merged_one_does(tiny_folder):
  """LoRA on attention and experts, on a mesh; against a model loaded from its folder, on one device, with the merged weights."""
  cfg, mesh = load_config(tiny_folder), make_mesh({'fsdp': 2}, jax.devices()[:2])
  recipe = Recipe(lora=(LoraPart('thinker/layers/(attn/[qo]|moe/experts/down)$', 2, 3.0),))
  params = load_params(tiny_folder, cfg, parts=PARTS, shardings=load_shardings(cfg, recipe, mesh))
  state, roles = init_state(params, cfg, recipe, mesh), assign_roles(cfg, recipe)
  rng = np.random.default_rng(0)
  changed = {path: jax.device_put(rng.standard_normal(p.shape, np.float32), p.sharding) for path, p in state.trainable.items()}
  processor = Processor.from_folder(tiny_folder)
  omni = omni_of(state.replace(trainable=changed), cfg, roles, processor, tiny_folder, 'float32')
  loaded = Omni.load(tiny_folder, dtype='float32', speech=False)
  is_lora = lambda leaf: isinstance(leaf, Lora)
  merge = lambda leaf: jax.device_put(np.asarray(leaf.astype('float32')), jax.devices()[0])
  merged = Omni(cfg, jax.tree.map(merge, omni.params, is_leaf=is_lora), processor, loaded.defaults, 'float32')

  turns = [[*chat, {'role': 'assistant', 'content': 'Me, here.'}] for chat in CHAT]
  ours, theirs, before = ([s.total_logprob for s in model.score(turns)] for model in (omni, merged, loaded))
  np.testing.assert_allclose(ours, theirs, rtol=1e-5)  # float32, summed over two devices
  assert np.abs(np.subtract(ours, before)).min() > 1e-3
  said = [[reply.token_ids for reply in model.generate(CHAT, max_new_tokens=4, temperature=0.0)] for model in (omni, merged)]
  assert said[0] == said[1]


@pytest.mark.slow
def test_a_model_in_training_speaks_as_the_merged_one_does(tiny_folder):
  """LoRA on the Talker and its code predictor; the same codes as of merged weights, and heard by the model itself."""
  cfg, mesh = load_config(tiny_folder), make_mesh({'fsdp': 1}, jax.devices()[:1])
  pattern = '(talker/layers/attn/q|code_predictor/layers/(attn/o|mlp/down))$'
  recipe = Recipe(lora=(LoraPart(pattern, 2, 3.0),), speech=Speech())
  params = load_params(tiny_folder, cfg, parts=PARTS + SPEECH_PARTS, shardings=load_shardings(cfg, recipe, mesh))
  state, roles = init_state(params, cfg, recipe, mesh), assign_roles(cfg, recipe)
  rng = np.random.default_rng(0)
  state = state.replace(
    trainable={p: jax.numpy.asarray(rng.standard_normal(x.shape, np.float32)) for p, x in state.trainable.items()}
  )
  loaded, processor = Omni.load(tiny_folder, dtype='float32'), Processor.from_folder(tiny_folder)
  omni = omni_of(state, cfg, roles, processor, tiny_folder, 'float32', {'code2wav': loaded.params['code2wav']})
  change = lambda path, base: (
    base
    + roles.lora[path].alpha
    / 2
    * np.einsum('...ir,...ro->...io', *(np.asarray(state.trainable[f'lora/{path}/{name}']) for name in 'ab')).reshape(base.shape)
  )
  tree = dict(loaded.params)
  for path in roles.lora:
    *parents, last = path.split('/')
    node = tree
    for name in parents:
      node[name] = dict(node[name])
      node = node[name]
    node[last] = jax.numpy.asarray(change(path, np.asarray(node[last])))
  merged = Omni(cfg, tree, processor, loaded.defaults, 'float32', loaded.voice)
  wanted = SpokenTexts(('The quick brown fox.', 'Jumps!'), 'Chelsie', max_frames=6, max_new_tokens=3)
  how = {'max_frames': 6, 'seed': 0}
  ours, theirs, before = (model.speak(list(wanted.texts), 'Chelsie', **how) for model in (omni, merged, loaded))
  for a, b, c in zip(ours, theirs, before, strict=True):
    np.testing.assert_array_equal(a.codes, b.codes)
    assert not np.array_equal(a.codes, c.codes)
  samples, values = make_speaker(wanted)(omni)
  assert [(s.text, s.finish_reason) for s in samples] == [(text, 'length') for text in wanted.texts]
  np.testing.assert_array_equal(samples[1].sound, ours[1].samples)
  assert values['runaways'] == 100 and values['seconds'] == pytest.approx(sum(s.duration_s for s in ours)) and values['wer'] > 0
