"""The house has one direction: a package imports only from those before it."""

import ast
import pathlib
import subprocess
import sys

import qwen3_omni_jax

ROOT = pathlib.Path(__file__).parent.parent
ORDER = (
  'config_reader config config_json hardware flops shapes report sharding distributed compile_cache devices nn media '
  'report_media models weights infer train eval tools cli'
).split()
TOP_LEVEL = ('train', 'eval', 'tools', 'configs', 'examples')
FORBIDDEN = {'media': {'jax', 'flax'}, 'models': {'qwen3_omni_jax.media'}}
NOT_SHIPPED = {'torch', 'transformers', 'torchvision'}


def sources():
  yield from ROOT.glob('qwen3_omni_jax/**/*.py')
  for folder in TOP_LEVEL:
    yield from ROOT.glob(f'{folder}/**/*.py')


def module_of(path: pathlib.Path) -> list[str]:
  parts = list(path.relative_to(ROOT).with_suffix('').parts)
  parts = parts if parts[0] == 'qwen3_omni_jax' else ['qwen3_omni_jax', *parts]
  return parts


def imports(path: pathlib.Path):
  """Absolute names of everything a file imports, lazily or not; `if TYPE_CHECKING` included."""
  package = module_of(path)[:-1]
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = package[: len(package) - node.level + 1] if node.level else []
      name = '.'.join([*base, *(node.module or '').split('.')]).strip('.')
      yield from (f'{name}.{alias.name}' for alias in node.names) if name == 'qwen3_omni_jax' else (name,)


def rank(module: str) -> int | None:
  parts = module.split('.')
  return ORDER.index(parts[1]) if len(parts) > 1 and parts[0] == 'qwen3_omni_jax' and parts[1] in ORDER else None


def test_imports_point_one_way():
  wrong = []
  for path in sources():
    module = module_of(path)
    here = rank('.'.join(module))
    for name in imports(path):
      there = rank(name)
      if here is not None and there is not None and there > here:
        wrong.append(f'{path.relative_to(ROOT)}: {ORDER[here]} may not import {name}')
      if name.split('.')[0] in NOT_SHIPPED:
        wrong.append(f'{path.relative_to(ROOT)}: {name} is for tests and benchmarks only')
      if name.split('.')[0] in TOP_LEVEL:
        wrong.append(f'{path.relative_to(ROOT)}: import qwen3_omni_jax.{name} instead')
      for forbidden in FORBIDDEN.get(module[1], ()):
        if name == forbidden or name.startswith(forbidden + '.'):
          wrong.append(f'{path.relative_to(ROOT)}: {module[1]} may not import {name}')
  assert not wrong, '\n'.join(wrong)


def test_help_does_not_import_jax():
  code = (
    'import sys\nfrom qwen3_omni_jax.cli import build_parser\nbuild_parser().format_help()\n'
    "print(sorted({'jax', 'flax', 'librosa', 'av', 'tokenizers', 'numpy'} & set(sys.modules)))"
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == '[]'


def test_every_public_name_is_where_it_is_said_to_be():
  for name in qwen3_omni_jax.__all__:
    assert getattr(qwen3_omni_jax, name).__name__ == name
