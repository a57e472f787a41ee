"""Compiles the program of a job for devices that are not there, and reads what the compiler says of it."""

import dataclasses
import pathlib
import tempfile
import time

import jax

from qwen3_omni_jax.config import OmniConfig

from .collectives import collectives
from .job import Job
from .memory import needed_bytes, tree_bytes
from .programs import program


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
