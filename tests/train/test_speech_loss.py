"""The Talker's training: it sees what `generate` sees, and learns what it should."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from qwen3_omni_jax.train import speech_loss
from qwen3_omni_jax.train.config import Loss, Optimiser, Part, Recipe, Speech, Step
from qwen3_omni_jax.train.state import assign_roles, flatten
from qwen3_omni_jax.train.step import loss_sums, step_key

from qwen3_omni_jax.infer.decode import encode_media
from qwen3_omni_jax.infer.talker_inputs import reply_track, talker_inputs, thinker_rows
from qwen3_omni_jax.models.code_predictor import predict_codes, prepare_predictor
from qwen3_omni_jax.models.talker import code_logits, embed_codes, talker_prefill, talker_prompt, talker_step
from qwen3_omni_jax.models.thinker import thinker_prefill
from qwen3_omni_jax.nn.cache import init_cache
from tests.train import spoken

pytestmark = pytest.mark.quick_to_compile

CFG, TALKER = spoken.config(), spoken.config().talker
FROZEN = Recipe(
  parts=(Part('talker/', 1e-3, 0.1), Part('code_predictor/', 1e-3)),
  steps=10,
  optimiser=Optimiser(warmup=1, eps=1e-3),
  loss=Loss(balance=0.0, chunk=16),
  step=Step(dtype='float32', remat='none', encoder_remat='none'),
  speech=Speech(),
)
JOINT = dataclasses.replace(
  FROZEN,
  parts=(Part('thinker/', 1e-3, 0.1), Part('(audio|vision)/', 1e-3), *FROZEN.parts),
  speech=Speech(text=0.5),
)


def with_speech(recipe, **changes):
  return dataclasses.replace(recipe, speech=dataclasses.replace(recipe.speech, **changes))


@functools.cache
def packed():
  return spoken.batch(spoken.records())


@functools.cache
def sums_of(recipe):
  """jitted (trainable, frozen, batch) -> (loss, sums)."""
  return jax.jit(functools.partial(loss_sums, cfg=CFG, recipe=recipe, roles=assign_roles(CFG, recipe)))


def divided(recipe, params=None):
  flat = flatten(spoken.params() if params is None else params)
  trained = assign_roles(CFG, recipe).trainable
  return {path: flat[path] for path in trained}, {path: p for path, p in flat.items() if path not in trained}


def loss_and_sums(recipe, batch, params=None):
  return jax.device_get(sums_of(recipe)(*divided(recipe, params), batch))


@jax.jit
def begin(params, tokens, inputs, groups, text):
  """(hidden state of the first frame, cache, positions of the prompt), as `generate` comes by them."""
  features = encode_media(params, CFG.thinker, groups)
  cache = init_cache(CFG.thinker.text, 1, tokens.ids.shape[1], jnp.float32)
  out, _ = thinker_prefill(params['thinker'], CFG.thinker, tokens, features, cache, tap_layer=TALKER.accept_hidden_layer)
  rows = thinker_rows(params['thinker'], tokens.ids, out.tap, inputs)
  prompt = talker_prompt(params['talker'], TALKER, rows, text, jnp.array([dict(TALKER.speaker_id)['ethan']]))
  cache = init_cache(TALKER.text, 1, spoken.S, jnp.float32)
  hidden, cache = talker_prefill(params['talker'], TALKER, prompt, inputs.positions, cache)
  return hidden, cache, prompt.length


SCORES: dict[tuple[int, int], float] = {}  # by frame and codebook


@jax.jit
def forced_frame(params, hidden, cache, text, codes, t, position, filled):
  """(-log p of frame t's code 0, the next frame's hidden state, cache); the other codes' are put into SCORES."""

  def pick(logits, step):
    minus_log_p = -jax.nn.log_softmax(logits[0])[codes[1 + step]]
    jax.debug.callback(lambda t, q, value: SCORES.__setitem__((int(t), int(q)), float(value)), t, step + 1, minus_log_p)
    return codes[1 + step][None]

  code0 = -jax.nn.log_softmax(code_logits(params['talker'], hidden)[0])[codes[0]]
  predictor = prepare_predictor(params['code_predictor'])
  _, total = predict_codes(predictor, TALKER, hidden, embed_codes(params['talker'], codes[:1]), pick)
  x = total + text.row(t[None] + 1)
  hidden, cache = talker_step(params['talker'], TALKER, x, position + t.astype(jnp.float32), filled + t, cache)
  return code0, hidden, cache


