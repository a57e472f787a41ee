"""Speech codecs from and to disk: MimiModel's layout, and the tokenizer's that holds one behind a prefix."""

import json
from typing import Any

import numpy as np
import pytest
import safetensors.numpy as st
import torch
import transformers

from qwen3_omni_jax.codec_config import parse_codec_config
from qwen3_omni_jax.models.codec_encoder import codec_spec
from qwen3_omni_jax.nn.params import leaves
from qwen3_omni_jax.weights.codec import fingerprint, load_codec, save_codec
from qwen3_omni_jax.weights.table import export
from tests.models.codec_reference import OTHER_RATES, saved_codec

UNUSED = ('decoder.', 'decoder_transformer.', 'upsample.')
RELEASED_TOKENIZER = {  # as found in public code: speech_tokenizer/config.json of Qwen3-TTS-12Hz
  'architectures': ['Qwen3TTSTokenizerV2Model'],
  'model_type': 'qwen3_tts_tokenizer_12hz',
  'encoder_valid_num_quantizers': 16,
  'input_sample_rate': 24000,
  'output_sample_rate': 24000,
  'decode_upsample_rate': 1920,
  'encode_downsample_rate': 1920,
  'decoder_config': {'codebook_dim': 512},
  'encoder_config': {'_frame_rate': 12.5, 'codebook_dim': 256, 'num_quantizers': 32, 'head_dim': 64, 'rope_theta': 10000},
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('codec') / 'mimi'
  saved_codec(folder, OTHER_RATES, seed=0)
  return folder


@pytest.fixture(scope='module')
def tokenizer(folder, tmp_path_factory):
  """The same encoder as a 12 Hz tokenizer has it, beside tensors of another decoder."""
  to = tmp_path_factory.mktemp('codec') / 'tokenizer'
  to.mkdir()
  tensors = {f'encoder.{k}': v for k, v in on_disk(folder).items() if not k.startswith(UNUSED)}
  st.save_file({**tensors, 'decoder.pre_transformer.norm.weight': np.ones(3, np.float32)}, to / 'model.safetensors')
  config = {**RELEASED_TOKENIZER, 'encoder_valid_num_quantizers': 3}
  config['encoder_config'] = json.loads((folder / 'config.json').read_text())
  (to / 'config.json').write_text(json.dumps(config))
  return to


def on_disk(folder) -> dict[str, np.ndarray]:
  return st.load_file(folder / 'model.safetensors')


def test_what_is_loaded_goes_back_byte_for_byte(folder, tokenizer):
  for place, prefix in ((folder, ''), (tokenizer, 'encoder.')):
    params, cfg = load_codec(place)
    theirs = on_disk(place)
    ours = dict(export({'codec': params}, cfg))
    for name, array in ours.items():
      assert array.dtype == theirs[name].dtype and array.tobytes() == theirs[name].tobytes(), name
    left = {name.removeprefix(prefix) for name in theirs if name not in ours}
    assert all(name.startswith(UNUSED) or name.endswith('.initialized') for name in left)
  assert any(name.startswith('upsample.') for name in on_disk(folder))


def test_what_is_not_used_is_said(folder, tokenizer, capsys):
  load_codec(folder)
  said = capsys.readouterr().err
  assert (
    "4 of the codec's own decoder" in said and 'decoder_transformer.*: 36 tensors' in said and 'upsample.*: 1 tensors' in said
  )
  load_codec(tokenizer)
  assert 'decoder.*: 1 tensors' in capsys.readouterr().err


def test_both_layouts_hold_the_same_codec(folder, tokenizer):
  (ours, cfg), (theirs, other) = load_codec(folder), load_codec(tokenizer)
  assert (cfg.num_code_groups, other.num_code_groups) == (4, 3)
  np.testing.assert_equal(ours, theirs)
  assert fingerprint(ours, cfg) == fingerprint(theirs, other)
  theirs['conv_in']['bias'][0] += 1e-6
  assert fingerprint(ours, cfg) != fingerprint(theirs, other)


def test_transformers_loads_what_is_saved(folder, tokenizer, tmp_path):
  wave = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, 300)).astype(np.float32))
  with torch.no_grad():
    codes = transformers.MimiModel.from_pretrained(folder).encode(wave).audio_codes
    for place in (folder, tokenizer):
      params, cfg = load_codec(place)
      save_codec(tmp_path / place.name, params, cfg)
      loaded: Any = transformers.MimiModel.from_pretrained(tmp_path / place.name, output_loading_info=True)
      model, info = loaded
      assert not any(info.values()), info
      assert torch.equal(model.encode(wave).audio_codes, codes)
      again, same = load_codec(tmp_path / place.name)
      np.testing.assert_equal(again, params)
      assert same.prefix == '' and same.upsampling_ratios == cfg.upsampling_ratios


def test_wrong_tensors_are_listed(folder, tmp_path):
  tensors = on_disk(folder)
  del tensors['downsample.conv.weight']
  tensors['encoder.layers.0.conv.bias'] = np.zeros(5, np.float32)
  tensors['encoder.layers.99.conv.bias'] = np.zeros(5, np.float32)
  st.save_file(tensors, tmp_path / 'model.safetensors')
  (tmp_path / 'config.json').write_bytes((folder / 'config.json').read_bytes())
  with pytest.raises(ValueError) as error:
    load_codec(tmp_path)
  for line in ('downsample.conv.weight', 'encoder.layers.0.conv.bias: found [5], expected [4]', 'encoder.layers.99.conv.bias'):
    assert line in str(error.value)


def test_the_released_configs_are_read():
  tokenizer = parse_codec_config(RELEASED_TOKENIZER)
  mimi = parse_codec_config({'model_type': 'mimi', 'frame_rate': 12.5, 'normalize': False})
  assert tokenizer.frame_rate == mimi.frame_rate == 12.5 and tokenizer.samples_per_frame == 1920
  assert tokenizer.num_code_groups == mimi.num_code_groups == 16
  shapes = {path: param.shape for path, param in leaves(codec_spec(mimi))}
  assert shapes['quantizer/acoustic/books/embed_sum'] == (31, 2048, 256)
  assert shapes['stages/3/down/kernel'] == (16, 512, 1024) and shapes['downsample/kernel'] == (4, 512, 512)


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'model_type': 'qwen3_omni_moe'}, "expected a codec: 'mimi'"),
    ({'pad_mode': 'reflect'}, "only 'constant'"),
    ({'frame_rate': 25.0}, 'make 12.5'),
    ({'codebook_dim': 128}, 'codebook_dim 128 must be'),
    ({'num_filter': 64}, "did you mean 'num_filters'"),
    ({'rope_parameters': {'rope_type': 'yarn'}}, "only 'default'"),
    ({'num_quantizers': 1}, 'num_semantic_quantizers 1 must lie in'),
    ({'head_dim': '64'}, 'head_dim: expected int'),
  ],
)
def test_a_codec_that_is_not_implemented_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    parse_codec_config({'model_type': 'mimi', **fields})


def test_more_codebooks_than_there_are_is_an_error(folder):
  with pytest.raises(ValueError, match='9 codebooks of 4'):
    load_codec(folder, 9)
