"""Runs that train a vocoder or a codec: going on after a kill, and what they leave."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from qwen3_omni_jax.train.config_file import to_data
from qwen3_omni_jax.train.run import train

from qwen3_omni_jax.config_json import load_config
from qwen3_omni_jax.models.code2wav import code2wav
from qwen3_omni_jax.models.codec_encoder import encode
from qwen3_omni_jax.weights.codec import load_codec
from qwen3_omni_jax.weights.load import load_params
from tests.train.vocoder_run import codec_run, write_tones

pytestmark = [
  pytest.mark.filterwarnings('ignore'),  # Orbax warns that it runs outside a distributed job
  pytest.mark.quick_to_compile,
]


@pytest.fixture(scope='module')
def finished(tiny_folder, tmp_path_factory):
  folder = tmp_path_factory.mktemp('codec')
  run = codec_run(tiny_folder, write_tones(folder / 'waves'), folder / 'run', f'export={folder / "hf"}')
  return run, train(run)


def logged(out: pathlib.Path) -> dict[int, dict]:
  times = ('_s', 'time/', 'goodput', 'lost_steps', 'step_s')
  lines = [json.loads(line) for line in (out / 'metrics.jsonl').read_text().splitlines()]
  return {line['step']: {k: v for k, v in line.items() if not any(t in k for t in times)} for line in lines}


def test_a_codec_that_was_killed_goes_on_to_the_same_bits(finished, tmp_path):
  run, state = finished
  out = tmp_path / 'again'
  shutil.copytree(run.out, out)
  shutil.rmtree(out / 'checkpoints/4')
  again = train(dataclasses.replace(run, out=str(out), export=None))
  assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), state, again))
  assert sorted(logged(out)) == [1, 2, 3, 4] and logged(out) == logged(pathlib.Path(run.out))
  assert all(np.isfinite(line['loss']) for line in logged(out).values())


def test_the_exported_codec_and_vocoder_are_those_that_were_trained(finished):
  run, state = finished
  params, cfg = load_codec(pathlib.Path(run.out) / 'codec')
  np.testing.assert_array_equal(params['conv_in']['kernel'], state.ema['codec/conv_in/kernel'])
  books = params['quantizer']['acoustic']['books']
  np.testing.assert_array_equal(books['embed_sum'], state.frozen['codec/quantizer/acoustic/books/embed_sum'])
  omni = load_config(run.export)
  vocoder = load_params(run.export, omni, parts=('code2wav',), dtype='float32')['code2wav']
  np.testing.assert_array_equal(vocoder['embed'], state.frozen['code2wav/embed'])
  np.testing.assert_array_equal(vocoder['conv_in']['kernel'], state.ema['code2wav/conv_in/kernel'])
  wave = np.random.default_rng(0).normal(size=(1, 5760)).astype(np.float32) * 0.1
  codes, frames = jax.jit(lambda wave: encode(params, cfg, wave))(wave)
  assert codes.shape == (1, 3, 16) and int(frames[0]) == 3
  assert code2wav(vocoder, omni.code2wav, codes).shape == (1, 3 * 1920 - 555)


def test_the_configuration_names_what_does_not_go_together(tiny_folder, tmp_path):
  run = codec_run(tiny_folder, tmp_path, tmp_path / 'out', 'vocoder.codec.config.hidden_size=48')
  with pytest.raises(ValueError, match='hidden_size 48, of code2wav_config 32'):
    train(run)
  without = dataclasses.replace(run, vocoder=dataclasses.replace(run.vocoder, codec=None))
  with pytest.raises(ValueError, match='without codes'):
    without.check()
  assert to_data(run)['vocoder']['codec']['config']['num_filters'] == 4
