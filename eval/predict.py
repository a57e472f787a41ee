"""Predictors of a loaded `Omni`; nothing else in evaluation uses the model.

A predictor is any function (conversations, settings) -> replies with `text` and `finish_reason`; this one also chooses among
options by their probability, and speaks.
"""

import dataclasses
import pathlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from .benchmark import Settings

Conversation = Sequence[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Answer:
  """A reply as it is kept: text is None where the item failed (`error` says why), or was spoken and not yet written down."""

  text: str | None
  finish_reason: str = 'stop'
  reasoning: str | None = None
  error: str | None = None


class Predictor(Protocol):
  def __call__(self, conversations: Sequence[Conversation], settings: Settings) -> Sequence[Any]: ...


class OmniPredictor:
  """Answers with an `Omni`. speaker: who speaks where a benchmark says nothing."""

  def __init__(self, omni: Any, *, batch_size: int = 16, speaker: str = 'Ethan', max_frames: int | None = None):
    self.omni, self.batch_size, self.speaker, self.max_frames = omni, batch_size, speaker, max_frames

  @property
  def voice(self) -> dict[str, Any]:
    """What speech depends on besides the settings."""
    return {'speaker': self.speaker, 'max_frames': self.max_frames}

  def __call__(self, conversations: Sequence[Conversation], settings: Settings) -> list[Answer]:
    replies = self.omni.generate(
      conversations,
      max_new_tokens=settings.max_new_tokens,
      temperature=settings.temperature,
      top_k=settings.top_k,
      top_p=settings.top_p,
      seed=[settings.seed] * len(conversations),
      **settings.prompt(),
      batch_size=self.batch_size,
      on_error='return',
    )
    return [Answer(None if r.finish_reason == 'error' else r.text, r.finish_reason, r.reasoning, r.error) for r in replies]

  def choose(self, conversations: Sequence[Conversation], letters: Sequence[Sequence[str]], settings: Settings) -> list[Answer]:
    """The letter that is the most probable assistant turn of each conversation."""
    turns = [[*c, {'role': 'assistant', 'content': k}] for c, ks in zip(conversations, letters, strict=True) for k in ks]
    scores = iter(self.omni.score(turns, batch_size=self.batch_size, **settings.prompt()))
    answers = []
    for choices in letters:
      likely = {k: next(scores).total_logprob for k in choices}
      answers.append(Answer(max(likely, key=lambda k: likely[k])))
    return answers

  def speak(
    self, texts: Sequence[str], speakers: Sequence[str | None], waves: Sequence[pathlib.Path], settings: Settings
  ) -> list[Answer]:
    """Speaks the texts into wave files; the replies have no text, and say how the speech ended."""
    import soundfile

    voices = [speaker or self.speaker for speaker in speakers]
    spoken = self.omni.speak(list(texts), voices, seed=[settings.seed] * len(texts), max_frames=self.max_frames)
    for speech, wave in zip(spoken, waves, strict=True):
      wave.parent.mkdir(parents=True, exist_ok=True)
      soundfile.write(wave, speech.samples, speech.rate_hz, subtype='PCM_16')
    return [Answer(None, speech.finish_reason) for speech in spoken]


class EnginePredictor(OmniPredictor):
  """The same through the batch engine: a slot is refilled as soon as its reply has ended; one long reply holds up no others.

  stream: pairs of id and conversation in, of id and answer out, in the order in which they are finished. A row's seed follows
  from the settings' seed and its id, never from its neighbours.
  """

  def __init__(self, omni: Any, *, batch_size: int = 16, **options: Any):
    from qwen3_omni_jax.infer.batch import Engine
    from qwen3_omni_jax.infer.batch_plan import EngineConfig

    super().__init__(omni, batch_size=batch_size, **options)
    lengths = (*EngineConfig().lengths, 32_768, 65_536)  # a Thinking model may write 32,768 tokens behind a long prompt
    self.engine = Engine(omni, EngineConfig(slots=batch_size, lengths=lengths))

  def stream(self, rows: Iterable[tuple[str, Conversation]], settings: Settings) -> Iterator[tuple[str, Answer]]:
    from qwen3_omni_jax.infer.prepare import Row

    requests = (
      Row(
        key,
        messages,
        settings.max_new_tokens,
        settings.temperature,
        settings.top_k,
        settings.top_p,
        seed=zlib.crc32(f'{settings.seed}/{key}'.encode()),
        prompt=settings.prompt(),
      )
      for key, messages in rows
    )
    for result in self.engine.answer(requests):
      if result.reply is None:
        yield result.row.id, Answer(None, 'error', error=f'{result.kind}: {result.error}')
      else:
        yield result.row.id, Answer(result.reply.text, result.reply.finish_reason, result.reply.reasoning)


def variant_of(omni: Any) -> str:
  """'instruct' for a checkpoint that can speak; else 'thinking'. A Captioner cannot be told from its files: pass --variant."""
  return 'instruct' if omni.cfg.talker is not None else 'thinking'
