"""The model that is asked questions while it is trained."""

import jax
import numpy as np
import pytest
from qwen3_omni_jax.train.config import LoraPart, Recipe
from qwen3_omni_jax.train.evaluate import omni_of
from qwen3_omni_jax.train.state import PARTS, assign_roles, init_state, load_shardings

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
