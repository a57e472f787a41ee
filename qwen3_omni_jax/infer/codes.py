"""Recordings to codes in bulk: one compiled program for all lengths, in a job that goes on where it was killed.

    summary = make_codes('codec', ['records.jsonl'], 'out')

A fixed number of slots each encode one recording, a chunk of a few seconds at a time, as a stream; a slot whose recording ends
takes the next one. Every part begins with empty slots, so its codes do not depend on which process makes it, or what came before.
"""

import concurrent.futures
import functools
import pathlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..codec_config import CodecConfig
from ..media.audio import load_audio
from ..models.codec_encoder import EncoderState, encode_step, init_encoder_state, restart_rows
from ..models.quantizer import quantise
from ..shapes import Array, Bool, Float, Int, Params
from ..weights.codec import fingerprint, load_codec
from .codes_store import Parts, Use
from .recordings import find_recordings

CHUNK_FRAMES = 25  # 2 s: what a slot takes at once; the end of a recording wastes half of it
PART_SIZE = 256  # recordings; a kill loses at most the part in work


@functools.partial(jax.jit, static_argnames='cfg', donate_argnames='state')
def _step(
  params: Params,
  cfg: CodecConfig,
  wave: Float[Array, 'B W'],
  samples: Int[Array, ' B'],
  new: Bool[Array, ' B'],
  state: EncoderState,
) -> tuple[Int[Array, 'B F Q'], EncoderState]:
  """The next codes of every slot; new: slots that begin another recording."""
  with jax.default_matmul_precision('highest'):  # nearest codes are a matter of the last digits
    latents, state = encode_step(params, cfg, wave, samples, restart_rows(state, new))
    return quantise(params['quantizer'], cfg, latents).astype(jnp.int16), state


