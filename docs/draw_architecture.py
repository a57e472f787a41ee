"""Draws docs/architecture.svg, the picture in README.md: `python docs/draw_architecture.py`.

Sizes come from the configuration of the released model. Boxes have their own background and dark text, and everything
between them is a middle grey, so that the picture can be read on light and dark pages.
"""

import pathlib
from html import escape

from qwen3_omni_jax.config_json import load_config

HERE = pathlib.Path(__file__).parent
WIDTH, HEIGHT = 1000, 530
GREY = '#7d8590'  # arrows and words between boxes
COLOURS = {  # fill and border of a box, by its part
  'data': ('#eaeef2', '#8c959f'),
  'host': ('#dbeafe', '#4c86c6'),
  'encoder': ('#d9f2e0', '#43a06a'),
  'thinker': ('#ffe9c7', '#c98a1b'),
  'speech': ('#f3dcf5', '#a860b4'),
  'package': ('#eaeef2', '#8c959f'),
}


def box(x: int, y: int, width: int, height: int, part: str, title: str, *lines: str) -> str:
  """A rectangle with a bold title and smaller lines below it, centred."""
  fill, border = COLOURS[part]
  top = y + height / 2 - 8 * len(lines) + 5
  words = [f'<text class="title" x="{x + width / 2:g}" y="{top:g}">{escape(title)}</text>']
  words += [f'<text x="{x + width / 2:g}" y="{top + 17 + 15 * i:g}">{escape(line)}</text>' for i, line in enumerate(lines)]
  shape = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{fill}" stroke="{border}"/>'
  return '\n'.join([shape, *words])


def arrow(*points: tuple[int, int]) -> str:
  """A line through the points, with a head at the last one."""
  path = ' '.join(f'{x},{y}' for x, y in points)
  return f'<polyline class="arrow" points="{path}" marker-end="url(#head)"/>'


def note(x: int, y: int, *lines: str, anchor: str = 'middle') -> str:
  """Words outside of boxes."""
  return '\n'.join(
    f'<text class="note" x="{x}" y="{y + 14 * i}" style="text-anchor: {anchor}">{escape(line)}</text>'
    for i, line in enumerate(lines)
  )


def draw() -> str:
  """The whole picture as SVG."""
  cfg = load_config(HERE.parent / 'configs' / 'model' / 'instruct.json')
  assert cfg.talker is not None and cfg.code2wav is not None
  audio, vision, thinker = cfg.thinker.audio, cfg.thinker.vision, cfg.thinker.text
  talker, predictor, vocoder = cfg.talker.text, cfg.talker.code_predictor, cfg.code2wav
  experts = lambda text: f'{text.num_experts} experts, {text.num_experts_per_tok} active'
  parts = [
    *(box(20, y, 90, 42, 'data', kind) for y, kind in ((40, 'video'), (96, 'image'), (152, 'audio'), (208, 'text'))),
    *(arrow((110, y), (140, y)) for y in (61, 117, 173, 229)),
    box(142, 30, 150, 232, 'host', 'Processor', 'numpy', 'frames, patches', 'log-mel', 'chat template', 'token ids, positions'),
    arrow((292, 89), (344, 89)),
    note(318, 80, 'patches'),
    arrow((292, 173), (344, 173)),
    note(318, 164, 'mel'),
    arrow((292, 242), (568, 242)),
    note(430, 234, 'token ids, positions (time, height, width)'),
    box(
      346, 52, 164, 74, 'encoder', 'Vision encoder', f'{vision.depth} layers, width {vision.hidden_size}', 'any size, deepstack'
    ),
    box(
      346,
      136,
      164,
      74,
      'encoder',
      'AuT audio encoder',
      f'{audio.encoder_layers} layers, width {audio.d_model}',
      '13 tokens a second',
    ),
    arrow((510, 89), (568, 89)),
    note(539, 80, 'features'),
    arrow((510, 173), (568, 173)),
    note(539, 164, 'features'),
    box(
      570,
      30,
      230,
      232,
      'thinker',
      'Thinker',
      f'{thinker.num_hidden_layers} layers, width {thinker.hidden_size}',
      experts(thinker),
      'KV cache',
    ),
    arrow((800, 146), (868, 146)),
    note(834, 137, 'tokens'),
    box(870, 125, 110, 42, 'data', 'text'),
    arrow((655, 262), (655, 318)),
    note(647, 286, f'states of layer {cfg.talker.accept_hidden_layer}', 'at media tokens', anchor='end'),
    arrow((715, 262), (715, 318)),
    note(723, 286, 'embeddings of', 'text tokens', anchor='start'),
    box(570, 320, 230, 84, 'speech', 'Talker', f'{talker.num_hidden_layers} layers, width {talker.hidden_size}', experts(talker)),
    arrow((570, 362), (512, 362)),
    note(541, 353, 'code 0'),
    box(
      346,
      320,
      164,
      84,
      'speech',
      'Code predictor',
      f'{predictor.num_hidden_layers} layers',
      f'codes 1 to {cfg.talker.num_code_groups - 1}',
    ),
    arrow((428, 404), (428, 424), (685, 424), (685, 406)),
    note(556, 439, 'codes of a frame (80 ms) are the input of the next'),
    arrow((346, 362), (294, 362)),
    note(320, 353, 'codes'),
    box(142, 320, 150, 84, 'speech', 'Code2Wav', f'{vocoder.num_hidden_layers} layers,', 'causal convolutions'),
    arrow((142, 362), (112, 362)),
    box(20, 341, 90, 42, 'data', 'speech'),
    note(65, 400, '24 kHz'),
    *packages(),
  ]
  style = (
    'text { font: 12px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; text-anchor: middle; fill: #1f2328; } '
    f'.title {{ font-weight: 600; font-size: 14px; }} .note {{ fill: {GREY}; font-size: 11.5px; }} '
    f'.arrow {{ fill: none; stroke: {GREY}; stroke-width: 1.5; }} rect {{ stroke-width: 1.2; }}'
  )
  head = (
    '<marker id="head" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
    f'<path d="M0,0 L10,5 L0,10 z" fill="{GREY}"/></marker>'
  )
  return '\n'.join(
    [
      f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
      '<title>Architecture of qwen3_omni_jax</title>',
      f'<style>{style}</style>',
      f'<defs>{head}</defs>',
      *parts,
      '</svg>\n',
    ]
  )


def packages() -> list[str]:
  """The lower row: what surrounds the networks."""
  rows = (
    ('weights', 'published ⇄ Orbax,', 'int8, adapters'),
    ('infer', 'streaming, live audio,', 'continuous batching'),
    ('train', 'stages, packing,', 'LoRA, any mesh'),
    ('eval', 'published benchmarks,', 'their own scorers'),
    ('plan', 'memory and time', 'without the devices'),
  )
  return [box(20 + 194 * i, 456, 184, 60, 'package', *row) for i, row in enumerate(rows)]


if __name__ == '__main__':
  (HERE / 'architecture.svg').write_text(draw(), encoding='utf-8')
