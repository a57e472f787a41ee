"""The task of a run with `vocoder`: Code2Wav on recordings and their codes, or with it a codec from scratch."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from qwen3_omni_jax.codec_config import parse_codec_config
from qwen3_omni_jax.config import OmniConfig
from qwen3_omni_jax.config_json import load_config
from qwen3_omni_jax.infer.omni import Omni
from qwen3_omni_jax.models.code2wav import code2wav_spec
from qwen3_omni_jax.models.codec_encoder import codec_spec
from qwen3_omni_jax.nn.params import Param, Spec, leaves
from qwen3_omni_jax.sharding import param_shardings
from qwen3_omni_jax.weights.codec import save_codec
from qwen3_omni_jax.weights.load import load_params
from qwen3_omni_jax.weights.remote import is_url

from ..agreement import run_on_first
from ..checkpoint import Checkpoints
from ..config import DataConfig, Run
from ..feed import check_shared_out, process_shard
from ..finish import finish_run, on_host
from ..geometry import resolve
from ..stages import match_parts
from ..state import Roles, TrainState, abstract_of, shardings_of, state_of, unflatten
from .crops import CropFeed, CropLoader, Recordings
from .discriminators import discriminators_spec
from .step import RECENT, Networks, compiled, evaluate_sums, make_step, recent_latents

SMALL = {  # of random networks: factors of first values, so that waves begin near silence and every residual branch small
  'code2wav/conv_out/kernel': 0.05,
  'code2wav/layers/attn_scale': 0.1,
  'code2wav/layers/mlp_scale': 0.1,
  'codec/layers/attn_scale': 0.1,
  'codec/layers/mlp_scale': 0.1,
}


@dataclasses.dataclass
class VocoderTask:
  """A task (train.task). model: the folder with its small files (and its weights, unless they are in a bucket)."""

  run: Run
  mesh: Any
  model: pathlib.Path
  cfg: OmniConfig = dataclasses.field(init=False)
  networks: Networks = dataclasses.field(init=False)
  roles: Roles = dataclasses.field(init=False)

  def __post_init__(self):
    self.cfg = load_config(self.model)
    self.networks = find_networks(self.cfg, self.run)
    self.roles = assign_vocoder_roles(self.networks, self.run)

  def resolved(self, begun: dict[str, Any] | None) -> 'VocoderTask':
    run = resolve(self.run, self.mesh.shape, begun)
    for name, data in (('data', run.data), *([('evaluate.data', run.evaluate.data)] if run.evaluate else [])):
      check_shared_out(data, self.mesh, name)
    return dataclasses.replace(self, run=run)

  def describe(self, checkpoints: Checkpoints) -> None:
    checkpoints.describe(self.model)

  def abstract_state(self) -> TrainState:
    return abstract_of(self.roles, self.run, self.mesh, jnp.float32)

  def first_state(self) -> TrainState:
    """Code2Wav as the model has it, or random; a codec and discriminators are random."""
    loaded = None
    if self.run.init == 'model':
      where = self.run.model if is_url(self.run.model) else self.model
      shardings = param_shardings({'code2wav': code2wav_spec(self.networks.code2wav)}, self.mesh)
      loaded = load_params(where, self.cfg, parts=('code2wav',), shardings=shardings)
    state = state_of(self.roles, loaded, self.run, self.mesh, self.run.seed)
    is_new = lambda path: self.run.init == 'random' or not path.startswith('code2wav/')
    scaled = {path: first_value(path, p) if is_new(path) else p for path, p in state.trainable.items()}
    ema = None if state.ema is None else jax.tree.map(jnp.copy, scaled)
    frozen = {path: jnp.zeros_like(p) if path == RECENT else p.astype(jnp.float32) for path, p in state.frozen.items()}
    return state.replace(trainable=scaled, ema=ema, frozen=frozen)

  def frozen_parts(self) -> dict[str, Any]:
    return {}

  def batches(self, position: dict[str, Any] | None) -> CropFeed:
    return CropFeed(self._loader(self.run.data, position), self.mesh)

  def _loader(self, data: DataConfig, position: dict[str, Any] | None = None) -> CropLoader:
    vocoder = self.run.vocoder
    assert vocoder is not None
    least = 1 if self.networks.codec is not None else vocoder.frames
    recordings = Recordings(data, self.networks.code2wav.samples_per_frame, least)
    return CropLoader(data, recordings, vocoder.frames, vocoder.context, *process_shard(data.rows, self.mesh), position)

  def step(self) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    step = make_step(self.networks, self.run, self.roles)
    return compiled(step, self.mesh, shardings_of(self.roles, self.run, self.mesh), self.run.step.compiler_options)

  def evaluation(self) -> Callable[[TrainState], dict[str, float]] | None:
    asked = self.run.evaluate
    if asked is None:
      return None
    sums_of = compiled(evaluate_sums(self.networks, self.run), self.mesh)
    recordings = self._loader(asked.data).recordings

    def evaluate(state: TrainState) -> dict[str, float]:
      feed = CropFeed(self._loader(asked.data), self.mesh)
      feed.loader.recordings = recordings
      found = [jax.device_get(sums_of(state, next(feed).batch)) for _ in range(asked.batches)]
      return {name: float(np.mean([values[name] for values in found])) for name in found[0]}

    return evaluate

  def omni(self, state: TrainState) -> Omni:
    raise ValueError('a vocoder answers no benchmarks')

  def finish(self, state: TrainState) -> None:
    """The model with its new Code2Wav, if an export is asked for; a codec lies in the run's folder, as `codes` reads it."""
    out = epath.Path(self.run.out)
    if self.networks.codec is not None:
      averaged = state.ema if self.run.export_weights == 'averaged' else None
      params = {**state.frozen, **(averaged or state.trainable)}
      params = {path: p for path, p in params.items() if path.startswith('codec/') and path != RECENT}
      arrays = unflatten(on_host(params))['codec']
      codec = self.networks.codec
      run_on_first(lambda: save_codec(pathlib.Path(out, 'codec'), arrays, codec))
    finish_run(self.run, self.cfg, self.roles, state, out, self.model)


