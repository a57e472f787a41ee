"""Plots the loss of consecutive runs by kind of record: `python -m qwen3_omni_jax.examples.nano.plot --out loss.png RUN …`."""

import argparse
import json
import pathlib

KINDS = ('audio', 'image')


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('runs', nargs='+', type=pathlib.Path, metavar='RUN', help='folders of runs, in their order')
  parser.add_argument('--out', required=True, metavar='FILE', help='a picture: .png or .svg')


def run(args: argparse.Namespace) -> int:
  import matplotlib

  matplotlib.use('agg')
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(figsize=(8, 4), layout='constrained')
  begin = 0
  points: dict[str, tuple[list[int], list[float]]] = {kind: ([], []) for kind in KINDS}
  for folder in args.runs:
    lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()]
    lines = [line for line in lines if 'evaluation' not in line]
    for line in lines:
      for kind in KINDS:
        if (value := line.get(f'cross_entropy/{kind}')) is not None:
          points[kind][0].append(begin + line['step'])
          points[kind][1].append(value)
    axes.axvline(begin, color='0.8', zorder=0)
    axes.text(begin, 1.0, f' {folder.name}', transform=axes.get_xaxis_transform(), va='top', color='0.4', fontsize=8)
    begin += lines[-1]['step']
  for kind, (steps, values) in points.items():
    axes.semilogy(steps, values, label=f'records with {kind}', linewidth=0.8)
  axes.set(xlabel='step', ylabel='cross-entropy of a learnt token, nats')
  axes.legend(loc='lower left')
  figure.savefig(args.out, dpi=110)
  print(f'{args.out}: {begin} steps of {len(args.runs)} runs')
  return 0


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
  add_arguments(parser)
  raise SystemExit(run(parser.parse_args()))
