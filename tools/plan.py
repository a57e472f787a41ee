"""`qwen3-omni plan`: compiles a full-size job without the devices and says whether it fits."""

import argparse
import json
import pathlib

from qwen3_omni_jax.config_json import load_config
from qwen3_omni_jax.hardware import Topology, parse_topology

SIZES = {'prefill': ('serve', 8192), 'decode': ('serve', 4096), 'speech': ('serve', 2048)}  # strategy, length


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--model', default='published', help="a checkpoint's folder; 'published': the released Instruct model")
  parser.add_argument('--job', required=True, choices=('train', *SIZES), help='which program')
  parser.add_argument('--topology', required=True, help='v5p:4x4x4, v6e:16x16, … (compiled), or gpu:8xH200 (counted)')
  parser.add_argument('--slices', type=int, default=1, help='slices of that topology, joined by the data center network')
  parser.add_argument('--config', metavar='YAML', help="train: the run's configuration, as of `train`; default s2_general")
  parser.add_argument('overrides', nargs='*', metavar='KEY=VALUE', help='train: in place of values of it, as of `train`')
  parser.add_argument('--strategy', help='not train: of the mesh; serve, pod, …, or sizes as in fsdp=4,expert=8')
  parser.add_argument('--batch', type=int, help='not train: rows over all devices; default one for each device')
  parser.add_argument('--length', type=int, help='not train: tokens of a row, or slots of its cache (decode, speech)')
  parser.add_argument('--json', action='store_true', help='print one JSON object')
  parser.add_argument('--html', metavar='FILE', help='write a page with a memory chart')


def run(args: argparse.Namespace) -> int:
  topology = parse_topology(args.topology, args.slices)
  cfg = load_config(_published() if args.model == 'published' else args.model)
  from qwen3_omni_jax.plan.libtpu import prepare_libtpu

  prepare_libtpu()
  from qwen3_omni_jax.plan import result, show

  job = _job(args, topology)
  if job.run is not None:
    from qwen3_omni_jax.train.speakers import with_speakers

    cfg = with_speakers(cfg, job.run.speakers)
  made = result.make_plan(cfg, job, topology, args.model)
  if args.html:
    pathlib.Path(args.html).write_text(show.html(made), encoding='utf-8')
  print(json.dumps(result.finite(made)) if args.json else '\n'.join(show.lines(made)))
  return 0 if made['fits'] else 1


def _job(args: argparse.Namespace, topology: Topology):
  """The Job that is asked for. Raises ValueError for options of another kind of job."""
  from qwen3_omni_jax.train.config import Run
  from qwen3_omni_jax.train.config_file import read
  from qwen3_omni_jax.train.geometry import resolve

  from qwen3_omni_jax.plan.job import Job
  from qwen3_omni_jax.sharding import mesh_shape

  if args.job != 'train':
    if args.config or args.overrides:
      raise ValueError(f'--job {args.job}: --config and KEY=VALUE are for --job train')
    strategy, length = SIZES[args.job]
    return Job(args.job, args.batch or topology.devices, args.length or length, args.strategy or strategy)
  if given := [f'--{name}' for name in ('strategy', 'batch', 'length') if getattr(args, name) is not None]:
    raise ValueError(
      f'--job train: {", ".join(given)}: the configuration decides; give mesh=…, data.rows=… or data.length=… after the options'
    )
  configuration = read(Run, args.config or 's2_general', [*args.overrides, f'slices={topology.slices}'])
  return Job.of_run(resolve(configuration, mesh_shape(configuration.mesh, topology.devices, topology.slices)))


def _published() -> pathlib.Path:
  import importlib.resources

  return pathlib.Path(str(importlib.resources.files('qwen3_omni_jax.configs'))) / 'model' / 'instruct.json'
