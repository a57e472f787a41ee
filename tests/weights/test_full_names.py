"""All 28,010 published names at tiny widths, there and back in both spellings; transformers loads what we write."""

import json
import pathlib
import re

import ml_dtypes
import numpy as np
import pytest

from qwen3_omni_jax.config_json import parse_config
from qwen3_omni_jax.weights.folder import open_folder
from qwen3_omni_jax.weights.safetensors import plan_shards
from qwen3_omni_jax.weights.table import published_shapes
from qwen3_omni_jax.weights.to_hf import convert_to_hf
from qwen3_omni_jax.weights.to_jax import convert_to_jax

from .folders import assert_same_files, numbered
from .test_table import RELEASED, released_tensors

BF16 = np.dtype(ml_dtypes.bfloat16)


def narrow_config() -> dict:
  """The released config with every count of layers, experts, codebooks and tokens, but hardly any width."""
  config = json.loads(RELEASED.read_text())
  thinker, talker, code2wav = config['thinker_config'], config['talker_config'], config['code2wav_config']
  heads = {'head_dim': 8, 'num_attention_heads': 2, 'num_key_value_heads': 1}
  rope = {'mrope_section': [2, 1, 1]}
  thinker['audio_config'] |= {
    'd_model': 12,
    'encoder_attention_heads': 2,
    'encoder_ffn_dim': 10,
    'output_dim': 6,
    'downsample_hidden_size': 4,
  }
  thinker['vision_config'] |= {
    'hidden_size': 8,
    'intermediate_size': 10,
    'num_heads': 2,
    'out_hidden_size': 6,
    'num_position_embeddings': 16,
  }
  thinker['text_config'] |= {'hidden_size': 6, 'intermediate_size': 4, 'moe_intermediate_size': 4, **heads}
  talker['thinker_hidden_size'] = 6
  talker['text_config'] |= {
    'hidden_size': 8,
    'intermediate_size': 6,
    'moe_intermediate_size': 4,
    'shared_expert_intermediate_size': 6,
    **heads,
  }
  talker['code_predictor_config'] |= {'hidden_size': 8, 'intermediate_size': 6, **heads}
  for part in (thinker, talker):
    part['text_config']['rope_parameters'] |= rope
  code2wav |= {
    'hidden_size': 8,
    'intermediate_size': 6,
    'num_attention_heads': 2,
    'num_key_value_heads': 2,
    'decoder_dim': 32,
    'codebook_size': 64,
  }
  return config


def write_fast(folder: pathlib.Path, shapes: dict[str, tuple[int, ...]], config: dict) -> pathlib.Path:
  """A checkpoint of random bits, NaNs and all, whole files at a time."""
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(config))
  (folder / 'tokenizer_config.json').write_text('{}')
  rng = np.random.default_rng(0)
  plan = plan_shards({name: (BF16, shape) for name, shape in shapes.items()}, 4_000_000)
  for file, header in plan.headers.items():
    (folder / file).write_bytes(header.raw + rng.bytes(header.size))
  (folder / 'model.safetensors.index.json').write_bytes(plan.index or b'')
  return folder


@pytest.fixture(scope='module')
def folders(tmp_path_factory) -> dict[str, pathlib.Path]:
  root = tmp_path_factory.mktemp('full')
  config = narrow_config()
  shapes = published_shapes(parse_config(config))
  assert shapes.keys() == released_tensors().keys() and len(shapes) == 28_010
  plain = write_fast(root / 'plain', shapes, config)
  fused = {}
  for name, shape in shapes.items():
    if expert := re.fullmatch(r'(.*\.experts)\.0\.(up|down)_proj\.weight', name):
      rows, columns = shape
      both, name = ('gate_up', 2 * rows) if expert[2] == 'up' else ('down', rows), f'{expert[1]}.'
      fused[f'{in_memory(name)}{both[0]}_proj'] = (128, both[1], columns)
    elif '.experts.' not in name:
      fused[in_memory(name)] = shape
  write_fast(root / 'fused', fused, config)
  return {'root': root, 'plain': plain, 'fused': root / 'fused'}


def in_memory(name: str) -> str:
  name = name.replace('thinker.model.', 'thinker.model.language_model.')
  return re.sub(r'^thinker\.(audio_tower|visual)\.', r'thinker.model.\1.', name)


@pytest.mark.parametrize('kind', ['plain', pytest.param('fused', marks=pytest.mark.slow)])
def test_every_published_tensor_comes_back_bit_for_bit(folders, kind):
  jax, back = folders['root'] / f'{kind}_jax', folders['root'] / f'{kind}_back'
  convert_to_jax(folders[kind], jax)
  assert len(json.loads((jax / 'manifest.json').read_text())['tensors']) == 28_010
  convert_to_hf(jax, back, fused_experts=kind == 'fused')
  assert_same_files(back, folders[kind])


@pytest.mark.slow
def test_fusing_and_back_gives_the_same_bits(folders):
  fused, back = folders['root'] / 'fused_once', folders['root'] / 'back_once'
  convert_to_hf(folders['plain'], fused, fused_experts=True)
  convert_to_hf(fused, back)
  found, expected = open_folder(back), open_folder(folders['plain'])
  assert found.keys() == expected.keys()
  for name, shard in expected.items():
    assert found[name].read(name).tobytes() == shard.read(name).tobytes(), name
  layer = 'talker.model.layers.19.mlp.experts.'
  names = numbered(dict.fromkeys(expected, np.zeros(0)), layer, '.gate_proj.weight')
  gates = np.stack([expected[name].read(name) for name in names])
  value = open_folder(fused)[f'{layer}gate_up_proj'].read(f'{layer}gate_up_proj')
  assert value[:, :4].tobytes() == gates.tobytes()


@pytest.mark.parametrize('fused', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_transformers_finds_every_name(folders, fused):
  """No key missing or unexpected; the values are compared at other sizes in test_transformers.py."""
  import transformers

  from tests.reference import prepare_torchvision

  prepare_torchvision()
  target = folders['root'] / f'for_transformers_{fused}'
  convert_to_hf(folders['plain'], target, fused_experts=fused)
  model, found = transformers.Qwen3OmniMoeForConditionalGeneration.from_pretrained(target, output_loading_info=True)
  assert not found['missing_keys'] and not found['unexpected_keys'] and not found['mismatched_keys'], found
  assert sum(value.numel() for value in model.state_dict().values()) > 10**6
