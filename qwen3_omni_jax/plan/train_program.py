"""The step that `train` runs, with its arguments as shapes: the state, and a batch as the input pipeline makes it."""

from typing import Any

import jax
from jax.sharding import NamedSharding

from qwen3_omni_jax.config import OmniConfig
from qwen3_omni_jax.media.image import ImageSettings
from qwen3_omni_jax.train.feed import global_shapes
from qwen3_omni_jax.train.geometry import lane_shape
from qwen3_omni_jax.train.packing import assemble_batch
from qwen3_omni_jax.train.state import abstract_state
from qwen3_omni_jax.train.step import batch_specs, jitted_step

from .job import Job


def train_program(cfg: OmniConfig, job: Job, mesh) -> tuple[Any, tuple, dict[str, Any]]:
  """(the step, its arguments as shapes on the mesh, the arguments by what they are)."""
  run = job.run
  assert run is not None
  state = abstract_state(cfg, run, mesh)
  sources = tuple(source.name or source.path for source in run.data.sources)
  lane = assemble_batch([(0, ())], lane_shape(run.data, cfg), cfg.thinker, ImageSettings(), sources)
  stacked = run.step.accumulate > 1
  batch = global_shapes([lane] * run.step.accumulate, run.data.lanes)
  place = lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
  batch = jax.tree.map(place, batch, batch_specs(batch, mesh, stacked))
  held = {'weights': (state.trainable, state.frozen), 'optimiser': (state.optimiser, state.ema), 'activations': batch}
  return jitted_step(cfg, run, mesh), (state, batch), held
