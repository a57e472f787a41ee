"""Sizes of a batch follow the devices, and a run that goes on keeps those it was begun with."""

import dataclasses
import math

import pytest
from qwen3_omni_jax.train.config import Run
from qwen3_omni_jax.train.config_file import read, to_data
from qwen3_omni_jax.train.geometry import lane_shape, resolve, row_groups

from qwen3_omni_jax.config_json import load_config
from qwen3_omni_jax.sharding import batch_axes, mesh_shape
from tests.conftest import ROOT

STAGES = (
  's1_audio_adapter',
  's1_audio_encoder',
  's1_vision_adapter',
  's1_vision_encoder',
  's2_general',
  's3_long',
  'sft',
  'captioner',
  'talker_pretrain',
  'talker_sft',
  'talker_speaker',
  'talker_realign',
  'omni_joint',
)


@dataclasses.dataclass(frozen=True)
class Sizes:
  """A mesh, as far as shapes ask."""

  shape: dict[str, int]


@pytest.mark.parametrize('stage', STAGES)
def test_a_shipped_stage_fits_any_pod_and_no_device_repeats_the_work_of_another(stage):
  cfg = load_config(ROOT / 'configs' / 'model' / 'instruct.json')
  run, lanes = read(Run, stage), set()
  for devices, slices in ((8, 1), (64, 1), (256, 1), (512, 2), (6144, 1)):
    mesh = mesh_shape(run.mesh, devices, slices)
    data = resolve(run, mesh).data
    lane = lane_shape(data, cfg)
    lanes.add(lane)
    assert data.rows == data.lanes == row_groups(mesh) and data.rows * mesh.get('context', 1) == devices
    full = Sizes(dict.fromkeys(('data', 'fsdp', 'expert', 'tensor', 'context'), 1) | mesh)
    for rows in (data.rows, *(n * data.lanes for n in (lane.audio_rows, lane.visual_rows, lane.speech_rows))):
      assert not rows or math.prod(full.shape[axis] for axis in batch_axes(rows, full)) == data.rows
  assert len(lanes) == 1  # what fits in a lane does not depend on the pod


def per_device(**changes) -> Run:
  return read(Run, 's2_general', [f'data.{name}={value}' for name, value in changes.items()])


def test_sizes_that_are_not_per_device_stay():
  run = per_device(per_device='false', rows=6, lanes=3)
  assert resolve(run, {'fsdp': 4}) == run


def test_a_run_that_goes_on_keeps_its_sizes_on_other_devices():
  begun = to_data(resolve(per_device(), {'fsdp': 8}))
  again = resolve(per_device(), {'fsdp': 4}, begun).data
  assert (again.rows, again.lanes, again.per_device) == (8, 8, False)
  assert (again.audio_s, again.visual_patches) == (8 * 640, 8 * 16384)
  with pytest.raises(ValueError, match='begun with 8 rows a batch, which 16 groups of devices cannot share'):
    resolve(per_device(), {'fsdp': 2, 'expert': 8}, begun)


def test_held_out_data_are_sized_alike():
  run = read(Run, 's2_general', ['evaluate={data: {per_device: true, rows: 2, lanes: 1}}'])
  evaluate = resolve(run, {'data': 2, 'fsdp': 3, 'context': 2}).evaluate
  assert evaluate is not None and (evaluate.data.rows, evaluate.data.lanes) == (12, 6)
