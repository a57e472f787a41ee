"""results.json as a Markdown table: our score, its interval, the published score, and what could not be read."""

from collections.abc import Mapping
from typing import Any

HEAD = ('benchmark', 'metric', 'ours', '95 % interval', 'published', 'difference', 'items', 'unreadable', 'failed')


def rows(summary: Mapping[str, Any]) -> list[tuple[Any, ...]]:
  """Cells of each scored benchmark, in the order of HEAD."""
  out = []
  for r in summary['results']:
    if 'skipped' in r:
      continue
    (metric, ours), (low, high) = next(iter(r['metrics'].items())), r['interval_95']
    theirs = r['published']
    difference = '' if theirs is None else f'{ours - theirs:+.2f}'
    count = str(r['items']) if r['expected_items'] in (None, r['items']) else f'{r["items"]} of {r["expected_items"]}'
    arrow = f'{metric} {"↓" if r["lower_is_better"] else "↑"}'
    between = f'{low:.2f} … {high:.2f}'
    known = 'none' if theirs is None else f'{theirs:g}'
    failed = (str(r['unreadable']), str(r['errors']))
    out.append((r['title'], arrow, f'{ours:.2f}', between, known, difference, count, *failed))
  if overall := summary.get('voicebench_overall'):
    out.append(
      (
        'VoiceBench Overall',
        'mean of nine ↑',
        f'{overall["ours"]:.2f}',
        '',
        f'{overall["published"]}',
        f'{overall["ours"] - overall["published"]:+.2f}' if overall['published'] else '',
        '',
        '',
        '',
      )
    )
  return out


def skipped(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
  """(title, reason) of benchmarks without a score."""
  return [(r['title'], r['skipped']) for r in summary['results'] if 'skipped' in r]


def markdown(summary: Mapping[str, Any]) -> str:
  """The whole table with its notes."""
  line = lambda cells: '| ' + ' | '.join(str(c).replace('|', '\\|') for c in cells) + ' |'
  out = [f'# Evaluation of {summary["model"]} ({summary["variant"]})', '', summary['date'], '']
  out += [line(HEAD), line(['---'] * len(HEAD)), *map(line, rows(summary)), '']
  if left := skipped(summary):
    out += ['Not scored:', '', *(f'- {title}: {reason}' for title, reason in left), '']
  out += ['Scorers:', '', *(f'- {r["title"]}: {r["signature"]}' for r in summary['results'] if 'skipped' not in r), '']
  out += ['Versions: ' + ', '.join(f'{k} {v}' for k, v in summary['versions'].items())]
  return '\n'.join(out) + '\n'
