"""`qwen3-omni eval`: runs the published benchmarks, scores them as their authors do, and compares with the published scores."""

import argparse
import json
import os
import pathlib
import sys
from typing import Any

from qwen3_omni_jax import compile_cache, devices

from .conversation import add_media_argument

SUITES = ('audio', 'vision', 'audiovisual', 'speech', 'text', 'all')


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--data', metavar='ROOT', help='folder with the released files (docs/evaluation.md)')
  parser.add_argument('--suite', choices=SUITES, help='benchmarks to run')
  parser.add_argument('--benchmark', action='append', metavar='NAME', help='one benchmark instead of a suite (may be repeated)')
  parser.add_argument('--list', action='store_true', help='print all benchmarks and exit')
  parser.add_argument('--items', action='store_true', help='print the questions as JSON lines, to answer them elsewhere')
  parser.add_argument('--model', metavar='DIR', help='checkpoint folder of either kind, or hub id')
  parser.add_argument('--from-predictions', metavar='FILE', help="score {'id', 'text'} lines, without a model")
  parser.add_argument('--out', default='evaluation', metavar='DIR', help='replies, results, reports; a second run resumes')
  parser.add_argument('--variant', choices=('instruct', 'thinking', 'captioner'), help='whose evaluation defaults to use')
  parser.add_argument('--limit', type=int, metavar='N', help='only N items of each benchmark, evenly spread')
  parser.add_argument('--batch-size', type=int, default=16, help='conversations answered together (default 16)')
  parser.add_argument('--max-new-tokens', type=int, help="limit of a reply (default: the benchmark's; 32768 for Thinking)")
  add_media_argument(parser, 'utils')
  parser.add_argument('--dtype', default='bfloat16', choices=('bfloat16', 'float32'), help='of weights and activations')
  parser.add_argument('--mesh', metavar='SHAPE', help="share the work over all devices: 'serve', or sizes as in data=2,expert=4")
  parser.add_argument('--allow-missing', action='store_true', help='leave out items whose media are missing, and count them')
  parser.add_argument('--official-fallback', action='store_true', help='guess, from --seed, where an official scorer guesses')
  parser.add_argument('--seed', type=int, default=42, help='of those guesses (default 42, as in MMMU)')
  parser.add_argument('--judge-url', metavar='URL', help='OpenAI-compatible endpoint up to /v1, for judged sets')
  parser.add_argument('--judge-model', metavar='NAME', help='the judge as the endpoint names it (published: gpt-4o-mini)')
  parser.add_argument('--judge-key-env', default='JUDGE_API_KEY', metavar='VAR', help="variable with the endpoint's key")
  parser.add_argument(
    '--asr',
    action='append',
    choices=('self', 'sphinx', 'none'),
    help='write speech down by the model itself or PocketSphinx; may be repeated, the first makes the score (default none)',
  )
  parser.add_argument('--transcripts', metavar='FILE', help="{'id', 'text'} lines: what a recogniser heard, for the speech suite")
  parser.add_argument('--speaker', default='Ethan', help='voice of spoken benchmarks that name none (default Ethan)')
  parser.add_argument('--max-frames', type=int, metavar='N', help='longest speech, in frames of 80 ms')
  compile_cache.add_argument(parser)
  parser.add_argument('--json', action='store_true', help='print results.json instead of the table')


def run(args: argparse.Namespace) -> int:
  from qwen3_omni_jax.eval import registry

  if args.list:
    for b in registry.BENCHMARKS.values():
      print(f'{b.name:30} {b.suite:12} {b.folder:30} {b.title}{" (judge)" if b.needs_judge else ""}')
    return 0
  if bool(args.suite) == bool(args.benchmark):
    raise ValueError('give --suite, or --benchmark NAME (--list shows them)')
  if not args.data:
    raise ValueError('give --data ROOT, the folder with the released files (docs/evaluation.md)')
  if args.items:
    return _print_items(args, registry.select_benchmarks(args.suite, args.benchmark))
  if bool(args.model) == bool(args.from_predictions):
    raise ValueError('give either --model DIR or --from-predictions FILE')
  if args.limit is not None and args.limit < 1:
    raise ValueError(f'--limit {args.limit}: expected 1 or more')
  benchmarks = registry.select_benchmarks(args.suite, args.benchmark)
  out = pathlib.Path(args.out)
  if args.from_predictions:
    if len(benchmarks) != 1 or args.suite:
      raise ValueError('--from-predictions scores one --benchmark')
    return _from_predictions(args, benchmarks[0], out)
  return _with_model(args, benchmarks, out)


