"""Crops of recordings, each with what came before it: the batches that a vocoder is trained on.

A crop is chosen by seed, step and row alone, so a run goes on exactly where it was, with any number of processes.
"""

import collections
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from qwen3_omni_jax.infer.recordings import find_recordings
from qwen3_omni_jax.media.audio import load_audio
from qwen3_omni_jax.shapes import Array, Float, Int
from qwen3_omni_jax.sharding import batch_axes

from ..codes import open_codes
from ..config import DataConfig
from ..feed import Fed
from .spectral import RATE_HZ

KEPT_BYTES = 2**30  # of decoded recordings; more are read again when they are chosen again
VERSION = 1


class Crops(flax.struct.PyTreeNode):
  """B rows of C + F frames. The crop that is judged begins with frame `begin` of its row, at most C; whatever comes before it is
  true context, from the recording's beginning on where that is not C frames away. Behind the recording's end is silence."""

  wave: Float[Array, 'B W']
  begin: Int[Array, ' B']
  codes: Int[Array, 'B T Q'] | None = None


class Recordings:
  """What crops are made of. frame: samples of one. least: frames below which a recording is left out.

  Raises ValueError where nothing is left, or a recording has no codes.
  """

  def __init__(self, data: DataConfig, frame: int, least: int):
    self.frame, self.files, self.codes = frame, [], []
    self._kept: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
    shares, frames = [], []
    for source in data.sources:
      codes = open_codes(source.codes) if source.codes else None
      found = find_recordings([source.path], source.media_root)
      if codes is not None and (missing := [key for key in found if key not in codes]):
        raise ValueError(
          f'{source.codes}: {len(missing)} of {len(found)} recordings of {source.path} have no codes ({missing[0]})'
        )
      sizes = [_samples(file) // frame for file in found.values()]
      long = [(key, file, n) for (key, file), n in zip(found.items(), sizes, strict=True) if n >= least]
      if not long:
        raise ValueError(
          f'{source.path}: no recording has {least} frames ({least * frame / RATE_HZ:.1f} s); make vocoder.frames fewer'
        )
      self.files += [file for _, file, _ in long]
      self.codes += [None if codes is None else (codes, key) for key, _, _ in long]
      own = np.array([n for *_, n in long], np.float64)
      frames += own.tolist()
      shares.append(own if source.weight is None else own / own.sum() * source.weight)
    self.frames = np.array(frames, np.int64)
    self._until = np.cumsum(np.concatenate(shares))

  def choose(self, rng: np.random.Generator) -> int:
    """A recording, as often as its length (and its source's weight) says."""
    return int(min(np.searchsorted(self._until, rng.random() * self._until[-1], 'right'), len(self.files) - 1))

  def wave(self, number: int) -> np.ndarray:
    """float32 samples at 24 kHz."""
    if number in self._kept:
      self._kept.move_to_end(number)
      return self._kept[number]
    wave = load_audio(self.files[number], to_hz=RATE_HZ)
    self._kept[number] = wave
    while sum(kept.nbytes for kept in self._kept.values()) > KEPT_BYTES and len(self._kept) > 1:
      self._kept.popitem(last=False)
    return wave


def _samples(file: pathlib.Path) -> int:
  """At 24 kHz, by what the header says."""
  import soundfile

  try:
    info = soundfile.info(str(file))
  except (RuntimeError, OSError):
    return len(load_audio(file, to_hz=RATE_HZ))  # FFmpeg's formats, and a clear error
  return info.frames * RATE_HZ // info.samplerate


class CropLoader:
  """This process's rows of one batch after another, endlessly. position: that of a checkpoint."""

  def __init__(
    self,
    data: DataConfig,
    recordings: Recordings,
    frames: int,
    context: int,
    shard: int = 0,
    shards: int = 1,
    position: Mapping[str, Any] | None = None,
  ):
    self.data, self.recordings, self.frames, self.context = data, recordings, frames, context
    each = data.rows // shards
    self.rows = range(shard * each, (shard + 1) * each)
    self.step = 0 if position is None else int(position['step'])

  def __iter__(self) -> Iterator[tuple[Crops, dict[str, Any]]]:
    return self

  def __next__(self) -> tuple[Crops, dict[str, Any]]:
    rows = [self._crop(np.random.default_rng((self.data.seed, self.step, row))) for row in self.rows]
    self.step += 1
    waves, begins, codes = zip(*rows, strict=True)
    found = None if codes[0] is None else np.stack(codes)
    stats = {'records': len(rows)}
    return Crops(np.stack(waves), np.array(begins, np.int32), found), stats  # pyright: ignore[reportArgumentType]

  def _crop(self, rng: np.random.Generator) -> tuple[np.ndarray, int, np.ndarray | None]:
    recordings, length = self.recordings, self.context + self.frames
    number = recordings.choose(rng)
    at = int(rng.integers(max(int(recordings.frames[number]) - self.frames, 0) + 1))
    first = max(at - self.context, 0)
    wave = recordings.wave(number)[first * recordings.frame : (first + length) * recordings.frame]
    wave = np.pad(wave, (0, length * recordings.frame - len(wave)))
    if (place := recordings.codes[number]) is None:
      return wave, at - first, None
    codes = place[0][place[1]][first : first + length].astype(np.int32)
    return wave, at - first, np.pad(codes, ((0, length - len(codes)), (0, 0)))

  def get_state(self) -> dict[str, Any]:
    return {'version': VERSION, 'step': self.step}

  def merge(self, states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All processes are at the same step."""
    assert len({state['step'] for state in states}) == 1, states
    return dict(states[0])

  def close(self) -> None:
    pass


class CropFeed:
  """Batches of the loader on the mesh (train.task.Batches)."""

  def __init__(self, loader: CropLoader, mesh):
    self.loader, self.mesh = loader, mesh

  def __iter__(self) -> Iterator[Fed]:
    return self

  def __next__(self) -> Fed:
    batch, stats = next(self.loader)
    return Fed(put_crops(batch, self.loader.data.rows, self.mesh), [stats], self.loader.get_state())  # pyright: ignore[reportArgumentType]


def put_crops(batch: Crops, rows: int, mesh) -> Crops:
  """rows: of the batch of all processes, which these are some of."""
  cut = NamedSharding(mesh, PartitionSpec(batch_axes(rows, mesh) or None))
  if jax.process_count() == 1:
    return jax.device_put(batch, cut)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(cut, x, (rows, *x.shape[1:])), batch)
