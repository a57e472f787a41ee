"""A batch job with a stand-in for the engine, so that kills and thousands of rows cost no model: rows are really checked and
prepared, answers are made from their ids.

    python -m tests.infer.batch_stub MODEL INPUT OUT PAUSE_S [key=value of JobConfig …]
"""

import json
import sys
import time
import types
import zlib

import numpy as np

from qwen3_omni_jax.infer import job
from qwen3_omni_jax.infer.batch import Result, Stats
from qwen3_omni_jax.infer.prepare import RowError, prepare
from qwen3_omni_jax.infer.reply import Reply
from qwen3_omni_jax.infer.settings import GenerationDefaults
from qwen3_omni_jax.infer.voice import Speech, Voice
from qwen3_omni_jax.media.processor import Processor


class StubOmni(types.SimpleNamespace):
  """What preparing rows needs of a loaded checkpoint."""

  @classmethod
  def of(cls, folder, root):
    processor = Processor.from_folder(folder, media_root=root)
    defaults = GenerationDefaults.from_folder(folder, processor.cfg.im_end_token_id)
    return cls(processor=processor, cfg=processor.cfg, defaults=defaults, voice=Voice())

  def voice_for(self, **_):
    return self.voice


class StubEngine:
  """Answers in an order of its own: a few rows at a time, the last first."""

  pause_s = 0.0

  def __init__(self, omni, config, voice):
    self.omni, self.voice, self.stats = omni, voice, Stats()

  def answer(self, rows):
    held = []
    for row in rows:
      held.append(row)
      if len(held) == 5:
        yield from map(self._one, held[::-1])
        held = []
    yield from map(self._one, held)

  def _one(self, row):
    time.sleep(self.pause_s)
    try:
      prepared = prepare(self.omni, row, (32, 32), 8192, self.voice)
    except RowError as e:
      return Result(row, None, e.kind, str(e))
    speech = None
    if row.speech:
      codes = np.full((2, 16), zlib.crc32(row.id.encode()) % 100, np.int32)
      speech = Speech(np.linspace(-0.5, 0.5, 200 + len(row.id)).astype(np.float32), codes, 'stop')
    reply = Reply(f'answer to {row.id}', [1, 2], len(prepared.inputs.ids), 'stop', speech=speech)
    return Result(row, reply, seed=prepared.sampling.seed, timings={'total_s': 0.1})


def run(model, source, out, root, pause_s: float = 0.0, **options):
  """run_job with the stand-in."""
  StubEngine.pause_s = pause_s
  engine, job.Engine = job.Engine, StubEngine
  try:
    config = job.JobConfig(model=str(model), input=(str(source),), output=str(out), dtype='float32', block_rows=8, **options)
    return job.run_job(config, StubOmni.of(model, root))
  finally:
    job.Engine = engine


if __name__ == '__main__':
  model, source, out, root, pause = sys.argv[1:6]
  print(json.dumps(run(model, source, out, root, float(pause), speech=True, tar='tar' in sys.argv[6:])))
