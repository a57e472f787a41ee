"""Any checkpoint to the published layout, which transformers, vLLM and others load: file for file what it came from.

Headers and index come from the folder that the weights once came from, wherever they still describe what is written;
otherwise shards of 5 GB are made. Every tensor has its place in a shard from the start, so that threads write wherever
they are, and a rerun goes on; the shard's header is written last, so that nobody takes zeros for weights.
"""

import dataclasses
import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..config import OmniConfig
from ..models.omni import omni_spec
from .adapter import Adapters
from .batches import run, scratch, share_out
from .config_diff import changes
from .fp8 import QUANTISATION
from .load import as_dtype
from .names import report
from .opened import Opened, open_checkpoint
from .progress import Progress
from .quantized import INT8
from .remote import local_folder, local_target, source_folder
from .safetensors import INDEX, Shards, as_bytes, plan_shards
from .spelling import Spelling
from .store import part_of, read_manifest
from .table import published
from .work import Work, files_of, needed, plan


def convert_to_hf(
  source: str | pathlib.Path,
  target: str | pathlib.Path,
  *,
  dtype: str | None = None,
  fused_experts: bool = False,
  adapter: str | pathlib.Path | Sequence[str | pathlib.Path] | None = None,
  base: str | pathlib.Path | None = None,
  dry_run: bool = False,
  progress: bool = False,
) -> None:
  """Converts a checkpoint of any kind. Until it is complete, the work is in `TARGET.partial` (weights/work.py).

  dtype: write the weights as this; None keeps each tensor's own. fused_experts: names and experts as transformers 5
  keeps them in memory. adapter: a LoRA to merge, or several. base: the folder of the parts that the source does not hold.
  Raises ValueError with everything that does not fit; nothing is written then.
  """
  wanted, target = as_dtype(dtype), local_target(target)
  folders = [local_folder(source)] if base is None else [source_folder(source), local_folder(base)]
  rest = [open_checkpoint(folder, dtype=wanted) for folder in folders[1:]]
  whole = _Whole([open_checkpoint(folders[0], cfg=rest[0].cfg if rest else None, dtype=wanted), *rest])
  adapters = [adapter] if isinstance(adapter, str | pathlib.Path) else [] if adapter is None else adapter
  adapters = [local_folder(folder) for folder in adapters]
  merge = Adapters(adapters, whole.cfg)
  signatures = {name: (wanted or opened.dtype(name), opened.shape(name)) for name, opened in whole.tensors.items()}
  spelling = Spelling(fused_experts, _is_alone(whole.small['config.json']))
  spelled, places = spelling.write(signatures)
  shards = next((s for s in whole.originals() if s.declared() == spelled), None) or plan_shards(spelled)
  where = {name: (file, header) for file, header in shards.headers.items() for name in header.names()}
  order = sorted(places, key=lambda name: (where[places[name][0]][0], _offset(places[name], where)))
  if whole.opened[0].kind == 'orbax':  # whose chunks may hold many tensors: the table's order reads each of them once
    order = list(places)
  sizes = {name: math.prod(signatures[name][1]) * spelled[places[name][0]][0].itemsize for name in order}
  identity = {
    'conversion': 'to-hf',
    'dtype': dtype,
    'fused_experts': fused_experts,
    'tensors': len(sizes),
    'bytes': sum(sizes.values()),
    'files': [files_of(folder) for folder in (*folders, *adapters)],
  }
  if dry_run:
    print('\n'.join(plan(target, identity, sizes, whole.shares(sizes))))
    return
  with Work(target, identity) as work:
    left = {name: size for name, size in sizes.items() if name not in work.finished}
    shown = Progress(sum(sizes.values()), sum(sizes.values()) - sum(left.values()), progress)
    if not work.complete:
      work.require_space(needed(left.values()))
      if not work.begun:
        for file, header in shards.headers.items():
          with (work.data / file).open('wb') as out:
            out.truncate(len(header.raw) + header.size)
        work.begin()

      def value(name: str) -> np.ndarray:
        array = merge(name, whole.tensors[name].read(name, scratch))
        return np.ascontiguousarray(array, spelled[places[name][0]][0])

      to = {name: (where[places[name][0]][0], _offset(places[name], where)) for name in left}
      _write(work, value, to, left, shown)
      _describe(work.data, shards, whole.small)
      _restate(work.data / 'config.json', dtype or whole.converted_to())
    work.finish()
  shown.done(target)


Place = tuple[str, int]  # a shard's file name and a byte in it


