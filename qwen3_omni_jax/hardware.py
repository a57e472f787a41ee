"""Peak rates and memory of accelerators, by name or by jax's `device_kind`.

Vendors' peak figures, not measurements. All values are per device as jax counts devices (a chip, except TPU7x, whose two cores
are a device each).
"""

import dataclasses
import math
import re
from typing import Any


@dataclasses.dataclass(frozen=True)
class Accelerator:
  """One device. Rates are per second; link and network count bytes that leave a device, in one direction, over all its links.

  flops: dense bf16. hbm_bytes: what a program may use. link: to the devices of its slice (TPU: ICI) or machine (GPU: NVLink).
  network: beyond. kinds: jax's names for it.
  """

  name: str
  platform: str
  kinds: tuple[str, ...]
  flops: float
  hbm_bytes: int
  hbm_rate: float
  link_rate: float
  network_rate: float
  devices_per_chip: int = 1


_GIB = 2**30

# TPU: docs.cloud.google.com/tpu/docs/{v5e, v5p, v6e, tpu7x}; hbm_bytes is the limit libtpu 0.0.52 itself names when a program
# does not fit; links are half of the published bidirectional rate per chip; network per chip: the pod's published data center
# bandwidth divided by its chips (v5e 6.4 Tbit/s / 256, v6e 25.6 Tbit/s / 256), or one 200 Gbit/s interface for the four chips
# of a host (v5p, TPU7x: assumed).
# GPU: NVIDIA's data sheets of the SXM modules, dense (half of the figure with sparsity); hbm_bytes is the nominal decimal size,
# some 5 % below what the driver shows, which leaves room for the CUDA context; network: 400 Gbit/s for each GPU (A100: 200).
ACCELERATORS = (
  Accelerator('v5e', 'tpu', ('TPU v5 lite', 'TPU v5e'), 197e12, int(15.75 * _GIB), 819e9, 200e9, 3.1e9),
  Accelerator('v5p', 'tpu', ('TPU v5', 'TPU v5p'), 459e12, int(95.73 * _GIB), 2765e9, 600e9, 6.2e9),
  Accelerator('v6e', 'tpu', ('TPU v6 lite', 'TPU v6e'), 918e12, int(31.24 * _GIB), 1640e9, 400e9, 12.5e9),
  Accelerator('tpu7x', 'tpu', ('TPU7x', 'TPU v7x'), 1153e12, int(94.74 * _GIB), 3690e9, 300e9, 3.1e9, devices_per_chip=2),
  Accelerator('A100', 'gpu', ('NVIDIA A100-SXM4-80GB', 'NVIDIA A100 80GB PCIe'), 312e12, int(80e9), 2039e9, 300e9, 25e9),
  Accelerator('H100', 'gpu', ('NVIDIA H100 80GB HBM3',), 989e12, int(80e9), 3350e9, 450e9, 50e9),
  Accelerator('H200', 'gpu', ('NVIDIA H200',), 989e12, int(141e9), 4800e9, 450e9, 50e9),
  Accelerator('B200', 'gpu', ('NVIDIA B200',), 2250e12, int(180e9), 8000e9, 900e9, 50e9),
)


def accelerator(name: str) -> Accelerator:
  """By name, in any case. Raises ValueError for an unknown one."""
  for known in ACCELERATORS:
    if known.name.lower() == name.lower():
      return known
  raise ValueError(f'accelerator {name!r}: expected one of {", ".join(a.name for a in ACCELERATORS)}')


def accelerator_of(device: Any) -> Accelerator | None:
  """Of a jax device, or of its device_kind; None for what is not in the table (a CPU, say)."""
  kind = device if isinstance(device, str) else device.device_kind
  return next((known for known in ACCELERATORS if kind in known.kinds), None)


def peak_flops(device: Any) -> float | None:
  """Dense bf16 FLOP/s of a jax device, or of a device_kind; None if unknown, and then there is no MFU to tell."""
  known = accelerator_of(device)
  return known and known.flops


@dataclasses.dataclass(frozen=True)
class Topology:
  """Equal devices of equal slices. shape: chips of a slice along each axis of its torus; of GPUs, just their number."""

  accelerator: Accelerator
  shape: tuple[int, ...]
  slices: int = 1

  @property
  def devices(self) -> int:
    return math.prod(self.shape) * self.accelerator.devices_per_chip * self.slices

  @property
  def name(self) -> str:
    """As libtpu names a slice: 'v5p:4x4x4'; of GPUs 'gpu:8xH200'."""
    sizes = 'x'.join(map(str, self.shape))
    return f'gpu:{sizes}x{self.accelerator.name}' if self.accelerator.platform == 'gpu' else f'{self.accelerator.name}:{sizes}'


def parse_topology(text: str, slices: int = 1) -> Topology:
  """From 'v5p:4x4x4' or 'gpu:8xH200'. Raises ValueError for anything else."""
  wrong = f'topology {text!r}: expected a TPU slice as in v5p:4x4x4 or v6e:16x16, or GPUs as in gpu:8xH200'
  if slices < 1:
    raise ValueError(f'{slices} slices: expected 1 or more')
  kind, _, rest = text.partition(':')
  if kind == 'gpu':
    if not (found := re.fullmatch(r'([1-9]\d{0,5})x(\w+)', rest)):
      raise ValueError(wrong)
    return Topology(_of_platform(found[2], 'gpu', wrong), (int(found[1]),), slices)
  if not re.fullmatch(r'[1-9]\d{0,3}(x[1-9]\d{0,3}){1,2}', rest):
    raise ValueError(wrong)
  return Topology(_of_platform(kind, 'tpu', wrong), tuple(map(int, rest.split('x'))), slices)


def _of_platform(name: str, platform: str, wrong: str) -> Accelerator:
  known = [a.name for a in ACCELERATORS if a.platform == platform]
  if name.lower() not in (k.lower() for k in known):
    raise ValueError(f'{wrong}; {platform.upper()}s: {", ".join(known)}')
  return accelerator(name)
