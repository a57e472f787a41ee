"""The Talker against the reference: prompt rows, hidden states, logits, greedy frames together with the predictor."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from qwen3_omni_jax.config import TalkerConfig, TextConfig
from qwen3_omni_jax.infer.sampling import penalise
from qwen3_omni_jax.models import talker as tk
from qwen3_omni_jax.models.code_predictor import predict_codes, prepare_predictor
from qwen3_omni_jax.nn.cache import init_cache
from tests.models.speech_reference import ref, talker_pair

pytestmark = pytest.mark.quick_to_compile

TOLERANCE = 5e-5  # of the largest magnitude; float32, sums in another order
IDS = dict(
  codec_pad_id=1050,
  codec_bos_id=1051,
  codec_eos_token_id=1052,
  codec_nothink_id=1055,
  codec_think_bos_id=1056,
  codec_think_eos_id=1057,
  speaker_id=(('ann', 1060), ('bob', 1061)),
)


def config(text: dict, predictor: dict, groups: int, width: int) -> TalkerConfig:
  return TalkerConfig(
    TextConfig(vocab_size=1064, mrope_section=(3, 2, 1), **text),
    TextConfig(**predictor),
    groups,
    thinker_hidden_size=width,
    accept_hidden_layer=1,
    **IDS,
  )


CONFIGS = pytest.mark.parametrize(
  'cfg',
  [
    config(
      dict(
        hidden_size=20,
        intermediate_size=14,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        num_experts=5,
        num_experts_per_tok=2,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=9,
      ),
      dict(
        vocab_size=31,
        hidden_size=20,
        intermediate_size=18,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=8,
      ),
      5,
      16,
    ),
    config(
      dict(
        hidden_size=24,
        intermediate_size=30,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=12,
        num_experts=8,
        num_experts_per_tok=3,
        moe_intermediate_size=12,
        shared_expert_intermediate_size=6,
        norm_topk_prob=False,
        rope_theta=1e4,
      ),
      dict(
        vocab_size=45,
        hidden_size=24,
        intermediate_size=22,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=10,
      ),
      16,
      18,
    ),
  ],
  ids=['five_codes', 'sixteen_codes'],
)


class Turn:
  """Random Thinker rows of one conversation: a user turn with media in it, a header, a reply."""

  def __init__(self, cfg: TalkerConfig, user: int, reply: int, seed: int):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal((*shape, cfg.thinker_hidden_size)).astype(np.float32)
    self.user, self.header, self.reply, self.special = draw(user), draw(3), draw(reply), draw(3)
    self.tap = draw(user)
    self.media = rng.random(user) < 0.4


def reference_prompt(module, cfg: TalkerConfig, turn: Turn, speaker: int):
  """(prompt embeddings, trailing text rows, tts_pad row), by the reference's own functions."""
  top = types.SimpleNamespace(config=types.SimpleNamespace(talker_config=module.config, tts_pad_token_id=0), talker=module)
  as_torch = lambda x: torch.tensor(x)[None]
  parts = ref.Qwen3OmniMoeForConditionalGeneration
  user = parts._get_talker_user_parts(top, 0, len(turn.user), as_torch(turn.media), as_torch(turn.tap), as_torch(turn.user))
  bos, eos, pad = module.text_projection(as_torch(turn.special)).chunk(3, dim=1)
  assistant = as_torch(np.concatenate([turn.header, turn.reply]))
  opening, _, trailing = parts._get_talker_assistant_parts(top, 0, assistant.shape[1], speaker, assistant, pad, bos, eos)
  return torch.cat([user, opening], dim=1), trailing, pad