def find_networks(cfg: OmniConfig, run: Run) -> Networks:
  """Raises ValueError where there is no vocoder, or its codec is not made for it."""
  assert run.vocoder is not None
  if cfg.code2wav is None:
    raise ValueError('vocoder: this checkpoint has no Code2Wav (Thinking and Captioner variants write only)')
  if run.vocoder.codec is None:
    return Networks(cfg.code2wav, None)
  codec = parse_codec_config({'model_type': 'mimi', **run.vocoder.codec.config}, where='vocoder.codec.config')
  pairs = {
    'codebook_size': (codec.codebook_size, cfg.code2wav.codebook_size),
    'num_quantizers': (codec.num_quantizers, cfg.code2wav.num_quantizers),
    'hidden_size': (codec.hidden_size, cfg.code2wav.hidden_size),
    'samples of a frame': (codec.samples_per_frame, cfg.code2wav.samples_per_frame),
  }
  if wrong := [f'{name} {ours}, of code2wav_config {theirs}' for name, (ours, theirs) in pairs.items() if ours != theirs]:
    raise ValueError(f'vocoder.codec.config: {"; ".join(wrong)}: Code2Wav is to decode its frames')
  return Networks(cfg.code2wav, dataclasses.replace(codec, num_code_groups=codec.num_quantizers))


def assign_vocoder_roles(networks: Networks, run: Run) -> Roles:
  """Every parameter of the generator and the discriminators that no buffer is has to be trained by some part."""
  vocoder = run.vocoder
  assert vocoder is not None
  spec: Spec = {'code2wav': code2wav_spec(networks.code2wav)}
  if networks.codec is not None:
    spec['codec'] = codec_spec(networks.codec)
    spec['codec']['recent'] = Param((recent_latents(run), networks.codec.hidden_size), ('codebook', 'embed'), 'zeros')
  if vocoder.adversaries is not None:
    spec['discriminators'] = discriminators_spec(vocoder.adversaries)
  specs = dict(leaves(spec))
  learning = {path: param for path, param in specs.items() if path not in networks.buffers()}
  trainable = match_parts(learning, run.parts)
  return Roles(specs, trainable, {})


def first_value(path: str, value: Any) -> Any:
  """A random parameter as training begins with it."""
  factor = SMALL.get(path, 1.0)
  if path.startswith('code2wav/blocks/') and path.endswith('/conv2/kernel'):
    factor = 0.3
  if path.startswith('code2wav/upsample/') and path.endswith('/gamma'):
    factor = 0.1
  return value if factor == 1.0 else value * factor
