"""The command, `python -m tests.train.quick_start train …`, whose every process keeps its compiled programs.

jax lets the first process alone write its cache, and on CPU the others have keys of their own, so they would compile at each
start.
"""

import sys

from jax._src import compiler, distributed

from qwen3_omni_jax.cli import main

_write = compiler._cache_write


def _write_as_the_first(*args) -> None:
  state = distributed.global_state
  process, state.process_id = state.process_id, 0
  try:
    _write(*args)
  finally:
    state.process_id = process


if __name__ == '__main__':
  compiler._cache_write = _write_as_the_first
  sys.exit(main())
