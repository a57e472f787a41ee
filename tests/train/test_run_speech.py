"""Runs that train the Talker: a new voice, going on, and what is exported."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
import soundfile
from qwen3_omni_jax.eval.in_training import make_speaker
from qwen3_omni_jax.train.config import Evaluation, LoraPart, Optimiser, Part, Run, Saving, Speaker, Speech, SpokenTexts, Step
from qwen3_omni_jax.train.data import DataConfig, SourceConfig
from qwen3_omni_jax.train.run import train

from qwen3_omni_jax import Omni
from qwen3_omni_jax.weights.opened import open_checkpoint
from tests.train.crash import json_lines, lines
from tests.train.records import write_speech_records

pytestmark = [
  pytest.mark.filterwarnings('ignore'),  # Orbax warns that it runs outside a distributed job
  pytest.mark.quick_to_compile,
]
TABLE = 'talker.model.codec_embedding.weight'
ROW = 512  # the first id after those of the three speakers that there are


def data_of(folder: pathlib.Path, speakers: tuple[str, ...]) -> DataConfig:
  spoken, read, codes = write_speech_records(folder, 12, speakers=speakers)
  sources = (
    SourceConfig(str(spoken), 'dialogue', codes=str(codes)),
    SourceConfig(str(read), 'read', form='speech', codes=str(codes)),
  )
  return DataConfig(sources, rows=2, length=256, audio_s=16, speech_rows=2, speech_length=192, buffer=4, threads=1)


@pytest.fixture(scope='module')
def run(tiny_folder, tmp_path_factory) -> Run:
  """A new voice like Ethan's, in bfloat16 weights; its row alone is trained, with decay. Checkpoints after steps 2 and 4."""
  folder = tmp_path_factory.mktemp('run')
  configuration = Run(
    model=str(tiny_folder),
    out=str(folder / 'calm'),
    export=str(folder / 'hf'),
    mesh='single',
    steps=4,
    parts=(Part('talker/embed', 0.3, 0.5, rows='speakers'),),
    optimiser=Optimiser(warmup=1),
    step=Step(dtype='float32', remat='none', encoder_remat='none'),
    speech=Speech(frames=0.05),
    speakers=(Speaker('Maria', like='ethan'),),
    data=data_of(folder / 'data', ('maria',)),
    save=Saving(every=2),
    log=dataclasses.replace(Run().log, tensorboard=False, records=True, every=1),
  )
  train(configuration)
  return configuration


def test_a_new_voice_changes_its_own_row_and_nothing_else_by_a_bit(run):
  before, after = open_checkpoint(run.model), open_checkpoint(run.export)
  assert after.names() == before.names()
  wide = lambda opened, name: np.asarray(opened.read(name), np.float32)
  changed = [name for name in before.names() if not np.array_equal(wide(before, name), wide(after, name))]
  assert changed == [TABLE]
  old, new = wide(before, TABLE), wide(after, TABLE)
  assert list(np.flatnonzero((old != new).any(axis=1))) == [ROW]
  moved = np.abs(new[ROW] - old[510])  # from Ethan's row, by four steps of Adam and of decay
  assert 0.2 < moved.max() < 4, moved
  assert json.loads((pathlib.Path(run.export) / 'config.json').read_text())['talker_config']['speaker_id']['maria'] == ROW


def test_the_new_voice_speaks(run):
  omni = Omni.load(run.export, dtype='float32')
  one, other = (omni.speak('the quick brown fox', name, talker_temperature=0, max_frames=8).codes for name in ('Maria', 'ethan'))
  assert not np.array_equal(one, other)
  with pytest.raises(ValueError, match="'tom' is not one of this checkpoint's: aiden, chelsie, ethan, maria"):
    omni.speak('the fox', 'tom')


def test_a_speech_run_goes_on_as_if_it_had_neither_been_stopped_nor_spoken(run, tmp_path):
  """Its choice of frames too. It speaks after steps 3 and 4: wave files, sounds for TensorBoard, and what was measured."""
  shutil.copytree(run.out, tmp_path / 'again')
  shutil.rmtree(tmp_path / 'again/checkpoints/4')
  spoken = SpokenTexts(('The fox.', 'It jumps!'), 'Maria', every=3, max_frames=5, max_new_tokens=2)
  evaluation = Evaluation(dataclasses.replace(run.data, shuffle=False), every=9, batches=1, speech=spoken)
  again = dataclasses.replace(run, out=str(tmp_path / 'again'), export=None, evaluate=evaluation)
  again = dataclasses.replace(again, log=dataclasses.replace(run.log, tensorboard=True))
  train(again, speak=make_speaker(spoken))
  logged = [line for line in json_lines(tmp_path / 'again/metrics.jsonl') if 'samples/wer' in line]
  assert [(line['step'], line['samples/runaways']) for line in logged] == [(3, 100), (4, 100)]
  folder = tmp_path / 'again/samples/000004'
  assert [line['text'] for line in json_lines(folder / 'heard.jsonl')] == list(spoken.texts)
  before = [(folder.parent / step / '0.wav').read_bytes() for step in ('000003', '000004')]
  assert soundfile.info(folder / '1.wav').duration == pytest.approx(0.4, abs=0.03) and before[0] != before[1]
  events = b''.join(file.read_bytes() for file in (tmp_path / 'again/tensorboard').iterdir())
  assert events.count(b'samples/1') == 2 and events.count(b'audio/wav') == 4
  expected = lines(pathlib.Path(run.out))
  assert sorted(expected) == [1, 2, 3, 4] and lines(tmp_path / 'again') == expected
  last = [line for line in json_lines(tmp_path / 'again/metrics.jsonl') if 'loss' in line][-1]
  assert last['speech/frames'] > 0 and last['frames_per_s'] > 0 and 0 < last['speech/end_elsewhere'] < 1
  assert last['source/dialogue/frames'] + last['source/read/frames'] == last['speech/frames']


