"""`qwen3-omni convert verify | inspect | diff`: lists and compares checkpoint folders."""

import argparse
import dataclasses
import json
import math
from typing import Any

WORST = 20  # rows of the table of differences; --json has them all


def add_directions(directions) -> None:
  """directions: the subparsers of `convert`."""
  verify = directions.add_parser('verify', help='compare two folders of any kind, tensor by tensor')
  verify.add_argument('a', metavar='A')
  verify.add_argument('b', metavar='B', help='A again: only check its own checksums')
  verify.add_argument('--rtol', type=float, metavar='X', help='allowed difference, of the largest magnitude of a tensor')
  verify.add_argument('--numerics', action='store_true', help='run a short forward pass of every network from both, too')
  verify.add_argument('--numerics-rtol', type=float, metavar='X', help='the same for the outputs (default: --rtol)')
  verify.set_defaults(action=_verify)
  inspect = directions.add_parser('inspect', help='what a folder holds, and what is missing')
  inspect.add_argument('folder', metavar='DIR')
  inspect.add_argument('--tree', action='store_true', help='list every tensor, those that differ in numbers only as one')
  inspect.set_defaults(action=_inspect)
  diff = directions.add_parser('diff', help='fields in which two config.json differ')
  diff.add_argument('a', metavar='A', help='a config.json or its folder')
  diff.add_argument('b', metavar='B')
  diff.set_defaults(action=_diff)
  for parser in (verify, inspect, diff):
    parser.add_argument('--json', action='store_true', help='print one JSON object')


def _verify(args: argparse.Namespace) -> int:
  from ..weights.verify import Difference, verify

  verdict = verify(
    args.a, args.b, rtol=args.rtol, numerics=args.numerics, numerics_rtol=args.numerics_rtol, progress=not args.json
  )
  if args.json:
    _print_json({'a': args.a, 'b': args.b, 'agree': verdict.agree, **dataclasses.asdict(verdict)})
    return 0 if verdict.agree else 1

  def show(title: str, rows: list[Difference]) -> None:
    width = max(map(len, (title, *(d.name for d in rows[:WORST]))))
    print(f'{title:{width}}  {"differing":>25}  {"max abs":>9}  {"relative":>9}')
    for d in rows[:WORST]:
      print(f'{d.name:{width}}  {f"{d.differing:,} of {d.size:,}":>25}  {d.max_abs:9.2e}  {d.relative:9.2e}')
    if len(rows) > WORST:
      print(f'… and {len(rows) - WORST} more')

  print(f'A: {args.a}\nB: {args.b}')
  if verdict.differences:
    show('tensors with differences', verdict.differences)
  if verdict.outputs is not None:
    show('a short pass of', verdict.outputs)
  if verdict.notes:
    _print_problems('read as the headers of the shards say', verdict.notes)
  compared = f'{verdict.tensors:,} tensors, {verdict.values:,} values'
  if verdict.agree:
    within = 'bit for bit' if verdict.rtol is None else f'within {verdict.rtol:g} of the largest magnitude'
    print(f'A and B agree {within}: {compared}')
    return 0
  _print_problems(f'A and B disagree; {compared} compared', verdict.problems)
  return 1


def _inspect(args: argparse.Namespace) -> int:
  from ..weights.summary import Unfinished, summarise

  summary = summarise(args.folder)
  if args.json:
    _print_json({k: v for k, v in dataclasses.asdict(summary).items() if args.tree or k != 'tree'})
    return 0
  if isinstance(summary, Unfinished):
    print(f'{summary.folder}: unfinished ({summary.conversion}): {summary.finished:,} of {summary.tensors:,} tensors')
    print('run the same conversion again and it will go on', *(summary.tree if args.tree else ()), sep='\n  ')
    return 0
  print(f'{summary.folder}\n  kind     {summary.kind}: {summary.layout}\n  variant  {summary.variant}')
  unit, name_of_unit = (1e9, 'GB') if summary.total.bytes >= 1e9 else (1e6, 'MB')
  print(f'\n  {"part":16}{"tensors":>10}{"parameters":>18}{name_of_unit:>10}')
  rows = [*summary.parts.items(), *((f'of {name}', amount) for name, amount in summary.dtypes.items()), ('total', summary.total)]
  for name, amount in rows:
    print(f'  {name:16}{amount.tensors:>10,}{amount.parameters:>18,}{amount.bytes / unit:>10.3f}')
  if args.tree:
    print('', *summary.tree, sep='\n  ')
  if summary.notes:
    _print_problems('\nread as the headers of the shards say', summary.notes)
  if summary.problems:
    _print_problems('\nnot as config.json says', summary.problems)
  return 0


def _diff(args: argparse.Namespace) -> int:
  from ..weights.config_diff import diff

  changes, ignored = diff(args.a, args.b)
  if args.json:
    parts = {'differ': changes, 'differ_without_effect': ignored}
    _print_json({name: {c.field: {'a': c.a, 'b': c.b} for c in found} for name, found in parts.items()})
  else:
    print('\n'.join(map(str, changes)) or 'the two mean the same model')
    if ignored:
      print('\nwithout effect:', *ignored, sep='\n  ')
  return 1 if changes else 0


def _print_problems(heading: str, problems: dict[str, list[str]]) -> None:
  from ..weights.names import problem_lines

  print(heading, *problem_lines(problems), sep='\n')


def _print_json(data: dict[str, Any]) -> None:
  """JSON has no infinity: such a difference is null."""

  def plain(value: Any) -> Any:
    if isinstance(value, dict):
      return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list):
      return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

  print(json.dumps(plain(data), ensure_ascii=False))
