"""A published folder to a converted one: in little memory, on several threads, going on where an earlier run stopped."""

import math
import pathlib
from collections.abc import Sequence

from ..config_json import load_config
from ..models.omni import omni_spec
from . import store
from .batches import run, scratch, share_out
from .load import as_dtype
from .originals import keep_original
from .progress import Progress
from .quantized import INT8, Axes, int8_axes, matrix_of, pair_of, split, store_as, stored_shapes
from .remote import local_folder, local_target
from .source import View, open_published, stored_dtypes
from .store import Manifest, part_of, write_manifest
from .table import Tensor, published
from .work import Work, files_of, needed, plan
from .writer import Slot, Writer, create

PARTS = {  # what --only understands
  'audio': ('audio',),
  'vision': ('vision',),
  'thinker': ('thinker',),
  'talker': ('talker', 'code_predictor'),
  'code2wav': ('code2wav',),
}


def convert_to_jax(
  source: str | pathlib.Path,
  target: str | pathlib.Path,
  dtype: str | None = None,
  *,
  only: Sequence[str] = (),
  dry_run: bool = False,
  progress: bool = False,
) -> None:
  """Converts a published folder. Until it is complete, the work is in `TARGET.partial` (weights/work.py).

  dtype: 'int8' keeps matrices as weights/quantized.py says. only: of PARTS; everything if empty. dry_run:
  checks and plans, but writes nothing.
  Peak memory is about the largest published tensor and, for each thread, what is written at once (weights/writer.py),
  however large a stack is. Raises ValueError with the full list of tensors that do not fit config.json; nothing is
  written then.
  """
  source, target = local_folder(source), local_target(target)
  if not source.is_dir():
    raise ValueError(f'{source}: no such folder; expected a checkpoint in the published layout')
  if store.is_converted(source):
    raise ValueError(f'{source}: already converted; expected a checkpoint in the published layout')
  cfg = load_config(source)
  wanted, spec = None if dtype == INT8 else as_dtype(dtype), omni_spec(cfg)
  axes = int8_axes(spec, dtype)
  parts = _parts(source, only, tuple(spec))
  found = open_published(source, cfg, wanted)
  views = found.tensors
  dtypes = stored_dtypes(views, cfg)
  tensors = {name: tensor for name, tensor in published(cfg).items() if part_of(tensor.row.ours) in parts}
  stacked = {tensor.row.ours: len(tensor.index) for tensor in tensors.values()}
  slots = {
    path: Slot(shape, stacked[matrix_of(path)], store_as(path) or wanted or dtypes[path])
    for path, shape in stored_shapes(spec, dtype).items()
    if part_of(path) in parts
  }
  sizes = {name: _stored_bytes(tensor, slots) for name, tensor in tensors.items()}
  total = sum(sizes.values())
  identity = {
    'conversion': 'to-jax',
    'dtype': dtype,
    'parts': list(parts),
    'tensors': len(sizes),
    'bytes': total,
    'files': files_of(source),
  }
  if dry_run:
    shares = {part: sum(n for name, n in sizes.items() if part_of(tensors[name].row.ours) == part) for part in parts}
    print('\n'.join(plan(target, identity, sizes, shares)))
    return
  with Work(target, identity) as work:
    left = {name: size for name, size in sizes.items() if name not in work.finished}
    report = Progress(total, total - sum(left.values()), progress)
    if not work.complete:
      work.require_space(needed(left.values()))
      if not work.begun:
        create(work.data, slots)
        work.begin()
      _write(work, Writer(work.data, slots), views, {name: tensors[name] for name in left}, left, axes, report)
      keep_original(source, found.original(), work.data)
      arrays = {path: (slot.shape, slot.dtype.name) for path, slot in slots.items()}
      write_manifest(work.data, Manifest(parts, dtype, arrays, {name: work.finished[name] for name in sizes}))
    work.finish()
  report.done(target)


def _stored_bytes(tensor: Tensor, slots: dict[str, Slot]) -> int:
  """Of one published tensor, in the array or the two arrays that it goes to."""
  paths = [tensor.row.ours] if tensor.row.ours in slots else pair_of(tensor.row.ours)
  return sum(slots[path].nbytes // math.prod(slots[path].shape[: slots[path].stacked]) for path in paths)


def _write(
  work: Work,
  writer: Writer,
  views: dict[str, View],
  tensors: dict[str, Tensor],
  sizes: dict[str, int],
  axes: Axes,
  report: Progress,
) -> None:
  def write(names: Sequence[str]) -> None:
    batch, finished = writer.batch(), []
    for name in names:
      path, index = tensors[name].row.ours, tensors[name].index
      value = tensors[name].to_ours(views[name].read(memory=scratch))
      arrays = split(name, path, value, axes[path], len(index)) if path in axes else {path: value}
      finished.append((name, ' '.join(batch.write(path, index, array) for path, array in arrays.items())))
      report.add(sizes[name])
    batch.commit()
    work.add(finished)

  run(share_out(sizes), write)


def _parts(source: pathlib.Path, only: Sequence[str], held: tuple[str, ...]) -> tuple[str, ...]:
  """The parts to convert, in the tree's order."""
  wanted = {part for name in only for part in PARTS.get(name, (name,))} or set(held)
  if lacking := sorted(wanted - set(held)):
    raise ValueError(f'{source}: this checkpoint has no {", ".join(lacking)}; it has {", ".join(held)}')
  return tuple(part for part in held if part in wanted)
