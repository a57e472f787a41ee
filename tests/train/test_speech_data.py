"""The input pipeline with speech: exact restarts, the same batches in any number of processes, and codes that may not change."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from qwen3_omni_jax.train.config import Speaker
from qwen3_omni_jax.train.data import DataConfig, Loader, SourceConfig, merge_states
from qwen3_omni_jax.train.data_state import changes
from qwen3_omni_jax.train.geometry import lane_shape, resolve
from qwen3_omni_jax.train.speakers import with_speakers

from qwen3_omni_jax.media.processor import Processor
from tests.train.data_folder import write_jsonl
from tests.train.records import write_codes, write_speech_records
from tests.train.test_data import same, take
from tests.train.test_geometry import per_device


@pytest.fixture(scope='module')
def processor(tiny_folder):
  return Processor.from_folder(tiny_folder)


@pytest.fixture(scope='module')
def files(tmp_path_factory, processor):
  rate = 24_000 / processor.cfg.code2wav.samples_per_frame
  return write_speech_records(tmp_path_factory.mktemp('speech'), 24, rate=rate)


def config(files, **changes) -> DataConfig:
  """Conversations with answers and texts read aloud, by weights."""
  chat, aloud, codes = map(str, files)
  sources = (
    SourceConfig(path=chat, name='chat', weight=1.0, codes=codes, ignore=('id',)),
    SourceConfig(path=aloud, name='aloud', weight=1.0, codes=codes, form='speech'),
  )
  rooms = {'rows': 4, 'length': 128, 'lanes': 4, 'audio_s': 32, 'speech_rows': 4, 'speech_length': 128}
  return DataConfig(**{'sources': sources, 'buffer': 4, 'threads': 1, 'max_bad': 0} | rooms | changes)


def test_a_restore_at_every_step_equals_an_undisturbed_run(files, processor):
  cfg = config(files)
  loader, states, whole = Loader(cfg, processor), [], []
  for _ in range(3):
    states.append(json.loads(json.dumps(loader.get_state())))
    whole.append(next(loader))
  loader.close()
  for step, state in enumerate(states):
    ((batch, stats),) = take(Loader(cfg, processor, state=state), 1)
    assert same(batch, whole[step][0]) and stats['ids'] == whole[step][1]['ids'], f'after step {step}'
  for batch, stats in whole:
    assert stats['speech'] == np.count_nonzero(batch.speech.segment) > 0 < stats['speech_frames'] < stats['utterances'] * 13
    assert {'chat', 'aloud'} == {name for name, _ in stats['ids']} and (batch.speech.tap >= 0).any()


def test_any_number_of_processes_makes_the_same_rows_also_with_workers(files, processor):
  cfg = config(files)
  ((alone, _),) = take(Loader(cfg, processor), 1)
  parts, states = [], []
  for index in range(2):
    loader = Loader(dataclasses.replace(cfg, workers=1), processor, index, 2)
    parts.append(next(loader)[0])
    states.append(loader.get_state())
    loader.close()
  assert merge_states(states)['lanes'].keys() == {'0', '1', '2', '3'}
  for field in dataclasses.fields(alone.speech):
    whole, split = getattr(alone.speech, field.name), [getattr(part.speech, field.name) for part in parts]
    np.testing.assert_array_equal(np.concatenate(split, axis=int(field.name == 'positions')), whole, err_msg=field.name)


def test_a_weight_is_a_share_of_tokens_and_positions_of_speech_together(files, processor):
  found = take(Loader(config(files, lanes=1, rows=1, speech_rows=2), processor), 40)
  cost = [
    sum(
      (batch.source[batch.tokens.segment > 0] == i).sum() + (batch.speech.source[batch.speech.segment > 0] == i).sum()
      for batch, _ in found
    )
    for i in range(2)
  ]
  # Off by what waits and a record, each of at most some 100 tokens and positions; and texts read aloud have no tokens.
  assert abs(cost[0] - cost[1]) < 5 * 200 < 0.2 * sum(cost)
  assert all(stats['by_source']['aloud']['tokens'] == 0 < stats['by_source']['chat']['tokens'] for _, stats in found)


def test_other_codes_are_refused_unless_the_data_may_begin_anew(files, processor, tmp_path):
  chat, aloud, codes = write_speech_records(tmp_path / 'a', 8, rate=24_000 / processor.cfg.code2wav.samples_per_frame)
  cfg = config((chat, aloud, codes))
  loader = Loader(cfg, processor)
  next(loader)
  state = loader.get_state()
  loader.close()
  codes.rename(tmp_path / 'moved')
  cfg = config((chat, aloud, tmp_path / 'moved'))
  Loader(cfg, processor, state=state).close()
  shard = tmp_path / 'moved' / 'codes-00000-00001.safetensors'
  data = bytearray(shard.read_bytes())
  data[-2] ^= 1
  shard.write_bytes(data)
  with pytest.raises(ValueError, match=r'sources\[0\].codes was .*data.restart=true'):
    Loader(cfg, processor, state=state).close()
  Loader(dataclasses.replace(cfg, restart=True), processor, state=state).close()
  with pytest.raises(ValueError, match='speech_length was 128, is 100'):
    Loader(config(files, speech_length=100), processor, state=state).close()
  speaker = tuple(dataclasses.replace(source, speaker='aiden') for source in cfg.sources)
  with pytest.raises(ValueError, match=r"sources\[1\].speaker was '', is 'aiden'"):
    Loader(dataclasses.replace(cfg, sources=speaker), processor, state=state).close()


def test_a_state_of_before_there_was_speech_is_still_that_of_the_same_data(processor, tmp_path):
  path = write_jsonl(tmp_path / 'a.jsonl', [{'text': f'Text {i}.'} for i in range(9)])
  loader = Loader(DataConfig(sources=(SourceConfig(path=str(path), form='document'),), length=32), processor)
  loader.close()
  saved = json.dumps(loader.fingerprint)
  assert not [word for word in ('speech', 'codes', 'speaker') if word in saved]
  assert not changes({'version': 2, 'config': json.loads(saved)}, loader.fingerprint)


@pytest.mark.parametrize(
  'made, complaint',
  [
    ({'size': 2048}, 'codebook_size 2048, the checkpoint has 256'),
    ({'rate': 25.0}, 'frame_rate 25, the checkpoint has'),
    ({'codebooks': 8}, 'num_code_groups 8, the checkpoint has 16'),
  ],
)
def test_codes_of_another_codec_are_refused_before_anything_is_read(files, processor, tmp_path, made, complaint):
  made = {'rate': 24_000 / processor.cfg.code2wav.samples_per_frame, 'codebooks': 16, 'size': 256} | made
  codes = write_codes(tmp_path / 'codes', {'a': np.zeros((2, made['codebooks']), np.int16)}, made['size'], made['rate'])
  with pytest.raises(ValueError, match=complaint + '.*Make the codes with the codec of this checkpoint'):
    Loader(config((*files[:2], codes)), processor)


def test_rows_of_the_talker_are_shared_out_like_the_others(processor):
  shape = lane_shape(DataConfig(rows=4, lanes=2, speech_rows=6, speech_length=99), processor.cfg)
  assert (shape.speech_rows, shape.speech_length, shape.codebooks) == (3, 99, 16)
  silent = dataclasses.replace(processor.cfg, talker=None, code2wav=None)
  for changed, cfg, complaint in (
    ({'speech_rows': 3, 'lanes': 2, 'rows': 2}, processor.cfg, 'speech_rows 3: expected a multiple of lanes 2'),
    ({'speech_rows': -1}, processor.cfg, 'speech_rows -1: expected at least 0'),
    ({'speech_rows': 1, 'speech_length': 10}, processor.cfg, 'speech_length 10: expected at least 11'),
    ({'speech_rows': 1}, silent, 'speech_rows 1: this checkpoint has no Talker'),
  ):
    with pytest.raises(ValueError, match=complaint):
      lane_shape(DataConfig(**changed), cfg)
  assert lane_shape(DataConfig(speech_length=1), silent).speech_rows == 0
  run = per_device(speech_rows=2)
  assert resolve(run, {'fsdp': 8}).data.speech_rows == 16
  begun = {'data': {'rows': 8, 'lanes': 8, 'audio_s': 8, 'visual_patches': 16384, 'length': run.data.length}}  # of an older run
  assert resolve(run, {'fsdp': 4}, begun).data.speech_rows == 0


def test_new_speakers_may_speak(files, processor, tmp_path):
  chat = {'messages': [{'role': 'user', 'content': 'x'}, {'role': 'assistant', 'content': 'y', 'speaker': 'Bob'}]}
  chat['messages'][1]['codes'] = np.arange(32).reshape(2, 16).tolist()
  path = write_jsonl(tmp_path / 'a.jsonl', [chat])
  cfg = DataConfig(sources=(SourceConfig(path=str(path)),), length=64, speech_rows=1, speech_length=64, max_bad=0, epochs=1)
  with pytest.raises(ValueError, match="speaker 'Bob' is not one of"):
    take(Loader(cfg, processor))
  other = Processor(with_speakers(processor.cfg, (Speaker('bob'),)), processor.tokenizer, processor.template, processor.images)
  ((batch, _),) = take(Loader(cfg, other))
  assert other.cfg.talker is not None
  assert dict(other.cfg.talker.speaker_id)['bob'] in batch.speech.opening
  assert jax.tree.structure(batch.speech).num_leaves == 8
