"""What a run tells, and to whom."""

import json
import sys
import time
import types

import jax.numpy as jnp
import pytest
from qwen3_omni_jax.train.metrics import Metrics

STATS = [{'records': 2, 'tokens': 30, 'tokens_room': 40, 'flops': 1e9, 'bad': 1, 'ids': [('chat', 'a'), ('chat', 'b')]}]


def values(loss: float) -> dict:
  names = ('loss', 'grad_norm', 'rate', 'skipped', 'tokens', 'weight', 'weight/text', 'cross_entropy/text', 'weight/audio')
  return {name: jnp.float32(x) for name, x in zip(names, (loss, 1, 1, 0, 30, 20, 20, loss, 0), strict=True)}


def metrics(folder, **others) -> Metrics:
  return Metrics(folder, 3, **{'every': 1, 'tensorboard': False, 'wandb': None, 'records': True, **others})


@pytest.fixture
def wandb(monkeypatch):
  """A stand-in for Weights & Biases, which keeps what is logged."""
  service = types.ModuleType('wandb')
  service.logged, service.started, service.finished = [], [], []
  service.init = lambda **how: service.started.append(how) or service
  service.log = lambda scalars, step: service.logged.append((step, scalars))
  service.finish = lambda: service.finished.append(True)
  monkeypatch.setitem(sys.modules, 'wandb', service)
  return service


def test_weights_and_biases_receives_every_step_and_every_evaluation(tmp_path, wandb, capsys):
  log = metrics(tmp_path, wandb='project')
  for step in (1, 2):
    log.step(step, values(2.0 / step), STATS)
  log.evaluation(2, {'loss': 1.5, 'text': 1.5})
  log.close()
  metrics(tmp_path, wandb='project').close()
  first, again = wandb.started
  assert first == again and first['id'] and first['project'] == 'project' and wandb.finished == [True, True]
  assert [step for step, _ in wandb.logged] == [1, 2, 2] and wandb.logged[2][1] == {
    'evaluation/loss': 1.5,
    'evaluation/text': 1.5,
  }
  logged = wandb.logged[1][1]
  assert logged['loss'] == 1.0 and logged['padding'] == 0.25 and 'ids' not in logged and 'weight/audio' not in logged
  said = capsys.readouterr().err.splitlines()
  assert said[0].startswith('step 1/3  loss 2.0000') and 'bad records 1' in said[0]
  assert said[2].startswith('step 2  evaluation: loss 1.5000')


def test_without_weights_and_biases_the_error_says_what_to_do(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  with pytest.raises(ValueError, match='pip install wandb, or leave it out'):
    metrics(tmp_path, wandb='project')


def test_lines_of_steps_done_again_and_half_lines_are_forgotten(tmp_path):
  line = lambda step, **more: json.dumps({'step': step, **more}) + '\n'
  file, other = tmp_path / 'metrics.jsonl', tmp_path / 'records-1.jsonl'
  file.write_text(line(1) + line(2) + line(2, evaluation={}) + line(3) + '{"step": 4, "lo')
  other.write_text(line(1, ids=[]) + line(3, ids=[]))
  log = metrics(tmp_path)
  log.resume(2)
  log.step(3, values(0.5), STATS)
  log.close()
  steps = [json.loads(text) for text in file.read_text().splitlines()]
  assert [step['step'] for step in steps] == [1, 2, 2, 3] and steps[-1]['ids'] == [['chat', 'a'], ['chat', 'b']]
  assert [json.loads(text)['step'] for text in other.read_text().splitlines()] == [1]


def test_lost_pairs_are_told_at_every_step_from_a_share_on(tmp_path, capsys):
  log = metrics(tmp_path, every=100)
  for step, share in ((1, 9e-4), (2, 2e-3)):
    log.step(step, values(1.0) | {'lost_share': jnp.float32(share)}, STATS)
  log.close()
  (warning,) = capsys.readouterr().err.splitlines()
  assert warning.startswith('WARNING step 2: 0.20% of the pairs of token and expert found no room; raise step.buffer')


def test_a_killed_run_has_told_what_it_did_up_to_its_last_line_on_the_terminal(tmp_path):
  killed = metrics(tmp_path)
  killed.resume(0)
  for step in (1, 2, 3):  # the third is not known to be done
    killed.step(step, values(1.0), STATS)
  again = metrics(tmp_path)
  again.resume(0)
  for step in (1, 2):
    again.step(step, values(1.0), STATS)
  again.close()
  assert [json.loads(text)['lost_steps'] for text in (tmp_path / 'metrics.jsonl').read_text().splitlines()] == [2, 2]


def test_speed_is_that_of_steps_without_what_lies_between_them(tmp_path):
  log = metrics(tmp_path)
  log.step(1, values(1.0), STATS)
  log.flush()
  time.sleep(0.5)
  log.time.spent('evaluation')
  log.step(2, values(1.0), STATS)
  time.sleep(0.2)
  log.close()
  line = json.loads((tmp_path / 'metrics.jsonl').read_text().splitlines()[1])
  assert line['evaluation_s'] > 0.49 and 0.19 < line['step_s'] < 0.5
  assert line['tokens_per_s'] == pytest.approx(30 / line['step_s'])
