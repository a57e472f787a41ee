"""Qwen3-Omni in JAX/Flax: text, images, audio and video in; text and speech out."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from .config import OmniConfig
  from .config_json import load_config
  from .infer.live import LiveAudio
  from .infer.omni import Omni
  from .infer.reply import Finished, Reply, Score, TextDelta
  from .infer.voice import AudioChunk, Speech, Voice

_HOME = {
  'LiveAudio': '.infer.live',
  'Omni': '.infer.omni',
  'OmniConfig': '.config',
  'load_config': '.config_json',
  'Reply': '.infer.reply',
  'Score': '.infer.reply',
  'TextDelta': '.infer.reply',
  'Finished': '.infer.reply',
  'AudioChunk': '.infer.voice',
  'Speech': '.infer.voice',
  'Voice': '.infer.voice',
}
__all__ = [
  'AudioChunk',
  'Finished',
  'LiveAudio',
  'Omni',
  'OmniConfig',
  'Reply',
  'Score',
  'Speech',
  'TextDelta',
  'Voice',
  'load_config',
]


def __getattr__(name: str):
  """Imports a public name when it is first used, so that `qwen3-omni --help` does not wait for jax."""
  if name not in _HOME:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(_HOME[name], __name__), name)
