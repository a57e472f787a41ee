"""Plans: memory and time of a job, without its devices.

Full-size programs are lowered from shapes and compiled for a TPU topology by libtpu on any CPU; for GPUs memory is counted from
shapes. The functions are the ones that run: the training step, prefill, a decode step, a spoken frame. The shapes of a batch
are the job's own, not those of a run's data configuration.
"""

import dataclasses
import os
import pathlib
import tempfile
import time
from typing import Any

from qwen3_omni_jax.config import OmniConfig
from qwen3_omni_jax.flops import Work, forward_flops, train_flops
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
  quiet = {
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-16',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_WORKER_ID': '0',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'JAX_PLATFORMS': 'cpu',
  }
  for name, value in quiet.items():
    os.environ.setdefault(name, value)


def work_of(cfg: OmniConfig, job: Job) -> Work:
  """What one run of the program computes: a step, a prefill, a decode step or a frame of every row. Caches are taken as full."""
  if job.kind == 'decode':
    return Work.of_step(job.batch, job.length)
  if job.kind == 'speech':
    return Work.of_frame(job.batch, job.length)
  return Work.of_lengths(
    cfg,
    [job.length] * job.batch,
    logits=job.batch if job.kind == 'prefill' else None,
    audio=[800] * job.windows,
    frames=[FRAME_PATCHES] * job.frames,
  )


def flops_of(cfg: OmniConfig, job: Job) -> dict[str, float]:
  """FLOPs by 'part.kind' over all devices."""
  if job.kind != 'train':
    return forward_flops(cfg, work_of(cfg, job))
  from .state import assign_roles
  from .utilisation import learning

  return train_flops(cfg, work_of(cfg, job), *learning(assign_roles(cfg, recipe_of(job))))


def recipe_of(job: Job):
  """The stage's recipe with the job's own settings."""
  from .config import read
  from .run_config import Run

  recipe = read(Run, job.stage)
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
  from .plan_programs import program

  function, args, held = program(cfg, job, mesh)
  started = time.perf_counter()
  with jax.set_mesh(mesh), jax.default_device(mesh.devices.flat[0]), tempfile.TemporaryDirectory() as folder:
    lowered = function.lower(*args)
    # What libtpu compiles without a TPU cannot be read back from jax's persistent cache: do not let it be written there.
    shortest = jax.config.values['jax_persistent_cache_min_compile_time_secs']
    jax.config.update('jax_persistent_cache_min_compile_time_secs', float('inf'))
    try:
      compiled = lowered.compile(compiler_options={'xla_dump_to': folder, 'xla_dump_hlo_as_text': True})
    except jax.errors.JaxRuntimeError as error:
      needed = needed_bytes(str(error))
      if needed is None:
        raise
      held_bytes = {name: tree_bytes(tree) for name, tree in held.items()}
      return Compiled(time.perf_counter() - started, held_bytes, needed, None, str(error).splitlines()[0])
    finally:
      jax.config.update('jax_persistent_cache_min_compile_time_secs', shortest)
    seconds = time.perf_counter() - started
    hlo = _compiled_text(pathlib.Path(folder))
  found = compiled.memory_analysis()
  memory = {name: tree_bytes(tree) for name, tree in held.items()}
  memory |= {'temporary': int(found.temp_size_in_bytes), 'peak': int(found.peak_memory_in_bytes)}
  memory['arguments'] = int(found.argument_size_in_bytes)
  memory['results'] = int(found.output_size_in_bytes - found.alias_size_in_bytes)
  return Compiled(seconds, memory, None, collectives(hlo, dict(mesh.shape)) if hlo else None)


def _compiled_text(folder: pathlib.Path) -> str:
  """Of the largest module that libtpu has written there: `as_text` fails for programs with ragged all-to-all."""
  texts = [path.read_text(encoding='utf-8') for path in folder.glob('*after_codegen.txt')]
  return max(texts, key=len, default='')
