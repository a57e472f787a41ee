"""The end of a run: the LoRA adapter, and the whole model in the published layout."""

import pathlib
import sys
import tempfile

import jax
import numpy as np
from etils import epath

from qwen3_omni_jax.config import OmniConfig

from .adapter import write_adapter
from .agreement import run_on_first
from .config import Run
from .state import LORA, Roles, TrainState


def finish_run(run: Run, cfg: OmniConfig, roles: Roles, state: TrainState, out: epath.Path, model: pathlib.Path) -> None:
  """Writes the results of a complete run: the LoRA adapter, and the whole model in the published layout if `export` is set.

  Of averaged weights where they are kept, unless run.export_weights is 'raw'. The first process writes; all return when it has.
  """
  averaged = state.ema if run.export_weights == 'averaged' else None
  lora = {path: p for path, p in (averaged or state.trainable).items() if path.startswith(LORA)}
  arrays = on_host(lora) if roles.lora else {}
  run_on_first(lambda: _write(run, cfg, roles, int(state.step), arrays, out, model))


def _write(run: Run, cfg: OmniConfig, roles: Roles, step: int, lora: dict, out: epath.Path, model: pathlib.Path) -> None:
  with tempfile.TemporaryDirectory() as temporary:
    adapter = None
    if roles.lora:
      adapter = pathlib.Path(temporary, 'adapter')
      write_adapter(adapter, cfg, roles.lora, lora)
      (out / 'adapter').mkdir(parents=True, exist_ok=True)
      for file in adapter.iterdir():
        (out / 'adapter' / file.name).write_bytes(file.read_bytes())
      _print(f'{out / "adapter"}: the LoRA adapter')
    if run.export is not None:
      _export(run, roles, out / 'checkpoints' / str(step), adapter, model)


def _export(run: Run, roles: Roles, checkpoint: epath.Path, adapter: pathlib.Path | None, model: pathlib.Path) -> None:
  assert run.export is not None
  if (pathlib.Path(run.export) / 'config.json').is_file():  # an export appears whole or not at all
    _print(f'{run.export}: written already')
    return
  from qwen3_omni_jax.weights.to_hf import convert_to_hf

  raw = checkpoint / 'params'  # by its own name: without the averages beside it
  trained = raw if run.export_weights == 'raw' else checkpoint
  source, base = (trained, model) if roles.trainable_parts else (model, None)
  convert_to_hf(str(source), run.export, adapter=adapter, base=base)
  _print(f'{run.export}: the model in the published layout')


def on_host(tree):
  if jax.process_count() == 1:
    return jax.device_get(tree)
  from jax.experimental import multihost_utils

  return jax.tree.map(lambda x: np.asarray(multihost_utils.process_allgather(x, tiled=True)), tree)


def _print(text: str) -> None:
  print(text, file=sys.stderr, flush=True)
