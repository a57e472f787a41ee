"""The shipped stages take ordinary media: what is larger than a lane is shrunk by the published limits, and kept whole."""

import json

import numpy as np
import pytest
from qwen3_omni_jax.train.config import Run
from qwen3_omni_jax.train.config_file import read
from qwen3_omni_jax.train.data import ExampleStream
from qwen3_omni_jax.train.fitting import level
from qwen3_omni_jax.train.geometry import lane_shape, resolve
from qwen3_omni_jax.train.room import ExampleSize

from qwen3_omni_jax.media.processor import Processor
from tests.train.data_folder import write_jsonl

PICTURES = {'photo': (4000, 3000), 'screen': (1920, 1080), 'page': (1312, 2000)}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A photo of 12 MP, a screen of 1080p, a page of 2.6 MP, a video of ten minutes, sounds of ten and forty minutes."""
  import av
  import soundfile
  from PIL import Image

  folder = tmp_path_factory.mktemp('large')
  for name, size in PICTURES.items():
    Image.new('RGB', size, (200, 30, 30)).save(folder / f'{name}.jpg')
  for minutes in (10, 40):
    noise = np.random.default_rng(0).integers(-9, 9, 60 * 16_000, dtype=np.int16)
    soundfile.write(folder / f'{minutes}.wav', np.tile(noise, minutes), 16_000)
  with av.open(str(folder / 'video.mp4'), 'w') as out:
    stream = out.add_stream('mpeg4', rate=1)
    stream.height, stream.width, stream.pix_fmt = 90, 160, 'yuv420p'
    for i in range(600):
      frame = av.VideoFrame.from_ndarray(np.full((90, 160, 3), i % 256, np.uint8), format='rgb24')
      out.mux(stream.encode(frame))
    out.mux(stream.encode(None))
  return folder


def example(folder, tiny_folder, stage: str, content: str, **media):
  """(the example that a stage makes of a record, the room of one of its lanes, both for the released model's shapes)."""
  said = [{'role': 'user', 'content': content}, {'role': 'assistant', 'content': 'y'}]
  path = write_jsonl(folder / 'a.jsonl', [{'messages': said, **media}])
  run = resolve(read(Run, stage, ['model=m', 'out=o', f'data.sources=[{json.dumps({"path": str(path)})}]']), {'fsdp': 2})
  processor = Processor.from_folder(tiny_folder)
  found = ExampleStream(run.data, processor)[0]
  assert found.error is None, found.error
  (made,) = found.examples
  ExampleSize.of(made, processor.cfg.thinker).check(lane_shape(run.data, processor.cfg))
  return made


STAGES = ('s2_general', 's3_long')


@pytest.mark.parametrize('stage', STAGES)
def test_a_photo_of_12_mp_trains(folder, tiny_folder, stage):
  (photo,) = example(folder, tiny_folder, stage, '<image>?', images=['photo.jpg']).inputs.visuals
  _, rows, columns = photo.grid
  assert 0.95 * 16384 < rows * columns <= 16384 and columns / rows == pytest.approx(4 / 3, rel=0.03)


@pytest.mark.parametrize('stage', STAGES)
def test_three_pictures_of_1080p_train(folder, tiny_folder, stage):
  visuals = example(folder, tiny_folder, stage, '<image><image><image>?', images=['screen.jpg'] * 3).inputs.visuals
  sizes = [visual.grid[1] * visual.grid[2] for visual in visuals]
  assert len(set(sizes)) == 1
  assert sizes[0] == 8160 if stage == 's3_long' else 0.9 * 16384 / 3 < sizes[0] <= 16384 / 3  # whole, or a third of the room


@pytest.mark.parametrize('stage, room', [('s2_general', 16384), ('s3_long', 65536)])
def test_a_video_of_ten_minutes_trains_from_its_beginning_to_its_end(folder, tiny_folder, stage, room):
  made = example(folder, tiny_folder, stage, '<video>?', videos=['video.mp4'])
  pairs, rows, columns = made.inputs.visuals[0].grid
  assert 0.8 * room < pairs * rows * columns <= room and rows * columns >= 0.9 * 512
  assert made.inputs.positions[0].max() > 600 * 13 * 0.95  # seconds, in steps of the clock


@pytest.mark.parametrize('stage, minutes', [('s2_general', 10), ('s3_long', 40)])
def test_sound_that_fills_a_row_trains(folder, tiny_folder, stage, minutes):
  made = example(folder, tiny_folder, stage, '<audio>?', audios=[f'{minutes}.wav'])
  assert len(made.inputs.audios[0].mel) == minutes * 6000


def test_large_media_pay_for_small_ones():
  assert level([10, 100, 20], 90) == 60
  assert level([10, 100, 100], 90) == 40
  assert level([5, 5], 100) == 5
  rng = np.random.default_rng(0)
  for _ in range(100):
    sizes, within = rng.integers(1, 50, 6).tolist(), int(rng.integers(6, 200))
    cut = lambda bound, sizes=sizes: sum(min(size, bound) for size in sizes)
    best = level(sizes, within)
    assert cut(best) <= within and (best == max(sizes) or cut(best + 1) > within)


def test_pictures_that_do_not_share_rows_are_shrunk_until_they_do(folder, tiny_folder):
  """Four rows hold as many patches as five pages have, but each is above half a row and needs one of its own."""
  visuals = example(folder, tiny_folder, 's3_long', '<image>' * 5, images=['page.jpg'] * 5).inputs.visuals
  assert all(0.93 * 8192 < visual.grid[1] * visual.grid[2] <= 8192 for visual in visuals)


def test_media_that_are_small_enough_stay_as_they_are(folder, tiny_folder):
  alone = Processor.from_folder(tiny_folder, media_root=folder)
  plain = alone([{'role': 'user', 'content': [{'type': 'image', 'image': 'screen.jpg'}, {'type': 'text', 'text': '?'}]}])
  (screen,) = example(folder, tiny_folder, 's2_general', '<image>?', images=['screen.jpg']).inputs.visuals
  assert screen.grid == plain.visuals[0].grid


def test_what_a_record_asks_of_its_video_stays(folder, tiny_folder):
  for keys, frames in (({'nframes': 8}, 8), ({'max_frames': 20}, 20), ({'fps': 0.05}, 30)):
    made = example(folder, tiny_folder, 's2_general', '<video>?', videos=[{'path': 'video.mp4', **keys}])
    assert made.inputs.visuals[0].grid[0] == frames / 2


def test_text_and_sound_take_their_room_first(folder, tiny_folder):
  """600 s of sound leave 390 tokens of 8,192, which the picture is shrunk to."""
  made = example(folder, tiny_folder, 's2_general', '<audio><image>?', audios=['10.wav'], images=['photo.jpg'])
  assert 8000 < len(made.learn) <= 8192 and len(made.inputs.visuals) == 1