def our_prompt(params, cfg, turns: list[Turn], speakers: list[int], users: int, replies: int):
  """(TalkerPrompt, TextTrack) of several turns in one batch, with rubbish where padding is."""
  fill = lambda x, n: np.concatenate([x, np.full((n - len(x), *x.shape[1:]), 7, x.dtype)])
  thinker = tk.ThinkerRows(
    np.stack([fill(t.user, users) for t in turns]),
    np.stack([fill(t.tap, users) for t in turns]),
    np.stack([fill(t.media, users) for t in turns]),
    np.array([len(t.user) for t in turns], np.int32),
    np.stack([t.header for t in turns]),
  )
  reply = np.stack([fill(t.reply, replies) for t in turns])
  count = np.array([len(t.reply) for t in turns], np.int32)

  def build(params, thinker, reply, count, special, speakers):
    text = tk.text_track(params, reply, count, special)
    return tk.talker_prompt(params, cfg, thinker, text, speakers), text

  return jax.jit(build)(params, thinker, reply, count, turns[0].special, np.array(speakers, np.int32))


def close(got, want):
  want = np.asarray(want)
  np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE * np.abs(want).max())


def plain_positions(batch: int, length: int) -> np.ndarray:
  return np.broadcast_to(np.arange(length, dtype=np.float32), (3, batch, length))


@CONFIGS
def test_prompt_rows_and_text_track_equal_the_reference(cfg):
  module, params, _ = talker_pair(cfg, seed=0)
  turn = Turn(cfg, user=11, reply=4, seed=1)
  with torch.no_grad():
    want, trailing, tts_pad = reference_prompt(module, cfg, turn, 1061)
  prompt, text = our_prompt(params, cfg, [turn], [1061], 14, 6)
  assert int(prompt.length[0]) == want.shape[1] == 11 + tk.OPENING
  close(prompt.embeds[0, : 11 + tk.OPENING], want[0])
  assert not prompt.embeds[0, 11 + tk.OPENING :].any() and not prompt.segment[0, 11 + tk.OPENING :].any()
  rows = np.concatenate([text.row(jnp.array([k + 1])) for k in range(6)])
  close(rows, torch.cat([trailing[0], tts_pad[0], tts_pad[0]]))  # text, end of text once, pads


@CONFIGS
def test_hidden_states_and_logits_equal_the_reference(cfg):
  module, params, _ = talker_pair(cfg, seed=2)
  rng = np.random.default_rng(3)
  embeds = rng.standard_normal((2, 14, cfg.text.hidden_size)).astype(np.float32)
  positions = np.cumsum(rng.random((3, 2, 14)), axis=-1).astype(np.float32)  # fractional, as of a video
  with torch.no_grad():
    out = module(inputs_embeds=torch.tensor(embeds), position_ids=torch.tensor(positions), output_hidden_states=True)
  run = lambda params: tk.Talker(cfg).apply({'params': params}, embeds, positions, np.ones((2, 14), np.int32))
  logits, hidden, trace = jax.jit(run)(params)
  close(logits, out.logits)
  layers = out.hidden_states[0]
  close(hidden, layers[-1])
  for i, want in enumerate(layers[1:-1]):
    close(trace.hidden[i], want)


@functools.partial(jax.jit, static_argnames=('cfg', 'frames', 'penalty'))
def greedy_frames(params, predictor_params, prompt, positions, text, *, cfg, frames: int, penalty: float):
  """Codes 'B frames Q' of the loop of frames, greedily."""
  B, P = prompt.segment.shape
  predictor = prepare_predictor(predictor_params)
  hidden, cache = tk.talker_prefill(params, cfg, prompt, positions, init_cache(cfg.text, B, P + frames, jnp.float32))
  next_position = positions[0, jnp.arange(B), prompt.length - 1] + 1
  pick = lambda logits, step: jnp.argmax(logits, axis=-1).astype(jnp.int32)

  def choose(hidden, seen):
    logits = penalise(tk.code_logits(params, hidden), seen, jnp.full((B,), penalty, jnp.float32))
    return pick(tk.suppress_special(cfg, logits), 0)

  def frame(carry, t):
    hidden, code, seen, cache = carry
    seen = seen.at[jnp.arange(B), code].set(True)
    rest, total = predict_codes(predictor, cfg, hidden, tk.embed_codes(params, code), pick)
    x = total + text.row(jnp.full((B,), t + 1))
    hidden, cache = tk.talker_step(params, cfg, x, next_position + t.astype(jnp.float32), prompt.length + t, cache)
    return (hidden, choose(hidden, seen), seen, cache), jnp.concatenate([code[:, None], rest], axis=1)

  seen = jnp.zeros((B, cfg.text.vocab_size), bool)
  _, codes = jax.lax.scan(frame, (hidden, choose(hidden, seen), seen, cache), jnp.arange(frames, dtype=jnp.int32))
  return jnp.moveaxis(codes, 0, 1)


