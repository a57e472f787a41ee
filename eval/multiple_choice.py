"""Reads the chosen letter from a reply, as each benchmark's own scorer does.

A dialect is a function (reply, options by letter) -> letter or None. None means that the official code cannot read the reply;
if it guesses at random then, `guess` does the same from a seed, and only on request. The dialects are written from the
behaviour of the official functions named in `DIALECTS`; `benchmarks/scorer_agreement.py` runs both side by side.
"""

import dataclasses
import functools
import json
import pathlib
import random
import re
import string
from collections.abc import Callable, Mapping, Sequence

Options = Mapping[str, str]  # letter -> text of the choice, in order


def lettered(choices: Sequence[str]) -> dict[str, str]:
  """Choices by letter, 'A' first."""
  if len(choices) > len(string.ascii_uppercase):
    raise ValueError(f'{len(choices)} choices; at most {len(string.ascii_uppercase)} have letters')
  return dict(zip(string.ascii_uppercase, choices, strict=False))


def mmmu(reply: str, options: Options) -> str | None:
  """'(A)', else ' A ', else (in replies of more than five words) the text of a choice; of several, the last one."""
  for mark in ",.!?;:'":
    reply = reply.strip(mark)
  padded = f' {reply} '
  for form in ('({})', ' {} '):
    places = {letter: padded.rfind(form.format(letter)) for letter in options if form.format(letter) in padded}
    if places:
      return max(places, key=lambda letter: places[letter])
  if len(padded.split()) <= 5:
    return None
  lower = padded.lower()
  places = {letter: lower.rfind(text.lower()) for letter, text in options.items() if text.lower() in lower}
  return max(places, key=lambda letter: places[letter]) if places else None


def mmsu(reply: str, options: Options) -> str | None:
  """The first character, else the last but one ('The answer is A.'). The reply 'None' is no answer."""
  reply = reply.strip().replace('\n', '')
  if not reply or reply == 'None':
    return None
  if reply[0] in 'ABCD':
    return reply[0]
  return reply[-2] if len(reply) > 1 and reply[-2] in 'ABCD' else None


def voicebench(reply: str, options: Options) -> str | None:
  """The first of some 140 phrases that holds with any of the letters a to d; else a bare letter or one before . , : )."""
  reply = reply.lower()
  if reply.startswith(('<1>', '<2>', '<3>')):
    reply = reply[3:].strip()
  for phrase in phrases()['choice']:
    for letter in 'abcd':
      if phrase.replace('[CHOICE]', letter) in reply:
        return letter.upper()
  for letter in 'abcd':
    if reply == letter or reply.startswith(tuple(letter + mark for mark in '.,:)')):
      return letter.upper()
  return 'A' if 'would be a.' in reply or 'would be "a.' in reply or _SCORPION in reply else None


_SCORPION = 'the best option from the given choices would be a scorpion (a)'  # one reply that the official reader names whole


def mmstar(reply: str, options: Options) -> str | None:
  """The character where the official scorer looks for the answer: first, after '(', 'option ' or 'the answer is '."""
  reply = reply.lower().strip().replace('\n', ' ')
  letters = {letter.lower() for letter in options}
  for prefix in ('', '(', 'option ', 'the answer is '):
    if reply.startswith(prefix) and reply[len(prefix) : len(prefix) + 1] in letters:
      return reply[len(prefix)].upper()
  return None


# 'is' and 'option:' run on into the next entry: two commas are missing in the official list, and scores depend on it.
_VIDEO_MME_PREFIXES = (
  'The best answer is',
  'The correct answer is',
  'The answer is',
  'The answer',
  'The best option isThe correct option is',
  'Best answer:Best option:',
  'Answer:',
  'Option:',
)


def video_mme(reply: str, options: Options) -> str | None:
  """The first capital letter A to D once phrases such as 'The best answer is' are gone."""
  reply = reply.strip()
  for prefix in _VIDEO_MME_PREFIXES:
    reply = reply.replace(prefix, '')
  found = re.search('[ABCD]', reply)
  return found[0] if found else None


def mlvu(reply: str, options: Options) -> str | None:
  """The letter before the first ')', or a reply that is a letter and nothing else."""
  if ')' in reply:
    end = reply.index(')')
    reply = reply[end - 1 : end]
  return reply if reply in options else None