class Encoder:
  """Codes of any number of recordings, `slots` at a time."""

  def __init__(self, params: Params, cfg: CodecConfig, slots: int = 8, chunk_frames: int = CHUNK_FRAMES):
    self.params, self.cfg, self.slots, self.chunk = jax.device_put(params), cfg, slots, chunk_frames

  def encode(self, waves: Iterator[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
    """(key, int16 'T Q') of each (key, wave), as they become ready. A wave is float32, mono, at the codec's rate."""
    hop, state = self.chunk * self.cfg.samples_per_frame, init_encoder_state(self.cfg, self.slots)
    at: list[tuple[str, np.ndarray, int] | None] = [None] * self.slots  # key, wave, samples done
    parts: dict[str, list[np.ndarray]] = {}
    waiting: tuple[Array, list] | None = None  # codes on their way, and whose they are
    while True:
      chunk = np.zeros((self.slots, hop), np.float32)
      samples, new = np.zeros(self.slots, np.int32), np.zeros(self.slots, bool)
      owners = []
      for slot in range(self.slots):
        if (held := at[slot]) is None:
          if (following := next(waves, None)) is None:
            continue
          held, new[slot] = (*following, 0), True
        key, wave, done = held
        piece = wave[done : done + hop]
        chunk[slot, : len(piece)], samples[slot] = piece, len(piece)
        ended = done + hop >= len(wave)
        owners.append((slot, key, self.cfg.frames(len(piece)), ended))
        at[slot] = None if ended else (key, wave, done + hop)
      going = None
      if owners:
        codes, state = _step(self.params, self.cfg, chunk, samples, new, state)
        going = codes, owners
      if waiting is not None:  # while the device works on the next chunk
        yield from _finished(parts, *waiting)
      if (waiting := going) is None:
        return


def _finished(parts: dict[str, list[np.ndarray]], codes: Array, owners: list) -> Iterator[tuple[str, np.ndarray]]:
  found = np.asarray(codes)
  for slot, key, frames, ended in owners:
    parts.setdefault(key, []).append(found[slot, :frames])
    if ended:
      yield key, np.concatenate(parts.pop(key))


def make_codes(
  codec: str | pathlib.Path,
  inputs: Sequence[str],
  out: str | pathlib.Path,
  *,
  num_code_groups: int | None = None,
  media_root: str | pathlib.Path | None = None,
  shard: tuple[int, int] | None = None,
  slots: int = 8,
  workers: int = 2,
  part_size: int = PART_SIZE,
  retry_failed: bool = False,
  on_progress: Callable[[int, int, float], None] | None = None,
) -> dict[str, Any]:
  """Makes the parts that are missing and, if all of them are there then, the index. Returns a summary.

  inputs: see find_recordings. shard: (i, n): only every n-th part from the i-th on. workers: threads that read sound.
  retry_failed: parts in which a recording could not be read are made again. on_progress: called with (recordings done by this
  process, those it has to do, seconds of sound done).
  A recording that cannot be read fails alone. Raises ValueError for codes that say nothing, and a folder with another job.
  """
  if shard is not None and not 0 <= shard[0] < shard[1]:
    raise ValueError(f'shard {shard[0]}/{shard[1]}: expected I/N with 0 <= I < N')
  if min(slots, workers, part_size) < 1:
    raise ValueError('slots, workers and the size of a part must be positive')
  files = find_recordings(inputs, media_root)
  params, cfg = load_codec(codec, num_code_groups)
  parts = Parts(pathlib.Path(out), list(files), cfg, fingerprint(params, cfg), part_size)
  mine = range(parts.count) if shard is None else range(shard[0], parts.count, shard[1])
  todo = [part for part in mine if not parts.complete(part) or (retry_failed and parts.errors(part))]
  encoder, use, started = Encoder(params, cfg, slots), Use(cfg), time.monotonic()
  total, done, seconds = sum(len(parts.keys_of(part)) for part in todo), 0, 0.0
  with concurrent.futures.ThreadPoolExecutor(workers, 'sound') as pool:
    for part in todo:
      errors: dict[str, str] = {}
      codes = {}
      for key, found in encoder.encode(_read(pool, {key: files[key] for key in parts.keys_of(part)}, cfg, slots, errors)):
        codes[key] = found
        use.add(found)
        seconds += len(found) / cfg.frame_rate
        if on_progress is not None:
          on_progress(done + len(codes) + len(errors), total, seconds)
      use.require_varied()
      parts.put(part, codes, errors)
      done += len(parts.keys_of(part))
  took = time.monotonic() - started
  missing = len(parts.missing())
  summary: dict[str, Any] = {
    'complete': not missing,
    'recordings': len(files),
    'parts_missing': missing,
    'own': {
      'recordings': total,
      'hours': round(seconds / 3600, 4),
      'seconds': round(took, 2),
      'times_real_time': _ratio(seconds, took),
    },
  }
  if not missing:
    index = parts.write_index()
    hours = sum(entry['frames'] for entry in index['files'].values()) / cfg.frame_rate / 3600
    summary |= {'hours': round(hours, 4), 'entropy_bits': index['entropy_bits'], 'errors': index['errors']}
  return summary


def _ratio(seconds: float, took: float) -> float:
  return round(seconds / took, 1) if took else 0.0


def _read(
  pool: concurrent.futures.ThreadPoolExecutor,
  files: dict[str, pathlib.Path],
  cfg: CodecConfig,
  ahead: int,
  errors: dict[str, str],
) -> Iterator[tuple[str, np.ndarray]]:
  """(key, wave) of each file that is sound, in order, a few read ahead; of the others what is wrong goes to errors."""
  load = lambda file: load_audio(file, to_hz=cfg.sampling_rate)
  pending: deque[tuple[str, concurrent.futures.Future]] = deque()
  left = iter(files.items())
  while True:
    while len(pending) < ahead and (following := next(left, None)) is not None:
      pending.append((following[0], pool.submit(load, following[1])))
    if not pending:
      return
    key, wave = pending.popleft()
    try:
      found = wave.result()
    except (ValueError, OSError, MemoryError) as error:
      errors[key] = str(error) or type(error).__name__
      continue
    yield key, found
