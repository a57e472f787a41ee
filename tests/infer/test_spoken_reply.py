"""From the Thinker's prompt to the wave, against the reference's top-level generate: how the networks hand over."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from qwen3_omni_jax.config import AudioConfig, Code2WavConfig, OmniConfig, TextConfig, ThinkerConfig, VisionConfig
from qwen3_omni_jax.infer import talker_inputs as ti
from qwen3_omni_jax.media.turns import speaker_code
from qwen3_omni_jax.models.code2wav import chunked_decode
from qwen3_omni_jax.models.talker import talker_prompt
from qwen3_omni_jax.models.thinker import Features, ThinkerTokens, thinker_prefill
from qwen3_omni_jax.nn.cache import init_cache
from tests.models import speech_reference as sr
from tests.models.test_talker import CONFIGS, greedy_frames

pytestmark = pytest.mark.quick_to_compile

TALKER = CONFIGS.args[1][0]
CODE2WAV = Code2WavConfig(
  codebook_size=40,
  num_quantizers=5,
  hidden_size=24,
  intermediate_size=20,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=4,
  sliding_window=7,
  decoder_dim=32,
  upsample_rates=(4, 3, 2),
  upsampling_ratios=(2,),
)
THINKER = TextConfig(
  vocab_size=90,
  hidden_size=16,
  intermediate_size=20,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=12,
  mrope_section=(3, 2, 1),
  num_experts=5,
  num_experts_per_tok=2,
  moe_intermediate_size=8,
)
TOKENS = dict(
  im_start_token_id=80,
  im_end_token_id=81,
  system_token_id=82,
  user_token_id=83,
  assistant_token_id=84,
  tts_pad_token_id=85,
  tts_bos_token_id=86,
  tts_eos_token_id=87,
)
AUDIO_PAD = 88


@pytest.fixture(scope='module')
def models():
  """(reference model, our config, our parameters)."""
  visual = VisionConfig(
    depth=1,
    hidden_size=8,
    intermediate_size=8,
    num_heads=1,
    out_hidden_size=16,
    num_position_embeddings=4,
    deepstack_visual_indexes=(0,),
  )
  audio = AudioConfig(8, 8, 1, 1, 8, 4, 16)
  thinker = ThinkerConfig(audio, visual, THINKER, 70, 71, 72, audio_token_id=AUDIO_PAD, image_token_id=74, video_token_id=75)
  cfg = OmniConfig(thinker, TALKER, CODE2WAV, **TOKENS)
  text = sr.text_config_fields(THINKER)
  text.pop('shared_expert_intermediate_size')
  config = sr.ref_config.Qwen3OmniMoeConfig(
    thinker_config=dict(
      audio_config=dict(
        num_mel_bins=8,
        d_model=8,
        encoder_layers=1,
        encoder_attention_heads=1,
        encoder_ffn_dim=8,
        downsample_hidden_size=4,
        output_dim=16,
      ),
      vision_config=dict(
        depth=1,
        hidden_size=8,
        intermediate_size=8,
        num_heads=1,
        out_hidden_size=16,
        num_position_embeddings=4,
        deepstack_visual_indexes=[0],
      ),
      text_config=text,
      audio_token_id=AUDIO_PAD,
      image_token_id=74,
      video_token_id=75,
      vision_start_token_id=70,
      audio_start_token_id=71,
    ),
    talker_config=sr.talker_config(TALKER).to_dict(),
    code2wav_config=sr.code2wav_config(CODE2WAV).to_dict(),
    **TOKENS,
  )
  config.talker_config.spatial_merge_size = 2
  module = sr.randomise(sr.ref.Qwen3OmniMoeForConditionalGeneration(config), seed=11)
  sr.randomise(module.code2wav, seed=12, gain=0.4)
  weights = sr.Weights(module.thinker)
  talker, predictor = sr.talker_params(sr.Weights(module.talker), TALKER)
  params = {
    'thinker': {
      'embed': weights('model.language_model.embed_tokens.weight'),
      'layers': sr.decoder_params(weights, THINKER, 'model.language_model.'),
      'norm': weights('model.language_model.norm.weight'),
      'head': weights('lm_head.weight', 'V D -> D V'),
    },
    'talker': talker,
    'code_predictor': predictor,
    'code2wav': sr.code2wav_params(sr.Weights(module.code2wav), CODE2WAV),
  }
  return module, cfg, params


def conversation() -> np.ndarray:
  """System, user, assistant and user turns; audio pads (without features: any state will do) in the user's."""
  turn = lambda role, *ids: [80, role, 10, *ids, 81, 10]
  ids = turn(82, 20, 21) + turn(83, 22, 88, 88, 88, 23) + turn(84, 24, 25, 26) + turn(83, 27, 88, 28)
  return np.array([*ids, 80, 84, 10], np.int32)


@pytest.mark.filterwarnings('ignore:Passing `repetition_penalty` with `inputs_embeds`')
@pytest.mark.slow
def test_codes_and_wave_equal_the_reference_generate(models):
  module, cfg, params = models
  ids, frames, seen = conversation(), 24, []
  module.talker.config.codec_eos_token_id = 10_000  # speak on to the limit
  decode = module.code2wav.chunked_decode
  module.code2wav.chunked_decode = lambda codes, **kw: seen.append(codes.numpy()) or decode(codes, **kw)
  out, wave = module.generate(
    torch.tensor(ids, dtype=torch.long)[None],
    speaker='Bob',
    thinker_max_new_tokens=6,
    thinker_eos_token_id=10_000,
    talker_max_new_tokens=frames + 1,
    talker_do_sample=False,
    talker_repetition_penalty=1.2,
  )
  want = seen[0].transpose(0, 2, 1)
  reply = out[0, len(ids) : -1].numpy().astype(np.int32)  # the last token was cut by the limit: the reference drops it
  row = types.SimpleNamespace(ids=ids, positions=np.tile(np.arange(len(ids), dtype=np.float32), (3, 1)))
  inputs = ti.talker_inputs([row], cfg)
  speaker = jnp.array([speaker_code(cfg.talker, 'Bob')])

  @jax.jit
  def hand_over(params, ids, reply):
    tokens = ThinkerTokens(ids[None], jnp.asarray(row.positions)[:, None], jnp.ones((1, len(ids)), jnp.int32))
    cache = init_cache(cfg.thinker.text, 1, len(ids), jnp.float32)
    tap = cfg.talker.accept_hidden_layer
    thinker, _ = thinker_prefill(params['thinker'], cfg.thinker, tokens, Features(), cache, tap_layer=tap)
    rows = ti.thinker_rows(params['thinker'], ids[None], thinker.tap, inputs)
    text = ti.reply_track(params, cfg, reply[None], jnp.full((1,), len(reply)))
    return talker_prompt(params['talker'], cfg.talker, rows, text, speaker), text

  prompt, text = hand_over(params, ids, reply)
  codes = greedy_frames(
    params['talker'],
    params['code_predictor'],
    prompt,
    inputs.positions,
    text,
    cfg=cfg.talker,
    frames=frames,
    penalty=1.2,
  )
  np.testing.assert_array_equal(codes, want)
  ours = jax.jit(lambda params, codes: chunked_decode(params, cfg.code2wav, codes))(params['code2wav'], want)
  np.testing.assert_allclose(ours, wave[0].numpy(), rtol=0, atol=1e-5)  # float32, in [-1, 1]
