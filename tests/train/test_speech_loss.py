"""The Talker's training: it sees what `generate` sees, and learns what it should."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from qwen3_omni_jax.train import speech_loss
from qwen3_omni_jax.train.config import Loss, Optimiser, Part, Recipe, Speaker, Speech, Step
from qwen3_omni_jax.train.speakers import add_speakers, with_speakers
from qwen3_omni_jax.train.state import abstract_state, assign_roles, flatten, init_state, merge_params
from qwen3_omni_jax.train.step import batch_specs, compiled_step, loss_sums, make_step, step_key

from qwen3_omni_jax.infer import speech as generation
from qwen3_omni_jax.infer.decode import encode_media
from qwen3_omni_jax.infer.talker_inputs import reply_track, talker_inputs, thinker_rows
from qwen3_omni_jax.infer.voice import Voice
from qwen3_omni_jax.models.code_predictor import predict_codes, prepare_predictor
from qwen3_omni_jax.models.talker import code_logits, embed_codes, talker_prefill, talker_prompt, talker_step
from qwen3_omni_jax.models.thinker import Features, thinker_prefill
from qwen3_omni_jax.nn.cache import init_cache
from qwen3_omni_jax.plan.collectives import collectives
from qwen3_omni_jax.sharding import make_mesh
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
  for name in ('loss', 'right', 'weight', 'end_loss', 'end_probability', 'end_elsewhere', 'frames', 'positions'):
    np.testing.assert_allclose(together['speech'][name], apart['speech'][name], rtol=1e-5, err_msg=name)


def test_what_one_utterance_has_said_is_not_fed_to_another():
  """Also where it was cut off and has no end."""
  batch = spoken.batch([[spoken.record(0, media=False), spoken.record(1, media=False)]], media=False)
  speech, params = batch.speech, spoken.params()
  begin = int(np.argmax(speech.segment[0] == 2))
  cut = speech.replace(codes=speech.codes.copy())
  cut.codes[0, begin - 1] = 1  # in place of the end
  side = jax.jit(lambda params, speech: speech_loss.code_side(params, speech, TALKER, jnp.float32))
  np.testing.assert_array_equal(side(params, cut), side(params, speech))
  assert not np.asarray(side(params, cut))[0, begin : begin + 3].any()


def test_the_loss_is_the_weighted_sum_of_means_over_the_step():
  """However it is divided into microbatches."""
  batch = packed()
  total, sums = loss_and_sums(JOINT, batch)
  speech = sums['speech']
  means = speech['loss'] / speech['weight']
  np.testing.assert_allclose(total, means[0] + 0.3 * means[1:].mean() + 0.5 * sums['cross_entropy'] / sums['weight'], rtol=1e-5)
  totals = jax.device_get(speech_loss.total_weights(batch, CFG))
  part = lambda keep: batch.replace(  # the other rows teach nothing
    weights=batch.weights * keep[:, None], speech=batch.speech.replace(weights=batch.speech.weights * keep[:, None])
  )
  halves = [np.array(keep, np.float32) for keep in ([1, 0, 0, 0], [0, 1, 1, 1])]
  run = jax.jit(functools.partial(loss_sums, cfg=CFG, recipe=JOINT, roles=assign_roles(CFG, JOINT)))
  parts = [float(run(*divided(JOINT), part(keep), totals)[0]) for keep in halves]
  np.testing.assert_allclose(sum(parts), total, rtol=1e-5)


def test_of_new_speakers_their_rows_alone_are_trained():
  """Nothing else of the table changes by a bit or has moments, and its gradient does not count."""
  recipe = dataclasses.replace(
    FROZEN,
    parts=(Part('talker/embed', 1e-2, 0.5, rows='speakers'),),
    speakers=(Speaker('maria'),),
    optimiser=Optimiser(warmup=1, clip=10),
  )
  cfg, mesh, batch = with_speakers(CFG, recipe.speakers), make_mesh({}), spoken.batch([clips()], media=False)
  row = dict(cfg.talker.speaker_id)['maria']
  opening = np.where(batch.speech.opening == dict(cfg.talker.speaker_id)['ethan'], row, batch.speech.opening)
  batch = batch.replace(speech=batch.speech.replace(opening=opening))
  params = jax.tree.map(jnp.asarray, spoken.params())
  params['talker']['embed'] = params['talker']['embed'].at[5, 3].set(-0.0)
  before = np.asarray(params['talker']['embed'])
  params = add_speakers(params, cfg, recipe.speakers)
  first = np.asarray(params['talker']['embed'])
  others = [i for name, i in cfg.talker.speaker_id if name != 'maria']
  np.testing.assert_allclose(first[row], before[others].mean(axis=0), rtol=1e-6)
  state = init_state(params, cfg, recipe, mesh)
  state, metrics = compiled_step(cfg, recipe, mesh)(state, batch)
  state = jax.device_get(state)
  after, keep = state.trainable['talker/embed'], np.arange(len(before)) != row
  np.testing.assert_array_equal(after[keep].view(np.int32), before[keep].view(np.int32))
  assert (after[row] != first[row]).all()
  for moment in (state.optimiser['adam'].mu, state.optimiser['adam'].nu):
    assert not moment['talker/embed'][keep].any() and moment['talker/embed'][row].all()
  norm = np.linalg.norm(state.optimiser['adam'].mu['talker/embed']) / (1 - recipe.optimiser.b1)
  assert metrics['grad_norm'] == pytest.approx(norm, rel=1e-5)


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


# What was learnt.


@functools.cache
def clips():
  """Two answers of other words and codes to the same question, in one row, without media: only the text tells them apart."""
  one, other = spoken.record(1, 5, 3, media=False), spoken.record(2, 6, 4, media=False)
  return one, dataclasses.replace(other, prompt=one.prompt, positions=one.positions)


@functools.cache
def memorised():
  """(parameters after training on the clips, the batch of them)."""
  recipe = dataclasses.replace(
    FROZEN,
    parts=(Part('talker/', 1e-2), Part('code_predictor/', 1e-2)),
    steps=STEPS,
    optimiser=Optimiser(warmup=1, schedule='linear'),
  )
  mesh, batch = make_mesh({}), spoken.batch([clips()], media=False)
  state = init_state(jax.tree.map(jnp.asarray, spoken.params()), CFG, recipe, mesh)
  step = compiled_step(CFG, recipe, mesh)
  for _ in range(STEPS):
    state, metrics = step(state, batch)
  assert metrics['speech/end_probability'] > 0.95 > 0.05 > metrics['speech/end_elsewhere'], metrics
  params = merge_params(state.trainable, state.frozen, assign_roles(CFG, recipe))
  return jax.tree.map(jnp.asarray, jax.device_get(params)), batch


STEPS = 50


def spoken_greedily(params, batch, k, item):
  """(codes 'F Q', whether speech ended itself) by the loop of inference, for record k of row 0."""
  tokens = of_record(batch, 0, k)
  inputs = talker_inputs([spoken.Record(tokens.ids[0], tokens.positions[:, 0], item.reply, item.codes)], CFG)
  cache = init_cache(CFG.thinker.text, 1, tokens.ids.shape[1], jnp.float32)
  out, _ = thinker_prefill(params['thinker'], CFG.thinker, tokens, Features(), cache, tap_layer=TALKER.accept_hidden_layer)
  text = reply_track(params, CFG, jnp.array(item.reply)[None], jnp.array([len(item.reply)]))
  voice = Voice(temperature=0, predictor_temperature=0, repetition_penalty=1.0).without_guards()
  draws, limits, live = voice.draws(CFG, [0]), voice.limits([12]), jnp.ones(1, bool)
  speaker = jnp.array([dict(TALKER.speaker_id)['ethan']])
  state = generation.begin_speech(
    params, CFG, jnp.asarray(tokens.ids), out.tap, inputs, text, speaker, draws, live, slots=spoken.S, frames=12
  )
  predictor = generation.ready_predictor(params['code_predictor'], jnp.float32)
  state = generation.speak(params, CFG, predictor, state, text, live, draws, limits, jnp.int32(12))
  return np.asarray(state.codes)[0, : int(state.frames[0])], int(state.reason[0]) == generation.ENDED


def test_greedy_generation_gives_back_the_clips_that_were_learnt():
  """All codebooks, and the end; which clip, only the text says."""
  params, batch = memorised()
  for k, item in enumerate(clips()):
    codes, ended = spoken_greedily(params, batch, k, item)
    np.testing.assert_array_equal(codes, item.codes)
    assert ended


def losses_of(params, batch):
  """(of code 0, of the others), as they are computed now: with whatever a test has put in the place of functions."""
  run = jax.jit(functools.partial(loss_sums, cfg=CFG, recipe=FROZEN, roles=assign_roles(CFG, FROZEN)))
  _, sums = run(*divided(FROZEN, params), batch)
  return float(sums['speech']['loss'][0]), float(sums['speech']['loss'][1:].sum())


def test_words_in_another_order_are_not_what_was_learnt():
  params, batch = memorised()
  one, other = clips()
  swapped = [dataclasses.replace(one, reply=other.reply), dataclasses.replace(other, reply=one.reply)]
  (code0, rest), (code0_swapped, _) = losses_of(params, batch), losses_of(params, spoken.batch([swapped], media=False))
  assert code0 < 1.0 and rest < 2.0 and code0_swapped > 20 * code0


@pytest.mark.parametrize('by', [-1, 1])
@pytest.mark.parametrize('what', ['target', 'hidden', 'codes', 'code side', 'text side'])
def test_the_trained_loss_is_lower_than_under_any_shift(monkeypatch, what, by):
  """By one position: of the target of code 0, of the state or the codes that the predictor is given, of what is fed."""
  params, batch = memorised()
  code0, rest = losses_of(params, batch)
  roll = lambda x: jnp.roll(x, by, axis=1)
  score, predict, side = speech_loss.token_scores, speech_loss.predictor_scores, speech_loss.code_side
  if what == 'target':
    monkeypatch.setattr(speech_loss, 'token_scores', lambda x, head, target, *a, **k: score(x, head, roll(target), *a, **k))
  elif what == 'hidden':
    monkeypatch.setattr(speech_loss, 'predictor_scores', lambda p, cfg, x, codes: predict(p, cfg, roll(x), codes))
  elif what == 'codes':
    shifted = lambda codes: jnp.concatenate([codes[..., :1], roll(codes[..., 1:])], axis=-1)
    monkeypatch.setattr(speech_loss, 'predictor_scores', lambda p, cfg, x, codes: predict(p, cfg, x, shifted(codes)))
  elif what == 'code side':
    monkeypatch.setattr(speech_loss, 'code_side', lambda *args: roll(side(*args)))
  else:
    batch = batch.replace(speech=batch.speech.replace(text=np.roll(batch.speech.text, by, axis=1)))
  code0_shifted, rest_shifted = losses_of(params, batch)
  if what in ('hidden', 'codes'):
    assert rest_shifted > 5 * rest
  else:
    assert code0_shifted > 5 * code0


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


# Meshes.


def mesh_of(**shape):
  return make_mesh(shape, jax.devices()[: math.prod(shape.values())])


def one_step(recipe, shape=(), batch=None, steps=1):
  mesh = mesh_of(**dict(shape))
  state = init_state(jax.tree.map(jnp.asarray, spoken.params()), CFG, recipe, mesh)
  step = compiled_step(CFG, recipe, mesh)
  for _ in range(steps):
    state, metrics = step(state, packed() if batch is None else batch)
  return jax.device_get((state, metrics))


@functools.cache
def on_one_device(recipe):
  return one_step(recipe)


@pytest.mark.slow
@pytest.mark.parametrize('shape', [{'fsdp': 2}, {'fsdp': 2, 'expert': 2}, {'tensor': 2, 'context': 2}], ids=str)
def test_a_step_on_a_mesh_equals_that_of_one_device(shape):
  """With media, a joint loss, and a choice of frames."""
  recipe = with_speech(JOINT, frames=0.05)
  (state, metrics), (expected, metrics2) = one_step(recipe, shape.items()), on_one_device(recipe)
  for name, value in metrics2.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
  for path, value in expected.trainable.items():
    moved = np.abs(value - state.trainable[path]).max()
    assert moved <= 5e-6, f'{path}: {moved:.1e}'  # 0.5 % of the rate: steps of Adam have about its size


def compiled_text(recipe, batch, mesh) -> str:
  shaped = lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
  batch = jax.tree.map(shaped, batch, batch_specs(batch, mesh))
  with jax.set_mesh(mesh):
    return jax.jit(make_step(CFG, recipe)).lower(abstract_state(CFG, recipe, mesh), batch).compile().as_text()


@pytest.mark.slow
def test_neither_taps_nor_the_choice_of_frames_send_anything(monkeypatch):
  """The states of media, and the frames that are chosen, lie on the device that needs them, forward and backward."""
  mesh = mesh_of(data=4)
  recipe = dataclasses.replace(FROZEN, parts=(Part('talker/', 1e-3),))
  sent = [collectives(compiled_text(r, packed(), mesh), dict(mesh.shape)) for r in (with_speech(recipe, frames=0.05), recipe)]
  first = lambda rows, index, lanes: jnp.broadcast_to(
    rows.reshape(spoken.ROWS, spoken.T, -1)[:, :1], (*index.shape, rows.shape[1])
  )
  monkeypatch.setattr(speech_loss, 'pick_rows', first)  # as if all took the state of their own row's first token
  sent.append(collectives(compiled_text(recipe, packed(), mesh), dict(mesh.shape)))
  total = [sum(sum(along.values()) for along in kinds.values()) for kinds in sent]
  assert 0 < total[2] and max(total) <= total[2] + 64, sent
