"""The folder that `qwen3-omni codes` makes: parts of recordings as codes, and an index over them when all parts are there.

    OUT/manifest.json                  the job: which codec, which recordings; what a second run must agree with
    OUT/codes-00012-00400.safetensors  part 12 of 400: an int16 'T Q' for each of its recordings, named by its key
    OUT/index.json                     {key: file and frames} of all parts, written when the last of them is there

A part has its name only when all of it is on disk, and what could not be read of it is in the file's metadata. So a part is
finished or it is not there, and any number of processes may make parts of one folder.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..codec_config import CodecConfig
from ..weights.safetensors import Shard, write_file

FORMAT = 'qwen3_omni_jax.codes.v1'
INDEX = 'index.json'
MANIFEST = 'manifest.json'
LEAST_FRAMES = 25  # 2 s: in less, a codebook that says one thing only proves nothing


class Parts:
  """The parts of a job, seen from one process. Raises ValueError if the folder holds another job."""

  def __init__(self, out: pathlib.Path, keys: Sequence[str], cfg: CodecConfig, codec: str, part_size: int):
    self.out, self.keys, self.cfg, self.codec = out, list(keys), cfg, codec
    self.part_size = part_size
    self.count = -(-len(self.keys) // part_size)
    out.mkdir(parents=True, exist_ok=True)
    told = {
      **self.described(),
      'recordings': len(self.keys),
      'part_size': part_size,
      'keys': hashlib.sha256('\0'.join(self.keys).encode('utf-8', 'surrogatepass')).hexdigest(),
    }
    path = out / MANIFEST
    if path.exists():
      before = _read(path)
      if changed := [name for name in told if before.get(name) != told[name]]:
        raise ValueError(f'{out} holds another job ({", ".join(changed)} differ). Give another --out, or what it was begun with')
    elif others := [p.name for p in out.glob('codes-*.safetensors')]:
      raise ValueError(f'{out}: {others[0]} without {MANIFEST}; give another --out')
    else:
      _write(path, told)

  def described(self) -> dict[str, Any]:
    """What the codes are, as index and manifest say it."""
    return {
      'format': FORMAT,
      'codec': self.codec,
      'num_code_groups': self.cfg.num_code_groups,
      'codebook_size': self.cfg.codebook_size,
      'frame_rate': self.cfg.frame_rate,
    }

  def path(self, part: int) -> pathlib.Path:
    return self.out / f'codes-{part:05d}-{self.count:05d}.safetensors'

  def keys_of(self, part: int) -> list[str]:
    return self.keys[part * self.part_size : (part + 1) * self.part_size]

  def complete(self, part: int) -> bool:
    return self.path(part).exists()

  def missing(self) -> list[int]:
    return [part for part in range(self.count) if not self.complete(part)]

  def errors(self, part: int) -> dict[str, str]:
    """{key: what was wrong} of a finished part."""
    return _errors(Shard(self.path(part)))

  def put(self, part: int, codes: Mapping[str, np.ndarray], errors: Mapping[str, str]) -> None:
    """codes: int16 'T Q' by key, in any order."""
    ordered = {key: np.ascontiguousarray(codes[key], np.int16) for key in self.keys_of(part) if key in codes}
    told = {'format': FORMAT, 'codec': self.codec, 'frame_rate': f'{self.cfg.frame_rate:g}'}
    failed = json.dumps({key: errors[key] for key in self.keys_of(part) if key in errors})
    write_file(self.path(part), ordered, {**told, 'errors': failed})

  def write_index(self) -> dict[str, Any]:
    """The index over all parts, once every one of them is there; what it says is also checked against them."""
    files, errors, use = {}, {}, Use(self.cfg)
    for part in range(self.count):
      shard = Shard(self.path(part))
      if (shard.metadata.get('format'), shard.metadata.get('codec')) != (FORMAT, self.codec):
        raise ValueError(f'{shard.path}: not of this job; remove it and run again')
      errors |= _errors(shard)
      for key in shard.names():
        codes = shard.read(key)
        use.add(codes)
        files[key] = {'file': shard.path.name, 'frames': len(codes)}
    if lost := [key for key in self.keys if key not in files and key not in errors]:
      raise ValueError(f'{self.out}: {len(lost)} recordings are in no part, such as {lost[0]}; remove the parts and run again')
    use.require_varied()
    index = {**self.described(), 'entropy_bits': use.entropy_bits(), 'errors': errors, 'files': files}
    _write(self.out / INDEX, index)
    return index


class Use:
  """How often each entry of each codebook was chosen."""

  def __init__(self, cfg: CodecConfig):
    self.counts = np.zeros((cfg.num_code_groups, cfg.codebook_size), np.int64)

  def add(self, codes: np.ndarray) -> None:
    for counts, column in zip(self.counts, codes.T, strict=True):
      counts += np.bincount(column, minlength=len(counts))

  @property
  def frames(self) -> int:
    return int(self.counts[0].sum())

  def entropy_bits(self) -> list[float]:
    """Of each codebook; log2(codebook_size) where every entry is chosen equally often."""
    share = self.counts / max(self.frames, 1)
    return [round(float(-np.sum(row[row > 0] * np.log2(row[row > 0]))), 3) for row in share]

  def require_varied(self) -> None:
    """Raises ValueError if a codebook chose the same entry for every frame."""
    constant = [q for q, row in enumerate(self.counts) if np.count_nonzero(row) < 2]
    if self.frames >= LEAST_FRAMES and constant:
      entries = ', '.join(f'{q} (always {int(self.counts[q].argmax())})' for q in constant)
      raise ValueError(
        f'codebooks {entries} are constant over {self.frames} frames. Either the codec has no trained weights (entries of a '
        'codebook that was not loaded are all alike), or every recording is silent; nothing can be learnt from this'
      )


def _errors(shard: Shard) -> dict[str, str]:
  return json.loads(shard.metadata.get('errors', '{}'))


def _read(path: pathlib.Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(f'{path}: not valid JSON ({str(error)[:100]})') from error


def _write(path: pathlib.Path, data: dict[str, Any]) -> None:
  partial = path.with_name(f'{path.name}.{os.getpid()}.partial')
  partial.write_text(json.dumps(data, ensure_ascii=False) + '\n', encoding='utf-8', errors='surrogateescape')
  partial.replace(path)
