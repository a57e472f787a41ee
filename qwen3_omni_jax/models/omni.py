"""The networks of one checkpoint composed: its whole parameter tree, and media through the encoders to feature rows."""

from collections.abc import Sequence

import jax.numpy as jnp

from ..config import OmniConfig
from ..nn.params import Spec
from .audio_encoder import audio_spec
from .code2wav import code2wav_spec
from .code_predictor import code_predictor_spec
from .talker import talker_spec
from .thinker import Features, thinker_spec
from .vision_encoder import vision_spec


def omni_spec(cfg: OmniConfig) -> Spec:
  """Parameters of every part the checkpoint has, by part."""
  spec: Spec = {
    'audio': audio_spec(cfg.thinker.audio),
    'vision': vision_spec(cfg.thinker.vision),
    'thinker': thinker_spec(cfg.thinker),
  }
  if cfg.talker is not None and cfg.code2wav is not None:
    spec['talker'] = talker_spec(cfg.talker)
    spec['code_predictor'] = code_predictor_spec(cfg.talker)
    spec['code2wav'] = code2wav_spec(cfg.code2wav)
  return spec


def join_features(audio: Sequence, visual: Sequence[tuple], pad_to: int = 1, lanes: int = 1) -> Features:
  """Encoder outputs of several groups as rows, in group order, padded at the end to a multiple of pad_to rows.

  audio: 'R T D' per group. visual: ('R P D', deepstack 'I R P D') per group. lanes: of Features; more than 1 only for one group
  of each kind, since the parts of several would not lie together.
  """

  def rows(groups, axis):
    flat = jnp.concatenate([g.reshape(*g.shape[:axis], -1, g.shape[-1]) for g in groups], axis=axis)
    return jnp.pad(flat, [(0, 0)] * axis + [(0, -flat.shape[axis] % pad_to), (0, 0)])

  return Features(
    audio=rows(audio, 0) if audio else None,
    visual=rows([v for v, _ in visual], 0) if visual else None,
    deepstack=rows([d for _, d in visual], 1) if visual else None,
    lanes=lanes,
  )
