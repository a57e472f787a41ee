"""Scores and speech of a model in training: what `train` calls at the steps of `evaluate.benchmarks` and `evaluate.speech`."""

import pathlib
from collections.abc import Callable
from typing import Any

from qwen3_omni_jax.train.config import Benchmarks, SpokenTexts
from qwen3_omni_jax.train.samples import Sample, Speak

from .data_check import check
from .predict import OmniPredictor
from .registry import select_benchmarks
from .run import evaluate, spread
from .voice_metrics import CUT
from .wer import corpus_rate, edits, without_punctuation


def make_scorer(wanted: Benchmarks, *, speaks: bool = False) -> Callable[[Any], dict[str, float]]:
  """Omni -> the first metric of each benchmark by its name, of greedy replies; what is spoken the model itself writes down.

  speaks: the run trains the Talker. Raises ValueError for unknown names, for sets that a model alone cannot answer and score (a
  judge, or speech in a run without the Talker), and for files and
  media that are not there: all questions are read once now.
  """
  benchmarks, root = select_benchmarks(None, list(wanted.names)), pathlib.Path(wanted.root)
  problems = [f'{b.name} is graded by a judge' for b in benchmarks if b.needs_judge]
  problems += [
    f'{b.name} is spoken, and this run has no Talker (speech)' for b in benchmarks if b.answer == 'speak' and not speaks
  ]
  if problems:
    raise ValueError(f'evaluate.benchmarks: {"; ".join(problems)}: run it on an export, with `qwen3-omni eval`')
  for benchmark in benchmarks:
    found = check(benchmark, spread(benchmark.read(root / benchmark.folder), wanted.limit))
    if found.lost or not found.found:
      problems += found.describe(benchmark.name, counts=False) or [f'{benchmark.name}: no items']
  if problems:
    raise ValueError('evaluate.benchmarks: ' + '; '.join(problems))
  changes = {} if wanted.max_new_tokens is None else {'max_new_tokens': wanted.max_new_tokens}

  def score(omni: Any) -> dict[str, float]:
    predict = OmniPredictor(omni, batch_size=wanted.batch)
    scores = evaluate(predict, benchmarks, root, variant='instruct', limit=wanted.limit, changes=changes, batch=wanted.batch)
    return {name: found.headline for name, found in scores.items()}

  return score


def make_speaker(wanted: SpokenTexts) -> Speak:
  """Omni -> (the texts as it speaks them, metrics): `wer`, in percent, of what it hears itself say, in lower case and without
  punctuation; `runaways`, in percent, that a limit or a guard ended; `seconds` of all speech.

  Raises ValueError for texts without words to compare.
  """
  words = lambda text: without_punctuation(text).lower().split()
  if silent := [text for text in wanted.texts if not words(text)]:
    raise ValueError(f'evaluate.speech.texts: no words in {silent[0]!r}')

  def speak(omni: Any) -> tuple[list[Sample], dict[str, float]]:
    spoken = omni.speak(list(wanted.texts), wanted.speaker, max_frames=wanted.max_frames)
    ask = {'type': 'text', 'text': wanted.hear}
    sounding = [i for i, speech in enumerate(spoken) if len(speech.samples)]
    sounds = [{'type': 'audio', 'audio': (spoken[i].samples, spoken[i].rate_hz)} for i in sounding]
    asked = [[{'role': 'user', 'content': [sound, ask]}] for sound in sounds]
    replies = omni.generate(asked, max_new_tokens=wanted.max_new_tokens, temperature=0.0) if asked else []
    heard = {i: reply.text for i, reply in zip(sounding, replies, strict=True)}
    samples = [
      Sample(text, speech.samples, speech.rate_hz, speech.finish_reason, heard.get(i, ''))
      for i, (text, speech) in enumerate(zip(wanted.texts, spoken, strict=True))
    ]
    wer = corpus_rate([edits(words(sample.text), words(sample.heard)) for sample in samples])
    runaways = 100 * sum(sample.finish_reason in CUT for sample in samples) / len(samples)
    return samples, {'wer': wer, 'runaways': runaways, 'seconds': sum(speech.duration_s for speech in spoken)}

  return speak
