"""Plans: what a job needs on devices that are not there. Full-size programs are lowered from shapes alone and compiled for a TPU
topology by libtpu on any CPU; for GPUs, where no compiler is at hand, memory is counted from shapes.

The programs are the ones that run: the training step, prefill, a decode step, a spoken frame.
"""

import dataclasses
import functools
import os
import time
from typing import Any

from qwen3_omni_jax.config import OmniConfig
from qwen3_omni_jax.flops import Work, by_part, forward_flops, train_flops
from qwen3_omni_jax.hardware import Topology

JOBS = ('train', 'prefill', 'decode', 'speech')
AUDIO_WINDOW_TOKENS = 104  # a window of 8 s
FRAME_PATCHES = 1024  # an image of 512 x 512, or two frames of a video


@dataclasses.dataclass(frozen=True)
class Job:
  """batch: rows over all devices. length: tokens of a row (train, prefill), or cache slots (decode; frames and prompt of speech).

  strategy: of sharding.mesh_shape. stage: of configs/train. buffer: see nn.expert_parallel.Dispatch. audio, visual: share of the
  tokens of a training batch that are audio windows of 8 s, and images.
  """

  kind: str
  batch: int
  length: int
  strategy: str
  stage: str = 's2_general'
  buffer: float | None = None
  remat: str = 'full'
  audio: float = 0.0
  visual: float = 0.0

  def __post_init__(self):
    problems = []
    if self.kind not in JOBS:
      problems.append(f'job {self.kind!r}: expected one of {", ".join(JOBS)}')
    if self.batch < 1 or self.length < 16:
      problems.append(f'batch {self.batch} and length {self.length}: expected at least 1 and 16')
    if not (0 <= self.audio and 0 <= self.visual and self.audio + self.visual <= 0.9):
      problems.append(f'shares audio {self.audio}, visual {self.visual}: expected 0 or more, together at most 0.9')
    if (self.audio or self.visual) and self.kind != 'train':
      problems.append('shares of audio and visual tokens are of training batches: other jobs run the encoders as programs apart')
    if problems:
      raise ValueError('; '.join(problems))

  @property
  def windows(self) -> int:
    """Audio windows of the batch: so many in each row."""
    return self.batch * int(self.length * self.audio) // AUDIO_WINDOW_TOKENS // self.batch * self.batch

  @property
  def frames(self) -> int:
    """Images of the batch."""
    return self.batch * (int(self.length * self.visual) // (FRAME_PATCHES // 4))


def prepare_libtpu() -> None:
  """Lets libtpu compile without a TPU, beside other processes that do. Before jax is imported."""
  quiet = {'TPU_SKIP_MDS_QUERY': '1', 'TPU_ACCELERATOR_TYPE': 'v5litepod-16', 'TPU_WORKER_HOSTNAMES': 'localhost',
           'TPU_WORKER_ID': '0', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1', 'JAX_PLATFORMS': 'cpu'}  # fmt: skip
  for name, value in quiet.items():
    os.environ.setdefault(name, value)


def work_of(cfg: OmniConfig, job: Job) -> Work:
  """What one run of the program computes: a step, a prefill, a decode step or a frame of every row. Caches are taken as full."""
  if job.kind == 'decode':
    return Work.of_step(job.batch, job.length)
  if job.kind == 'speech':
    return Work.of_frame(job.batch, job.length)
  return Work.of_lengths(
    cfg, [job.length] * job.batch, logits=job.batch if job.kind == 'prefill' else None,
    audio=[800] * job.windows, frames=[FRAME_PATCHES] * job.frames,
  )  # fmt: skip


def flops_of(cfg: OmniConfig, job: Job) -> dict[str, float]:
  """FLOPs by 'part.kind' over all devices."""
  if job.kind != 'train':
    return forward_flops(cfg, work_of(cfg, job))
  from .state import roles
  from .utilisation import learning

  return train_flops(cfg, work_of(cfg, job), *learning(roles(cfg, recipe_of(job))))


def recipe_of(job: Job):
  """The stage's recipe with the job's own settings."""
  from .config import read
  from .run_config import Run

  recipe = read(Run, job.stage)
  assert recipe is not None
  return dataclasses.replace(recipe, step=dataclasses.replace(recipe.step, buffer=job.buffer, remat=job.remat))


def tpu_mesh(topology: Topology, strategy: str):
  """A mesh of the topology's devices. Raises ValueError for what libtpu does not know."""
  from jax.experimental import topologies

  from qwen3_omni_jax.sharding import make_mesh, mesh_shape

  more: dict[str, Any] = {'num_slices': topology.slices} if topology.slices > 1 else {}
  if topology.shape == (1, 1):
    more['chips_per_host_bounds'] = (1, 1, 1)
  try:
    devices = topologies.get_topology_desc(platform='tpu', topology_name=topology.name, **more).devices
  except Exception as error:
    raise ValueError(f'{topology.name}: libtpu does not know this topology ({str(error).splitlines()[0]})') from error
  return make_mesh(mesh_shape(strategy, len(devices), topology.slices), devices, topology.slices)


def abstract_mesh(topology: Topology, strategy: str):
  """A mesh without devices, to count shapes on."""
  from jax.sharding import AbstractMesh, AxisType

  from qwen3_omni_jax.sharding import MESH_AXES, mesh_shape

  shape = mesh_shape(strategy, topology.devices, topology.slices)
  return AbstractMesh(tuple(shape.get(axis, 1) for axis in MESH_AXES), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def placed(spec, mesh, dtype):
  """Shapes of parameters with where they lie."""
  import jax

  from qwen3_omni_jax.nn.params import is_param
  from qwen3_omni_jax.sharding import param_shardings

  place = lambda p, cut: jax.ShapeDtypeStruct(p.shape, dtype, sharding=cut)
  return jax.tree.map(place, spec, param_shardings(spec, mesh), is_leaf=is_param)


def program(cfg: OmniConfig, job: Job, mesh) -> tuple[Any, tuple, dict[str, Any]]:
  """(jitted function, its arguments as shapes on the mesh, the arguments by what they are: weights, optimiser, activations)."""
  return {'train': _train, 'prefill': _prefill, 'decode': _decode, 'speech': _speech}[job.kind](cfg, job, mesh)


def _train(cfg: OmniConfig, job: Job, mesh):
  import jax
  from jax.sharding import NamedSharding, PartitionSpec

  from .state import abstract_state, state_shardings
  from .step import batch_specs, make_step

  recipe = recipe_of(job)
  state = abstract_state(cfg, recipe, mesh)
  batch = _train_batch(cfg, job)
  cut = lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
  batch = jax.tree.map(cut, batch, batch_specs(batch, mesh))
  out = (state_shardings(cfg, recipe, mesh), NamedSharding(mesh, PartitionSpec()))
  step = jax.jit(make_step(cfg, recipe), donate_argnums=0, out_shardings=out)
  held = {'weights': (state.trained, state.frozen), 'optimiser': (state.optimiser, state.ema), 'activations': batch}
  return step, (state, batch), held


def _train_batch(cfg: OmniConfig, job: Job):
  """Shapes of a batch with its media packed as the input pipeline packs them."""
  import jax
  import numpy as np

  from qwen3_omni_jax.infer.collate import AudioWindows, Media, VisualFrames
  from qwen3_omni_jax.models.thinker import ThinkerTokens

  from .batch import TrainBatch

  of = lambda *shape, dtype=np.int32: jax.ShapeDtypeStruct(shape, dtype)
  B, T, thinker = job.batch, job.length, cfg.thinker
  audio = visual = ()
  if R := job.windows:
    F = thinker.audio.n_window_infer
    chunks = thinker.audio.chunks_per_window
    mel = of(R, F, thinker.audio.num_mel_bins, dtype=np.float32)
    audio = (AudioWindows(mel, of(R, chunks), of(R, chunks), of(R, chunks)),)
  if R := job.frames:
    P = FRAME_PATCHES
    patches = of(R, P, thinker.vision.patch_dim, dtype=np.float32)
    visual = (VisualFrames(patches, of(R, P), of(R, P), of(R, P), of(R, P), of(R), of(R, P)),)
  tokens = ThinkerTokens(
    of(B, T), of(3, B, T, dtype=np.float32), of(B, T), of(B, T) if audio else None, of(B, T) if visual else None
  )
  return TrainBatch(tokens, Media(audio, visual), of(B, T), of(B, T, dtype=np.float32), of(B, T))


def _rows(tree, batch: int, mesh, axis: int = 0):
  """Arrays (or shapes) with the rows of a batch shared out along `axis` as inference does."""
  import jax
  from jax.sharding import NamedSharding, PartitionSpec

  from qwen3_omni_jax.sharding import batch_axes

  cut = NamedSharding(mesh, PartitionSpec(*(None,) * axis, batch_axes(batch, mesh) or None))
  whole = NamedSharding(mesh, PartitionSpec())
  by_row = lambda x: len(x.shape) > axis and x.shape[axis] == batch
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=cut if by_row(x) else whole), tree)


def _cache(text, job: Job, mesh):
  import jax
  import jax.numpy as jnp

  from qwen3_omni_jax.nn.cache import init_cache

  return _rows(jax.eval_shape(lambda: init_cache(text, job.batch, job.length, jnp.bfloat16)), job.batch, mesh, axis=1)


def _thinker_call(cfg: OmniConfig, job: Job, mesh):
  """(parameters, greedy sampling, limits) of the Thinker's programs."""
  import jax.numpy as jnp
  import numpy as np

  from qwen3_omni_jax.infer.decode import Limits
  from qwen3_omni_jax.infer.sampling import Sampling, sampling_rows
  from qwen3_omni_jax.models.thinker import thinker_spec

  sampling = sampling_rows([Sampling()] * job.batch, cfg.thinker.text.vocab_size)
  limits = Limits(np.zeros(4, np.int32), np.zeros(job.batch, np.int32))
  params = placed(thinker_spec(cfg.thinker), mesh, jnp.bfloat16)
  return params, *_rows((sampling, limits), job.batch, mesh)


def _prefill(cfg: OmniConfig, job: Job, mesh):
  import jax.numpy as jnp
  import numpy as np

  from qwen3_omni_jax.infer import decode
  from qwen3_omni_jax.infer.collate import Batch, Media
  from qwen3_omni_jax.models.thinker import Features, ThinkerTokens

  B, T = job.batch, job.length
  params, sampling, limits = _thinker_call(cfg, job, mesh)
  zeros = lambda *shape, dtype=np.int32: np.broadcast_to(np.zeros((), dtype), shape)
  tokens = ThinkerTokens(*_rows((zeros(B, T), zeros(B, T)), B, mesh)[:1], _rows(zeros(3, B, T, dtype=np.float32), B, mesh, 1),
                         _rows(zeros(B, T), B, mesh))  # fmt: skip
  batch = Batch(tokens, Media(), *_rows((zeros(B), zeros(B, dtype=np.float32)), B, mesh))
  tap = cfg.talker.accept_hidden_layer if cfg.talker else None
  call = _Static(decode.prefill.__wrapped__, slots=T, outputs=16, penalised=False, dtype=jnp.bfloat16, tap_layer=tap)
  return call, (params, cfg.thinker, batch, Features(), sampling, limits), {'weights': params, 'activations': batch}


def _decode(cfg: OmniConfig, job: Job, mesh):
  import jax
  import jax.numpy as jnp
  import numpy as np

  from qwen3_omni_jax.infer import decode

  B = job.batch
  params, sampling, limits = _thinker_call(cfg, job, mesh)
  cache = _cache(cfg.thinker.text, job, mesh)
  ints = np.zeros(B, np.int32)
  small = (ints, np.zeros(B, np.float32), ints, np.zeros(B, bool), np.zeros((B, 1024), np.int32), ints)
  state = decode.State(cache, *_rows(small, B, mesh), seen=None)
  steps = _rows(jax.ShapeDtypeStruct((), jnp.int32), B, mesh)
  return (
    _Static(decode.decode.__wrapped__, dtype=jnp.bfloat16), (params, cfg.thinker, state, sampling, limits, steps),
    {'weights': params, 'activations': state},
  )  # fmt: skip


class _Static:
  """A jitted function with its keyword arguments given."""

  def __init__(self, function, **given):
    self.function, self.given = function, given

  def lower(self, *args):
    return self.function.lower(*args, **self.given)


def _speech(cfg: OmniConfig, job: Job, mesh):
  import jax
  import jax.numpy as jnp
  import numpy as np

  from qwen3_omni_jax.infer import speech
  from qwen3_omni_jax.infer.voice import Voice
  from qwen3_omni_jax.models.code_predictor import code_predictor_spec, prepare_predictor
  from qwen3_omni_jax.models.talker import TextTrack, talker_spec

  if cfg.talker is None:
    raise ValueError('this model has no Talker (Thinking and Captioner variants write only): plan another job')
  B, talker = job.batch, cfg.talker
  D, V = talker.text.hidden_size, talker.text.vocab_size
  of = lambda *shape, dtype=jnp.int32: jax.ShapeDtypeStruct(shape, dtype)
  bf16 = functools.partial(of, dtype=jnp.bfloat16)
  params = {'talker': placed(talker_spec(talker), mesh, jnp.bfloat16)}
  plain = placed(code_predictor_spec(talker), mesh, jnp.bfloat16)
  predictor = _rows(jax.eval_shape(lambda p: prepare_predictor(p, jnp.bfloat16), plain), 0, mesh)
  fields = (
    of(B), of(B, dtype=jnp.float32), bf16(B, D), of(B), of(B), of(B, 1024, talker.num_code_groups), of(B),
    of(B, V, dtype=jnp.bool_), of(B, speech.PERIODS),
  )  # fmt: skip
  state = speech.SpeechState(_cache(talker.text, job, mesh), *_rows(fields, B, mesh))
  text = _rows(TextTrack(bf16(B, 256, D), of(B), bf16(D), bf16(D), bf16(D)), B, mesh)
  voice = Voice()
  others = _rows((of(B, dtype=jnp.bool_), voice.draws(cfg, [0] * B), voice.limits([1024] * B), np.int32(0)), B, mesh)
  args = (params, cfg, predictor, state, text, *others)
  return speech.speak.__wrapped__, args, {'weights': (params, predictor), 'activations': (state, text)}


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What the compiler said. memory: bytes per device by name, with 'temporary' and 'peak'; needed: bytes, of a program that does
  not fit; collectives: None where the compiled text cannot be had."""

  seconds: float
  memory: dict[str, int]
  needed: int | None
  collectives: dict[str, dict[str, float]] | None
  why: str = ''


def compile_program(cfg: OmniConfig, job: Job, mesh) -> Compiled:
  """Lowers and compiles the job's program for the mesh's devices."""
  import jax

  from .plan_collectives import collectives
  from .plan_memory import needed_bytes, tree_bytes

  function, args, held = program(cfg, job, mesh)
  started = time.perf_counter()
  with jax.set_mesh(mesh), jax.default_device(mesh.devices.flat[0]):
    lowered = function.lower(*args)
    # What libtpu compiles without a TPU cannot be read back from jax's persistent cache: do not let it be written there.
    shortest = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update('jax_persistent_cache_min_compile_time_secs', float('inf'))
    try:
      compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
      needed = needed_bytes(str(error))
      if needed is None:
        raise
      held_bytes = {name: tree_bytes(tree) for name, tree in held.items()}
      return Compiled(time.perf_counter() - started, held_bytes, needed, None, str(error).splitlines()[0])
    finally:
      jax.config.update('jax_persistent_cache_min_compile_time_secs', shortest)
  seconds = time.perf_counter() - started
  found = compiled.memory_analysis()
  memory = {name: tree_bytes(tree) for name, tree in held.items()}
  memory |= {'temporary': int(found.temp_size_in_bytes), 'peak': int(found.peak_memory_in_bytes)}
  memory['arguments'] = int(found.argument_size_in_bytes)
  memory['results'] = int(found.output_size_in_bytes - found.alias_size_in_bytes)
  try:
    sent = collectives(compiled.as_text(), dict(mesh.shape))
  except jax.errors.JaxRuntimeError:  # libtpu cannot print some modules with asynchronous operations
    sent = None
  return Compiled(seconds, memory, None, sent)


__all__ = ['Compiled', 'Job', 'by_part', 'compile_program', 'flops_of', 'prepare_libtpu', 'tpu_mesh', 'work_of']
