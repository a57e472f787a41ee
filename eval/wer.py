"""Word and character error rates: edits over reference length, for a whole corpus or as the mean over utterances."""

import dataclasses
import string
from collections.abc import Sequence

from .normalise import transcript_tokens

# What SEED-TTS-eval removes: `zhon.hanzi.punctuation` and ASCII punctuation, but for the apostrophe.
_SEED_PUNCTUATION = (
  '＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､\u3000、〃〈〉《》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏﹑﹔·．！？｡。'
  + string.punctuation
).replace("'", '')


@dataclasses.dataclass(frozen=True)
class Edits:
  """Edit operations that turn the reference into the hypothesis, and the reference's length."""

  substitutions: int
  deletions: int
  insertions: int
  length: int

  @property
  def total(self) -> int:
    return self.substitutions + self.deletions + self.insertions


def edits(reference: Sequence[str], hypothesis: Sequence[str]) -> Edits:
  """The fewest edits between two token lists."""
  from rapidfuzz.distance import Levenshtein

  kinds = [op.tag for op in Levenshtein.editops(reference, hypothesis)]
  return Edits(kinds.count('replace'), kinds.count('delete'), kinds.count('insert'), len(reference))


def transcript_edits(reference: str, hypothesis: str, language: str, characters: bool | None = None) -> Edits:
  """Edits between two raw transcripts after the official normalisation."""
  left, right = (transcript_tokens(text, language, characters) for text in (reference, hypothesis))
  return edits(left, right)


def corpus_rate(counts: Sequence[Edits]) -> float:
  """All edits over all reference tokens, in percent."""
  length = sum(c.length for c in counts)
  if not length:
    raise ValueError(f'{len(counts)} references without a single token: no error rate')
  return 100 * sum(c.total for c in counts) / length


def without_punctuation(text: str) -> str:
  """The text without the marks that SEED-TTS-eval removes; apostrophes stay."""
  return text.translate(dict.fromkeys(map(ord, _SEED_PUNCTUATION)))


def seed_tts_edits(reference: str, hypothesis: str, language: str) -> Edits:
  """Edits of one utterance as SEED-TTS-eval's `process_one` counts them. language: 'en' or 'zh'."""
  if language not in ('en', 'zh'):
    raise ValueError(f"language '{language}': SEED-TTS-eval has 'en' and 'zh'")
  cleaned = []
  for text in (reference, hypothesis):
    text = without_punctuation(text).replace('  ', ' ')
    cleaned.append(' '.join(text) if language == 'zh' else text.lower())
  # jiwer's default transform: strip, collapse runs of spaces, split.
  left, right = ([word for word in text.strip().split(' ') if word] for text in cleaned)
  return edits(left, right)
