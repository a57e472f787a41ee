"""Continuous batching: a row's answer is its own, slots stay full, nothing is computed twice, few programs are compiled."""

import dataclasses

import jax
import numpy as np
import pytest

from qwen3_omni_jax import Omni
from qwen3_omni_jax.infer import slots
from qwen3_omni_jax.infer.batch import Engine, compiled_programs
from qwen3_omni_jax.infer.batch_plan import EngineConfig, memory_plan, program_bound
from qwen3_omni_jax.infer.prepare import Row, items_of
from qwen3_omni_jax.infer.score_batch import BulkScorer

CONFIG = EngineConfig(slots=4, lengths=(512,), pieces=(32, 32), wave_frames=24, wave_lanes=2, encoder_lanes=4)


@pytest.fixture(scope='module')
def omni(tiny_folder):
  return Omni.load(tiny_folder, dtype='float32')


@pytest.fixture(scope='module')
def rows(samples) -> list[Row]:
  """24 conversations of all kinds, half of them spoken, a third drawn, some sharing a long beginning."""
  media = [(), ('audio',), ('image',), (), ('audio', 'image'), ('silent_video',)]
  kind = {'silent_video': 'video'}
  out = []
  for i in range(24):
    parts = [{'type': kind.get(m, m), kind.get(m, m): str(samples[m])} for m in media[i % 6]]
    messages = [{'role': 'user', 'content': [*parts, {'type': 'text', 'text': 'What is it? ' * (1 + i % 5)}]}]
    if i % 4 == 0:
      messages = [{'role': 'system', 'content': 'You are a kind and patient assistant. ' * 4}, *messages]
    if i % 7 == 3:
      messages = [{'role': 'user', 'content': 'Hello'}, {'role': 'assistant', 'content': 'Hi.'}, *messages]
    drawn = {'temperature': 0.9, 'top_k': 20, 'repetition_penalty': 1.2} if i % 3 == 1 else {}
    out.append(Row(f'row {i}', messages, max_new_tokens=3 + i % 6, max_frames=5 + i % 9, speech=i % 2 == 0, seed=i, **drawn))
  return out


@pytest.fixture(scope='module')
def answered(omni, rows):
  """One run over all rows: (engine, results by id)."""
  engine = Engine(omni, CONFIG, omni.voice)
  return engine, {result.row.id: result for result in engine.answer(rows)}


def assert_same_bits(results, expected, ids):
  for name in ids:
    ours, theirs = results[name].reply, expected[name].reply
    assert ours.token_ids == theirs.token_ids and ours.text == theirs.text, name
    if theirs.speech is not None:
      np.testing.assert_array_equal(ours.speech.codes, theirs.speech.codes, err_msg=name)
      np.testing.assert_array_equal(ours.speech.samples, theirs.speech.samples, err_msg=name)


def test_every_row_equals_its_call_of_generate(omni, rows):
  """Greedy, in text and speech; the samples to float rounding (calls have other shapes)."""
  greedy = [dataclasses.replace(row, temperature=0.0, repetition_penalty=None) for row in rows[:12]]
  voice = omni.voice.changed(temperature=0)
  results = list(Engine(omni, CONFIG, voice).answer(greedy))
  assert not [r.error for r in results if r.error]
  ours = {r.row.id: r.reply for r in results}
  expected = omni.generate(
    [row.messages for row in greedy],
    max_new_tokens=[row.max_new_tokens for row in greedy],
    temperature=0,
    seed=[row.seed for row in greedy],
    max_frames=[row.max_frames for row in greedy],
    speech=True,
    talker_temperature=0,
  )
  for row, reply in zip(greedy, expected, strict=True):
    mine = ours[row.id]
    assert mine.token_ids == reply.token_ids and mine.prompt_tokens == reply.prompt_tokens, row.id
    assert (mine.text, mine.finish_reason) == (reply.text, reply.finish_reason)
    assert (mine.speech is not None) == row.speech
    if row.speech:
      np.testing.assert_array_equal(mine.speech.codes, reply.speech.codes)
      assert mine.speech.finish_reason == reply.speech.finish_reason
      np.testing.assert_allclose(mine.speech.samples, reply.speech.samples, rtol=0, atol=1e-5)


