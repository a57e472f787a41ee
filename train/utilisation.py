"""Model FLOPs utilisation: FLOPs of a step's batches, encoders included, without padding and recomputation."""

from collections.abc import Sequence

import jax
import numpy as np

from qwen3_omni_jax.config import OmniConfig
from qwen3_omni_jax.flops import Work, train_flops
from qwen3_omni_jax.hardware import peak_flops

from .batch import SpeechRows, TrainBatch
from .config import Speech
from .state import LORA, PARTS, SPEECH_PARTS, Roles

_ADAPTERS = {'audio': (('audio/proj',), 'audio.projection'), 'vision': (('vision/merger', 'vision/deepstack'), 'vision.mergers')}


def work_of(cfg: OmniConfig, batch: TrainBatch, share: float = 1.0) -> Work:
  """The work in a batch of the loader (numpy arrays), without padding. share: of the frames, see speech_work."""
  lengths = _runs(batch.tokens.segment)
  frames = [n for group in batch.media.visual for n in _runs(_segments(group.segment, group.length, group.patches.shape[1]))]
  audio: list[int] = []
  for group in batch.media.audio:
    if group.segment is None:
      audio += [int(n) for n in group.frames if n]
    else:
      audio += [int(f[s == i].sum()) for f, s in zip(group.frames, group.segment, strict=True) for i in np.unique(s[s > 0])]
  work = Work.of_lengths(cfg, lengths, logits=int((np.asarray(batch.weights) > 0).sum()), audio=audio, frames=frames)
  return work if batch.speech is None else work + speech_work(cfg, batch.speech, share)


def speech_work(cfg: OmniConfig, speech: SpeechRows, share: float) -> Work:
  """Of the Talker, and of the code predictor on as many frames as there is room for (config.Speech.frames)."""
  spoken = np.asarray(speech.codes)[..., 1] >= 0
  frames = np.minimum(spoken.sum(axis=-1), np.ceil(share * spoken.shape[-1])).sum()
  return Work.of_lengths(cfg, talker=_runs(speech.segment), code_frames=int(frames))


def _segments(segment, length, room: int) -> np.ndarray:
  return np.asarray(segment) if segment is not None else np.arange(room) < np.asarray(length)[:, None]


def _runs(segment) -> list[int]:
  """Sizes of the segments of every row; 0 is none."""
  return [int(n) for row in np.asarray(segment, np.int32) for n in np.bincount(row)[1:] if n]


def step_flops(cfg: OmniConfig, roles: Roles, batches: Sequence[TrainBatch], speech: Speech | None = None) -> float:
  """FLOPs of a step over these microbatches, forward and backward, by what is trained. LoRA's own matrices are not counted.
  speech: of the recipe."""
  share = 1.0 if speech is None else speech.frames
  work = sum((work_of(cfg, batch, share) for batch in batches), Work())
  return sum(trained_flops(cfg, roles, work, speech).values())


def trained_flops(cfg: OmniConfig, roles: Roles, work: Work, speech: Speech | None = None) -> dict[str, float]:
  """FLOPs of a step by 'part.kind', without those layers of the Thinker that a recipe with speech does not run."""
  flops = train_flops(cfg, work, *learning(roles))
  if speech is None or speech.text or roles.learns(*PARTS):
    return flops
  heard = work.audio_tokens + work.patches > 0
  layers = cfg.talker.accept_hidden_layer / cfg.thinker.text.num_hidden_layers if cfg.talker is not None and heard else 0.0
  shares = {'thinker': layers, 'audio': float(heard), 'vision': float(heard)}
  flops.pop('thinker.head', None)
  return {name: n * share for name, n in flops.items() if (share := shares.get(name.partition('.')[0], 1.0))}


def learning(roles: Roles) -> tuple[list[str], tuple[str, ...]]:
  """What is trained, and what only lets gradients through, as flops.train_flops takes them."""
  trainable: list[str] = []
  for part in roles.trainable_parts:
    prefixes, adapter = _ADAPTERS.get(part, ((), part))
    paths = [path for path in roles.trainable if path.startswith(f'{part}/')]
    trainable.append(adapter if all(path.startswith(prefixes or f'{part}/') for path in paths) else part)
  passed = {path.removeprefix(LORA).split('/')[0] for path in roles.trainable if path.startswith(LORA)}
  if roles.learns(*PARTS):
    passed |= {'thinker', *SPEECH_PARTS} & {*roles.parts}  # all gradients come through the Thinker, and to it through the Talker
  elif roles.learns('talker'):
    passed |= {*SPEECH_PARTS}
  return trainable, tuple(passed - {*trainable})


def peak() -> float | None:
  """FLOP/s of all devices together; None where it is not known."""
  each = peak_flops(jax.devices()[0])
  return None if each is None else each * jax.device_count()
