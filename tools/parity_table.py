"""Writes the parity table of README.md from the measurements of a test run (see `make parity`)."""

import argparse
import json
import pathlib
import re

BEGIN, END = '<!-- parity table: written by tools/parity_table.py -->', '<!-- end of parity table -->'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--report', required=True, metavar='JSON', help='measurements written by pytest --parity-report')
  parser.add_argument('--readme', default='README.md', metavar='FILE')


def run(args: argparse.Namespace) -> int:
  rows = json.loads(pathlib.Path(args.report).read_text(encoding='utf-8'))
  readme = pathlib.Path(args.readme)
  text = readme.read_text(encoding='utf-8')
  if BEGIN not in text or END not in text:
    raise ValueError(f'{readme}: the markers "{BEGIN}" and "{END}" are missing; put them where the table belongs')
  before, rest = text.split(BEGIN, 1)
  after = rest.split(END, 1)[1]
  readme.write_text(f'{before}{BEGIN}\n{table(rows)}{END}{after}', encoding='utf-8')
  print(f'{readme}: {len(rows)} measurements')
  return 0


def table(rows: list[dict]) -> str:
  """One line per part; one column per checkpoint; the worst measurement where a part was measured several times."""
  checkpoints = sorted({row['checkpoint'] for row in rows})
  parts: dict[str, dict[str, list[dict]]] = {}
  for row in rows:
    parts.setdefault(row['part'], {}).setdefault(row['checkpoint'], []).append(row)
  lines = ['| part | ' + ' | '.join(f'checkpoint {c}' for c in checkpoints) + ' | bound |', '|---' * (len(checkpoints) + 2) + '|']
  for part, by_checkpoint in parts.items():
    some = next(iter(by_checkpoint.values()))[0]
    cells = [_cell(by_checkpoint.get(c)) for c in checkpoints]
    bound = 'exact' if some['bound'] == 0 else f'{_number(some["bound"], "%.0e")} {some["unit"]}'
    lines.append(f'| {part} | ' + ' | '.join(cells) + f' | {bound} |')
  return '\n'.join(lines) + '\n'


def _cell(rows: list[dict] | None) -> str:
  if not rows:
    return '–'  # the checkpoint has no such part
  worst = max(rows, key=lambda row: row['measured'])
  if worst['bound'] != 0:
    return _number(worst['measured'], '%.1e')
  compared = sum(int(re.sub(r'\D', '', row['unit'])) for row in rows)
  return f'{sum(row["measured"] for row in rows)} of {compared} differ'


def _number(value: float, small: str) -> str:
  return f'{value:.2f}' if value > 0.1 else small % value  # a ratio, or a small difference


if __name__ == '__main__':
  _parser = argparse.ArgumentParser(description=__doc__)
  add_arguments(_parser)
  run(_parser.parse_args())
