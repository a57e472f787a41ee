"""A processor that leaves small pictures small."""

import dataclasses

import pytest

from qwen3_omni_jax.media.processor import Processor


@pytest.fixture(scope='session')
def small_processor(tiny_folder) -> Processor:
  """The tiny checkpoint's, for tests in which sizes do not matter: its own settings make 130,000 pixels of every frame."""
  processor = Processor.from_folder(tiny_folder)
  processor.images = dataclasses.replace(processor.images, min_pixels=1024, video_min_pixels=1024)
  return processor
