"""The `qwen3-omni` command. Each subcommand declares its arguments here and imports what it needs only when it runs."""

import argparse
import importlib
import sys
import traceback

from .devices import hide_xla_log

# name: (module with add_arguments(parser) and run(args) -> exit code, one line of help)
COMMANDS = {
  'generate': ('qwen3_omni_jax.tools.generate', 'answer a conversation with text, audio, images and video in it'),
  'live': ('qwen3_omni_jax.tools.live', 'listen to a file or to stdin as to a microphone, and answer aloud'),
  'batch': ('qwen3_omni_jax.tools.batch', 'answer or score a file of conversations, resumably, in text and speech'),
  'score': ('qwen3_omni_jax.tools.score', 'log-probability of every token of the last assistant turn'),
  'eval': ('qwen3_omni_jax.tools.evaluate', 'run the published benchmarks and score them as their authors do'),
  'train': ('qwen3_omni_jax.tools.train', 'pretrain or fine-tune on text, sound, pictures and video'),
  'codes': ('qwen3_omni_jax.tools.codes', 'recordings to the codes of a speech codec, which training of speech reads'),
  'convert': ('qwen3_omni_jax.tools.convert_weights', 'convert, compare and inspect checkpoints'),
  'tiny': ('qwen3_omni_jax.tools.tiny', 'write a random but structurally complete checkpoint'),
  'plan': ('qwen3_omni_jax.tools.plan', 'whether a full-size job compiles and fits on TPUs or GPUs that are not there'),
  'demo': ('qwen3_omni_jax.tools.demo', 'make a tiny checkpoint and sample media, and answer about them'),
}


def build_parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(prog='qwen3-omni', description='Qwen3-Omni in JAX: text, images, audio and video in.')
  commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
  for name, (module, summary) in COMMANDS.items():
    command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + '.')
    tool = importlib.import_module(module)
    tool.add_arguments(command)
    command.add_argument('--debug', action='store_true', help="show the full trace of an error, and XLA's own log")
    command.set_defaults(run=tool.run)
  return parser


def main(argv: list[str] | None = None) -> int:
  args = build_parser().parse_args(argv)
  if not args.debug:
    hide_xla_log()
  try:
    return args.run(args)
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    return 130
  except BrokenPipeError:
    return 141
  except Exception as error:
    if args.debug:
      traceback.print_exc()
    else:
      message = str(error) or type(error).__name__
      if not isinstance(error, ValueError):
        message = f'{type(error).__name__}: {message} (--debug shows where)'
      print(f'qwen3-omni {args.command}: {message}', file=sys.stderr)
    return 1


if __name__ == '__main__':
  sys.exit(main())
