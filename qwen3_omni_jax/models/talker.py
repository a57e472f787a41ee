"""The Talker: speech tokens (codebook 0) from the Thinker's states, one per 80 ms frame."""

from ..config import TalkerConfig
from ..nn.decoder import decoder_spec
from ..nn.layers import linear_spec
from ..nn.params import Param, Spec


def talker_spec(cfg: TalkerConfig) -> Spec:
  D, V = cfg.text.hidden_size, cfg.text.vocab_size
  return {
    'embed': Param((V, D), ('vocab', 'embed'), fan_in=D),
    'layers': decoder_spec(cfg.text),
    'norm': Param((D,), ('embed',), 'ones'),
    'head': Param((D, V), ('embed', 'vocab'), fan_in=D),
    'text_projection': _projection_spec(cfg),
    'hidden_projection': _projection_spec(cfg),
  }


def _projection_spec(cfg: TalkerConfig) -> Spec:
  F = cfg.text.intermediate_size
  return {
    'fc1': linear_spec(cfg.thinker_hidden_size, F, ('embed', 'mlp')),
    'fc2': linear_spec(F, cfg.text.hidden_size, ('mlp', 'embed')),
  }