def lvbench(reply: str, options: Options) -> str | None:
  """The first character of what stands before the first ')', after a '(' in it, as one word."""
  reply = reply.strip().split(')')[0].strip()
  if '(' in reply:
    reply = reply.split('(')[1].strip()
  letter = reply.split(' ')[0][:1]
  return letter if letter in options else None


def daily_omni(reply: str, options: Options) -> str | None:
  """The first letter that is not space, in either case, whatever follows it."""
  first = reply.strip()[:1].upper()
  return first if first in options else None


_REFUSALS = (
  "Sorry, I can't help with images of people yet.",
  "I can't process this file.",
  "I'm sorry, but without the image provided",
  'Cannot determine the answer',
)


def qwen(reply: str, options: Options) -> str | None:
  """The only letter among the words, unless A may be an article; else the only choice whose text is in the reply.

  'Z' (refused) is read as no answer: it is wrong for the official scorer as well.
  """
  if any(refusal in reply for refusal in _REFUSALS):
    return None
  words = reply.translate(str.maketrans(dict.fromkeys('.()[],:;!*#{}', ' '))).split()
  named = [letter for letter in options if letter in words]
  if len(named) == 1 and not ('A' in words and len(words) > 3):
    return named[0]
  if not named and 'Z' in words:
    return None
  held = [letter for letter, text in options.items() if str(text).lower() in reply.lower()]
  return held[0] if len(held) == 1 else None


@dataclasses.dataclass(frozen=True)
class Dialect:
  """A reader, the official function it follows, and whether that one guesses at random when it cannot read a reply."""

  read: Callable[[str, Options], str | None]
  official: str
  guesses: bool = False


DIALECTS = {
  'mmmu': Dialect(mmmu, 'MMMU mmmu/utils/eval_utils.py parse_multi_choice_response @ bb0b95a9', guesses=True),
  'mmsu': Dialect(mmsu, 'MMSU_Bench mmsu_evaluation.py @ f0ef334b'),
  'voicebench': Dialect(voicebench, 'VoiceBench src/evaluator/mcq.py MCQEvaluator.extract_answer @ 53381541', guesses=True),
  'mmstar': Dialect(mmstar, 'MMStar eval/vlmeval/evaluate/mmstar.py MMStar_eval @ 88f243ab'),
  'video_mme': Dialect(video_mme, 'VLMEvalKit vlmeval/dataset/utils/videomme.py extract_characters_regex @ e8e78f05'),
  'mlvu': Dialect(mlvu, 'MLVU evaluation/multiple_choice_evaluation/choice_bench.py check_ans @ fd060c10'),
  'lvbench': Dialect(lvbench, 'LVBench lvbench/utils/answer_util.py polish_answer @ f998d955'),
  'daily_omni': Dialect(daily_omni, 'Daily-Omni test_model_api/test_utils.py evaluate_answer @ fccb8380'),
  'qwen': Dialect(qwen, 'Qwen3-VL evaluation/mmmu/eval_utils.py can_infer @ 96588727'),
}


def read_choice(dialect: str, reply: str | None, options: Options) -> str | None:
  """The letter a reply names, None where the dialect cannot read it (or there is no reply)."""
  return None if reply is None else DIALECTS[dialect].read(reply, options)


def guess(dialect: str, options: Options, rng: random.Random) -> str | None:
  """What the official scorer makes of an unreadable reply: a random letter, or None where it does not guess."""
  if not DIALECTS[dialect].guesses:
    return None
  return rng.choice(list(options) if dialect == 'mmmu' else ['A', 'B', 'C', 'D'])


def choice_text(reply: str, options: Options) -> str:
  """The text of the choice that a reply names by letter ('B', '(B)', 'B. …'), else the reply itself.

  For scorers that compare texts, such as MMAU's, where the bare letter would be wrong.
  """
  found = re.match(r'\s*\(?([A-Z])(?:\s*$|[).:])', reply)
  return options[found[1]] if found and found[1] in options else reply


@functools.cache
def phrases() -> dict:
  """The ordered phrase lists of VoiceBench's readers."""
  return json.loads((pathlib.Path(__file__).parent / 'phrases' / 'voicebench.json').read_text(encoding='utf-8'))
