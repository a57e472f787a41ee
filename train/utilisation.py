"""Model FLOPs utilisation: FLOPs of a step's batches, encoders included, without padding and recomputation."""

from collections.abc import Sequence

import jax
import numpy as np

from qwen3_omni_jax.config import OmniConfig
from qwen3_omni_jax.flops import Work, train_flops
from qwen3_omni_jax.hardware import peak_flops

from .batch import TrainBatch
from .state import LORA, Roles

_ADAPTERS = {'audio': (('audio/proj',), 'audio.projection'), 'vision': (('vision/merger', 'vision/deepstack'), 'vision.mergers')}


def work_of(cfg: OmniConfig, batch: TrainBatch) -> Work:
  """The work in a batch of the loader (numpy arrays), without padding."""
  lengths = _runs(batch.tokens.segment)
  frames = [n for group in batch.media.visual for n in _runs(_segments(group.segment, group.length, group.patches.shape[1]))]
  audio: list[int] = []
  for group in batch.media.audio:
    if group.segment is None:
      audio += [int(n) for n in group.frames if n]
    else:
      audio += [int(f[s == i].sum()) for f, s in zip(group.frames, group.segment, strict=True) for i in np.unique(s[s > 0])]
  return Work.of_lengths(cfg, lengths, logits=int((np.asarray(batch.weights) > 0).sum()), audio=audio, frames=frames)


def _segments(segment, length, room: int) -> np.ndarray:
  return np.asarray(segment) if segment is not None else np.arange(room) < np.asarray(length)[:, None]


def _runs(segment) -> list[int]:
  """Sizes of the segments of every row; 0 is none."""
  return [int(n) for row in np.asarray(segment, np.int32) for n in np.bincount(row)[1:] if n]


def step_flops(cfg: OmniConfig, roles: Roles, batches: Sequence[TrainBatch]) -> float:
  """FLOPs of a step over these microbatches, forward and backward, by what is trained. LoRA's own matrices are not counted."""
  work = sum((work_of(cfg, batch) for batch in batches), Work())
  return sum(train_flops(cfg, work, *learning(roles)).values())


def learning(roles: Roles) -> tuple[list[str], tuple[str, ...]]:
  """What is trained, and what only lets gradients through, as flops.train_flops takes them."""
  trainable: list[str] = []
  for part in roles.trainable_parts:
    prefixes, adapter = _ADAPTERS.get(part, ((), part))
    paths = [path for path in roles.trainable if path.startswith(f'{part}/')]
    trainable.append(adapter if all(path.startswith(prefixes or f'{part}/') for path in paths) else part)
  adapted = {path.removeprefix(LORA).split('/')[0] for path in roles.trainable if path.startswith(LORA)}
  passed = {*adapted, 'thinker'} - set(trainable)  # all gradients come through the Thinker
  return trainable, tuple(passed)


def peak() -> float | None:
  """FLOP/s of all devices together; None where it is not known."""
  each = peak_flops(jax.devices()[0])
  return None if each is None else each * jax.device_count()
