"""A published folder to a converted one: in little memory, on several threads, going on where an earlier run stopped."""

import math
import pathlib
from collections.abc import Sequence

from ..config import load_config
from ..models.omni import omni_spec
from ..nn.params import leaves
from . import store
from .batches import run, scratch, share_out
from .load import as_dtype
from .originals import keep_original
from .progress import Progress
from .remote import local_folder, local_target
from .source import View, open_published, stored_dtypes
from .store import Manifest, part_of, write_manifest
from .table import Tensor, published
from .work import Work, files_of, needed, plan
from .writer import Slot, Writer, create

PARTS = {  # what --only understands
  'audio': ('audio',), 'vision': ('vision',), 'thinker': ('thinker',), 'talker': ('talker', 'code_predictor'),
  'code2wav': ('code2wav',),
}  # fmt: skip


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

  only: of PARTS; everything if empty. dry_run: checks and plans, but writes nothing.
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
  wanted, spec = as_dtype(dtype), omni_spec(cfg)
  parts = _parts(source, only, tuple(spec))
  views = open_published(source, cfg)
  dtypes = stored_dtypes(views, cfg)
  tensors = {name: tensor for name, tensor in published(cfg).items() if part_of(tensor.row.ours) in parts}
  stacked = {tensor.row.ours: len(tensor.index) for tensor in tensors.values()}
  slots = {
    path: Slot(param.shape, stacked[path], wanted or dtypes[path]) for path, param in leaves(spec) if part_of(path) in parts
  }
  sizes = {name: math.prod(t.shape) * slots[t.row.ours].dtype.itemsize for name, t in tensors.items()}
  total = sum(sizes.values())
  identity = {
    'conversion': 'to-jax', 'dtype': dtype, 'parts': list(parts), 'tensors': len(sizes), 'bytes': total,
    'files': files_of(source),
  }  # fmt: skip
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
      _write(work, Writer(work.data, slots), views, {name: tensors[name] for name in left}, left, report)
      keep_original(source, work.data)
      arrays = {path: (slot.shape, slot.dtype.name) for path, slot in slots.items()}
      write_manifest(work.data, Manifest(parts, dtype, arrays, {name: work.finished[name] for name in sizes}))
    work.finish()
  report.done(target)


def _write(
  work: Work, writer: Writer, views: dict[str, View], tensors: dict[str, Tensor], sizes: dict[str, int], report: Progress
) -> None:
  def write(names: Sequence[str]) -> None:
    batch, finished = writer.batch(), []
    for name in names:
      tensor = tensors[name]
      finished.append((name, batch.write(tensor.row.ours, tensor.index, tensor.to_ours(views[name].read(memory=scratch)))))
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
