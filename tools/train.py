"""`qwen3-omni train`: continued pretraining and fine-tuning from a configuration file."""

import argparse

from qwen3_omni_jax import compile_cache, devices


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--config', metavar='YAML', help='a file, or the name of one that comes with the package, such as sft')
  parser.add_argument('overrides', nargs='*', metavar='KEY=VALUE', help='in place of the values in the file, as in steps=100')
  parser.add_argument('--show', action='store_true', help='print the whole configuration and do nothing')
  compile_cache.add_argument(parser)


def run(args: argparse.Namespace) -> int:
  import yaml

  from ..train.config import Run
  from ..train.config_file import read, to_data

  configuration = read(Run, args.config, args.overrides)
  if args.show:
    import json

    print(yaml.safe_dump(json.loads(json.dumps(to_data(configuration))), sort_keys=False), end='')
    return 0
  devices.start(args.compile_cache, join=True)
  from ..train.goodput import process_start
  from ..train.run import train

  score = speak = None
  if (asked := configuration.evaluate) is not None and (asked.benchmarks is not None or asked.speech is not None):
    from ..eval.in_training import make_scorer, make_speaker

    configuration.check()
    score = None if asked.benchmarks is None else make_scorer(asked.benchmarks, speaks=configuration.speech is not None)
    speak = None if asked.speech is None else make_speaker(asked.speech)
  train(configuration, began=process_start(), score=score, speak=speak)
  return 0
