"""The picture in README.md is what its script draws from the present configuration."""

import pathlib
import runpy

DOCS = pathlib.Path(__file__).parent.parent / 'docs'


def test_the_picture_is_up_to_date():
  draw = runpy.run_path(str(DOCS / 'draw_architecture.py'))['draw']
  assert draw() == (DOCS / 'architecture.svg').read_text(encoding='utf-8'), 'run python docs/draw_architecture.py'