def of_record(batch, b, k):
  """(the prompt's tokens, with indices into the batch's media; its row) of record k of row b."""
  at = np.flatnonzero(batch.tokens.segment[b] == k + 1)
  header = np.flatnonzero(batch.tokens.ids[b, at] == CFG.assistant_token_id)[-1]
  at = at[: header + 2]
  cut = lambda x: None if x is None else x[..., b : b + 1, at]
  tokens = jax.tree.map(cut, batch.tokens, is_leaf=lambda x: x is None)
  return tokens.replace(segment=np.ones_like(tokens.ids))


def stepped(params, batch, b, k, item):
  """-log p of every code of a record, 'F Q', and of the end of speech, by generation whose codes are forced."""
  tokens = of_record(batch, b, k)
  inputs = talker_inputs([spoken.Record(tokens.ids[0], tokens.positions[:, 0], item.reply, item.codes)], CFG)
  text = reply_track(params, CFG, jnp.array(item.reply)[None], jnp.array([len(item.reply)]))
  hidden, cache, length = begin(params, tokens, inputs, batch.media, text)
  SCORES.clear()
  first = []
  for t, codes in enumerate(item.codes):
    position = jnp.asarray(inputs.next_position)
    loss, hidden, cache = forced_frame(params, hidden, cache, text, jnp.array(codes), jnp.int32(t), position, length)
    first.append(float(loss))
  jax.effects_barrier()
  rest = [[SCORES[t, q] for q in range(1, spoken.Q)] for t in range(len(item.codes))]
  end = -jax.nn.log_softmax(code_logits(params['talker'], hidden)[0])[TALKER.codec_eos_token_id]
  return np.column_stack([first, rest]), float(end)


RECORDS = {
  'as long as the text': (5, 4),
  'one frame, longer text': (1, 4),
  'longer than the text': (7, 2),
  'no text left': (2, 1),
}


