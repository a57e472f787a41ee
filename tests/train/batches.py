"""A tiny model and training batches with every kind of media in them, made without a data set."""

import functools

import jax
import numpy as np
from qwen3_omni_jax.tools.tiny import MEDIA_TOKEN_FIELDS, TOKEN_FIELDS, make_config
from qwen3_omni_jax.train.batch import TrainBatch

from qwen3_omni_jax.config import OmniConfig
from qwen3_omni_jax.config_json import parse_config
from qwen3_omni_jax.infer.collate import AudioWindows, Media, VisualFrames
from qwen3_omni_jax.models.omni import omni_spec
from qwen3_omni_jax.models.thinker import ThinkerTokens
from tests.arrays import params_of

B, T, V, WINDOWS, FRAMES = 8, 32, 96, 8, 8


@functools.cache
def config() -> OmniConfig:
  tokens = [*TOKEN_FIELDS.values(), *MEDIA_TOKEN_FIELDS.values()]
  data = make_config('tiny', 'instruct', {token: i for i, token in enumerate(tokens)})
  data['thinker_config']['text_config'] |= {'num_hidden_layers': 3, 'num_attention_heads': 8, 'vocab_size': V}
  data['thinker_config']['audio_config'] |= {'encoder_layers': 2}
  data['thinker_config']['vision_config'] |= {'depth': 3, 'deepstack_visual_indexes': [0, 2]}
  return parse_config(data)


def params(seed: int = 7) -> dict:
  spec = omni_spec(config())
  return params_of({part: spec[part] for part in ('audio', 'vision', 'thinker')}, seed)


def batch(seed: int = 0, rows: int = B) -> TrainBatch:
  """13 audio tokens and 4 visual ones in each row, a lane; one row packed, one padded; targets at about half of the places."""
  cfg, rng = config(), np.random.default_rng(seed)
  index = np.full((2, rows, T), -1, np.int32)
  for b in range(rows):
    index[0, b, 3:16] = b * 26 + np.arange(13)
    index[1, b, 18:22] = b * 4 + np.arange(4)
  at_row, at_col = (np.tile(at.reshape(1, -1), (rows, 1)).astype(np.int32) for at in np.indices((4, 4)))
  segment = np.ones((rows, T), np.int32)
  segment[rows // 4, 25:], segment[rows // 2, 20:] = 2, 0
  weights = (rng.random((rows, T)) < 0.5).astype(np.float32) * (segment != 0)
  tokens = ThinkerTokens(
    ids=rng.integers(0, V, (rows, T)).astype(np.int32),
    positions=np.broadcast_to(np.arange(T, dtype=np.float32), (3, rows, T)).copy(),
    segment=segment,
    audio_index=index[0],
    visual_index=index[1],
  )
  audio = AudioWindows(
    rng.standard_normal((rows, 200, 128), dtype=np.float32), np.full(rows, 200, np.int32), np.full(rows, 100, np.int32)
  )
  side = np.full(rows, 4, np.int32)
  patches = rng.standard_normal((rows, 16, cfg.thinker.vision.patch_dim), dtype=np.float32)
  visual = VisualFrames(patches, at_row, at_col, side, side, side**2)
  kind = rng.integers(0, 5, (rows, T)).astype(np.int32)
  targets, source = rng.integers(0, V, (rows, T)).astype(np.int32), rng.integers(0, 2, (rows, T)).astype(np.int32)
  return TrainBatch(tokens, Media((audio,), (visual,), lanes=rows), targets, weights, kind, source, ('here', 'there'))


def stacked(batches) -> TrainBatch:
  """Microbatches in front."""
  return jax.tree.map(lambda *x: np.stack(x), *batches)
