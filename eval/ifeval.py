"""The 25 verifiable instructions of IFEval as VoiceBench uses them, checked strictly and loosely.

Source: Google's instruction_following_eval in VoiceBench @ 53381541. Sentence counts and words in capitals need nltk with its
'punkt' data, the language checks need langdetect: install them for the IFEval row. An argument that is empty or 0 is dropped, as
there; where the official code then draws a random value, the instruction is an error here.
"""

import collections
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Check = Callable[..., bool]


def follows(reply: str, instruction: str, arguments: Mapping[str, Any], prompt: str = '') -> bool:
  """Whether the reply follows one instruction. An empty reply follows none.

  Raises ValueError for an unknown instruction or one that lacks an argument.
  """
  if instruction not in CHECKS:
    raise ValueError(f"instruction '{instruction}': expected one of {', '.join(sorted(CHECKS))}")
  given = {k: v for k, v in arguments.items() if v}
  if instruction == 'combination:repeat_prompt':
    given['prompt_to_repeat'] = prompt if 'prompt_to_repeat' not in given else given['prompt_to_repeat']
  if not reply.strip():
    return False
  try:
    return bool(CHECKS[instruction](reply, **given))
  except LookupError as e:  # nltk without its data
    raise ValueError(f"{instruction}: nltk lacks its 'punkt_tab' data: python -m nltk.downloader punkt_tab") from e
  except TypeError as e:
    raise ValueError(f'{instruction}: arguments {sorted(given)} do not fit ({e})') from e


def strict(reply: str, instructions: Sequence[str], arguments: Sequence[Mapping[str, Any]], prompt: str = '') -> list[bool]:
  """For each instruction, whether the reply as it is follows it."""
  return [follows(reply, i, a, prompt) for i, a in zip(instructions, arguments, strict=True)]


