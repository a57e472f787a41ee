"""The house has one direction: a package imports only from those before it."""

import ast
import pathlib
import subprocess
import sys

import qwen3_omni_jax

ROOT = pathlib.Path(__file__).parent.parent
ORDER = (
  'config_reader config config_json codec_config hardware flops shapes report sharding distributed compile_cache devices nn '
  'media report_media models weights infer train plan eval tools cli'
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


def imported_modules(path: pathlib.Path, modules: dict[str, pathlib.Path]) -> set[str]:
  """Modules of the house that a file needs when it runs, imported lazily or not: all but those for annotations alone."""
  package, found = module_of(path)[:-1], set()
  tree = ast.parse(path.read_text())
  annotations = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == 'TYPE_CHECKING']
  skipped = {id(node) for block in annotations for node in ast.walk(block)}
  for node in ast.walk(tree):
    if id(node) in skipped:
      continue
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      base = package[: len(package) - node.level + 1] if node.level else []
      name = '.'.join([*base, *(node.module or '').split('.')]).strip('.')
      found |= {full if (full := f'{name}.{alias.name}') in modules else name for alias in node.names}
  return found & modules.keys()


def test_no_circle_of_modules():
  modules = {'.'.join(module_of(path)).removesuffix('.__init__'): path for path in sources()}
  needs = {name: imported_modules(path, modules) - {name} for name, path in modules.items()}
  assert needs['qwen3_omni_jax.plan.advice'] >= {'qwen3_omni_jax.plan.memory', 'qwen3_omni_jax.plan.job'}
  assert 'qwen3_omni_jax.train.run' in needs['qwen3_omni_jax.tools.train']  # a lazy one
  while free := {name for name, others in needs.items() if not others & needs.keys()}:
    needs = {name: others for name, others in needs.items() if name not in free}
  circles = {name: sorted(others & needs.keys()) for name, others in needs.items()}
  assert not circles, 'these, and what needs them, import one another: ' + str(circles)


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
