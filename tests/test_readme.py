"""Every command that the README shows runs as it is written, after the demo."""

import os
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT

README = ROOT / 'README.md'
APART = ('## Commands', 'With the released weights')  # a list of what there is; what needs 66 GB
CODES = {'batch': 3, 'plan': 1}  # a row that fails on purpose; a job that does not fit


def blocks() -> Iterator[list[str]]:
  """Indented blocks of code without those that are set apart."""
  text = README.read_text(encoding='utf-8')
  for found in re.finditer(r'(?:^    .*\n|^\n(?=    ))+', text, re.MULTILINE):
    before = text[: found.start()].rstrip()
    heading = before.rfind('\n## ')
    if not any(before[heading + 1 :].startswith(a) or before.rsplit('\n\n', 1)[-1].startswith(a) for a in APART):
      yield [line[4:] for line in found[0].splitlines() if line.strip()]


def commands() -> list[list[str]]:
  lines: list[str] = []
  for block in blocks():
    for line in block:
      if line.startswith('qwen3-omni '):
        lines.append(line)
      elif line.startswith(' ') and lines and block[0].startswith('qwen3-omni '):
        lines[-1] += ' ' + line.strip()
  return [shlex.split(line, comments=True)[1:] for line in lines]


def test_the_commands_of_the_readme_are_found():
  found = commands()
  assert {'generate', 'live', 'score', 'batch', 'train', 'plan'} <= {words[0] for words in found} and len(found) >= 10
  assert not any('omni-jax' in ' '.join(words) for words in found)
  assert sum(block[0].startswith('from qwen3_omni_jax import Omni') for block in blocks()) == 1


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_every_command_of_the_readme_runs_as_written_after_the_demo(tmp_path):
  """What libtpu would compile for full-size jobs is left to the tests of plans."""
  (tmp_path / 'examples').symlink_to(ROOT / 'examples')
  ours = ('JAX_PLATFORMS', 'XLA_FLAGS', 'NPROC')  # what tests set, and a newcomer does not
  environment = {name: value for name, value in os.environ.items() if name not in ours}
  environment['QWEN3_OMNI_COMPILE_CACHE'] = str(tmp_path / 'programs')

  def run(arguments: list[str], code: int = 0) -> None:
    done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == code, f'{arguments}: {done.stderr}'
    assert not re.search(r'warning|error', done.stderr, re.IGNORECASE), f'{arguments}: {done.stderr}'

  run(['-m', 'qwen3_omni_jax.cli', 'demo'])
  for words in commands():
    if words[0] != 'plan' or 'gpu:' in ' '.join(words):
      run(['-m', 'qwen3_omni_jax.cli', *words], CODES.get(words[0], 0))
  assert (tmp_path / 'demo' / 'hello.wav').is_file() and (tmp_path / 'demo' / 'trained' / 'config.json').is_file()
  python = next('\n'.join(block) for block in blocks() if block[0].startswith('from qwen3_omni_jax import Omni'))
  pathlib.Path(tmp_path / 'example.py').write_text(python)
  run(['example.py'])
