"""Two random checkpoints of different shapes, loaded by the reference and by us, and the cases run through both processors."""

import dataclasses
import pathlib

import numpy as np
import pytest
from qwen3_omni_jax.tools.tiny import make_checkpoint

from qwen3_omni_jax.infer.omni import Omni
from qwen3_omni_jax.media.inputs import ModelInputs
from tests.parity import cases
from tests.reference import Reference

PRESETS = ('tiny', 'odd')


@dataclasses.dataclass
class Pair:
  """One checkpoint on both sides."""

  name: str
  folder: pathlib.Path
  theirs: Reference
  ours: Omni


@pytest.fixture(scope='session', params=PRESETS)
def pair(request, tmp_path_factory) -> Pair:
  folder = tmp_path_factory.mktemp('parity') / request.param
  make_checkpoint(folder, request.param, seed=1)
  return Pair(request.param, folder, Reference.load(folder), Omni.load(folder, dtype='float32'))


@pytest.fixture(scope='session')
def conversations(tmp_path_factory, samples):
  return cases.conversations(cases.make_media(tmp_path_factory.mktemp('cases'), samples))


def with_their_pixels(rows: list[ModelInputs], batch) -> list[ModelInputs]:
  """Our inputs with the reference's pixel values, so that resize rounding decides nothing further on."""
  images = iter(_split(batch, 'pixel_values', 'image_grid_thw'))
  videos = iter(_split(batch, 'pixel_values_videos', 'video_grid_thw'))
  return [
    dataclasses.replace(
      row, visuals=tuple(dataclasses.replace(v, patches=next(images if v.kind == 'image' else videos)) for v in row.visuals)
    )
    for row in rows
  ]


def _split(batch, values: str, grids: str) -> list[np.ndarray]:
  if batch.get(values) is None:
    return []
  sizes = batch[grids].prod(-1).tolist()
  return np.split(batch[values].numpy(), np.cumsum(sizes)[:-1])
