"""Crops of recordings: true context, the same ones for any number of processes, and again after a stop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from qwen3_omni_jax.train.config import DataConfig, SourceConfig
from qwen3_omni_jax.train.state import flatten, unflatten
from qwen3_omni_jax.train.vocoder.crops import CropLoader, Recordings
from qwen3_omni_jax.train.vocoder.task import first_value

from qwen3_omni_jax.config import Code2WavConfig
from qwen3_omni_jax.models.code2wav import code2wav_spec, decode_frames, init_state
from qwen3_omni_jax.nn.params import init_params
from tests.train.vocoder_run import write_tones

pytestmark = pytest.mark.quick_to_compile
FRAME = 1920


@pytest.fixture(scope='module')
def recordings(tmp_path_factory) -> tuple[DataConfig, Recordings]:
  folder = write_tones(tmp_path_factory.mktemp('waves'))
  data = DataConfig((SourceConfig(f'{folder}/*.wav'),), rows=4, seed=5)
  return data, Recordings(data, FRAME, 1)


def batches(recordings, number=3, **more):
  data, found = recordings
  loader = CropLoader(data, found, 3, 2, **more)
  return [next(loader)[0] for _ in range(number)], loader


def test_processes_together_have_the_rows_of_one_and_a_position_goes_on(recordings):
  whole, loader = batches(recordings)
  halves = [batches(recordings, shard=i, shards=2)[0] for i in range(2)]
  for i, batch in enumerate(whole):
    np.testing.assert_array_equal(batch.wave, np.concatenate([half[i].wave for half in halves]))
    np.testing.assert_array_equal(batch.begin, np.concatenate([half[i].begin for half in halves]))
  assert len({batch.wave.tobytes() for batch in whole}) == 3
  (later,), _ = batches(recordings, 1, position=loader.get_state() | {'step': 2})
  np.testing.assert_array_equal(later.wave, whole[2].wave)


def test_before_a_crop_stands_what_the_recording_has_there(recordings):
  data, found = recordings
  waves = [np.pad(found.wave(i), (0, 9 * FRAME)) for i in range(4)]
  seen = set()
  for batch in batches(recordings, 20)[0]:
    for row, begin in zip(batch.wave, batch.begin, strict=True):
      places = [(i, f) for i, w in enumerate(waves) for f in range(13) if np.array_equal(w[f * FRAME :][: len(row)], row)]
      assert len(places) == 1, 'one piece of one recording'
      assert begin == 2 or places[0][1] == 0, 'less context only at the beginning'
      seen.add((int(begin), places[0][0]))
  assert {begin for begin, _ in seen} == {0, 1, 2} and {i for _, i in seen} == {0, 1, 2, 3}


def test_a_crop_with_its_context_sounds_as_it_does_in_the_whole():
  cfg = Code2WavConfig(
    codebook_size=8,
    num_quantizers=2,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    sliding_window=3,
    decoder_dim=16,
  )
  random = flatten({'code2wav': init_params(code2wav_spec(cfg), jax.random.key(0))})
  params = unflatten({path: first_value(path, p) for path, p in random.items()})['code2wav']
  frames = jax.random.normal(jax.random.key(1), (1, 20, 8))
  decode = jax.jit(lambda x: decode_frames(params, cfg, x, init_state(cfg, 1))[0])
  whole, at, context = decode(frames), 17, 14  # frames: 4 of two layers of attention, 9.2 of the convolutions
  part = decode(frames[:, at - context :])
  np.testing.assert_allclose(part[:, context * FRAME :], whole[:, at * FRAME :], atol=1e-5 * float(jnp.abs(whole).max()))
  short = decode(frames[:, at - 2 :])
  assert np.abs(short[:, 2 * FRAME :] - whole[:, at * FRAME :]).max() > 1e-4 * float(jnp.abs(whole).max()), (
    'less context does not do'
  )


def test_recordings_that_are_too_short_are_left_out_and_none_is_an_error(recordings):
  data, found = recordings
  assert found.frames.tolist() == [3, 6, 8, 11]
  assert len(Recordings(data, FRAME, 6).files) == 3
  with pytest.raises(ValueError, match='no recording has 12 frames'):
    Recordings(data, FRAME, 12)
