"""A run whose model, checkpoints and metrics are in a bucket: trained, stopped, continued, exported."""

import dataclasses
import os
import pathlib
import signal

import fsspec
import numpy as np
import pytest
from orbax.checkpoint._src.path import gcs_utils
from qwen3_omni_jax.train import metrics as metrics_module
from qwen3_omni_jax.train.config import Optimiser, Run, Step
from qwen3_omni_jax.train.config_file import read
from qwen3_omni_jax.train.run import PREEMPTED, train

from qwen3_omni_jax.weights import to_hf
from qwen3_omni_jax.weights.opened import open_checkpoint
from tests.train.crash import data, lines
from tests.train.fake_bucket import FakeGcs, serve
from tests.train.records import write_records

pytestmark = [pytest.mark.filterwarnings('ignore'), pytest.mark.quick_to_compile]


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """The folder behind gs://bucket."""
  (tmp_path / 'objects' / 'bucket').mkdir(parents=True)
  monkeypatch.setattr(FakeGcs, 'root', str(tmp_path / 'objects'))
  for name in ('gcs', 'gs'):
    fsspec.register_implementation(name, FakeGcs, clobber=True)
  monkeypatch.setattr(gcs_utils, 'is_hierarchical_namespace_enabled', lambda _: False)  # asks google.cloud.storage
  with serve(tmp_path / 'objects') as url:
    monkeypatch.setenv('TENSORSTORE_GCS_HTTP_URL', url)
    monkeypatch.setenv('GCE_METADATA_ROOT', '127.0.0.1:1')  # no credentials to be found
    yield tmp_path / 'objects' / 'bucket'
  FakeGcs.clear_instance_cache()


def test_a_run_in_a_bucket_is_stopped_continued_and_exported(bucket, tiny_folder, tmp_path, monkeypatch, capsys):
  records = write_records(tmp_path / 'data', 16)
  settings = [
    f'model={tiny_folder}',
    'out=gs://bucket/run',
    f'export={tmp_path / "hf"}',
    'steps=4',
    'mesh=single',
    'save.every=2',
    'save.keep=1',
    'log={tensorboard: false, records: true, every: 1}',
    data(records),
    'parts=[{pattern: audio/proj, lr: 1e-3}, {pattern: thinker/norm, lr: 1e-2}]',
  ]
  run = read(Run, None, settings)
  how = Step(dtype='float32', remat='none', encoder_remat='none', ema=0.5)
  run = dataclasses.replace(run, step=how, optimiser=Optimiser(warmup=1))
  real = metrics_module.Metrics.step

  def stop(self, step, *rest):
    real(self, step, *rest)
    if step == 3:
      os.kill(os.getpid(), signal.SIGTERM)

  monkeypatch.setattr(metrics_module.Metrics, 'step', stop)
  with pytest.raises(SystemExit) as ended:
    train(run)
  assert ended.value.code == PREEMPTED
  monkeypatch.setattr(metrics_module.Metrics, 'step', real)
  made, exported = [], to_hf.convert_to_hf
  monkeypatch.setattr(to_hf, 'convert_to_hf', lambda source, *rest, **how: made.append(source) or exported(source, *rest, **how))
  state = train(run)
  assert made == ['gs://bucket/run/checkpoints/4']
  assert 'going on after step 3' in capsys.readouterr().err
  assert sorted(lines(bucket / 'run')) == [1, 2, 3, 4] and (bucket / 'run/config.yaml').is_file()
  arrays = {file.relative_to(bucket / 'run/checkpoints').parts[0] for file in bucket.rglob('manifest.ocdbt')}
  assert arrays == {'4'}  # the others were removed
  np.testing.assert_array_equal(open_checkpoint(tmp_path / 'hf').read('thinker.model.norm.weight'), state.ema['thinker/norm'])
  assert not list(pathlib.Path.cwd().glob('gs:*'))


def test_other_buckets_are_refused_before_anything_is_done():
  run = read(Run, None, ['model=gs://bucket/model', 'out=s3://bucket/run', 'export=hf'])
  with pytest.raises(ValueError, match=r's3://bucket/run: Orbax writes .* gs://.*; export: needs model on a local disk'):
    run.check()
