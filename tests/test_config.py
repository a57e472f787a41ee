"""The config reader: both spellings, three variants, and every mistake named."""

import copy
import json
import pathlib

import jax
import pytest

from qwen3_omni_jax.config_json import load_config, parse_config
from qwen3_omni_jax.models.omni import omni_spec
from qwen3_omni_jax.nn.cache import cache_bytes_per_token
from qwen3_omni_jax.nn.params import abstract_params, count

PUBLISHED = pathlib.Path(__file__).parent.parent / 'configs' / 'model' / 'instruct.json'


@pytest.fixture
def data():
  return json.loads(PUBLISHED.read_text())


def test_published_model_has_the_published_size(data):
  cfg = parse_config(data)
  spec = omni_spec(cfg)
  assert count(spec) == 35_259_818_545
  assert sum(count(spec[part]) for part in ('audio', 'vision', 'thinker')) == 31_719_205_488
  assert sum(x.size for x in jax.tree.leaves(abstract_params(spec))) == 35_259_818_545
  assert cache_bytes_per_token(cfg.thinker.text) == 98_304


def test_old_and_new_spellings_mean_the_same(data):
  old = copy.deepcopy(data)
  for text in (old['thinker_config']['text_config'], old['talker_config']['text_config']):
    rope = text.pop('rope_parameters')
    text['rope_theta'] = rope['rope_theta']
    text['rope_scaling'] = {'mrope_section': rope['mrope_section'], 'type': 'default', 'interleaved': True}
  talker = old['talker_config']['text_config']
  talker['num_local_experts'] = talker.pop('num_experts')
  assert parse_config(old) == parse_config(data)


@pytest.mark.parametrize('variant', ['thinking', 'captioner'])
def test_variants_without_speech_have_no_talker(data, variant):
  del data['talker_config'], data['code2wav_config']
  data['enable_audio_output'] = False
  cfg = parse_config(data)
  assert cfg.talker is None and cfg.code2wav is None
  assert set(omni_spec(cfg)) == {'audio', 'vision', 'thinker'}


def test_a_config_saved_by_transformers_reads_the_same(data, tmp_path):
  from tests.reference import prepare_torchvision

  prepare_torchvision()
  from transformers import Qwen3OmniMoeConfig

  Qwen3OmniMoeConfig(**copy.deepcopy(data)).save_pretrained(tmp_path)
  assert load_config(tmp_path) == parse_config(data)


def edit(data, path, value):
  *parents, last = path.split('.')
  for key in parents:
    data = data[key]
  if value is ...:
    del data[last]
  else:
    data[last] = value


@pytest.mark.parametrize(
  ('path', 'value', 'message'),
  [
    ('thinker_config.text_config.hiden_size', 1, "hiden_size: unknown field; did you mean 'hidden_size'"),
    ('thinker_config.text_config.hidden_size', ..., 'thinker_config.text_config.hidden_size: missing'),
    ('thinker_config.text_config.hidden_size', '2048', 'expected int, found "2048"'),
    ('thinker_config.text_config.num_key_value_heads', 5, 'not divisible by num_key_value_heads 5'),
    ('thinker_config.text_config.num_experts_per_tok', 129, 'num_experts_per_tok 129 must be in 1..num_experts 128'),
    ('thinker_config.text_config.rope_parameters.mrope_section', [1, 2, 3], 'must sum to head_dim/2 = 64'),
    ('thinker_config.text_config.rope_parameters.rope_type', 'yarn', 'yarn'),
    ('thinker_config.text_config.tie_word_embeddings', True, 'tie_word_embeddings is true'),
    ('thinker_config.text_config.num_hidden_layers', 0, 'must be positive'),
    ('thinker_config.text_config.rms_norm_eps', -1.0, 'expected float, found -1.0'),
    ('thinker_config.audio_config.n_window', 60, 'only 50 is consistent'),
    ('thinker_config.audio_config.encoder_attention_heads', 7, 'not divisible'),
    ('thinker_config.audio_config', None, 'thinker_config.audio_config: expected an object, found nothing'),
    ('thinker_config.vision_config.num_position_embeddings', 2305, 'not a square'),
    ('thinker_config.vision_config.deepstack_visual_indexes', [8, 99], 'must lie in 0..26'),
    ('thinker_config.vision_config.deepstack_visual_indexes', 'none', 'expected list of int'),
    ('thinker_config.vision_start_token_id', ..., 'vision_start_token_id: missing'),
    ('thinker_config.audio_token_id', 999_999, 'outside the vocabulary'),
    ('talker_config.speaker_id', ['ethan'], 'expected an object of name: id'),
    ('talker_config.speaker_id', {'ethan': 99_999}, "speaker 'ethan'"),
    ('talker_config.codec_eos_token_id', 5000, 'codec_eos_token_id 5000'),
    ('talker_config.accept_hidden_layer', 60, 'accept_hidden_layer 60'),
    ('talker_config.num_code_groups', 8, 'num_code_groups 8 != num_quantizers 16'),
    ('code2wav_config.decoder_dim', 1000, 'cannot be halved 4 times'),
    ('code2wav_config', ..., 'code2wav_config: expected an object'),
  ],
)
def test_wrong_fields_are_named(data, path, value, message):
  edit(data, path, value)
  with pytest.raises(ValueError) as error:
    parse_config(data, 'config.json')
  assert str(error.value).startswith('config.json: ') and message in str(error.value)


def test_all_problems_are_reported_at_once(data):
  edit(data, 'thinker_config.text_config.hiden_size', 1)
  edit(data, 'thinker_config.vision_config.depth', 'deep')
  edit(data, 'code2wav_config.extra', 1)
  with pytest.raises(ValueError, match='3 problem') as error:
    parse_config(data)
  assert all(name in str(error.value) for name in ('hiden_size', 'vision_config.depth', 'code2wav_config.extra'))


@pytest.mark.parametrize('content', ['', '{', '[]', 'null', '"x"', '{"a": NaN}', '[' * 100_000, '\x00'])
def test_files_that_are_no_config_are_refused(tmp_path, content):
  (tmp_path / 'config.json').write_text(content)
  with pytest.raises(ValueError, match=r'config\.json'):
    load_config(tmp_path)
