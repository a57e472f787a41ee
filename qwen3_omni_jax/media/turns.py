"""What the Talker is given of a conversation: the tokens of the user's turns, their positions, and the speaker. Plain numpy, for
generation and for training."""

import numpy as np

from ..config import OmniConfig, TalkerConfig


def user_tokens(ids: np.ndarray, cfg: OmniConfig) -> np.ndarray:
  """int 'U': indices of the tokens of user turns among ids 'T': '<|im_start|>user' and all up to the next '<|im_start|>'."""
  starts = np.flatnonzero(ids == cfg.im_start_token_id)
  ends = np.append(starts, len(ids))[1:]
  is_user = [s + 1 < len(ids) and ids[s + 1] == cfg.user_token_id for s in starts]
  runs = [np.arange(s, e) for s, e, user in zip(starts, ends, is_user, strict=True) if user]
  return np.concatenate(runs) if runs else np.zeros(0, np.int64)


def user_positions(positions: np.ndarray, index: np.ndarray) -> np.ndarray:
  """float32 '3 U': the Thinker's positions '3 T' of the tokens `index`, closed up over the gaps between kept runs."""
  out = positions[:, index].astype(np.float64)
  following = 0.0
  for run in np.split(np.arange(len(index)), np.flatnonzero(np.diff(index) > 1) + 1):
    if len(run):  # a run begins and ends with text, whose three axes are equal
      out[:, run] += following - out[0, run[0]]
      following = out[0, run[-1]] + 1
  return out.astype(np.float32)


def speaker_code(cfg: TalkerConfig, name: str) -> int:
  """Codec id of a speaker, by its name in any case. Raises ValueError listing the speakers there are."""
  speakers = dict(cfg.speaker_id)
  if name.lower() not in speakers:
    raise ValueError(f"speaker '{name}' is not one of this checkpoint's: {', '.join(sorted(speakers))}")
  return speakers[name.lower()]
