"""Recordings as codes: a folder of `qwen3-omni codes` (infer.codes_store), by the keys under which records name their recordings.

Runs in worker processes: nothing here imports jax.
"""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from qwen3_omni_jax.infer.codes_store import FORMAT, INDEX
from qwen3_omni_jax.weights.safetensors import Shard

from .contents import contents_fingerprint
from .kept import Recent

_OPEN_FILES = 16


class Codes(Mapping[str, np.ndarray]):
  """Key of a recording -> its codes, int16 'T Q', read when they are asked for; by any thread, and in worker processes, which
  read the index themselves. Raises ValueError for a folder that is not of this format."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self._shards, self._kept = Recent(_OPEN_FILES), Recent(1)
    index = self._index()
    self.num_code_groups, self.codebook_size = int(index['num_code_groups']), int(index['codebook_size'])
    self.frame_rate = float(index['frame_rate'])  # frames a second

  def _index(self) -> dict[str, Any]:
    return self._kept.get('index', lambda: _read_index(self.folder / INDEX))

  def __reduce__(self):
    return Codes, (self.folder,)

  def __getitem__(self, key: str) -> np.ndarray:
    file = self._index()['files'][key]['file']
    return self._shards.get(file, lambda: Shard(self.folder / file)).read(key)

  def why_not(self, key: str) -> str:
    """What is known of a recording that is not there."""
    failed = self._index().get('errors', {})
    return f'could not be read: {failed[key]}' if key in failed else f'not among the {len(self)} recordings of {self.folder}'

  def __contains__(self, key: object) -> bool:
    return key in self._index()['files']

  def __iter__(self) -> Iterator[str]:
    return iter(self._index()['files'])

  def __len__(self) -> int:
    return len(self._index()['files'])

  def fingerprint(self) -> str:
    """Of the contents; where the folder lies does not count."""
    return contents_fingerprint([self.folder / INDEX, *sorted(self.folder.glob('codes-*.safetensors'))])


def open_codes(folder: str | pathlib.Path) -> Codes:
  """The recordings of a folder. Raises ValueError saying what is wrong with it."""
  return Codes(pathlib.Path(folder))


def _read_index(path: pathlib.Path) -> dict[str, Any]:
  if not path.is_file():
    raise ValueError(f'{path.parent}: no {INDEX} in it; expected a folder made by `qwen3-omni codes`')
  try:
    index = json.loads(path.read_text(encoding='utf-8'))
  except ValueError as e:
    raise ValueError(f'{path}: not valid JSON ({str(e)[:100]})') from e
  if not isinstance(index, dict) or index.get('format') != FORMAT:
    raise ValueError(f'{path}: expected the format {FORMAT}, found {str(index)[:80]}; make it anew with `qwen3-omni codes`')
  if missing := [key for key in ('codec', 'num_code_groups', 'codebook_size', 'frame_rate', 'files') if key not in index]:
    raise ValueError(f'{path}: without {", ".join(missing)}')
  return index