def test_speech_that_cannot_be_is_refused_before_weights_are_read(run):
  evaluated = lambda **spoken: dataclasses.replace(run, evaluate=Evaluation(run.data, speech=SpokenTexts(**spoken)))
  with pytest.raises(ValueError, match='needs train'):
    train(evaluated(texts=('a',)))
  for wrong in ({'texts': ()}, {'texts': ('a', ' ')}, {'texts': ('a',), 'every': 0}, {'texts': ('a',), 'max_frames': 0}):
    with pytest.raises(ValueError, match='evaluate.speech'):
      train(evaluated(**wrong), speak=lambda omni: ([], {}))
  with pytest.raises(ValueError, match="'tom' is not one of"):
    train(evaluated(texts=('a',), speaker='tom'), speak=lambda omni: ([], {}))
  with pytest.raises(ValueError, match='for a run that trains the Talker'):
    train(dataclasses.replace(evaluated(texts=('a',)), speech=None, speakers=()), speak=lambda omni: ([], {}))


def test_a_run_keeps_the_speakers_that_it_was_begun_with(run):
  with pytest.raises(ValueError, match='a run keeps the speakers that it was begun with'):
    train(dataclasses.replace(run, steps=5, export=None, speakers=(Speaker('Maria'),)))


@pytest.mark.slow
def test_transformers_speaks_with_the_new_voice(run):
  import torch

  from tests.reference import Reference

  theirs, question = Reference.load(pathlib.Path(run.export)), [{'role': 'user', 'content': 'Sing one song.'}]
  seen, decode = [], theirs.model.code2wav.chunked_decode
  theirs.model.code2wav.chunked_decode = lambda codes, **kw: seen.append(codes.numpy()) or decode(codes, **kw)
  tokens, frames = 6, 24
  omni = Omni.load(run.export, dtype='float32')
  with torch.no_grad():
    theirs.model.generate(
      **theirs.inputs([question]),
      speaker='Maria',
      thinker_max_new_tokens=tokens,
      thinker_eos_token_id=omni.cfg.im_end_token_id,
      talker_do_sample=False,
      talker_max_new_tokens=frames + 1,
    )
  how = dict(max_new_tokens=tokens, talker_temperature=0, max_frames=frames, reference_exact=True)
  ours = omni.generate([question], speech=True, speaker='Maria', **how)[0].speech.codes
  np.testing.assert_array_equal(ours, seen[0][0].T[: len(ours)])
  assert len(ours) > 4


@pytest.mark.slow
def test_everything_at_once_is_trained_evaluated_and_exported(run, tmp_path):
  """Muon, LoRA, averages, microbatches, the Thinker's own loss, held-out speech. What is not trained is copied."""
  data = data_of(tmp_path / 'data', ('ethan', 'chelsie'))
  configuration = dataclasses.replace(
    run,
    out=str(tmp_path / 'run'),
    export=str(tmp_path / 'hf'),
    steps=2,
    parts=(Part('talker/text_projection', 1e-3), Part('code_predictor/', 1e-3), Part('thinker/norm', 1e-3)),
    lora=(LoraPart('talker/layers/attn/q$', 2, 4.0, 1e-2), LoraPart('code_predictor/layers/mlp/down$', 2, 4.0, 1e-2)),
    optimiser=Optimiser('muon', warmup=1),
    speech=Speech(text=0.5),
    speakers=(),
    data=data,
    evaluate=Evaluation(dataclasses.replace(data, shuffle=False), every=2, batches=1),
  )
  with pytest.raises(ValueError, match='both trained and adapted'):
    train(configuration)
  parts = (*configuration.parts[:1], Part('code_predictor/(embed|head|norm)', 1e-3), configuration.parts[2])
  train(dataclasses.replace(configuration, parts=parts, step=dataclasses.replace(run.step, accumulate=2, ema=0.5)))
  held_out = json_lines(tmp_path / 'run/metrics.jsonl')[-1]['evaluation']
  mean = held_out['speech/codes'] + 0.3 * held_out['speech/predictor'] + 0.5 * held_out['text']
  assert held_out['loss'] == pytest.approx(mean, rel=0.2) and held_out['speech/ends'] > 0
  before, after = open_checkpoint(run.model), open_checkpoint(tmp_path / 'hf')
  same = lambda name: np.array_equal(np.asarray(before.read(name), np.float32), np.asarray(after.read(name), np.float32))
  changed = {name for name in before.names() if not same(name)}
  part = 'talker.code_predictor.model.'
  assert {'talker.model.layers.0.self_attn.q_proj.weight', f'{part}layers.0.mlp.down_proj.weight'} < changed
  assert {f'{part}codec_embedding.0.weight', 'talker.text_projection.linear_fc1.weight', 'thinker.model.norm.weight'} < changed
  kept = ('thinker.model.layers', 'code2wav', 'talker.codec_head', 'talker.hidden_projection', 'thinker.visual', 'thinker.audio')
  assert not [name for name in changed if name.startswith(kept)]
