"""The evaluation as one HTML file: the table, scores by category, and the worst examples with their sound, picture or still.

Of a spoken benchmark, what was spoken can be played beside the recording of the same text, even where nothing is wrong.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from qwen3_omni_jax import report
from qwen3_omni_jax.report_media import Shown, examples, shortened

from . import read, report_table
from .benchmark import Item, Row
from .run import Result

WORST = 6  # examples of each benchmark
PAGE_BYTES = 64 * 2**20  # of all their media
MOST_VALUES = 30  # bars of a plot; further values of a category are named as left out


def page(results: Sequence[Result], summary: Mapping[str, Any]) -> str:
  """The whole page."""
  shown = Shown(left_bytes=PAGE_BYTES)
  made = f'{summary["model"]}, {summary["variant"]}, {summary["date"]}'
  sections = [
    ('Scores', report.text(made) + report.table(report_table.HEAD, map(_keep_numbers_together, report_table.rows(summary))))
  ]
  if left := report_table.skipped(summary):
    sections.append(('Not scored', report.table(('benchmark', 'reason'), left)))
  for result in results:
    if result.scores is not None:
      sections.append((result.benchmark.title, _benchmark_section(result, shown)))
  versions = report.table(('library', 'version'), list(summary['versions'].items()))
  return report.page('Evaluation', [*sections, ('Versions', versions)])


def _keep_numbers_together(cells: Sequence[Any]) -> list[Any]:
  """Cells whose numbers stay on one line; the title alone may break."""
  return [cells[0], *(str(c).replace(' ', '\u00a0') for c in cells[1:])]


def _benchmark_section(result: Result, shown: Shown) -> str:
  scores = result.scores
  assert scores is not None
  parts = [report.table(('metric', 'value'), [(k, f'{v:.2f}') for k, v in scores.metrics.items()])]
  parts.append(report.text(f'Scorer: {scores.signature}'))
  for axis, rates in by_category(result.items, scores.rows).items():
    if len(rates) > 1:
      parts.append(_bars(axis, rates))
  chosen, heading = worst(result), 'Worst examples'
  if result.waves and len(chosen) < WORST:
    rest = [i for i in range(len(result.items)) if i not in chosen]
    chosen, heading = [*chosen, *rest[: WORST - len(chosen)]], 'Examples, the worst first'
  parts.append(f'<h3>{heading}</h3>' + examples(_example(result, i, shown) for i in chosen))
  return '\n'.join(parts)


def by_category(items: Sequence[Item], rows: Sequence[Row]) -> dict[str, dict[str, tuple[float, int]]]:
  """Axis -> value -> (rate in percent, items)."""
  sums: dict[str, dict[str, list[float]]] = {}
  for item, row in zip(items, rows, strict=True):
    for axis, value in item.category.items():
      total = sums.setdefault(axis, {}).setdefault(value, [0.0, 0.0, 0])
      total[0] += row.value
      total[1] += row.weight
      total[2] += 1
  return {
    axis: {value: (100 * v / w, int(n)) for value, (v, w, n) in sorted(values.items()) if w} for axis, values in sums.items()
  }


def _bars(axis: str, rates: Mapping[str, tuple[float, int]]) -> str:
  kept = dict(list(rates.items())[:MOST_VALUES])
  left = f' ({len(rates) - len(kept)} more not shown)' if len(rates) > len(kept) else ''
  fig = report.figure(8, 0.8 + 0.28 * len(kept))
  axes = fig.subplots()
  names = [f'{shortened(name, 44)} ({number})' for name, (_, number) in kept.items()]
  bars = axes.barh(range(len(kept)), [rate for rate, _ in kept.values()], color='#4c78a8', height=0.7)
  axes.bar_label(bars, fmt='%.1f', padding=3, color='#7d8590', fontsize=8)
  axes.set_yticks(range(len(kept)), names)
  axes.invert_yaxis()
  axes.set_xlim(0, 1.08 * max(100.0, *(rate for rate, _ in kept.values())))
  axes.set_xlabel('percent')
  axes.set_title(f'by {axis}{left}')
  return report.svg(fig)


def worst(result: Result) -> list[int]:
  """Indices of the items that lost most: failed and unreadable ones among them, then the rest as they come."""
  assert result.scores is not None
  sign = -1 if result.scores.lower_is_better else 1
  rates = [sign * row.value / row.weight if row.weight else 0.0 for row in result.scores.rows]
  best = 0.0 if result.scores.lower_is_better else 1.0
  lost = [i for i, rate in enumerate(rates) if rate < best]
  return sorted(lost, key=lambda i: rates[i])[:WORST]


def _example(result: Result, i: int, shown: Shown) -> tuple[dict[str, Any], list[str]]:
  """Facts and media of one item."""
  assert result.scores is not None
  item, answer, row = result.items[i], result.answers[i], result.scores.rows[i]
  question = ' '.join(
    p['text'] for m in item.messages if isinstance(m['content'], list) for p in m['content'] if p['type'] == 'text'
  )
  reply = answer.error or 'no reply' if answer.text is None else answer.text
  facts = {
    'id': item.id,
    'question': question,
    'reference': item.reference,
    'speaker': item.fields.get('speaker'),
    'heard' if result.waves else 'reply': reply,
    'read as': row.extracted if row.readable else 'unreadable',
    'ended by': answer.finish_reason if result.waves else None,
  }
  if facts['read as'] == reply:
    del facts['read as']
  media = [_medium(shown, kind, source) for kind, source in read.media(item)]
  if result.waves and answer.finish_reason != 'error':
    media.append(_medium(shown, 'audio', result.waves[i], 'spoken'))
  if recording := item.fields.get('recording'):
    media.append(_medium(shown, 'audio', recording, 'recording'))
  return facts, media


def _medium(shown: Shown, kind: str, source: Any, label: str = '') -> str:
  try:
    return shown.medium(kind, source.read() if isinstance(source, (read.Cell, read.Segment)) else source, label)
  except Exception as e:  # a broken file must not cost the report
    return report.text(f'{kind} not shown: {type(e).__name__}: {e}')
