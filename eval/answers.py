"""Scorers of answers that are not letters: open questions, numbers, yes or no, refusals, choices compared as text.

Each function follows the official one that its docstring names; `benchmarks/scorer_agreement.py` runs both side by side.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .multiple_choice import phrases

# MMMU: open questions --------------------

_KEYS = ('could be ', 'so ', 'is ', 'thus ', 'therefore ', 'final ', 'answer ', 'result ')
_NUMBERS = (
  r'-?\b\d{1,3}(?:,\d{3})+\b',  # 1,234
  r'-?\d+(?:\.\d+)?[eE][+-]?\d+',  # 1.2e5
  r'-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])',  # 12, 1.2, .2
)


def mmmu_open_candidates(reply: str) -> set[str | float]:
  """What a reply to an open question may mean: the ends of its key sentences, and all numbers in them.

  Source: MMMU `parse_open_response` @ bb0b95a9.
  """
  reply = reply.strip().strip('.').lower()
  sentences = re.split(r'\.\s(?=[A-Z])|\n', reply)
  ends = []
  for i, sentence in enumerate(sentences):
    keys = (*_KEYS, '=') if i == len(sentences) - 1 else _KEYS  # the last may be an equation
    shortest = _shortest_tail(sentence, keys)
    if shortest and shortest not in (':', ',', '.', '!', '?', ';', "'"):
      ends.append(shortest)
  ends = ends or [reply]
  numbers = [n for end in ends for pattern in _NUMBERS for n in re.findall(pattern, end)]
  return {form for text in [*ends, *numbers] for form in _comparable(text)}


def _shortest_tail(sentence: str, keys: Sequence[str]) -> str | None:
  """The shortest text after the last occurrence of a key. An empty one is forgotten as soon as another key is found."""
  shortest = None
  for key in keys:
    if key in sentence:
      tail = sentence.split(key)[-1].strip()
      if not shortest or len(tail) < len(shortest):
        shortest = tail
  return shortest


def _comparable(text: str) -> list[str | float]:
  """A number rounded to two places, or lower-case text (one letter with a space on either side, against chance matches)."""
  text = text.strip()
  try:
    return [round(float(text.replace(',', '')), 2)]
  except ValueError:
    text = text.lower()
    return [' ' + text, text + ' '] if len(text) == 1 else [text]


def mmmu_open_correct(reply: str, answers: str | Sequence[str]) -> bool:
  """Whether any candidate of the reply holds a right answer. Source: MMMU `eval_open` @ bb0b95a9."""
  right = [form for a in ([answers] if isinstance(answers, str) else answers) for form in _comparable(a)]
  for candidate in mmmu_open_candidates(reply):
    if isinstance(candidate, str):
      if any(isinstance(r, str) and r in candidate for r in right):
        return True
    elif candidate in right:
      return True
  return False


# MMAU: choices compared as sets of words --------------------


def mmau_correct(answer: str, prediction: str, choices: Sequence[str]) -> bool:
  """All words of the answer are there, and none that only wrong choices have. Source: MMAU evaluation.py `string_match`."""

  def words(text: str) -> set[str]:
    return set(re.findall(r'\b\w+\b', text.lower()))

  said, right = words(prediction), words(answer)
  wrong = set().union(*(words(c) - right for c in choices if words(c) != right)) if choices else set()
  return bool(said) and right <= said and not said & wrong


# MathVista --------------------


def mathvista_extract(reply: str, problem: Mapping[str, Any]) -> str | None:
  """The answer in a reply where a rule finds it, else None: then the official harness asks a judge.

  Source: MathVista evaluation/extract_answer.py with quick extraction @ 53d52587.
  """
  if not reply:
    return ''
  if problem['question_type'] == 'multi_choice' and reply in problem['choices']:
    return reply
  for kind, convert in (('integer', int), ('float', float)):
    if problem['answer_type'] == kind:
      try:
        return str(convert(reply))
      except (ValueError, OverflowError):
        pass
  found = re.search(r'The answer is "(.*)"\.', reply)
  return found[1] if found else None


def mathvista_normalise(extraction: Any, problem: Mapping[str, Any]) -> str | None:
  """The extraction in the form of the answer: a choice (by letter, else the nearest by edits), or a rounded number.

  Source: MathVista evaluation/calculate_score.py `normalize_extracted_answer` @ 53d52587. None: no number there.
  """
  if problem['question_type'] == 'multi_choice':
    text, choices = str(extraction).strip(), list(problem['choices'])
    if letter := re.findall(r'\(([a-zA-Z])\)', text):
      text = letter[0].upper()
    index = ord(text) - ord('A') if len(text) == 1 else -1
    return choices[index] if 0 <= index < len(choices) else _nearest(text, choices)
  try:
    if problem['answer_type'] == 'integer':
      return str(int(float(extraction)))
    if problem['answer_type'] == 'float':
      return str(round(float(extraction), int(problem['precision'])))
  except (ValueError, TypeError, OverflowError):
    return None
  return str(extraction)


def _nearest(text: str, choices: Sequence[str]) -> str:
  from rapidfuzz.distance import Levenshtein

  return min(choices, key=lambda choice: Levenshtein.distance(text, choice))


# HallusionBench --------------------

_MARKS = (';', '/', '[', ']', '"', '{', '}', '(', ')', '=', '+', '\\', '_', '-', '>', '<', '@', '`', ',', '?', '!')


def yes_or_no(reply: str) -> str | None:
  """'Yes' or 'No' if exactly one of them is a word of the reply. Source: VLMEvalKit yorn.py `YOrN_Extraction` @ e8e78f05."""
  text = said = reply.lower()
  comma_in_number = re.search(r'\d,\d', said) is not None
  for mark in _MARKS:
    alone = mark + ' ' in said or ' ' + mark in said or comma_in_number
    text = text.replace(mark, '' if alone else ' ')
  # A full stop that touches no digit goes; the official call passes a flag as its count, so at most 32 of them.
  words = re.sub(r'(?<!\d)\.(?!\d)', '', text, count=int(re.UNICODE)).split()
  return 'Yes' if 'yes' in words and 'no' not in words else 'No' if 'no' in words and 'yes' not in words else None


# VoiceBench --------------------

_TESTS = {
  'has': lambda text, phrase: phrase in text,
  'is': lambda text, phrase: text == phrase,
  'starts': lambda text, phrase: text.startswith(phrase),
  'ends': lambda text, phrase: text.endswith(phrase),
  'finds': lambda text, phrase: re.search(phrase, text) is not None,
}
BBH_KINDS = ('sports_understanding', 'hyperbaton', 'navigate', 'web_of_lies')


def bbh_answer(reply: str, item_id: str) -> int | None:
  """0 (no, option a) or 1 (yes, option b), by the first phrase of the item's list that holds; None where none does.

  Source: VoiceBench src/evaluator/bbh.py @ 53381541, which guesses instead of None. Raises ValueError for an unknown kind.
  """
  kind = next((k for k in BBH_KINDS if k in item_id), None)
  if kind is None:
    raise ValueError(f"bbh id '{item_id}': expected one of {', '.join(BBH_KINDS)} in it")
  text = reply.lower()
  if text.endswith('<|user|>'):
    text = text[: -len('<|user|>')].strip()
  if text.startswith(('<1>', '<2>', '<3>')):
    text = text[3:].strip()
  text = text.replace('<|turn_end|>', '')
  for mark in (':', '**', '"', '-', ',', '.', '：'):
    text = text.replace(mark, ' ')
  text = ' '.join(text.split())
  lists = [kind] if kind == 'hyperbaton' else ['yes_no', kind]
  for test, phrase, value in (rule for name in lists for rule in phrases()[name]):
    if _TESTS[test](text, phrase):
      return value
  return None


def refuses(reply: str) -> bool:
  """Whether a reply declines a harmful request; an empty one does. Source: VoiceBench src/evaluator/harm.py @ 53381541."""
  return not reply.strip() or any(phrase in reply.lower() for phrase in phrases()['refusal'])


def judged_rating(reply: str) -> float | None:
  """The rating in a judge's reply: the whole reply, or in [[double brackets]].

  None where there is none, which is an error in the official code.
  """
  try:
    return float(reply)
  except ValueError:
    found = re.search(r'\[\[(\d+)\]\]', reply)
    return float(found[1]) if found else None


def majority_is_yes(replies: Sequence[str]) -> bool:
  """Whether 'yes' is the most frequent of a judge's replies (an odd number of them)."""
  said = [r.lower() for r in replies]
  return said.count('yes') > max((said.count(r) for r in said if r != 'yes'), default=0)


# Text --------------------


def last_number(text: str) -> str | None:
  """The number after '####', else in \\boxed{}, else the last one; without commas or a trailing '.0'."""
  for pattern in (r'####\s*(-?[\d,.]*\d)', r'\\boxed\{\s*\$?(-?[\d,.]*\d)'):
    if found := re.findall(pattern, text):
      return _plain_number(found[-1])
  found = re.findall(r'-?\d[\d,]*(?:\.\d+)?', text)
  return _plain_number(found[-1]) if found else None


def _plain_number(text: str) -> str:
  text = text.replace(',', '')
  return text.rstrip('0').rstrip('.') if '.' in text else text
