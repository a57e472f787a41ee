"""BLEU of translations by sacrebleu, with the tokeniser of the target language and no other change to the text."""

import functools
from collections.abc import Sequence

import numpy as np

ORDER = 4
# All other targets: '13a', as in Qwen2-Audio's evaluate_st.py, which has no Cantonese.
TOKENISERS = {'zh': 'zh', 'yue': 'zh', 'ja': 'ja-mecab'}


def tokeniser(language: str) -> str:
  """sacrebleu's name of the tokeniser for a target language code."""
  return TOKENISERS.get(language, '13a')


@functools.cache
def _metric(name: str, effective_order: bool = False):
  from sacrebleu.metrics.bleu import BLEU

  try:
    return BLEU(tokenize=name, effective_order=effective_order)
  except (ImportError, RuntimeError) as e:
    raise ValueError(f"BLEU tokeniser '{name}' is not installed ({e}). Install sacrebleu[ja] for Japanese") from e


def statistics(hypotheses: Sequence[str], references: Sequence[str], language: str) -> np.ndarray:
  """What each sentence adds to corpus BLEU: matches and n-grams by order, lengths. float64 'N 10'."""
  metric = _metric(tokeniser(language), effective_order=True)  # silences advice about single sentences; counts are the same
  rows = []
  for hypothesis, reference in zip(hypotheses, references, strict=True):
    score = metric.sentence_score(hypothesis, [reference])
    rows.append([*score.counts, *score.totals, score.sys_len, score.ref_len])
  return np.array(rows, np.float64).reshape(-1, 2 * ORDER + 2)


def from_statistics(total: np.ndarray) -> float:
  """Corpus BLEU of summed `statistics`, in percent."""
  from sacrebleu.metrics.bleu import BLEU

  counts = [int(n) for n in total]
  score = BLEU.compute_bleu(
    correct=counts[:ORDER],
    total=counts[ORDER : 2 * ORDER],
    sys_len=counts[-2],
    ref_len=counts[-1],
    smooth_method='exp',
    max_ngram_order=ORDER,
  )
  return float(score.score)


def corpus_bleu(hypotheses: Sequence[str], references: Sequence[str], language: str) -> tuple[float, str]:
  """(BLEU in percent, sacrebleu's signature)."""
  metric = _metric(tokeniser(language))
  score = metric.corpus_score(list(hypotheses), [list(references)])
  return float(score.score), str(metric.get_signature())
