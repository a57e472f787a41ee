"""Sizes of a batch that follow the devices: a configuration in numbers per device fits 8 chips and 6,144."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from qwen3_omni_jax.config import OmniConfig
from qwen3_omni_jax.media.processor import MEDIA
from qwen3_omni_jax.sharding import BATCH_AXES

from .config import DataConfig, Run
from .room import LaneShape
from .utterances import OPENING

SIZES = (
  'rows',
  'lanes',
  'audio_s',
  'visual_patches',
  'speech_rows',
)  # of DataConfig, that are numbers per device with `per_device`


def row_groups(mesh: Mapping[str, int]) -> int:
  """Devices, or groups of devices along `context` and `tensor`, that can have rows of their own. mesh: size of each axis."""
  groups = 1
  for axis in BATCH_AXES:
    groups *= mesh.get(axis, 1)
  return groups


def resolve(run: Run, mesh: Mapping[str, int], begun: Mapping[str, Any] | None = None) -> Run:
  """The run with its data's sizes for all devices.

  begun: plain data of the configuration that the run was begun with, if it goes on: its sizes stay, so that a run that goes on
  with another number of devices reads the same batches. Raises ValueError if a batch cannot be shared out over the mesh.
  """
  groups = row_groups(mesh)
  data = _resolved(run.data, groups, begun and begun.get('data'), 'data')
  if run.evaluate is None:
    return dataclasses.replace(run, data=data)
  before = begun and (begun.get('evaluate') or {}).get('data')
  held_out = _resolved(run.evaluate.data, groups, before, 'evaluate.data')
  return dataclasses.replace(run, data=data, evaluate=dataclasses.replace(run.evaluate, data=held_out))


def _resolved(data: DataConfig, groups: int, begun: Mapping[str, Any] | None, name: str) -> DataConfig:
  if not data.per_device:
    return data
  sizes = {field: getattr(data, field) * groups for field in SIZES}
  if begun and not begun.get('per_device', False) and begun.get('length') == data.length:
    sizes = {field: begun.get(field, 0) for field in SIZES}  # speech_rows: not in runs of before there were any
    if sizes['rows'] % groups:
      raise ValueError(
        f'{name}: the run was begun with {sizes["rows"]} rows a batch, which {groups} groups of devices cannot share out evenly; '
        'choose a mesh whose axes data, fsdp and expert divide them, or begin a new run (out=…)'
      )
  return dataclasses.replace(data, per_device=False, **sizes)


def lane_shape(data: DataConfig, cfg: OmniConfig) -> LaneShape:
  """Room in one lane. Raises ValueError listing what does not go together."""
  block = cfg.thinker.vision.spatial_merge_size**2
  chunks = cfg.thinker.audio.chunks_per_window
  audio_rows, visual_rows = -(-data.audio_s // chunks), -(-data.visual_patches // max(data.visual_row, 1))
  lowest = dict.fromkeys(('rows', 'lanes', 'buffer', 'threads', 'prefetch_batches'), 1)
  lowest |= {'length': 2, 'visual_row': block} | dict.fromkeys(('audio_s', 'visual_patches', 'workers', 'max_bad'), 0)
  talker = cfg.talker
  lowest |= {'speech_rows': 0} | ({'speech_length': OPENING + 2} if data.speech_rows > 0 else {})
  if data.per_device:
    raise ValueError('data: sizes are per device (per_device); train.geometry.resolve makes them those of a batch')
  problems = [
    f'{name} {getattr(data, name)}: expected at least {low}' for name, low in lowest.items() if getattr(data, name) < low
  ]
  if data.media not in MEDIA:
    problems.append(f'media {data.media!r}: expected {" or ".join(MEDIA)}')
  if data.visual_row % block:
    problems.append(f'visual_row {data.visual_row}: expected a multiple of {block}')
  if data.lanes > 0 and data.rows % data.lanes:
    problems.append(f'rows {data.rows}: expected a multiple of lanes {data.lanes}')
  lanes = max(data.lanes, 1)
  for name, number, unit in (
    ('audio_s', audio_rows, f'{chunks} s'),
    ('visual_patches', visual_rows, f'visual_row {data.visual_row}'),
  ):
    if number % lanes:
      problems.append(f'{name} {getattr(data, name)} makes {number} encoder rows of {unit}: expected a multiple of lanes {lanes}')
  if data.speech_rows % lanes:
    problems.append(f'speech_rows {data.speech_rows}: expected a multiple of lanes {lanes}')
  if data.speech_rows and talker is None:
    problems.append(f'speech_rows {data.speech_rows}: this checkpoint has no Talker (Thinking and Captioner variants write only)')
  if problems:
    raise ValueError('data: ' + '; '.join(problems))
  media = (audio_rows // lanes, chunks, visual_rows // lanes, data.visual_row)
  if talker is None or not data.speech_rows:
    return LaneShape(data.rows // lanes, data.length, *media)
  return LaneShape(data.rows // lanes, data.length, *media, data.speech_rows // lanes, data.speech_length, talker.num_code_groups)
