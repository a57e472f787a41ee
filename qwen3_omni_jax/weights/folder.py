"""The shards of a published folder: the union of their headers says what it holds; an index is checked against it."""

import dataclasses
import json
import pathlib
import re

from .names import report
from .safetensors import INDEX, Shard, no_duplicates

ADAPTER = 'adapter_model.safetensors'  # beside a model: not a shard of it


@dataclasses.dataclass(frozen=True)
class Folder:
  """tensors: {name: the shard that holds it}. unlisted: shards that the index, if there is one, says nothing about.

  problems: by kind, shards that cannot be read (broken) and tensors in several of them (repeated). notes: by kind, where
  the index is wrong, and what lies beside the shards: of no harm as long as nothing is missing. absent: the notes that
  tell about tensors that only the index knows. index: its content; None if there is none or it is wrong.
  """

  tensors: dict[str, Shard]
  unlisted: frozenset[str]
  problems: dict[str, list[str]]
  notes: dict[str, list[str]]
  index: bytes | None


ABSENT = 'listed_but_not_there'  # the kind of note that tells in which shards missing tensors should be


def read_folder(folder: pathlib.Path) -> Folder:
  """Opens the shards. Raises ValueError only if there are none, or the index cannot be understood.

  Of a tensor in several shards, the copy counts that the index names, or the only one in a shard that it names.
  """
  path = folder / INDEX
  listed = _read_index(path) if path.is_file() else None
  shards, broken = _open(folder)
  named = set(listed.values()) if listed else {*shards, *broken}
  holders: dict[str, list[str]] = {}
  for file, shard in shards.items():
    for tensor in shard.names():
      holders.setdefault(tensor, []).append(file)
  index = listed or {}
  tensors, repeated, twice = {}, [], []
  for tensor, files in holders.items():
    among = [file for file in files if file in named] or files
    file = index[tensor] if index.get(tensor) in files else among[0]
    tensors[tensor] = shards[file]
    if index.get(tensor) not in files and len(among) > 1:
      repeated.append(f'{tensor}: in both {" and ".join(among)}')
    elif others := [other for other in files if other != file and other in named]:
      twice.append(f'{tensor}: in {file}, which the index names, and in {", ".join(others)}')
  used = {shard.path.name for shard in tensors.values()}
  wrong = {
    'not_in_the_index': [f'{t}: in {s.path.name}' for t, s in tensors.items() if listed is not None and t not in index],
    'elsewhere_in_the_index': [
      f'{t}: in {s.path.name}, the index says {index[t]}' for t, s in tensors.items() if t in index and index[t] != s.path.name
    ],
    ABSENT: _absent({t: file for t, file in index.items() if t not in tensors}, shards, broken),
    'present_twice': twice,
  }
  beside = {
    'files_of_which_nothing_is_used': [file for file in shards if file not in used],
    'files_that_cannot_be_read_and_are_not_in_the_index': [str(error) for file, error in broken.items() if file not in named],
    'adapters_that_are_not_merged_(convert_to-hf_--adapter)': [ADAPTER] if (folder / ADAPTER).is_file() else [],
  }
  problems = {
    'broken': [str(error) for file, error in broken.items() if file in named],
    'repeated': repeated,
  }
  unlisted = frozenset(file for file in shards if file not in named)
  notes = {kind: names for kind, names in (wrong | beside).items() if names}
  return Folder(tensors, unlisted, problems, notes, path.read_bytes() if listed and not any(wrong.values()) else None)


def open_folder(folder: pathlib.Path) -> dict[str, Shard]:
  """{tensor name: the shard that holds it}. Raises ValueError if a shard cannot be read or a tensor is in several."""
  found = read_folder(folder)
  if found.problems['broken']:
    raise ValueError('\n'.join(found.problems['broken']))
  report(f'{folder}: which copy is meant cannot be told', **found.problems)
  return found.tensors


def _open(folder: pathlib.Path) -> tuple[dict[str, Shard], dict[str, ValueError]]:
  """The shards by file name, and what is wrong with those that cannot be read."""
  files = sorted(path for path in folder.glob('*.safetensors') if path.name != ADAPTER)
  if not files:
    others = sorted(path.name for path in folder.iterdir() if path.suffix in ('.bin', '.pt', '.pth', '.ckpt', '.gguf', '.h5'))
    found = f'; found {", ".join(others[:3])}: load it with what wrote it and save it as safetensors' if others else ''
    raise ValueError(f'{folder}: no safetensors files; expected {INDEX} with its shards, or model.safetensors{found}')
  shards, broken = {}, {}
  for path in files:
    try:
      shards[path.name] = Shard(path)
    except ValueError as error:
      broken[path.name] = error
  return shards, broken


def _absent(listed: dict[str, str], shards: dict[str, Shard], broken: dict[str, ValueError]) -> list[str]:
  """A line for each shard that an index lists tensors in which it does not hold. listed: {tensor: shard}."""
  tensors: dict[str, list[str]] = {}
  for tensor, file in listed.items():
    tensors.setdefault(file, []).append(tensor)
  why = lambda file: 'does not hold them' if file in shards else 'cannot be read' if file in broken else 'does not exist'
  others = lambda names: f' and {len(names) - 1} more' if len(names) > 1 else ''
  return [f'{file}, which {why(file)}: {names[0]}{others(names)}' for file, names in tensors.items()]


def _read_index(index: pathlib.Path) -> dict[str, str]:
  what = 'remove it: the shards say themselves what they hold'
  try:
    data = json.loads(index.read_text(encoding='utf-8'), object_pairs_hook=no_duplicates)
    weight_map = data['weight_map']
    valid = isinstance(weight_map, dict) and all(isinstance(file, str) for file in weight_map.values()) and weight_map
  except (ValueError, KeyError, TypeError, RecursionError) as e:
    raise ValueError(f'{index}: not a safetensors index ({e}); {what}') from e
  if not valid:
    raise ValueError(f'{index}: expected weight_map to be an object of tensor name: file name; {what}')
  outside = sorted({file for file in weight_map.values() if not re.fullmatch(r'[\w.-]+\.safetensors', file)})
  if outside:
    raise ValueError(f'{index}: expected plain file names ending in .safetensors, found {", ".join(outside[:5])}; {what}')
  return weight_map
