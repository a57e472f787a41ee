"""Published scores of Qwen3-Omni-30B-A3B: technical report (arXiv 2509.17765) and README of QwenLM/Qwen3-Omni.

Benchmark name -> variant -> percent (BLEU for translation, error rates for recognition). None of the scorers is published for the
recognition, translation and vision rows: ours are the closest official ones, so that small differences are to be expected.
"""

PUBLISHED: dict[str, dict[str, float]] = {
  'librispeech-clean': {'instruct': 1.22, 'thinking': 2.22},
  'librispeech-other': {'instruct': 2.48, 'thinking': 4.38},
  'wenetspeech-net': {'instruct': 4.69, 'thinking': 6.16},
  'wenetspeech-meeting': {'instruct': 5.89, 'thinking': 8.17},
  'cv15-en': {'instruct': 6.05, 'thinking': 10.44},
  'cv15-zh': {'instruct': 4.31, 'thinking': 6.25},
  'fleurs-en': {'instruct': 2.72, 'thinking': 3.75},
  'fleurs-zh': {'instruct': 2.20, 'thinking': 2.73},
  'fleurs-avg19': {'instruct': 5.33, 'thinking': 8.63},
  'mir1k': {'instruct': 5.90, 'thinking': 11.15},
  'opencpop': {'instruct': 1.54, 'thinking': 6.11},
  'fleurs-en2xx': {'instruct': 37.50, 'thinking': 36.24},
  'fleurs-xx2en': {'instruct': 31.08, 'thinking': 30.50},
  'fleurs-zh2xx': {'instruct': 25.17, 'thinking': 23.74},
  'fleurs-xx2zh': {'instruct': 33.13, 'thinking': 34.51},
  'voicebench-alpacaeval_full': {'instruct': 94.8, 'thinking': 96.4},
  'voicebench-commoneval': {'instruct': 90.8, 'thinking': 90.5},
  'voicebench-wildvoice': {'instruct': 91.6, 'thinking': 90.5},
  'voicebench-sd-qa': {'instruct': 76.9, 'thinking': 78.1},
  'voicebench-mmsu': {'instruct': 68.1, 'thinking': 83.0},
  'voicebench-openbookqa': {'instruct': 89.7, 'thinking': 94.3},
  'voicebench-bbh': {'instruct': 80.4, 'thinking': 88.9},
  'voicebench-ifeval': {'instruct': 77.8, 'thinking': 80.6},
  'voicebench-advbench': {'instruct': 99.3, 'thinking': 97.2},
  'voicebench-overall': {'instruct': 85.5, 'thinking': 88.8},
  'mmau': {'instruct': 77.5, 'thinking': 75.4},
  'mmsu': {'instruct': 69.0, 'thinking': 70.2},
  'mmmu': {'instruct': 69.1, 'thinking': 75.6},
  'mathvista': {'instruct': 75.9, 'thinking': 80.0},
  'mmstar': {'instruct': 68.5, 'thinking': 74.9},
  'hallusionbench': {'instruct': 59.7, 'thinking': 62.8},
  'video-mme': {'instruct': 70.5, 'thinking': 69.7},
  'mlvu': {'instruct': 75.2, 'thinking': 72.9},
  'lvbench': {'instruct': 50.2, 'thinking': 49.0},
  'worldsense': {'instruct': 54.0},
  'daily-omni': {'thinking': 75.8},
  'seed-tts-en': {'instruct': 1.39},
  'seed-tts-zh': {'instruct': 1.07},
  'mmlu-redux': {'instruct': 86.6, 'thinking': 88.8},
  'gpqa': {'instruct': 69.6, 'thinking': 73.1},
}


def published(name: str, variant: str) -> float | None:
  """The published score of a benchmark for a variant, None where there is none."""
  return PUBLISHED.get(name, {}).get(variant)