def _print_items(args: argparse.Namespace, benchmarks: list[Any]) -> int:
  """Prints {'benchmark', 'id', 'messages', 'reference', 'category'} of every question, a JSON line each.

  Embedded media are named by file, column and row.
  """
  for benchmark in benchmarks:
    for item in benchmark.read(pathlib.Path(args.data) / benchmark.folder)[: args.limit]:
      record = {'benchmark': benchmark.name, 'id': item.id, 'messages': item.messages, 'reference': item.reference}
      print(json.dumps({**record, 'category': dict(item.category)}, ensure_ascii=False, default=str))
  return 0


def _scoring(args: argparse.Namespace, out: pathlib.Path) -> Any:
  from qwen3_omni_jax.eval.benchmark import Scoring
  from qwen3_omni_jax.eval.judge import EndpointJudge

  if bool(args.judge_url) != bool(args.judge_model):
    raise ValueError('--judge-url and --judge-model go together')
  judge = None
  if args.judge_url:
    key = os.environ.get(args.judge_key_env)
    judge = EndpointJudge(args.judge_url, args.judge_model, out / 'judge.jsonl', key)
  return Scoring(judge, args.official_fallback, args.seed)


def _from_predictions(args: argparse.Namespace, benchmark: Any, out: pathlib.Path) -> int:
  from qwen3_omni_jax.eval import run as runner

  path = pathlib.Path(args.from_predictions)
  if not path.is_file():
    raise ValueError(f"{path}: no such file; expected {{'id', 'text'}} lines")
  replies = {key: answer.text for key, answer in runner.read_replies(path).items()}
  result = runner.score_predictions(benchmark, replies, pathlib.Path(args.data), _scoring(args, out))
  return _write([result], args, args.variant or 'instruct', str(path), out)


def _with_model(args: argparse.Namespace, benchmarks: list[Any], out: pathlib.Path) -> int:
  devices.start(args.compile_cache)
  from qwen3_omni_jax.eval import run as runner
  from qwen3_omni_jax.eval.predict import EnginePredictor, variant_of
  from qwen3_omni_jax.eval.recognise import own_ear, sphinx

  from qwen3_omni_jax.infer.omni import Omni

  omni = Omni.load(args.model, dtype=args.dtype, mesh=args.mesh, speech=any(b.answer == 'speak' for b in benchmarks))
  variant = args.variant or variant_of(omni)
  ears = {'self': lambda: own_ear(omni, args.batch_size), 'sphinx': sphinx}
  recognisers = [ears[name]() for name in dict.fromkeys(args.asr or ()) if name in ears]
  predict = EnginePredictor(omni, batch_size=args.batch_size, speaker=args.speaker, max_frames=args.max_frames)
  changes = {key: getattr(args, key) for key in ('max_new_tokens', 'media') if getattr(args, key)}
  transcripts = None
  if args.transcripts:
    transcripts = {k: a.text or '' for k, a in runner.read_replies(pathlib.Path(args.transcripts)).items()}
  results = runner.run_suite(
    predict,
    benchmarks,
    pathlib.Path(args.data),
    out,
    variant=variant,
    model=args.model,
    limit=args.limit,
    scoring=_scoring(args, out),
    changes=changes,
    batch=args.batch_size,
    allow_missing=args.allow_missing,
    recognisers=recognisers,
    transcripts=transcripts,
    log=lambda line: print(line, file=sys.stderr, flush=True),
  )
  return _write(results, args, variant, args.model, out)


def _write(results: list[Any], args: argparse.Namespace, variant: str, model: str, out: pathlib.Path) -> int:
  """results.json, report.md and report.html in OUT; the table on the terminal."""
  from qwen3_omni_jax.eval import report_html, report_table
  from qwen3_omni_jax.eval.run import summary

  found = summary(results, variant, model)
  out.mkdir(parents=True, exist_ok=True)
  text = json.dumps(found, indent=1, ensure_ascii=False) + '\n'
  (out / 'results.json').write_text(text, encoding='utf-8')
  (out / 'report.md').write_text(report_table.markdown(found), encoding='utf-8')
  (out / 'report.html').write_text(report_html.page(results, found), encoding='utf-8')
  print(text if args.json else report_table.markdown(found), end='')
  return 0 if any(r.scores is not None for r in results) else 1
