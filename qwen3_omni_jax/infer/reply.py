"""Results of a call: a Reply for each conversation, or events while it is generated."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..media.text import Tokenizer
from .voice import Speech


@dataclasses.dataclass(frozen=True)
class Reply:
  """One answered conversation.

  text: the answer; reasoning: what a Thinking model wrote before it, None for other replies. token_ids: everything sampled,
  the stop token included. finish_reason: 'stop', 'length' or 'error' (then `error` says why and the rest is empty).
  timings: seconds by stage, of the whole batch the conversation was in. speech: where it was asked for.
  """

  text: str
  token_ids: list[int]
  prompt_tokens: int
  finish_reason: str
  reasoning: str | None = None
  timings: dict[str, float] = dataclasses.field(default_factory=dict)
  error: str | None = None
  speech: Speech | None = None

  @classmethod
  def of(
    cls,
    tokenizer: Tokenizer,
    prompt: np.ndarray,
    token_ids: list[int],
    stop: Sequence[int],
    timings: dict[str, float],
    speech: Speech | None = None,
  ) -> 'Reply':
    """From what was sampled after a prompt."""
    stopped = bool(token_ids) and token_ids[-1] in stop
    opened = tokenizer.decode(prompt[-4:].tolist(), skip_special_tokens=False).rstrip().endswith('<think>')
    text, reasoning = split_reasoning(tokenizer.decode(token_ids[:-1] if stopped else token_ids), opened)
    return cls(text, token_ids, len(prompt), 'stop' if stopped else 'length', reasoning, timings, None, speech)

  def to_json(self) -> dict[str, Any]:
    """The JSON object the command line prints: unset optional fields are left out."""
    keep = {'text', 'token_ids', 'prompt_tokens', 'finish_reason', 'timings'}
    fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != 'speech'}
    if self.speech is not None:
      fields['codes'] = self.speech.codes.tolist()
      fields['audio_s'] = round(self.speech.duration_s, 4)
      fields['speech_finish_reason'] = self.speech.finish_reason
    return {k: v for k, v in fields.items() if k in keep or v is not None}


@dataclasses.dataclass(frozen=True)
class Score:
  """Log-probabilities of the last assistant turn: one per token, its closing token included."""

  token_ids: list[int]
  tokens: list[str]
  logprobs: list[float]
  prompt_tokens: int

  @property
  def total_logprob(self) -> float:
    return sum(self.logprobs)

  def to_json(self) -> dict[str, Any]:
    return {**dataclasses.asdict(self), 'total_logprob': self.total_logprob}


@dataclasses.dataclass(frozen=True)
class TextDelta:
  """Newly decoded text of a streamed reply; may be several tokens, or a part of one word."""

  text: str


@dataclasses.dataclass(frozen=True)
class Finished:
  """The end of a stream, with the whole reply."""

  reply: Reply

  @property
  def usage(self) -> dict[str, int]:
    frames = 0 if self.reply.speech is None else len(self.reply.speech.codes)
    return {
      'prompt_tokens': self.reply.prompt_tokens,
      'completion_tokens': len(self.reply.token_ids),
      'audio_frames': frames,
    }

  @property
  def timings(self) -> dict[str, float]:
    return self.reply.timings


def split_reasoning(text: str, opened: bool) -> tuple[str, str | None]:
  """(answer, reasoning) of a reply. opened: the prompt itself ended with <think>.

  A reply cut before </think> is all reasoning. A reply with no trace of thinking has reasoning None.
  """
  before, closed, after = text.partition('</think>')
  if closed:
    return after.lstrip('\n'), before.removeprefix('<think>').strip('\n')
  if opened or text.startswith('<think>'):
    return '', text.removeprefix('<think>').strip('\n')
  return text, None
