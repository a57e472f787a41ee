"""Runs of a few steps: going on, falling back to an older checkpoint, and what is exported."""

import dataclasses
import json
import logging
import os
import pathlib
import shutil
import signal
import sys

import jax
import numpy as np
import pytest
from qwen3_omni_jax.eval.in_training import make_scorer
from qwen3_omni_jax.train import omni_task
from qwen3_omni_jax.train.adapter import write_adapter
from qwen3_omni_jax.train.config import Benchmarks, Evaluation, LoraPart, Optimiser, Recipe, Run, Saving, Step
from qwen3_omni_jax.train.config_file import read
from qwen3_omni_jax.train.data import DataConfig, SourceConfig
from qwen3_omni_jax.train.goodput import PHASES
from qwen3_omni_jax.train.run import train
from qwen3_omni_jax.train.state import assign_roles, flatten, merge_params

from qwen3_omni_jax.config_json import load_config
from qwen3_omni_jax.nn.lora import Lora
from qwen3_omni_jax.weights.load import load_params
from qwen3_omni_jax.weights.opened import open_checkpoint
from qwen3_omni_jax.weights.to_hf import convert_to_hf
from tests.eval.fixtures import nano
from tests.train.crash import data, json_lines, lines
from tests.train.records import write_records

pytestmark = [
  pytest.mark.filterwarnings('ignore'),  # Orbax warns that it runs outside a distributed job
  pytest.mark.quick_to_compile,
]


@pytest.fixture(scope='module')
def run(tiny_folder, tmp_path_factory) -> Run:
  """Six steps on every kind of record, the audio adapter and the last norm trained; checkpoints 4 and 6 are kept."""
  folder = tmp_path_factory.mktemp('run')
  records = write_records(folder / 'data', 16)
  settings = [
    f'model={tiny_folder}',
    f'out={folder / "calm"}',
    f'export={folder / "hf"}',
    'steps=6',
    'mesh=single',
    'save.every=2',
    'log={tensorboard: false, records: true, every: 1}',
    data(records),
    'parts=[{pattern: audio/proj, lr: 1e-3}, {pattern: thinker/norm, lr: 1e-2}]',
  ]
  configuration = read(Run, None, settings)
  how = Step(dtype='float32', remat='none', encoder_remat='none', ema=0.5)
  configuration = dataclasses.replace(configuration, step=how, optimiser=Optimiser(warmup=1))
  train(configuration)
  return configuration


def again(run: Run, tmp_path, damage, score=None, **others) -> tuple[dict, dict]:
  """(lines of the run, lines of a copy of it that was damaged and started again)"""
  out = tmp_path / 'again'
  shutil.copytree(run.out, out)
  damage(out / 'checkpoints')
  train(dataclasses.replace(run, out=str(out), export=None, **others), score=score)
  return lines(pathlib.Path(run.out)), lines(out)


def test_a_run_goes_on_as_if_it_had_not_been_stopped_nor_evaluated_nor_traced(run, samples, tmp_path, monkeypatch):
  compiled_step = omni_task.compiled_step

  def asked_for_a_trace(*args):
    step = compiled_step(*args)
    return lambda state, batch: os.kill(os.getpid(), signal.SIGUSR1) or step(state, batch)

  monkeypatch.setattr(omni_task, 'compiled_step', asked_for_a_trace)
  if 'libtpu' in sys.modules:  # tests of plans have loaded it: where no TPU is, a trace would then end the process
    write = lambda folder: (pathlib.Path(folder).mkdir(parents=True), (pathlib.Path(folder) / 'a.xplane.pb').touch())
    monkeypatch.setattr(jax.profiler, 'start_trace', write)
    monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: None)
  turns = [[{'role': 'user', 'content': f'{i}?'}, {'role': 'assistant', 'content': f'{i}!'}] for i in range(3)]
  (tmp_path / 'held-out.jsonl').write_text('\n'.join(json.dumps({'messages': messages}) for messages in turns))
  held_out = DataConfig((SourceConfig(str(tmp_path / 'held-out.jsonl')),), rows=1, length=64, buffer=2)
  damage = lambda checkpoints: shutil.rmtree(checkpoints / '6')
  nano(tmp_path, samples)
  asked = Benchmarks(('nano-speech', 'nano-pictures'), str(tmp_path), every=5, limit=1, max_new_tokens=2)
  scorer, models = make_scorer(asked), []
  score = lambda omni: models.append(omni) or scorer(omni)
  expected, got = again(run, tmp_path, damage, score, evaluate=Evaluation(held_out, every=5, batches=2, benchmarks=asked))
  assert sorted(expected) == [1, 2, 3, 4, 5, 6] and got == expected
  assert list((tmp_path / 'again/profile/process-0').rglob('*.xplane.pb'))
  evaluations = [line for line in json_lines(tmp_path / 'again/metrics.jsonl') if 'evaluation' in line]
  assert [line['step'] for line in evaluations] == [5, 6] and all(line['evaluation']['loss'] > 1 for line in evaluations)
  assert evaluations[0]['evaluation']['text'] == pytest.approx(evaluations[0]['evaluation']['loss'])
  scores = [line for line in json_lines(tmp_path / 'again/metrics.jsonl') if 'eval/nano-speech' in line]
  assert [line['step'] for line in scores] == [5, 6] and scores[0]['eval/nano-pictures'] == 0
  averaged = open_checkpoint(run.export).read('thinker.model.norm.weight')  # of step 6
  np.testing.assert_array_equal(averaged, models[1].params['thinker']['norm'])
  before, after = (json_lines(folder / 'metrics.jsonl') for folder in (pathlib.Path(run.out), tmp_path / 'again'))
  last = [line for line in after if 'loss' in line][-1]
  assert before[-1]['lost_steps'] == 0 and last['lost_steps'] == 2  # 5 and 6 were done again
  assert last['time/compile'] > before[-1]['time/compile'] > 0 and last['time/lost'] > 0 and last['time/evaluation'] > 0
  assert last['goodput'] == pytest.approx(last['time/step'] / sum(last[f'time/{phase}'] for phase in PHASES), rel=1e-2)


