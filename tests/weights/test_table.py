"""The table against the released checkpoint's names and shapes, and against layouts written out by hand."""

import itertools
import json
import math
import pathlib
import re

import numpy as np
import pytest

from qwen3_omni_jax.config_json import load_config, parse_config
from qwen3_omni_jax.models.omni import omni_spec
from qwen3_omni_jax.nn.params import count, leaves
from qwen3_omni_jax.weights.load import load_params
from qwen3_omni_jax.weights.table import export, published, published_shapes, table

from .folders import odd_config, odd_dict, random_tensors, write

ROOT = pathlib.Path(__file__).parents[2]
RELEASED = ROOT / 'configs' / 'model' / 'instruct.json'


def released_tensors() -> dict[str, tuple[int, ...]]:
  """Name and shape of every released tensor, from the pattern list."""
  tensors: dict[str, tuple[int, ...]] = {}
  for line in (ROOT / 'tests' / 'data' / 'published_tensors.txt').read_text().splitlines():
    if line.startswith('#'):
      continue
    pattern, shape = line.split(' ')
    texts, sets = re.split(r'\{.*?\}', pattern), re.findall(r'\{(.*?)\}', pattern)
    runs = [[run.split('-') for run in numbers.split(',')] for numbers in sets]
    choices = [[n for run in column for n in range(int(run[0]), int(run[-1]) + 1)] for column in runs]
    for numbers in itertools.product(*choices):
      name = ''.join(a + b for a, b in zip(texts, [*map(str, numbers), ''], strict=True))
      assert name not in tensors, f'{name} is listed twice'
      tensors[name] = tuple(int(n) for n in shape.split(','))
  return tensors


def test_full_size_names_and_shapes_are_the_released_ones():
  released = released_tensors()
  assert len(released) == 28_010
  assert published_shapes(load_config(RELEASED)) == released


def test_full_size_parameter_counts():
  spec = omni_spec(load_config(RELEASED))
  assert count(spec) == 35_259_818_545
  assert sum(count(spec[part]) for part in ('audio', 'vision', 'thinker')) == 31_719_205_488
  assert sum(math.prod(shape) for shape in released_tensors().values()) == 35_259_818_545


def test_without_talker_only_thinker_names_are_expected():
  data = json.loads(RELEASED.read_text()) | {'enable_audio_output': False}
  del data['talker_config'], data['code2wav_config']
  expected = {name: shape for name, shape in released_tensors().items() if name.startswith('thinker.')}
  assert published_shapes(parse_config(data)) == expected


def test_every_array_is_covered_exactly_once():
  cfg = odd_config()
  ours = [row.ours for row in table(cfg)]
  assert sorted(ours) == sorted(path for path, _ in leaves(omni_spec(cfg)))
  filled = {path: np.zeros(param.shape, int) for path, param in leaves(omni_spec(cfg))}
  for tensor in published(cfg).values():
    filled[tensor.row.ours][tensor.index] += 1
  assert all((times == 1).all() for times in filled.values())


@pytest.mark.parametrize('variant', ['instruct', 'thinking'])
def test_round_trip_is_bitwise(tmp_path, variant):
  cfg, tensors = odd_config(variant), random_tensors(odd_config(variant))
  params = load_params(write(tmp_path / 'hf', tensors, odd_dict(variant)))
  back = dict(export(params, cfg))
  assert back.keys() == tensors.keys()
  for name, value in tensors.items():
    np.testing.assert_array_equal(back[name], value, err_msg=name)


def at(params, path: str):
  for key in path.split('/'):
    params = params[key]
  return params


# (our path, index of the stacked axes, published name, the same layout by plain numpy; n: published, s: our shape)
BY_HAND = [
  ('thinker/embed', (), 'thinker.model.embed_tokens.weight', lambda n, s: n),
  ('thinker/head', (), 'thinker.lm_head.weight', lambda n, s: n.T),
  ('thinker/layers/attn/q', (2,), 'thinker.model.layers.2.self_attn.q_proj.weight', lambda n, s: n.T.reshape(s)),
  ('thinker/layers/attn/o', (1,), 'thinker.model.layers.1.self_attn.o_proj.weight', lambda n, s: n.T.reshape(s)),
  ('thinker/layers/moe/router', (3,), 'thinker.model.layers.3.mlp.gate.weight', lambda n, s: n.T),
  ('thinker/layers/moe/experts/up', (3, 4), 'thinker.model.layers.3.mlp.experts.4.up_proj.weight', lambda n, s: n.T),
  ('thinker/layers/moe/experts/down', (0, 2), 'thinker.model.layers.0.mlp.experts.2.down_proj.weight', lambda n, s: n.T),
  ('audio/layers/attn/v/kernel', (1,), 'thinker.audio_tower.layers.1.self_attn.v_proj.weight', lambda n, s: n.T.reshape(s)),
  ('audio/layers/attn/o/kernel', (0,), 'thinker.audio_tower.layers.0.self_attn.out_proj.weight', lambda n, s: n.T.reshape(s)),
  ('audio/conv2/kernel', (), 'thinker.audio_tower.conv2d2.weight', lambda n, s: np.transpose(n, (2, 3, 1, 0))),
  ('audio/conv_out/kernel', (), 'thinker.audio_tower.conv_out.weight', lambda n, s: n.T.reshape(s)),
  ('vision/layers/attn/qkv/kernel', (4,), 'thinker.visual.blocks.4.attn.qkv.weight', lambda n, s: n.T.reshape(s)),
  ('vision/patch/kernel', (), 'thinker.visual.patch_embed.proj.weight', lambda n, s: n.reshape(len(n), -1).T),
  ('vision/deepstack/down/kernel', (1,), 'thinker.visual.merger_list.1.mlp.2.weight', lambda n, s: n.T),
  ('talker/layers/moe/shared_gate', (2,), 'talker.model.layers.2.mlp.shared_expert_gate.weight', lambda n, s: n[0]),
  ('code_predictor/head', (14,), 'talker.code_predictor.lm_head.14.weight', lambda n, s: n.T),
  ('code_predictor/embed', (7,), 'talker.code_predictor.model.codec_embedding.7.weight', lambda n, s: n),
  ('code2wav/conv_in/kernel', (), 'code2wav.decoder.0.conv.weight', lambda n, s: np.transpose(n, (2, 1, 0))),
  ('code2wav/blocks/1/up/kernel', (), 'code2wav.decoder.2.block.1.conv.weight', lambda n, s: np.transpose(n, (0, 2, 1))),
  ('code2wav/upsample/0/depthwise/kernel', (), 'code2wav.upsample.0.1.dwconv.conv.weight', lambda n, s: n[:, 0].T),
]


def test_layouts_written_out_by_hand(tmp_path):
  tensors = random_tensors(odd_config())
  params = load_params(write(tmp_path / 'hf', tensors))
  for path, index, name, layout in BY_HAND:
    ours = at(params, path)[index]
    np.testing.assert_array_equal(ours, layout(tensors[name], ours.shape), err_msg=path)
