"""Small checkpoints with random tensors, for tests of reading and writing."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
from qwen3_omni_jax.tools.tiny import MEDIA_TOKEN_FIELDS, TOKEN_FIELDS, make_config

from qwen3_omni_jax.config import OmniConfig
from qwen3_omni_jax.config_json import parse_config
from qwen3_omni_jax.weights.safetensors import write_shards
from qwen3_omni_jax.weights.table import published_shapes

Tensors = dict[str, np.ndarray]


def odd_dict(variant: str = 'instruct') -> dict[str, Any]:
  """config.json of the `odd` preset, small widths, with some token ids."""
  tokens = [*TOKEN_FIELDS.values(), *MEDIA_TOKEN_FIELDS.values()]
  config = make_config('odd', variant, {token: i for i, token in enumerate(tokens)})
  config['thinker_config']['text_config'] |= {
    'vocab_size': 70,
    'hidden_size': 52,
    'num_hidden_layers': 4,
    'num_experts': 5,
    'moe_intermediate_size': 18,
  }
  if variant == 'instruct':
    config['talker_config']['text_config'] |= {'num_hidden_layers': 3, 'num_experts': 7, 'moe_intermediate_size': 14}
  return config


def odd_config(variant: str = 'instruct') -> OmniConfig:
  return parse_config(odd_dict(variant))


def random_tensors(cfg: OmniConfig, seed: int = 0, dtype=np.float32) -> Tensors:
  rng = np.random.default_rng(seed)
  return {name: rng.standard_normal(shape, dtype=np.float32).astype(dtype) for name, shape in published_shapes(cfg).items()}


def write(folder: pathlib.Path, tensors: Tensors, config: dict | None = None, shard_bytes=2_000_000) -> pathlib.Path:
  """A checkpoint folder: config.json, shards, index."""
  folder.mkdir(parents=True)
  (folder / 'config.json').write_text(json.dumps(odd_dict() if config is None else config))
  shapes = {name: (value.dtype, value.shape) for name, value in tensors.items()}
  write_shards(folder, tensors.items(), shapes, shard_bytes)
  return folder


def fuse(tensors: Tensors) -> Tensors:
  """The same checkpoint as transformers 5 keeps it in memory."""
  out: Tensors = {}
  for name, value in tensors.items():
    if '.mlp.experts.' not in name:
      name = name.replace('thinker.model.', 'thinker.model.language_model.')
      for encoder in ('audio_tower', 'visual'):
        name = name.replace(f'thinker.{encoder}.', f'thinker.model.{encoder}.')
      out[name] = value
      continue
    layer, expert = name.split('.mlp.experts.')
    if expert == '0.gate_proj.weight':
      column = lambda matrix: [tensors[n] for n in numbered(tensors, f'{layer}.mlp.experts.', f'.{matrix}_proj.weight')]
      theirs = layer.replace('thinker.model.', 'thinker.model.language_model.') + '.mlp.experts.'
      out[theirs + 'gate_up_proj'] = np.concatenate([np.stack(column('gate')), np.stack(column('up'))], axis=1)
      out[theirs + 'down_proj'] = np.stack(column('down'))
  return out


def numbered(tensors: Tensors, start: str, end: str) -> list[str]:
  names = []
  while (name := f'{start}{len(names)}{end}') in tensors:
    names.append(name)
  return names


def assert_same(a, b) -> None:
  """Two parameter trees: same paths, dtypes, and bits."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype, f'{jax.tree_util.keystr(path)}: {x.dtype} {y.dtype}'
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=jax.tree_util.keystr(path))


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  """Every file below, by its path."""
  return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def assert_same_files(a: pathlib.Path, b: pathlib.Path) -> None:
  ours, theirs = contents(a), contents(b)
  assert ours.keys() == theirs.keys()
  assert [name for name in ours if ours[name] != theirs[name]] == []
