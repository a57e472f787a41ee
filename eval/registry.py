"""All benchmarks by name, and the suites."""

from . import (
  asr,
  daily_omni,
  hallusionbench,
  lvbench,
  mathvista,
  mlvu,
  mmau,
  mmmu,
  mmstar,
  mmsu,
  nano,
  seed_tts,
  text,
  translation,
  video_mme,
  voicebench,
  worldsense,
)
from .benchmark import Benchmark

FAMILIES = (
  asr,
  translation,
  voicebench,
  mmau,
  mmsu,
  mmmu,
  mathvista,
  mmstar,
  hallusionbench,
  video_mme,
  mlvu,
  lvbench,
  worldsense,
  daily_omni,
  seed_tts,
  text,
  nano,
)
BENCHMARKS: dict[str, Benchmark] = {b.name: b for family in FAMILIES for b in family.BENCHMARKS}
SUITES = ('audio', 'vision', 'audiovisual', 'speech', 'text')


def select_benchmarks(suite: str | None, names: list[str] | None = None) -> list[Benchmark]:
  """Benchmarks of a suite ('all': of every one), or those named. Raises ValueError for an unknown name."""
  if names:
    if unknown := [n for n in names if n not in BENCHMARKS]:
      raise ValueError(f'benchmark {", ".join(unknown)}: expected one of {", ".join(BENCHMARKS)}')
    return [BENCHMARKS[n] for n in names]
  if suite not in (*SUITES, 'all'):
    raise ValueError(f"suite '{suite}': expected one of {', '.join(SUITES)}, all")
  return [b for b in BENCHMARKS.values() if b.suite == suite or (suite == 'all' and b.suite in SUITES)]
