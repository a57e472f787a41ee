"""Loss mask: the assistant's turns of a conversation, the text of a document; never media.

It is computed from the token ids that the checkpoint's own chat template gave, so mask and prompt cannot disagree.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from qwen3_omni_jax.config import OmniConfig
from qwen3_omni_jax.media.text import Tokenizer


@dataclasses.dataclass(frozen=True)
class SpecialIds:
  """Ids of the special tokens of turns, reasoning and media. think is None for a tokenizer without reasoning tokens."""

  turn: int  # <|im_start|>
  end: int  # <|im_end|>
  assistant: int
  newline: int  # the line break after the role
  newlines: tuple[int, ...]  # all tokens of line breaks alone
  think: tuple[int, int] | None  # <think>, </think>
  media: tuple[int, ...]  # pads, and the tokens around media

  @classmethod
  def of(cls, cfg: OmniConfig, tokenizer: Tokenizer) -> 'SpecialIds':
    newline = tokenizer.encode('\n')
    assert len(newline) == 1, 'byte-level BPE has a token for every byte'
    think = tokenizer.token_id('<think>'), tokenizer.token_id('</think>')
    t = cfg.thinker
    media = (
      t.audio_token_id,
      t.image_token_id,
      t.video_token_id,
      t.audio_start_token_id,
      t.audio_end_token_id,
      t.vision_start_token_id,
      t.vision_end_token_id,
    )
    return cls(
      turn=cfg.im_start_token_id,
      end=cfg.im_end_token_id,
      assistant=cfg.assistant_token_id,
      newline=newline[0],
      newlines=tuple({token for n in (1, 2, 3) for token in tokenizer.encode('\n' * n)}),
      think=None if think[0] is None or think[1] is None else (think[0], think[1]),
      media=media,
    )


def document_mask(ids: np.ndarray, special: SpecialIds) -> np.ndarray:
  """bool 'T': every token except those of media and the tokens around them."""
  return ~np.isin(ids, special.media)


def chat_mask(ids: np.ndarray, learnt: Sequence[bool], special: SpecialIds, thinking: bool = True) -> np.ndarray:
  """bool 'T': of every assistant turn with learnt[turn], what follows `<|im_start|>assistant` and its line break, up to and
  with `<|im_end|>`.

  thinking: learn <think> … </think> and the blank line after it too. Raises ValueError as assistant_turns does.
  """
  mask = np.zeros(len(ids), bool)
  for learn, (begin, end) in zip(learnt, assistant_turns(ids, len(learnt), special), strict=True):
    if learn:
      mask[begin : end + 1] = True
      if not thinking and special.think is not None:
        _drop_reasoning(ids, mask, begin, end, special)
  return mask & document_mask(ids, special)


def assistant_turns(ids: np.ndarray, count: int, special: SpecialIds) -> list[tuple[int, int]]:
  """(first token of the words, their <|im_end|>) of each of the `count` assistant turns.

  Raises ValueError if the prompt has another number of them, or one without an end, or words that begin with a line break (the
  tokenizer joins it to the role's own, so that the model could never say it).
  """
  starts = np.flatnonzero((ids[:-1] == special.turn) & (ids[1:] == special.assistant))
  if len(starts) != count:
    raise ValueError(f'the chat template writes {len(starts)} assistant turns, the record has {count}')
  turns, ends = [], np.flatnonzero(ids == special.end)
  for turn, start in enumerate(starts.tolist()):
    begin = start + 3
    after = ends[np.searchsorted(ends, start) :]
    if not len(after):
      raise ValueError(f'assistant turn {turn + 1} has no <|im_end|>: the chat template leaves it open')
    if begin > len(ids) or ids[begin - 1] != special.newline:
      raise ValueError(
        f'assistant turn {turn + 1} begins with white space, which the tokenizer joins to the line break before '
        'it: remove it from the record'
      )
    turns.append((begin, int(after[0])))
  return turns


def _drop_reasoning(ids: np.ndarray, mask: np.ndarray, begin: int, end: int, special: SpecialIds) -> None:
  assert special.think is not None
  words = ids[begin:end]
  opened, closed = np.flatnonzero(words == special.think[0]), np.flatnonzero(words == special.think[1])
  if not len(opened) and not len(closed):
    return
  if not len(closed):
    raise ValueError('a thought without </think>: it cannot be told from the answer')
  first = int(opened[0]) if len(opened) and opened[0] < closed[0] else 0  # some templates open the thought in the prompt
  answer = int(closed[-1]) + 1
  while answer < len(words) and words[answer] in special.newlines:
    answer += 1
  mask[begin + first : begin + answer] = False
