"""What a published folder is beside its values, kept in a converted one, so that it can be given back file for file.

    DIR/published/SHARD.header   the start of each shard: which tensors it holds, in which order
    DIR/published/model.safetensors.index.json
    DIR/published/manifest.json  a published file of a name that means something else in a converted folder

All other small files lie where they lay, beside the weights.
"""

import pathlib
import shutil

from .safetensors import INDEX, Header, Shards
from .store import MANIFEST, PARAMS

FOLDER = 'published'
SMALL_BYTES = 64 * 2**20
_WEIGHTS = ('.safetensors', '.bin', '.pt', '.pth', '.ckpt', '.gguf', '.h5', '.msgpack', '.index.json')
_TAKEN = (MANIFEST, PARAMS, FOLDER)  # what these names mean in a converted folder
_HEADER = '.header'


def is_kept_in(folder: pathlib.Path) -> bool:
  """Whether this folder was made by a conversion to jax (even if its manifest is lost)."""
  return (folder / FOLDER).is_dir()


def read_original(converted: pathlib.Path) -> Shards | None:
  """The files of the folder that a converted one was made from; None if it does not tell."""
  kept = converted / FOLDER
  files = sorted(kept.glob(f'*{_HEADER}')) if kept.is_dir() else []
  if not files:
    return None
  index = kept / INDEX
  headers = {file.name.removesuffix(_HEADER): Header(file, file.read_bytes()) for file in files}
  return Shards(headers, index.read_bytes() if index.is_file() else None)


def keep_original(source: pathlib.Path, original: Shards, converted: pathlib.Path) -> None:
  """Puts all of a published folder but its values into a converted one."""
  kept = converted / FOLDER
  kept.mkdir(exist_ok=True)
  for name, header in original.headers.items():
    (kept / f'{name}{_HEADER}').write_bytes(header.raw)
  if original.index is not None:
    (kept / INDEX).write_bytes(original.index)
  for name, file in small_files(source).items():
    shutil.copyfile(file, (kept if name in _TAKEN else converted) / name)


def small_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """{published name: file} of all that is copied beside the weights of a folder of any kind: what is no weights, not
  in a sub-folder, and under 64 MB. A link counts as the file it leads to (hub caches are made of links).
  """
  kept = folder / FOLDER
  files = {path.name: path for path in sorted(folder.iterdir())}
  if kept.is_dir():
    files.pop(MANIFEST, None)
    files |= {name: kept / name for name in _TAKEN if (kept / name).is_file()}
  return {
    name: path
    for name, path in files.items()
    if path.is_file() and not name.endswith(_WEIGHTS) and path.stat().st_size < SMALL_BYTES
  }
