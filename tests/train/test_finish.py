"""The end of a run: what is exported, and that other processes wait for the one that writes."""

import os
import socket
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from qwen3_omni_jax.train import finish
from qwen3_omni_jax.train import step as step_module
from qwen3_omni_jax.train.config import LoraPart, Part, Recipe, Run, Step
from qwen3_omni_jax.train.state import abstract_state, assign_roles, init_state

from qwen3_omni_jax.sharding import make_mesh
from tests.conftest import ROOT
from tests.train import batches

pytestmark = pytest.mark.quick_to_compile


def test_averages_are_evaluated_where_they_are_kept(monkeypatch):
  zeros = {name: 0 for name in ('weight', 'loss_by_kind', 'weight_by_kind')}
  monkeypatch.setattr(
    step_module, 'loss_sums', lambda params, *_, **__: (0, {'cross_entropy': params['thinker/norm'].sum(), **zeros})
  )
  for decay, expected in ((0.9, 3.0), (0.0, 1.0)):
    recipe = Recipe(parts=(Part('thinker/norm', 1.0),), step=Step(dtype='float32', ema=decay))
    state = abstract_state(batches.config(), recipe, make_mesh({}))
    fill = lambda tree, value: tree and {path: jnp.full(p.shape, value) for path, p in tree.items()}
    state = state.replace(trainable=fill(state.trainable, 1.0), ema=fill(state.ema, 3.0))
    size = state.trainable['thinker/norm'].size
    assert step_module.eval_sums(batches.config(), recipe)(state, batches.batch())['cross_entropy'] == expected * size


@pytest.mark.parametrize(('weights', 'expected'), [('averaged', 3.0), ('raw', 1.0)])
def test_the_adapter_is_of_the_averages_or_of_the_raw_weights_on_request(monkeypatch, tmp_path, weights, expected):
  run = Run(lora=(LoraPart('thinker/layers/attn/q', 2),), step=Step(ema=0.9), export_weights=weights)
  state = init_state(None, batches.config(), run, make_mesh({}))
  fill = lambda tree, value: {path: jnp.full(p.shape, value) for path, p in tree.items()}
  state = state.replace(trainable=fill(state.trainable, 1.0), ema=fill(state.ema, 3.0))
  written = {}

  def write(folder, cfg, lora, arrays) -> None:
    written.update(arrays)
    folder.mkdir()
    (folder / 'adapter_model.safetensors').write_text('matrices')

  monkeypatch.setattr(finish, 'write_adapter', write)
  finish.finish_run(run, batches.config(), assign_roles(batches.config(), run), state, tmp_path, tmp_path)
  assert set(written) == {f'lora/thinker/layers/attn/q/{half}' for half in 'ab'}
  assert all(np.all(p == expected) for p in written.values())
  assert (tmp_path / 'adapter' / 'adapter_model.safetensors').read_text() == 'matrices'


@pytest.mark.slow
def test_two_processes_fall_back_together_and_wait_for_the_one_that_writes(tmp_path):
  """20 errors of reading on the second: both give up and nothing is renamed; damage on it: both fall back. Then the first writes
  for longer than jax's last barrier waits."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  environ = {name: value for name, value in os.environ.items() if not name.startswith('SLURM_')}
  environ |= {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_backend_optimization_level=0'}
  command = lambda i: [sys.executable, '-m', 'tests.train.two_processes', str(port), str(i), str(tmp_path / 'checkpoints')]
  pipe = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
  started = [subprocess.Popen(command(i), cwd=ROOT, env=environ, **pipe) for i in (0, 1)]
  try:
    said = [process.communicate(timeout=300)[0] for process in started]
  finally:
    for process in started:
      process.kill()
      process.wait()
  assert [process.returncode for process in started] == [0, 0] and all('both agreed' in text for text in said), '\n'.join(said)
