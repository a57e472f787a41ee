"""The code predictor: the codes 1 .. Q-1 of a frame from the Talker's hidden state and the frame's code 0."""

from ..config import TalkerConfig
from ..nn.decoder import decoder_spec
from ..nn.params import Param, Spec


def code_predictor_spec(cfg: TalkerConfig) -> Spec:
  D, V, rest = cfg.code_predictor.hidden_size, cfg.code_predictor.vocab_size, cfg.num_code_groups - 1
  return {
    'embed': Param((rest, V, D), ('codebook', 'vocab', 'embed'), fan_in=D),
    'layers': decoder_spec(cfg.code_predictor),
    'norm': Param((D,), ('embed',), 'ones'),
    'head': Param((rest, D, V), ('codebook', 'embed', 'vocab'), fan_in=D),
  }
