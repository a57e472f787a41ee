"""One of two processes: `python -m tests.train.two_processes PORT PROCESS FOLDER`. Started by test_finish.py.

They share checkpoints, meet errors of reading on one of them alone, and end while the first is still at work for longer than
jax's barrier at the end of a program allows.
"""

import errno
import pathlib
import sys
import time

import jax

SHUTDOWN_S, WORK_S = 3, 8
ERRORS = (
  OSError(errno.EIO, 'Input/output error'),
  ValueError('UNAVAILABLE: connection reset'),
  RuntimeError('RESOURCE_EXHAUSTED: out of memory'),
  TimeoutError(),
)
TIMES = 5  # each of them


def main(port: str, process: int, folder: pathlib.Path) -> None:
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(f'localhost:{port}', 2, process, shutdown_timeout_seconds=SHUTDOWN_S)
  from qwen3_omni_jax.train import checkpoint as checkpoint_module
  from qwen3_omni_jax.train.agreement import merge_over_processes, run_on_first
  from qwen3_omni_jax.train.checkpoint import Checkpoints
  from qwen3_omni_jax.train.config import Part, Recipe
  from qwen3_omni_jax.train.config_file import to_data
  from qwen3_omni_jax.train.state import abstract_state, assign_roles, init_state

  from qwen3_omni_jax.sharding import make_mesh
  from tests.train import batches

  recipe, cfg, mesh = Recipe(parts=(Part('thinker/norm', 1e-3),)), batches.config(), make_mesh({'fsdp': 2})
  roles, state = assign_roles(cfg, recipe), init_state(None, cfg, recipe, mesh)
  checkpoints = Checkpoints(folder)
  for step in (2, 4):
    checkpoints.save(state.replace(step=state.step + step), roles, {}, to_data(recipe))
  checkpoints.wait()
  like, read = abstract_state(cfg, recipe, mesh), checkpoint_module._read_leaves

  def restore(error: Exception | None):
    """On the second process, reading the newest checkpoint's optimiser fails."""

    def fail(item, wanted):
      if error is not None and process == 1 and item.parent.name == '4' and item.name == 'optimiser':
        raise error
      return read(item, wanted)

    checkpoint_module._read_leaves = fail
    return checkpoints.restore(like, roles, recipe)

  names = lambda: sorted(path.name for path in folder.iterdir() if path.is_dir())
  for error in ERRORS * TIMES:
    try:
      restore(error)
    except Exception as caught:
      assert (caught is error) == (process == 1) and (process == 1 or 'another process' in str(caught)), caught
    else:
      raise AssertionError(f'{error}: was not raised')
    assert names() == ['2', '4'], names()
  assert restore(None).state.step == 4
  merge_over_processes(0, len)
  assert restore(ValueError('DATA_LOSS: CRC-32C checksum verification failed')).state.step == 2
  assert names() == ['2', 'damaged-4'], names()
  checkpoints.close()

  def work() -> None:
    time.sleep(WORK_S)
    (folder / 'written').write_text('')

  run_on_first(work, poll_s=0.5)
  assert (folder / 'written').exists()
  try:
    run_on_first(lambda: 1 / 0, poll_s=0.1)
  except (ZeroDivisionError, RuntimeError) as error:
    assert isinstance(error, ZeroDivisionError) == (process == 0)
  print('both agreed', flush=True)


if __name__ == '__main__':
  main(sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3]))
