"""`qwen3-omni plan`: compiles a full-size job without the devices and says whether it fits."""

import argparse
import json
import pathlib

from qwen3_omni_jax.config_json import load_config
from qwen3_omni_jax.hardware import parse_topology

DEFAULTS = {'train': ('pod', 8192), 'prefill': ('serve', 8192), 'decode': ('serve', 4096), 'speech': ('serve', 2048)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--model', default='published', help="a checkpoint's folder; 'published': the released Instruct model")
  parser.add_argument('--job', required=True, choices=list(DEFAULTS), help='which program')
  parser.add_argument('--topology', required=True, help='v5p:4x4x4, v6e:16x16, … (compiled), or gpu:8xH200 (counted)')
  parser.add_argument('--slices', type=int, default=1, help='slices of that topology, joined by the data center network')
  parser.add_argument('--strategy', help='single, fsdp, expert, tensor, pod, serve, or mesh sizes as in fsdp=4,expert=8')
  parser.add_argument('--batch', type=int, help='rows over all devices; default one for each device')
  parser.add_argument('--length', type=int, help='tokens of a row, or slots of its cache (decode, speech)')
  parser.add_argument('--stage', default='s2_general', help='train: of configs/train')
  parser.add_argument(
    '--remat',
    default='full',
    choices=('none', 'full', 'attention', 'experts', 'dots', 'offload'),
    help='train: what backward keeps of a layer beside its input (default: nothing)',
  )
  parser.add_argument(
    '--dispatch-buffer',
    type=float,
    metavar='X',
    help='train: room for X times the balanced number of tokens of experts; default: for all there can be',
  )
  parser.add_argument('--audio', type=float, default=0.0, metavar='SHARE', help='train: share of the tokens that are audio')
  parser.add_argument('--visual', type=float, default=0.0, metavar='SHARE', help='train: share of the tokens that are images')
  parser.add_argument('--json', action='store_true', help='print one JSON object')
  parser.add_argument('--html', metavar='FILE', help='write a page with a memory chart')


def run(args: argparse.Namespace) -> int:
  from qwen3_omni_jax.train import plan

  topology = parse_topology(args.topology, args.slices)
  strategy, length = DEFAULTS[args.job]
  job = plan.Job(
    args.job,
    args.batch or topology.devices,
    args.length or length,
    args.strategy or strategy,
    args.stage,
    args.dispatch_buffer,
    args.remat,
    args.audio,
    args.visual,
  )
  cfg = load_config(_published() if args.model == 'published' else args.model)
  plan.prepare_libtpu()
  from qwen3_omni_jax.train import plan_result

  made = plan_result.make_plan(cfg, job, topology, args.model)
  if args.html:
    pathlib.Path(args.html).write_text(plan_result.html(made), encoding='utf-8')
  print(json.dumps(plan_result.finite(made)) if args.json else '\n'.join(plan_result.lines(made)))
  return 0 if made['fits'] else 1


def _published() -> pathlib.Path:
  import importlib.resources

  return pathlib.Path(str(importlib.resources.files('qwen3_omni_jax.configs'))) / 'model' / 'instruct.json'