def loose(reply: str, instructions: Sequence[str], arguments: Sequence[Mapping[str, Any]], prompt: str = '') -> list[bool]:
  """The same of the best among the reply without asterisks, without its first line, last line, or both."""
  lines = reply.split('\n')
  cuts = [reply, *('\n'.join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
  forms = [*cuts, *(cut.replace('*', '') for cut in cuts)]
  return [any(follows(f, i, a, prompt) for f in forms) for i, a in zip(instructions, arguments, strict=True)]


def clean(reply: str) -> str:
  """Without the turn tags that some models leave."""
  if reply.startswith(('<1>', '<2>', '<3>')):
    reply = reply[3:].strip()
  return reply[: -len('<|user|>')].strip() if reply.endswith('<|user|>') else reply


def _compare(number: int, relation: str, limit: int) -> bool:
  if relation not in ('less than', 'at least'):
    raise ValueError(f"relation '{relation}': expected 'less than' or 'at least'")
  return number < limit if relation == 'less than' else number >= limit


def _language(text: str) -> str | None:
  try:
    import langdetect
  except ImportError as e:
    raise ValueError('IFEval language checks need langdetect: pip install langdetect') from e
  langdetect.DetectorFactory.seed = 0  # the official code leaves it unseeded, so that short texts vary between runs
  try:
    return langdetect.detect(text)
  except langdetect.LangDetectException:
    return None  # the official code then counts the instruction as followed


def _nltk():
  try:
    import nltk
  except ImportError as e:
    raise ValueError("IFEval sentence and capital-word checks need nltk and its 'punkt_tab' data: pip install nltk") from e
  return nltk


def _sentences(reply: str, num_sentences: int, relation: str) -> bool:
  return _compare(len(_nltk().sent_tokenize(reply)), relation, num_sentences)


def _capital_words(reply: str, capital_frequency: int, capital_relation: str) -> bool:
  return _compare(sum(w.isupper() for w in _nltk().word_tokenize(reply)), capital_relation, capital_frequency)


def _bullets(reply: str, num_bullets: int) -> bool:
  found = [re.findall(p, reply, flags=re.MULTILINE) for p in (r'^\s*\*[^\*].*$', r'^\s*-.*$')]
  return sum(map(len, found)) == num_bullets


def _highlights(reply: str, num_highlights: int) -> bool:
  single = [h.strip('*') for h in re.findall(r'\*[^\n\*]*\*', reply)]
  double = [h.removeprefix('**').removesuffix('**') for h in re.findall(r'\*\*[^\n\*]*\*\*', reply)]
  return sum(bool(h.strip()) for h in single + double) >= num_highlights


def _sections(reply: str, section_spliter: str, num_sections: int) -> bool:
  return len(re.split(r'\s?' + section_spliter.strip() + r'\s?\d+\s?', reply)) - 1 >= num_sections


def _divided(reply: str, divider: str) -> list[str] | None:
  """Parts between dividers; an empty one is allowed at either end only, else None."""
  parts = re.split(divider, reply)
  if any(not part.strip() for part in parts[1:-1]):
    return None
  return [part for part in parts if part.strip()]


def _paragraphs(reply: str, num_paragraphs: int) -> bool:
  parts = _divided(reply, r'\s?\*\*\*\s?')
  return parts is not None and len(parts) == num_paragraphs


def _two_responses(reply: str) -> bool:
  parts = _divided(reply, re.escape('******'))
  return parts is not None and len(parts) == 2 and parts[0].strip() != parts[1].strip()


def _postscript(reply: str, postscript_marker: str) -> bool:
  marker = postscript_marker.strip()
  known = {'P.P.S': r'\s*p\.\s?p\.\s?s.*$', 'P.S.': r'\s*p\.\s?s\..*$'}
  return re.search(known.get(marker, r'\s*' + marker.lower() + r'.*$'), reply.lower(), flags=re.MULTILINE) is not None


def _first_word(reply: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
  parts = reply.split('\n\n')
  number = sum(bool(part.strip()) for part in parts)
  if nth_paragraph > number or not parts[nth_paragraph - 1].strip():
    return False
  word = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
  return number == num_paragraphs and re.split(r'[.,?!\'"]', word)[0].lower() == first_word.lower()


def _is_json(reply: str) -> bool:
  text = reply.strip()
  for fence in ('```json', '```Json', '```JSON', '```'):
    text = text.removeprefix(fence)
  try:
    json.loads(text.removesuffix('```').strip())
  except (ValueError, RecursionError):
    return False
  return True


def _letters(reply: str, letter: str, let_frequency: int, let_relation: str) -> bool:
  return _compare(collections.Counter(reply.lower())[letter.strip().lower()], let_relation, let_frequency)


def _keyword_count(reply: str, keyword: str, frequency: int, relation: str) -> bool:
  return _compare(len(re.findall(keyword.strip(), reply, flags=re.IGNORECASE)), relation, frequency)


def _quoted(reply: str) -> bool:
  text = reply.strip()
  return len(text) > 1 and text[0] == text[-1] == '"'


_ANSWERS = ('My answer is yes.', 'My answer is no.', 'My answer is maybe.')

CHECKS: dict[str, Check] = {
  'keywords:existence': lambda r, keywords: all(re.search(k, r, flags=re.IGNORECASE) for k in keywords),
  'keywords:frequency': _keyword_count,
  'keywords:forbidden_words': lambda r, forbidden_words: (
    not any(re.search(rf'\b{w}\b', r, flags=re.IGNORECASE) for w in forbidden_words)
  ),
  'keywords:letter_frequency': _letters,
  'language:response_language': lambda r, language: _language(r) in (language, None),
  'length_constraints:number_sentences': _sentences,
  'length_constraints:number_paragraphs': _paragraphs,
  'length_constraints:number_words': lambda r, num_words, relation: _compare(len(re.findall(r'\w+', r)), relation, num_words),
  'length_constraints:nth_paragraph_first_word': _first_word,
  'detectable_content:number_placeholders': lambda r, num_placeholders: len(re.findall(r'\[.*?\]', r)) >= num_placeholders,
  'detectable_content:postscript': _postscript,
  'detectable_format:number_bullet_lists': _bullets,
  'detectable_format:constrained_response': lambda r: any(a in r for a in _ANSWERS),
  'detectable_format:number_highlighted_sections': _highlights,
  'detectable_format:multiple_sections': _sections,
  'detectable_format:json_format': _is_json,
  'detectable_format:title': lambda r: any(t.lstrip('<').rstrip('>').strip() for t in re.findall(r'<<[^\n]+>>', r)),
  'combination:two_responses': _two_responses,
  'combination:repeat_prompt': lambda r, prompt_to_repeat: r.strip().lower().startswith(prompt_to_repeat.strip().lower()),
  'startend:end_checker': lambda r, end_phrase: r.strip().strip('"').lower().endswith(end_phrase.strip().lower()),
  'startend:quotation': _quoted,
  'change_case:capital_word_frequency': _capital_words,
  'change_case:english_capital': lambda r: r.isupper() and _language(r) in ('en', None),
  'change_case:english_lowercase': lambda r: r.islower() and _language(r) in ('en', None),
  'punctuation:no_comma': lambda r: ',' not in r,
}
