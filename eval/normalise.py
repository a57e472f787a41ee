"""Normalises the text of a transcript: as Qwen2-Audio's `evaluate_asr.py` does it (Qwen3-Omni's own scorer is unpublished).

English goes through Whisper's English normaliser and then through its basic one as well: so does the official code, whose
`else` belongs to the test for Chinese. Chinese numbers and dates are spelled out (`normalise_zh`). Other languages get the
basic normaliser.
"""

import functools
import re
import unicodedata

from .normalise_zh import spell_out

CHARACTER_LANGUAGES = frozenset({'zh', 'yue'})  # scored by character, as in the official code
# Languages written without spaces: scored by character too in our FLEURS average, where the official code counts "words".
UNSPACED_LANGUAGES = CHARACTER_LANGUAGES | {'ja', 'th'}


def strip_markup(text: str, language: str) -> str:
  """Without <|…|> tags, runs of spaces, and spaces before !,.?;: — for Chinese, without any space."""
  text = re.sub(r'<\|.*?\|>', ' ', text)
  text = re.sub(r'\s+', ' ', text)
  text = re.sub(' ?([!,.?;:])', r'\1', text).lstrip(' ')
  return re.sub(r'\s+', '', text) if language == 'zh' else text


def normalise(text: str, language: str) -> str:
  """The text as the official scorer compares it. language: 'en', 'zh', 'yue', or any other."""
  if language == 'yue':
    text = simplified(text)
  if language == 'en':
    text = _whisper('english')(text)
  if language == 'zh':
    return spell_out(text)
  return _whisper('basic')(text)


def tokens(text: str, language: str, characters: bool | None = None) -> list[str]:
  """Lower-case words without those that are only punctuation; characters for Chinese and Cantonese.

  text: normalised. characters: overrides the official choice (for FLEURS' average over languages).
  """
  words = [w for w in text.split(' ') if not all(unicodedata.category(c)[0] == 'P' for c in w)]
  words = ' '.join(words).lower().split()
  split = language in CHARACTER_LANGUAGES if characters is None else characters
  return list(''.join(words)) if split else words


def transcript_tokens(text: str, language: str, characters: bool | None = None) -> list[str]:
  """From raw transcript to the tokens that are counted."""
  return tokens(normalise(strip_markup(text, language), language), language, characters)


def simplified(text: str) -> str:
  """Chinese in simplified characters of the mainland."""
  import warnings

  with warnings.catch_warnings():
    warnings.simplefilter('ignore', ResourceWarning)  # zhconv leaves the file of its table open
    import zhconv

    return zhconv.convert(text, 'zh-cn')


@functools.cache
def _whisper(kind: str):
  if kind == 'english':
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()
  from whisper_normalizer.basic import BasicTextNormalizer

  return BasicTextNormalizer()