def test_answers_do_not_depend_on_order_or_company(omni, rows, answered):
  """To the last bit, drawn rows too."""
  expected = answered[1]
  engine = Engine(omni, CONFIG, omni.voice)
  backwards = {r.row.id: r for r in engine.answer(rows[::-1])}
  assert_same_bits(backwards, expected, [row.id for row in rows])
  few = {r.row.id: r for r in engine.answer(rows[8:11])}
  assert_same_bits(few, expected, [row.id for row in rows[8:11]])


def test_what_was_computed_once_is_used_again_and_changes_nothing(omni, rows, answered):
  engine, expected = answered
  assert engine.stats.reused_tokens > 0
  different = {item.key for row in rows for item in items_of(omni.processor(row.messages), omni.cfg.thinker)[0]}
  assert engine.stats.encoded_items == len(different)
  without = Engine(omni, dataclasses.replace(CONFIG, prefix_bytes=0), omni.voice)
  again = {r.row.id: r for r in without.answer(rows)}
  assert without.stats.reused_tokens == 0
  assert_same_bits(again, expected, [row.id for row in rows])


def test_slots_are_full_while_rows_wait(answered):
  stats = answered[0].stats
  assert stats.peak_use == 1 and stats.occupied > 0.9 * stats.occupied_of > 0


def test_a_row_moves_on_to_a_larger_slot_when_it_is_full(omni):
  """A high limit takes no large slot before it is needed, and what is written does not change; drawn rows and penalties too."""
  words = ('Say it. ', 'What is it? ' * 2, 'Name every colour of the picture. ' * 3)
  drawn = {'temperature': 0.9, 'top_k': 20, 'repetition_penalty': 1.2}
  rows = [
    Row(f'{i}', [{'role': 'user', 'content': words[i % 3]}], (30, 90, 170)[i % 3], seed=i, **(drawn if i % 2 else {}))
    for i in range(9)
  ]
  answer = lambda config: (engine := Engine(omni, config), {r.row.id: r for r in engine.answer(rows)})
  large, expected = answer(dataclasses.replace(CONFIG, lengths=(512,)))
  small, results = answer(dataclasses.replace(CONFIG, lengths=(64, 128, 512), room=8))
  assert large.stats.moved_rows == 0 and small.stats.moved_rows >= 6 and not [r.error for r in results.values() if r.error]
  for row in rows:
    assert results[row.id].reply.token_ids == expected[row.id].reply.token_ids, row.id
  assert max(len(r.reply.token_ids) for r in results.values()) > 128  # through all three


