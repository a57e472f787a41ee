"""A short forward pass of every network of a checkpoint, over fixed inputs: what two folders that agree must agree on.

One part is in memory at a time, as it is stored (the Thinker of the released model: 61 GB); activations are float32.
"""

import functools
import pathlib
from collections.abc import Container, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from ..config import OmniConfig
from ..config_json import load_config
from ..models.audio_encoder import encode_audio
from ..models.code2wav import code2wav
from ..models.code_predictor import code_predictor_forward
from ..models.talker import code_logits, embed_codes, project, talker_forward
from ..models.thinker import Features, ThinkerTokens, logits, thinker_forward
from ..models.vision_encoder import encode_vision
from ..shapes import Array, Float, Params
from .load import load_params

TOKENS = 12  # length of every sequence
FRAMES = 5  # codec frames


def outputs(folder: str | pathlib.Path, parts: Container[str]) -> Iterator[tuple[str, np.ndarray]]:
  """(name, output) of each network in turn, if it is one of these parts."""
  cfg = load_config(folder)
  for part, run in _PASSES.items():
    if part not in parts:
      continue
    params = load_params(folder, cfg, parts=(part,))[part]
    yield f'{part} output', np.asarray(run(cfg, params))
    del params


def _noise(*shape: int) -> Float[Array, '...']:
  return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))


def _numbers(limit: int, *shape: int) -> Array:
  return jnp.asarray(np.random.default_rng(0).integers(limit, size=shape, dtype=np.int32))


def _order(length: int) -> tuple[Array, Array]:
  """Positions of one row, the same on all three axes, and its segment."""
  return jnp.broadcast_to(jnp.arange(length, dtype=jnp.float32), (3, 1, length)), jnp.ones((1, length), jnp.int32)


@functools.partial(jax.jit, static_argnames='cfg')
def _audio(cfg: OmniConfig, params: Params) -> Array:
  mel = _noise(1, cfg.thinker.audio.chunk_frames, cfg.thinker.audio.num_mel_bins)
  frames = jnp.array([cfg.thinker.audio.chunk_frames], jnp.int32)
  return encode_audio(params, cfg.thinker.audio, mel, frames, frames)


@functools.partial(jax.jit, static_argnames='cfg')
def _vision(cfg: OmniConfig, params: Params) -> Array:
  side = cfg.thinker.vision.spatial_merge_size  # a picture of one token
  row, col = (jnp.asarray(at.reshape(1, -1), jnp.int32) for at in np.indices((side, side)))
  size = jnp.array([side], jnp.int32)
  patches = _noise(1, side**2, cfg.thinker.vision.patch_dim)
  features, deepstack = encode_vision(params, cfg.thinker.vision, patches, row, col, size, size, size**2)
  return jnp.concatenate([features[None], deepstack])


@functools.partial(jax.jit, static_argnames='cfg')
def _thinker(cfg: OmniConfig, params: Params) -> Array:
  tokens = ThinkerTokens(_numbers(cfg.thinker.text.vocab_size, 1, TOKENS), *_order(TOKENS))
  out, _ = thinker_forward(params, cfg.thinker, tokens, Features())
  return logits(params, out.hidden)


@functools.partial(jax.jit, static_argnames='cfg')
def _talker(cfg: OmniConfig, params: Params) -> Array:
  assert cfg.talker is not None
  given = _noise(1, TOKENS, cfg.talker.thinker_hidden_size)
  x = project(params['text_projection'], given) + project(params['hidden_projection'], given)
  x = x + embed_codes(params, _numbers(cfg.talker.text.vocab_size, 1, TOKENS))
  hidden, _ = talker_forward(params, cfg.talker, x, *_order(TOKENS))
  return code_logits(params, hidden)


@functools.partial(jax.jit, static_argnames='cfg')
def _code_predictor(cfg: OmniConfig, params: Params) -> Array:
  assert cfg.talker is not None
  predictor = cfg.talker.code_predictor
  codes = _numbers(predictor.vocab_size, FRAMES, cfg.talker.num_code_groups - 1)
  hidden, embedding = _noise(2, FRAMES, predictor.hidden_size)
  return code_predictor_forward(params, cfg.talker, hidden, embedding, codes)


@functools.partial(jax.jit, static_argnames='cfg')
def _code2wav(cfg: OmniConfig, params: Params) -> Array:
  assert cfg.code2wav is not None
  codes = _numbers(cfg.code2wav.codebook_size, 1, FRAMES, cfg.code2wav.num_quantizers)
  return code2wav(params, cfg.code2wav, codes)


_PASSES = {
  'audio': _audio,
  'vision': _vision,
  'thinker': _thinker,
  'talker': _talker,
  'code_predictor': _code_predictor,
  'code2wav': _code2wav,
}
