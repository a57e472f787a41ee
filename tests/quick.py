"""Programs that compile quickly. Most tests compile far longer than they run: leave out what only makes programs fast."""

import contextlib
from collections.abc import Iterator
from unittest import mock

from jax._src import compiler  # jax has no setting of the compiler's options that holds for every program

OPTIONS = {'xla_backend_optimization_level': 0, 'xla_cpu_use_fusion_emitters': False}  # a third of the time


@contextlib.contextmanager
def quick_to_compile() -> Iterator[None]:
  """Every program is compiled with OPTIONS, whoever asks for it. Not for laws about bits: sums that are made in the written
  order may agree where those of the released program do not."""
  plain = compiler.get_compile_options

  def quick(*args, env_options_overrides=None, **others):
    return plain(*args, env_options_overrides=OPTIONS | (env_options_overrides or {}), **others)

  with mock.patch.object(compiler, 'get_compile_options', quick):
    yield