def test_a_complete_run_started_again_says_so_and_changes_nothing(run, capsys):
  before = {
    file: file.stat().st_mtime_ns for folder in (run.out, run.export) for file in pathlib.Path(folder).rglob('*.safetensors')
  }
  expected = lines(pathlib.Path(run.out))
  train(run)
  text = capsys.readouterr().err
  assert 'complete, 6 of 6 steps' in text and f'{run.export}: written already' in text
  assert lines(pathlib.Path(run.out)) == expected and before
  assert before == {file: file.stat().st_mtime_ns for file in before}


@pytest.mark.parametrize(
  ('setting', 'words'),
  [
    ('optimiser.schedule=cosin', 'one of cosine, linear, constant'),
    ('optimiser.name=adam', 'one of adamw, adafactor, muon'),
    ('step.remat=ful', 'one of none, full, attention, experts, dots, offload'),
    ('step.dtype=float16', 'one of float32, bfloat16'),
    ('init=nothing', 'one of model, random'),
  ],
)
def test_a_word_that_is_not_an_option_is_refused_when_it_is_read(setting, words):
  with pytest.raises(ValueError, match=words):
    read(Run, None, ['model=m', 'out=o', setting])


def test_what_would_fail_at_the_end_fails_before_the_first_step(run, tmp_path):
  """An export folder with other files in it, and held-out data that are not there."""
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'notes.txt').write_text('mine')
  new = dataclasses.replace(run, out=str(tmp_path / 'new'), export=None)
  with pytest.raises(ValueError, match='full: not empty'):
    train(dataclasses.replace(new, export=str(tmp_path / 'full')))
  held_out = DataConfig((SourceConfig(str(tmp_path / 'missing.jsonl')),), rows=1, length=64, buffer=2)
  with pytest.raises(ValueError, match='missing.jsonl'):
    train(dataclasses.replace(new, evaluate=Evaluation(held_out, every=100)))
  assert not list((tmp_path / 'new' / 'checkpoints').glob('[0-9]*'))


def test_benchmarks_that_cannot_be_scored_are_refused_before_weights_are_read(run, samples, tmp_path, monkeypatch):
  held_out = DataConfig((SourceConfig(str(tmp_path / 'missing.jsonl')),), rows=1, length=64, buffer=2)
  asked = lambda *names, **others: Benchmarks(names, str(tmp_path), **others)
  evaluated = lambda benchmarks: dataclasses.replace(run, model='nowhere', evaluate=Evaluation(held_out, benchmarks=benchmarks))
  with pytest.raises(ValueError, match='needs train'):
    train(evaluated(asked('nano-speech')))
  for wrong in (asked(), asked('nano-speech', limit=0), asked('nano-speech', every=0)):
    with pytest.raises(ValueError, match='evaluate.benchmarks.*at least'):
      train(evaluated(wrong), score=lambda _: {})
  with monkeypatch.context() as several, pytest.raises(ValueError, match='for one process, found 2'):
    several.setattr(jax, 'process_count', lambda: 2)
    train(evaluated(asked('nano-speech')), score=lambda _: {})
  with pytest.raises(ValueError, match='evaluate.every 0'):
    train(dataclasses.replace(run, evaluate=Evaluation(held_out, every=0)))
  with pytest.raises(ValueError, match='benchmark nano-speach: expected one of'):
    make_scorer(asked('nano-speach'))
  with pytest.raises(ValueError, match='seed-tts-en is spoken'):
    make_scorer(asked('seed-tts-en'))
  with pytest.raises(ValueError, match='speech_held_out.jsonl'):
    make_scorer(asked('nano-speech'))
  nano(tmp_path, samples)
  next((tmp_path / 'nano-data' / 'speech').iterdir()).unlink()
  with pytest.raises(ValueError, match='2 items lack media'):
    make_scorer(asked('nano-speech'))


