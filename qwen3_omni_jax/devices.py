"""How a command starts on whatever is there, CPU, GPU or TPU: quietly, and with a line that says what is used.

`start` is for commands, and for programs that want the same; as a library the package changes no setting of jax.
"""

import glob
import importlib.util
import os
import pathlib
import sys

from .compile_cache import keep_programs

# Set where there is a TPU, or by users who want jax to look for one.
_TPU_VARIABLES = (
  'TPU_NAME',
  'TPU_WORKER_ID',
  'TPU_WORKER_HOSTNAMES',
  'TPU_ACCELERATOR_TYPE',
  'JAX_FORCE_TPU_INIT',
)
_LAUNCHERS = ('COORDINATOR_ADDRESS', 'JAX_COORDINATOR_ADDRESS', 'SLURM_STEP_NODELIST')


def hide_xla_log() -> None:
  """Leaves out what XLA itself logs, which also comes as an exception where it matters. Must come before jax is imported.

  Without this, each program that comes from the disk costs two lines on every processor with AVX-512: XLA's loader takes
  two hints of its own compiler (prefer-no-gather, prefer-no-scatter) for instructions that the processor lacks. Where several
  processes work together or a TPU may be there, the log is left as it is: it may be all that is known of another host.
  """
  together = any(os.environ.get(name) for name in _LAUNCHERS)
  if 'jaxlib' not in sys.modules and not together and not tpu_signs():
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')


def start(compile_cache: str | None = None, *, join: bool = False) -> None:
  """Chooses devices, keeps compiled programs (`compile_cache.keep_programs`) and says both in one line on stderr.

  Must come before the first computation. join: become one program with the other processes that the environment names.
  Raises ValueError for variables of `distributed` that contradict one another, and for a folder that cannot be written.
  """
  import jax

  if (platforms := without_absent_tpu()) is not None:
    jax.config.update('jax_platforms', platforms)
  if join:
    from . import distributed

    distributed.initialize()
  kept = keep_programs(compile_cache, jax.process_count() if join else 1)
  if jax.process_index() == 0:
    print('; '.join(filter(None, (f'devices: {description()}', _unused_gpu(), kept))), file=sys.stderr, flush=True)


def without_absent_tpu() -> str | None:
  """What jax_platforms must be so that libtpu is not loaded where it is installed (for `plan`) and there is no TPU: it would
  print errors. None: nothing needs to be set.

  What the user chose (JAX_PLATFORMS) is left alone, and so is a plugin for other devices that is not known here.
  """
  import jax

  if jax.config.values['jax_platforms'] or os.environ.get('PJRT_NAMES_AND_LIBRARY_PATHS'):
    return None  # jax itself has set it, too, where it has found a TPU
  if tpu_signs() or importlib.util.find_spec('libtpu') is None and not _nvidia():
    return None
  plugins = _plugins()
  return None if plugins is None else ','.join([*plugins, 'cpu'])


def tpu_signs() -> bool:
  """Whether anything but jax's own look at the PCI bus speaks for a TPU."""
  if any(os.environ.get(name) for name in _TPU_VARIABLES):
    return True
  return bool(glob.glob('/dev/accel[0-9]*') or glob.glob('/dev/vfio/[0-9]*'))


def _nvidia() -> bool:
  return os.path.exists('/dev/nvidia0') or os.path.exists('/dev/nvidiactl')


def _plugins() -> list[str] | None:
  """Platforms of installed jax plugins ('cuda', 'rocm'); None if there is one whose platform is not known here."""
  from importlib.metadata import entry_points

  names = {entry.value for entry in entry_points(group='jax_plugins')}
  spec = importlib.util.find_spec('jax_plugins')
  for folder in (spec and spec.submodule_search_locations) or ():
    names |= {path.stem for path in pathlib.Path(folder).iterdir() if path.suffix in ('', '.py') and path.name[0] not in '_.'}
  known = {name: next((p for p in ('cuda', 'rocm') if p in name), None) for name in names}
  return None if None in known.values() else sorted({p for p in known.values() if p})


def description() -> str:
  """'CPU, 2 cores', '8 × NVIDIA H200', or '16 × TPU v5p in 4 processes': all that jax computes on."""
  import jax

  devices = jax.devices()
  kinds: dict[str, int] = {}
  for device in devices:
    kinds[device.device_kind] = kinds.get(device.device_kind, 0) + 1
  together = f' in {jax.process_count()} processes' if jax.process_count() > 1 else ''
  if devices[0].platform == 'cpu':
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    split = f' as {len(devices)} devices' if len(devices) > 1 else ''
    return f'CPU, {cores} {"core" if cores == 1 else "cores"}{split}{together}'
  return ', '.join(f'{number} × {kind}' for kind, number in kinds.items()) + together


def _unused_gpu() -> str:
  """What to do where there is an NVIDIA GPU and nothing to use it with."""
  import jax

  if jax.config.values['jax_platforms'] != 'cpu' or os.environ.get('JAX_PLATFORMS') or not _nvidia():
    return ''
  return "there is an NVIDIA GPU; to use it: pip install 'qwen3-omni-jax[gpu]'"
