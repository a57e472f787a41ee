"""The task of most runs: Thinker, encoders, Talker and code predictor, on conversations and documents."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from qwen3_omni_jax.config import OmniConfig
from qwen3_omni_jax.config_json import load_config
from qwen3_omni_jax.infer.omni import Omni
from qwen3_omni_jax.media.processor import Processor
from qwen3_omni_jax.media.turns import speaker_code
from qwen3_omni_jax.models.omni import omni_spec
from qwen3_omni_jax.shapes import Params
from qwen3_omni_jax.sharding import param_shardings
from qwen3_omni_jax.weights.load import load_params
from qwen3_omni_jax.weights.remote import is_url

from .checkpoint import Checkpoints
from .config import Run
from .data import make_loader
from .evaluate import held_out_losses, omni_of
from .feed import Feed, check_shared_out, process_shard
from .finish import finish_run
from .geometry import resolve
from .speakers import add_speakers, describe_speakers, with_speakers
from .state import Roles, TrainState, abstract_state, assign_roles, flatten, init_state, load_shardings, parts_of
from .step import compiled_step
from .utilisation import step_flops


@dataclasses.dataclass
class OmniTask:
  """A task (train.task). model: the folder with its small files (and its weights, unless they are in a bucket). cfg: of the
  model, with the run's new speakers."""

  run: Run
  mesh: Any
  model: pathlib.Path
  cfg: OmniConfig = dataclasses.field(init=False)
  roles: Roles = dataclasses.field(init=False)

  def __post_init__(self):
    self.cfg = with_speakers(load_config(self.model), self.run.speakers)
    self.roles = assign_roles(self.cfg, self.run)
    if self.run.evaluate is not None and self.run.evaluate.speech is not None and self.cfg.talker is not None:
      speaker_code(self.cfg.talker, self.run.evaluate.speech.speaker)  # an unknown one is an error before the first step

  @functools.cached_property
  def processor(self) -> Processor:
    processor = Processor.from_folder(self.model)
    processor.cfg = self.cfg  # which knows the run's new speakers
    return processor

  @property
  def out(self) -> epath.Path:
    return epath.Path(self.run.out)

  def resolved(self, begun: dict[str, Any] | None) -> 'OmniTask':
    run = resolve(self.run, self.mesh.shape, begun)
    check_shared_out(run.data, self.mesh)
    if run.evaluate is not None:
      check_shared_out(run.evaluate.data, self.mesh, 'evaluate.data')
    return dataclasses.replace(self, run=run)

  def describe(self, checkpoints: Checkpoints) -> None:
    speakers = self.run.speakers
    checkpoints.describe(self.model, functools.partial(describe_speakers, speakers=speakers, cfg=self.cfg) if speakers else None)

  def abstract_state(self) -> TrainState:
    return abstract_state(self.cfg, self.run, self.mesh)

  def first_state(self) -> TrainState:
    """The model's weights, or random ones."""
    run, params = self.run, None
    if run.init == 'model':
      shardings = load_shardings(self.cfg, run, self.mesh)
      params = load_params(self._weights(), self.cfg, parts=parts_of(run), shardings=shardings)
      params = add_speakers(params, self.cfg, run.speakers)
    return init_state(params, self.cfg, run, self.mesh, run.seed)

  def frozen_parts(self) -> dict[str, Any]:
    run = self.run
    parts = tuple(part for part in parts_of(run) if part not in self.roles.trainable_parts)
    if run.init == 'random' and parts:
      everything = init_state(None, self.cfg, run, self.mesh, run.seed).frozen
      return {path: p for path, p in everything.items() if path.split('/')[0] in parts}
    shardings = {part: tree for part, tree in load_shardings(self.cfg, run, self.mesh).items() if part in parts}
    return flatten(load_params(self._weights(), self.cfg, parts=parts, shardings=shardings)) if parts else {}

  def _weights(self) -> str | pathlib.Path:
    return self.run.model if is_url(self.run.model) else self.model

  def batches(self, position: dict[str, Any] | None) -> Feed:
    run = self.run
    shard, shards = process_shard(run.data.rows, self.mesh)
    loader = make_loader(run.data, self.processor, shard, shards, position, self.out / 'index')
    count = functools.partial(step_flops, self.cfg, self.roles, speech=run.speech)
    return Feed(loader, run.step.accumulate, self.mesh, shards, count)

  def step(self) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    return compiled_step(self.cfg, self.run, self.mesh)

  def evaluation(self) -> Callable[[TrainState], dict[str, float]] | None:
    shard, shards = process_shard(self.run.data.rows, self.mesh)
    return held_out_losses(self.run, self.cfg, self.processor, self.mesh, shard, shards, self.out / 'index')

  @functools.cached_property
  def vocoder(self) -> Params | None:
    """Code2Wav as the model has it, for a run with the Talker."""
    if self.run.speech is None:
      return None
    shardings = param_shardings({'code2wav': omni_spec(self.cfg)['code2wav']}, self.mesh)
    params = load_params(self._weights(), self.cfg, dtype=self.run.step.dtype, parts=('code2wav',), shardings=shardings)
    return jax.tree.map(jnp.asarray, params)

  def omni(self, state: TrainState) -> Omni:
    return omni_of(state, self.cfg, self.roles, self.processor, self.model, self.run.step.dtype, self.vocoder)

  def finish(self, state: TrainState) -> None:
    finish_run(self.run, self.cfg, self.roles, state, self.out, self.model)