def test_a_prompt_whose_padding_reaches_past_its_slot(omni):
  row = Row('0', [{'role': 'user', 'content': 'Say it. ' * 12}], 3, temperature=0.0)
  answer = lambda length: next(Engine(omni, dataclasses.replace(CONFIG, lengths=(length,))).answer([row]))
  expected = answer(512).reply
  length = expected.prompt_tokens + 3
  assert -(-expected.prompt_tokens // 32) * 32 > length, 'another prompt is needed'
  assert answer(length).reply.token_ids == expected.token_ids


def test_no_more_programs_than_stated(omni, answered):
  bound, compiled = program_bound(CONFIG, omni.cfg, speech=True), compiled_programs()
  assert set(bound) == set(compiled)
  assert 0 < sum(compiled.values()) <= sum(bound.values()), f'{compiled} {bound}'  # what the command states at its start


def test_out_of_memory_halves_the_slots_and_loses_no_row(omni, rows, answered, monkeypatch):
  plain, calls = slots.decode_slots, []

  def fails_once(*args):
    calls.append(None)
    if len(calls) == 3:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory')
    return plain(*args)

  monkeypatch.setattr(slots, 'decode_slots', fails_once)
  engine = Engine(omni, CONFIG, omni.voice)
  results = {r.row.id: r for r in engine.answer(rows[:6])}
  assert engine.stats.halvings == 1 and engine.config.slots == 2
  assert {name: r.reply.token_ids for name, r in results.items()} == {
    row.id: answered[1][row.id].reply.token_ids for row in rows[:6]
  }


def test_bad_rows_fail_alone_and_by_kind(omni, rows, answered):
  text = rows[0].messages
  bad = {
    'messages': Row('messages', [{'role': 'nobody', 'content': 'hi'}]),
    'media': Row('media', [{'role': 'user', 'content': [{'type': 'audio', 'audio': '/nowhere.wav'}]}]),
    'settings': Row('settings', text, temperature=-1.0),
    'too_long': Row('too_long', text, max_new_tokens=5000),
  }
  results = {r.row.id: r for r in Engine(omni, CONFIG, omni.voice).answer([*bad.values(), rows[3]])}
  assert {name: results[name].kind for name in bad} == {name: name for name in bad}
  assert all(results[name].error for name in bad)
  assert_same_bits(results, answered[1], [rows[3].id])
  assert 'no Talker' in next(Engine(omni, CONFIG).answer([rows[0]])).error


def test_scores_in_bulk_are_those_of_score(omni, samples):
  ask = [{'role': 'user', 'content': [{'type': 'image', 'image': str(samples['image'])}, {'type': 'text', 'text': 'What?'}]}]
  conversations = [[*ask, {'role': 'assistant', 'content': text}] for text in ('A red disc.', 'A blue square and water.')]
  rows = [Row(str(i), c) for i, c in enumerate(conversations)] + [Row('bad', ask)]
  found = {row.id: scored for row, scored in BulkScorer(omni, CONFIG, top=3).score(rows)}
  assert found['bad']['error']['kind'] == 'messages'
  for i, expected in enumerate(omni.score(conversations)):
    score = found[str(i)]['score']
    assert score['token_ids'] == expected.token_ids and len(score['top']) == len(expected.token_ids)
    np.testing.assert_allclose(score['logprobs'], expected.logprobs, atol=2e-5)
    for token, logprob, top in zip(score['token_ids'], score['logprobs'], score['top'], strict=True):
      assert top[0][1] >= logprob and [p for _, p in top] == sorted((p for _, p in top), reverse=True)
      assert all(p == logprob for t, p in top if t == token)


def test_a_score_does_not_depend_on_order_or_company(omni):
  say = lambda words: [{'role': 'user', 'content': words}, {'role': 'assistant', 'content': words}]
  rows = [Row(words, say(words)) for words in ('Sea.', 'A red disc.', 'Some water and a blue square.', 'Who?', 'Nobody is here.')]
  scores = lambda rows: {row.id: scored['score'] for row, scored in BulkScorer(omni, CONFIG, top=2).score(rows)}
  together = scores(rows)
  assert scores(rows[::-1]) == together and scores(rows[2:3]) == {rows[2].id: together[rows[2].id]}


def test_the_memory_plan_is_what_the_arrays_take(omni):
  plan = memory_plan(omni.cfg, CONFIG, 'float32', speech=True)
  weights = sum(x.nbytes for x in jax.tree.leaves(omni.params))
  assert sum(size for name, size in plan.parts.items() if name.startswith('weights')) == weights
  state = slots.empty_slots(omni.cfg.thinker, 4, 512, omni.dtype)
  assert plan.parts['Thinker: 4 slots of 512 tokens'] == sum(x.nbytes for x in jax.tree.leaves(state))
  cut = memory_plan(omni.cfg, CONFIG, 'float32', speech=True, mesh={'data': 2, 'expert': 2})
  assert cut.devices == 4 and cut.total < plan.total