def _write(
  work: Work, value: Callable[[str], np.ndarray], to: Mapping[str, Place], sizes: dict[str, int], shown: Progress
) -> None:
  """Every tensor to its place; what is finished is on disk."""
  files = {file: os.open(work.data / file, os.O_WRONLY) for file in {file for file, _ in to.values()}}

  def write(names: Sequence[str]) -> None:
    for name in names:
      file, offset = to[name]
      data = as_bytes(value(name))
      while data:
        size = os.pwrite(files[file], data, offset)
        data, offset = data[size:], offset + size
      shown.add(sizes[name])
    for file in {to[name][0] for name in names}:
      os.fsync(files[file])
    work.add((name, None) for name in names)

  try:
    run(share_out(sizes), write)
  finally:
    for descriptor in files.values():
      os.close(descriptor)


def _describe(folder: pathlib.Path, shards: Shards, small: Mapping[str, pathlib.Path]) -> None:
  """What makes the values a checkpoint: headers, index, and the small files."""
  for file, header in shards.headers.items():
    with (folder / file).open('r+b') as out:
      out.write(header.raw)
  if shards.index is not None:
    (folder / INDEX).write_bytes(shards.index)
  for name, path in small.items():
    shutil.copyfile(path, folder / name)


def _restate(config: pathlib.Path, dtype: str | None) -> None:
  """Makes config.json say what was written, since loaders go by it: no quantisation, and the dtype that the weights were
  converted to, if they were."""

  def walk(node: Any) -> Any:
    if not isinstance(node, dict):
      return node
    kept = {key: value for key, value in node.items() if key not in QUANTISATION}
    return {key: dtype if dtype and key in ('dtype', 'torch_dtype') else walk(value) for key, value in kept.items()}

  data = json.loads(config.read_text(encoding='utf-8'))
  if walk(data) != data:
    config.write_text(json.dumps(walk(data), indent=2, ensure_ascii=False) + '\n', encoding='utf-8')


def _offset(place: tuple[str, int], where) -> int:
  """The byte of the shard where a place (a tensor and an element of it) lies."""
  name, element = place
  header = where[name][1]
  return header.start(name) + element * header.dtype(name).itemsize


def _is_alone(config: pathlib.Path) -> bool:
  """Whether this config.json is of a Thinker without the rest, whose tensors have no `thinker.` in front."""
  return 'thinker_config' not in json.loads(config.read_text(encoding='utf-8'))


class _Whole:
  """A checkpoint put together from the folder that is exported and the base that has the parts it lacks.

  tensors: {published name: the folder that has it}. small: {file name: path}; the first folder's go before the base's.
  """

  def __init__(self, opened: Sequence[Opened]):
    self.opened, first = opened, opened[0]
    for other in opened[1:]:
      _require_same(first, other)
    larger = max(opened, key=lambda o: len(published(o.cfg)))  # the first of equals
    self.cfg: OmniConfig = larger.cfg
    self.tensors: dict[str, Opened] = {}
    self.small: dict[str, pathlib.Path] = {}
    for folder in reversed(opened):
      self.tensors |= dict.fromkeys(folder.names(), folder)
      self.small |= folder.small_files()
    self.small['config.json'] = (larger.small_files() or self.small)['config.json']
    self.tensors = {name: self.tensors[name] for name in published(self.cfg) if name in self.tensors}
    held = dict.fromkeys(part_of(published(self.cfg)[name].row.ours) for name in self.tensors)
    if lacking := [part for part in omni_spec(self.cfg) if part not in held]:
      what = f'holds {", ".join(held)} alone, not {", ".join(lacking)}'
      raise ValueError(f'{first.folder}: {what}; name the folder that has the rest as base (--base)')

  def originals(self) -> list[Shards]:
    """The files that the folders came from, or are."""
    found = [opened.original() for opened in self.opened]
    return [shards for shards in found if shards is not None]

  def converted_to(self) -> str | None:
    """The dtype that the exported folder was made with, if its values are not as they were published."""
    first = self.opened[0]
    dtype = read_manifest(first.folder).dtype if first.kind == 'converted' else None
    return None if dtype == INT8 else dtype  # int8 is written back in the dtypes it was made from

  def shares(self, sizes: Mapping[str, int]) -> dict[str, int]:
    """Bytes by part."""
    shares: dict[str, int] = {}
    for name, size in sizes.items():
      part = part_of(published(self.cfg)[name].row.ours)
      shares[part] = shares.get(part, 0) + size
    return shares


def _require_same(first: Opened, base: Opened) -> None:
  """Raises ValueError if the configs of two folders differ in the networks they share. The first may have speakers besides."""
  shared = tuple(
    f'{field.name}_config.'
    for field in dataclasses.fields(first.cfg)
    if all(dataclasses.is_dataclass(getattr(cfg, field.name)) for cfg in (first.cfg, base.cfg))
  )
  more = lambda change: change.field == 'talker_config.speaker_id' and change.b.items() <= change.a.items()
  found = [change for change in changes(first.cfg, base.cfg) if change.field.startswith(shared)]
  different = [str(change) for change in found if not more(change)]
  report(f'{base.folder}: not of the same model as {first.folder}', different_in_config=different)