@pytest.mark.filterwarnings('ignore:Passing `repetition_penalty` with `inputs_embeds`')  # which is what we compare with
@CONFIGS
def test_40_greedy_frames_equal_the_reference_generate(cfg):
  module, params, predictor = talker_pair(cfg, seed=4)
  turn, frames = Turn(cfg, user=9, reply=6, seed=5), 40
  banned = [i for i in range(40, 1064) if i != cfg.codec_eos_token_id]
  with torch.no_grad():
    embeds, trailing, tts_pad = reference_prompt(module, cfg, turn, 1060)
    out = module.generate(
      inputs_embeds=embeds,
      trailing_text_hidden=trailing,
      tts_pad_embed=tts_pad,
      talker_input_ids=torch.zeros(embeds.shape[:2], dtype=torch.long),
      attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
      max_new_tokens=frames + 1,
      do_sample=False,
      repetition_penalty=1.3,
      suppress_tokens=banned,
      eos_token_id=9999,
      output_hidden_states=True,
      return_dict_in_generate=True,
    )
  want = torch.stack([h[-1] for h in out.hidden_states if h[-1] is not None], dim=1).numpy()
  prompt, text = our_prompt(params, cfg, [turn], [1060], 9, 6)
  positions = plain_positions(*prompt.segment.shape)
  codes = greedy_frames(params, predictor, prompt, positions, text, cfg=cfg, frames=frames, penalty=1.3)
  np.testing.assert_array_equal(codes, want)
  assert len(np.unique(want[0, :, 0])) > 5  # the penalty has something to do


def test_rows_of_a_batch_equal_each_alone():
  cfg = CONFIGS.args[1][0]
  _, params, predictor = talker_pair(cfg, seed=6)
  turns, speakers = [Turn(cfg, 5, 3, seed=7), Turn(cfg, 12, 8, seed=8)], [1060, 1061]
  turns[1].special = turns[0].special
  prompt, text = our_prompt(params, cfg, turns, speakers, 14, 10)
  speak = functools.partial(greedy_frames, cfg=cfg, frames=12, penalty=1.05)
  both = speak(params, predictor, prompt, plain_positions(*prompt.segment.shape), text)
  for b, (turn, speaker) in enumerate(zip(turns, speakers, strict=True)):
    prompt, text = our_prompt(params, cfg, [turn], [speaker], 14, 10)
    alone = speak(params, predictor, prompt, plain_positions(*prompt.segment.shape), text)
    np.testing.assert_array_equal(both[b], alone[0])


def test_an_empty_reply_is_the_end_of_text_at_once():
  cfg = CONFIGS.args[1][0]
  _, params, _ = talker_pair(cfg, seed=9)
  text = tk.text_track(params, np.ones((1, 2, 16), np.float32), np.array([0], np.int32), np.eye(3, 16, dtype=np.float32))
  np.testing.assert_array_equal(text.row(jnp.array([0])), text.eos[None])
  np.testing.assert_array_equal(text.row(jnp.array([1])), text.pad[None])


def test_suppression_leaves_codes_and_the_end_of_speech():
  cfg = CONFIGS.args[1][0]
  kept = np.flatnonzero(np.isfinite(tk.suppress_special(cfg, jnp.zeros(cfg.text.vocab_size))))
  np.testing.assert_array_equal(kept, [*range(40), cfg.codec_eos_token_id])
