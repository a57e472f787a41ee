"""Reports as one HTML file: tables, text and plots, readable on light and dark screens, with nothing fetched from elsewhere.

page('Batch', [('Throughput', svg(figure)), ('Settings', table(('name', 'value'), rows)), ('Notes', text('…'))])
"""

import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from matplotlib.figure import Figure

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --line: #d0d7de; --soft: #f3f5f7; --quiet: #59636e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --paper: #10151b; --line: #3d444d; --soft: #1a2129; --quiet: #9198a1; }
}
body { margin: 2rem auto; max-width: 72rem; padding: 0 1rem; background: var(--paper); color: var(--ink);
       font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; display: block; overflow-x: auto; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.number { text-align: right; } th { background: var(--soft); }
svg { max-width: 100%; height: auto; } pre { background: var(--soft); padding: .8rem; overflow-x: auto; }
"""

_INK = '#7d8590'  # of axes and labels: legible on white and on near-black


def page(title: str, sections: Iterable[tuple[str, str]]) -> str:
  """A whole HTML page. sections: (heading, HTML as made by `svg`, `table` and `text`) in order; headings are escaped."""
  body = ''.join(f'<section><h2>{html.escape(heading)}</h2>\n{content}\n</section>\n' for heading, content in sections)
  name = html.escape(title)
  return (
    f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, '
    f'initial-scale=1">\n<title>{name}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{name}</h1>\n{body}</body>\n</html>\n'
  )


def figure(width: float = 8.0, height: float = 3.0) -> 'Figure':
  """An empty matplotlib figure of that size in inches, apart from pyplot and its global state."""
  from matplotlib.figure import Figure

  return Figure(figsize=(width, height), layout='constrained')


def svg(fig: 'Figure') -> str:
  """The figure as an inline <svg> on a clear ground, its axes in a grey that is legible on light and dark pages."""
  import matplotlib
  from matplotlib.backends.backend_svg import FigureCanvasSVG

  for axes in fig.axes:
    axes.set_facecolor('none')
    axes.tick_params(colors=_INK)
    for part in (axes.title, axes.xaxis.label, axes.yaxis.label):
      part.set_color(_INK)
    for spine in axes.spines.values():
      spine.set_edgecolor(_INK)
    legend = axes.get_legend()
    for label in legend.get_texts() if legend else ():
      label.set_color(_INK)
    if legend:
      legend.get_frame().set_alpha(0)
  out = io.StringIO()
  # Letters as text, not as outlines: smaller, and searchable. A fixed salt: the same figure gives the same bytes.
  with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'qwen3-omni'}):
    fig.patch.set_alpha(0)
    FigureCanvasSVG(fig).print_svg(out, metadata={'Date': None, 'Creator': None})
  drawn = out.getvalue()
  return re.sub(r'<metadata>.*?</metadata>', '', drawn[drawn.index('<svg') :], flags=re.DOTALL).strip()


def histograms(groups: Mapping[str, Sequence[float]], counted: str = 'rows') -> str:
  """How the values of each group are spread, side by side on one figure: {label with unit: values}, none of them empty."""
  return svg(_histograms(groups, counted))


def _histograms(groups: Mapping[str, Sequence[float]], counted: str) -> 'Figure':
  from matplotlib.ticker import MaxNLocator

  fig = figure(width=max(8.0, 2.7 * len(groups)))
  for axes, (label, values) in zip(fig.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True):
    whole = all(isinstance(value, int) for value in values)
    low, high = min(values), max(values)
    # Values that hardly differ get a range of 5 %, so that the numbers on the axis stay short and a narrow column looks narrow.
    least = max(0.05 * max(abs(low), abs(high)), 4.0 if whole else 1e-3)
    if high - low < least:
      low, high = (low + high - least) / 2, (low + high + least) / 2
    axes.hist(values, bins=30, range=(low, high), alpha=0.7)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=3, integer=whole))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.set_xlabel(label)
    axes.set_ylabel(counted)
  return fig


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
  """A table of escaped cells; numbers to the right, floats to four significant digits."""
  line = lambda cells: f'<tr>{"".join(cells)}</tr>'
  top = line(f'<th>{html.escape(str(cell))}</th>' for cell in head)
  return f'<table>\n{top}\n' + '\n'.join(line(map(_cell, row)) for row in rows) + '\n</table>'


def _cell(value: Any) -> str:
  if isinstance(value, (int, float)) and not isinstance(value, bool):
    return f'<td class="number">{value:,}</td>' if isinstance(value, int) else f'<td class="number">{value:,.4g}</td>'
  return f'<td>{html.escape("" if value is None else str(value))}</td>'


def text(words: str, *, code: bool = False) -> str:
  """A paragraph, or with `code` a block that keeps its line breaks; escaped."""
  return f'<pre>{html.escape(words)}</pre>' if code else f'<p>{html.escape(words)}</p>'