def test_the_loss_of_training_is_that_of_generation_whose_codes_are_forced():
  """Per codebook, packed, with media: user's turns, opening, text that ends before the speech and after it, the end of speech."""
  params = jax.tree.map(jnp.asarray, spoken.params())
  items = [spoken.record(i, *sizes) for i, sizes in enumerate(RECORDS.values())]
  batch = spoken.batch([items[:2], items[2:]])
  want, ends = zip(*(stepped(params, batch, i // 2, i % 2, item) for i, item in enumerate(items)), strict=True)
  _, sums = loss_and_sums(FROZEN, batch)
  by_codebook = sum(x.sum(axis=0) for x in want) + np.array([sum(ends), *[0] * (spoken.Q - 1)])
  np.testing.assert_allclose(sums['speech']['loss'], by_codebook, rtol=1e-5)
  np.testing.assert_allclose(sums['speech']['end_loss'], sum(ends), rtol=1e-5)
  frames = sum(len(item.codes) for item in items)
  assert sums['speech']['frames'] == frames and sums['speech']['ends'] == len(items)
  np.testing.assert_array_equal(sums['speech']['weight'], [frames + len(items)] + [frames] * (spoken.Q - 1))


def test_packed_utterances_have_the_losses_of_separate_ones():
  """With media, and with the Thinker's states taken from wherever the record lies."""
  batch = packed()
  _, together = loss_and_sums(FROZEN, batch)
  rows = [[(b, k)] for k in range(2) for b in range(spoken.ROWS)]
  _, apart = loss_and_sums(FROZEN, spoken.batch(spoken.records(), rows).replace(media=batch.media.replace(lanes=1)))
  for name in ('loss', 'right', 'weight', 'end_loss', 'end_chance', 'end_elsewhere', 'frames', 'positions'):
    np.testing.assert_allclose(together['speech'][name], apart['speech'][name], rtol=1e-5, err_msg=name)


def norms(recipe, batch):
  roles = assign_roles(CFG, recipe)
  gradient = jax.jit(jax.grad(functools.partial(loss_sums, cfg=CFG, recipe=recipe, roles=roles), has_aux=True))
  grads, _ = gradient(*divided(recipe), batch)
  return {path: float(jnp.abs(g).max()) for path, g in grads.items()}


def test_gradients_reach_all_that_is_trained_and_nothing_else():
  found = norms(FROZEN, packed())
  assert {path.split('/')[0] for path in found} == {'talker', 'code_predictor'} and all(found.values())
  found = norms(JOINT, packed())
  assert {path.split('/')[0] for path in found} == set(spoken.PARTS)
  assert not [path for path, norm in found.items() if not norm]
  heard = norms(with_speech(JOINT, text=0.0), packed())  # what only the Thinker's own words need, and the layers above the tap
  deaf = {path for path, norm in heard.items() if not norm}
  assert {'thinker/head', 'thinker/norm'} == deaf


def test_a_frozen_thinker_runs_only_where_media_are_tapped(monkeypatch):
  ran = []
  monkeypatch.setattr(speech_loss, 'thinker_sums', lambda *_, **__: 1 / 0)
  monkeypatch.setattr(speech_loss, 'frozen_tap', lambda *_: ran.append('tap') or jnp.zeros((*packed().tokens.ids.shape, 64)))
  run = functools.partial(loss_sums, cfg=CFG, recipe=FROZEN, roles=assign_roles(CFG, FROZEN))
  jax.eval_shape(run, *divided(FROZEN), packed().replace(media=spoken.Media()))
  assert not ran
  jax.eval_shape(run, *divided(FROZEN), packed())
  assert ran == ['tap']


def test_the_tap_alone_is_that_of_the_whole_thinker():
  params, batch = spoken.params(), packed()
  run = jax.jit(lambda params, batch: (speech_loss.frozen_tap(params, batch, CFG, FROZEN),
    speech_loss.thinker_sums(params, batch, cfg=CFG, recipe=FROZEN, tap_layer=TALKER.accept_hidden_layer)[2]))  # fmt: skip
  alone, whole = run(params, batch)
  valid = batch.tokens.segment != 0
  np.testing.assert_allclose(alone[valid], whole[valid], rtol=1e-5, atol=1e-5)


# Some frames for all.


def test_a_random_choice_of_frames_has_the_loss_of_all_in_the_mean():
  rng = np.random.default_rng(0)
  frames, weights = rng.random((3, 40)) < np.array([[0.1], [0.5], [1.0]]), rng.random((3, 40)).astype(np.float32) + 0.5
  values = rng.random((3, 40)).astype(np.float32)
  want = np.where(frames, weights * values, 0).sum(axis=1)

  @jax.jit
  def estimate(key):
    index, chosen = speech_loss.choose_frames(frames, weights, 0.25, key)
    return index, chosen, (speech_loss.pick(jnp.array(values), index) * chosen).sum(axis=1)

  index, chosen, found = jax.vmap(estimate)(jax.random.split(jax.random.key(1), 4000))
  assert index.shape == (4000, 3, 10)
  few = frames[0].sum()
  assert few < 10 and ((chosen[:, 0] > 0).sum(axis=1) == few).all()  # all of them where there is room
  np.testing.assert_allclose(found[:, 0], want[0], rtol=1e-5)
  np.testing.assert_allclose(found.mean(axis=0), want, rtol=0.01)
  assert np.unique(np.asarray(index[:, 2]), axis=0).shape[0] > 3990
  assert all(len(set(row)) == 10 for row in np.asarray(index[:50, 2]))


@pytest.mark.parametrize(('share', 'positions', 'K'), [(0.1, 30, 3), (0.3, 10, 3), (0.25, 10, 3), (0.001, 10, 1)])
def test_room_for_frames_is_the_share_rounded_up(share, positions, K):
  frames = np.ones((1, positions), bool)
  assert speech_loss.choose_frames(frames, frames.astype(np.float32), share, jax.random.key(0))[0].shape == (1, K)


def test_frames_are_chosen_anew_in_every_step_and_alike_in_the_same():
  recipe, batch = with_speech(FROZEN, frames=0.03), packed()
  loss = lambda step, seed=0: float(
    jax.jit(functools.partial(loss_sums, cfg=CFG, recipe=recipe, roles=assign_roles(CFG, recipe)))(
      *divided(recipe), batch, None, step_key(dataclasses.replace(recipe, seed=seed), jnp.int32(step))
    )[0]
  )
  first = loss(3)
  assert first == loss(3) and len({first, loss(4), loss(3, seed=1)}) == 3


@pytest.mark.parametrize('chunk', [1, 7, 10**6])
def test_the_predictor_in_chunks_is_the_predictor_at_once(chunk):
  params, rng = spoken.params(), np.random.default_rng(0)
  hidden, codes = rng.standard_normal((3, 5, 40), dtype=np.float32), rng.integers(0, spoken.CODES, (3, 5, spoken.Q))
  run = lambda chunk: jax.jit(lambda p, h, c: speech_loss.predictor_scores(p, TALKER, h, c, chunk))(params, hidden, codes)
  for got, want in zip(run(chunk), run(3), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-5)