@pytest.mark.usefixtures('failed_reads')
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(run, tmp_path, caplog):
  def cut(checkpoints):
    for file in (checkpoints / '6' / 'state').rglob('*'):
      if file.is_file() and file.stat().st_size > 100:
        file.write_bytes(file.read_bytes()[:50])

  with caplog.at_level(logging.WARNING):
    expected, got = again(run, tmp_path, cut)
  assert got == expected
  assert 'checkpoints/6 is damaged' in caplog.text and 'falling back' in caplog.text
  assert (tmp_path / 'again/checkpoints/damaged-6').is_dir() and (tmp_path / 'again/checkpoints/6').is_dir()


def test_a_run_goes_back_when_step_after_step_is_skipped_and_ends_when_that_does_not_help(run, tmp_path):
  """Every norm is a spike to this one. The data go on, and no step is there twice."""
  out = tmp_path / 'again'
  shutil.copytree(run.out, out)
  spiky = dataclasses.replace(run.step, spike=1e-6)
  run = dataclasses.replace(run, out=str(out), export=None, steps=24, step=spiky, save=Saving(every=2, rollback=2))
  with pytest.raises(RuntimeError, match=r'went back 3 times \(to step 6\)'):
    train(run)
  logged = json_lines(out / 'metrics.jsonl')
  assert [line['rollback']['to'] for line in logged if 'rollback' in line] == [6, 6, 6]
  steps = [line for line in logged if 'loss' in line]
  assert [line['step'] for line in steps] == list(range(1, len(steps) + 1)) and len(steps) > 12
  assert not any(a['ids'] == b['ids'] for a, b in zip(steps, steps[1:], strict=False))
  assert not {path.name for path in (out / 'checkpoints').glob('[0-9]*')} - {'4', '6'}  # nothing is saved in between


def test_the_export_holds_what_was_trained_and_all_the_rest_as_it_was(run):
  before, after = open_checkpoint(run.model), open_checkpoint(run.export)
  assert set(before.names()) == set(after.names())
  changed = {name for name in before.names() if not np.array_equal(before.read(name), after.read(name))}
  assert changed == {
    'thinker.model.norm.weight',
    *(f'thinker.audio_tower.{layer}.{kind}' for layer in ('proj1', 'proj2') for kind in ('weight', 'bias')),
  }


def test_the_export_holds_the_averages_and_the_raw_weights_on_request(run, tmp_path):
  state = train(dataclasses.replace(run, export=str(tmp_path / 'raw'), export_weights='raw'))
  averaged, raw = (open_checkpoint(folder).read('thinker.model.norm.weight') for folder in (run.export, tmp_path / 'raw'))
  np.testing.assert_array_equal(averaged, state.ema['thinker/norm'])
  np.testing.assert_array_equal(raw, state.trainable['thinker/norm'])
  assert np.abs(averaged - raw).max() > 1e-4
  kept = 'thinker.model.layers.0.input_layernorm.weight'  # of a part that was trained elsewhere
  np.testing.assert_array_equal(open_checkpoint(run.export).read(kept), open_checkpoint(run.model).read(kept))


def test_an_adapter_merges_to_what_was_trained_with(tiny_folder, tmp_path):
  cfg = load_config(tiny_folder)
  patterns = (
    'thinker/layers/(attn/[qo]|moe/experts/down)$',
    'vision/layers/(attn/qkv|mlp/up)',
    'audio/(conv_out|layers/attn/v)',
    'thinker/head',
  )
  recipe = Recipe(lora=tuple(LoraPart(pattern, 2 + i, 3.0) for i, pattern in enumerate(patterns)))
  roles = assign_roles(cfg, recipe)
  rng = np.random.default_rng(0)
  trainable = {path: rng.standard_normal(param.shape, dtype=np.float32) for path, param in roles.trainable_specs.items()}
  write_adapter(tmp_path / 'adapter', cfg, roles.lora, trainable)
  convert_to_hf(tiny_folder, tmp_path / 'merged', adapter=tmp_path / 'adapter')
  parts = ('audio', 'vision', 'thinker')
  merged = flatten(load_params(tmp_path / 'merged', cfg, parts=parts))
  tree = merge_params(trainable, flatten(load_params(tiny_folder, cfg, dtype='float32', parts=parts)), roles)
  assert sum(isinstance(leaf, Lora) for leaf in flatten(tree).values()) == len(roles.lora) == 8
  for path, leaf in flatten(tree).items():
    ours = np.asarray(jax.numpy.asarray(leaf.astype(np.float32)).astype(merged[path].dtype))
    bound = 2**-7 * np.abs(ours.astype(np.float32)).max()  # merged in another order, then rounded to bfloat16
    assert np.abs(ours.astype(np.float32) - merged[path].astype(np.float32)).max() <= bound, path
