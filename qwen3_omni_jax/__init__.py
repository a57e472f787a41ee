"""Qwen3-Omni in JAX/Flax: text, images, audio and video in; text and speech out."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from .config import OmniConfig, load_config
  from .infer.omni import Omni
  from .infer.reply import Finished, Reply, Score, TextDelta

_HOME = {
  'Omni': '.infer.omni',
  'OmniConfig': '.config',
  'load_config': '.config',
  'Reply': '.infer.reply',
  'Score': '.infer.reply',
  'TextDelta': '.infer.reply',
  'Finished': '.infer.reply',
}
__all__ = ['Finished', 'Omni', 'OmniConfig', 'Reply', 'Score', 'TextDelta', 'load_config']


def __getattr__(name: str):
  """Imports a public name when it is first used, so that `qwen3-omni --help` does not wait for jax."""
  if name not in _HOME:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(_HOME[name], __name__), name)
