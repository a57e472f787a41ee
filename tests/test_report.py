"""Reports: one file that needs no other, whose contents cannot become markup."""

import re
import xml.etree.ElementTree

from qwen3_omni_jax.report import figure, page, svg, table, text


def drawing() -> str:
  fig = figure(4, 2)
  axes = fig.subplots()
  axes.plot([1, 2, 3], [2, 5, 3], label='rows <a> & b')
  axes.set_title('throughput')
  axes.legend()
  return svg(fig)


def test_a_page_fetches_nothing_and_keeps_its_parts():
  whole = page('Batch <run>', [('Speed & use', drawing()), ('Numbers', table(('name', 'n'), [('<b>', 12345), ('x', 0.123456)]))])
  assert not re.search(r'<script|<link|@import|url\((?!#)|(?<!xlink:)(?:href|src)="(?!#)', whole)
  assert '<title>Batch &lt;run&gt;</title>' in whole and '<h2>Speed &amp; use</h2>' in whole
  assert '&lt;b&gt;' in whole and '12,345' in whole and '0.1235' in whole
  assert 'prefers-color-scheme: dark' in whole


def test_a_plot_is_an_inline_svg_with_searchable_words_and_the_same_bytes_every_time():
  first = drawing()
  assert first == drawing()
  assert first.startswith('<svg') and first.endswith('</svg>')
  words = ''.join(xml.etree.ElementTree.fromstring(first).itertext())
  assert 'throughput' in words and 'rows <a> & b' in words


def test_text_is_escaped():
  assert text('a < b') == '<p>a &lt; b</p>' and text('a\n<b', code=True) == '<pre>a\n&lt;b</pre>'
