"""Reports: one file that needs no other, whose contents cannot become markup."""

import base64
import io
import re
import xml.etree.ElementTree

import numpy as np
import pytest
import soundfile
from PIL import Image

from qwen3_omni_jax.report import _histograms, figure, histograms, page, svg, table, text
from qwen3_omni_jax.report_media import SOUND_S, Shown, examples


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


@pytest.mark.parametrize('values', [[1234.567, 1234.5671], [0.0086, 0.0087], [2, 2], [16_384, 16_380], [0.0], [1e-9, 5e5], [3]])
def test_labels_of_an_axis_do_not_overlap_however_close_the_values(values):
  from matplotlib.backends.backend_agg import FigureCanvasAgg

  fig = _histograms({'to first token, s': values, 'to end of text, s': values, 'to result, s': values}, 'rows')
  FigureCanvasAgg(fig).draw()
  for axes in fig.axes:
    labels = [label for label in axes.get_xticklabels() if label.get_text()]
    boxes = [label.get_window_extent() for label in labels]
    assert len(boxes) >= 2 and all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:], strict=False)), [x.get_text() for x in labels]
    assert not axes.xaxis.get_offset_text().get_text()
  assert histograms({'to result, s': values}).startswith('<svg')


def embedded(html: str, kind: str) -> bytes:
  return base64.b64decode(re.search(rf'src="data:{kind};base64,([^"]+)"', html)[1])


def test_a_sound_becomes_a_player_of_its_first_minute_and_a_picture_a_small_one(tmp_path):
  soundfile.write(tmp_path / 'long.wav', np.sin(np.arange(int(SOUND_S + 20) * 8000) / 9).astype(np.float32), 8000)
  Image.new('RGB', (1000, 500), (200, 30, 40)).save(tmp_path / 'wide.png')
  shown = Shown(root=tmp_path)
  player, picture = shown.medium('audio', 'long.wav', 'long <wav>'), shown.medium('image', str(tmp_path / 'wide.png'))
  assert 'long &lt;wav&gt;, the first 60 s of 80' in player
  assert soundfile.info(io.BytesIO(embedded(player, 'audio/flac'))).duration == SOUND_S
  assert Image.open(io.BytesIO(embedded(picture, 'image/jpeg'))).size == (320, 160)


def test_media_outside_the_root_broken_or_too_many_are_not_shown_and_the_reason_is(tmp_path):
  (tmp_path / 'inside').mkdir()
  Image.new('RGB', (8, 8)).save(tmp_path / 'secret.png')
  (tmp_path / 'inside' / 'broken.wav').write_bytes(b'<script>')
  shown = Shown(root=tmp_path / 'inside')
  for source in ('../secret.png', tmp_path / 'secret.png'):
    assert 'outside the media folder' in (said := shown.medium('image', source)) and '<img' not in said
  for kind in ('audio', 'video', 'image'):
    assert 'not shown' in (said := shown.medium(kind, 'broken.wav', '<b>')) and '<b>' not in said and '<script' not in said
  assert 'as many media as it may' in Shown(left_bytes=100).medium('image', tmp_path / 'secret.png')


def test_cards_are_escaped_and_long_texts_cut():
  card = examples([({'<k>': '<v>', 'empty': '', 'none': None, 'zero': 0, 'long': 'x' * 9999}, [])])
  assert '<dt>&lt;k&gt;</dt><dd>&lt;v&gt;</dd>' in card and 'empty' not in card and 'none' not in card and '<dd>0</dd>' in card
  assert card.count('x') < 1000 and '…' in card
