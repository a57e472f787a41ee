"""Omni's laws: a row's reply depends on the row alone; streaming, batching and storage change nothing."""

import dataclasses

import numpy as np
import pytest

from qwen3_omni_jax import Finished, Omni, TextDelta
from qwen3_omni_jax.infer.reply import split_reasoning
from qwen3_omni_jax.infer.sampling import Sampling
from qwen3_omni_jax.infer.settings import GenerationDefaults


@pytest.fixture(scope='module')
def omni(tiny_folder):
  return Omni.load(tiny_folder, dtype='float32')


@pytest.fixture(scope='module')
def conversations(samples):
  part = lambda kind: {'type': kind, kind: str(samples[kind])}
  ask = lambda *parts: [{'role': 'user', 'content': [*parts, {'type': 'text', 'text': 'What is it?'}]}]
  return [ask(), ask(part('audio')), ask(part('image'), part('audio')), ask(part('video')), ask(part('image'), part('image'))]


SAMPLED = dict(temperature=1.0, top_k=40, top_p=0.95, repetition_penalty=1.2, max_new_tokens=12)


def test_a_row_answers_the_same_alone_in_a_batch_and_in_small_batches(omni, conversations):
  together = omni.generate(conversations, seed=[5, 6, 7, 8, 9], **SAMPLED)
  small = omni.generate(conversations, seed=[5, 6, 7, 8, 9], batch_size=2, **SAMPLED)
  for i, conversation in enumerate(conversations):
    alone = omni.generate([conversation], seed=5 + i, **SAMPLED)[0]
    assert together[i].token_ids == small[i].token_ids == alone.token_ids
    assert together[i].prompt_tokens == alone.prompt_tokens
  assert len({tuple(reply.token_ids) for reply in together}) == len(conversations)


def test_different_seeds_give_different_replies(omni, conversations):
  replies = omni.generate([conversations[0]] * 4, seed=[1, 2, 3, 1], **SAMPLED)
  assert replies[0].token_ids == replies[3].token_ids
  assert len({tuple(reply.token_ids) for reply in replies}) == 3


def test_streaming_gives_the_same_reply_in_pieces(omni, conversations):
  expected = omni.generate([conversations[2]], seed=4, **SAMPLED)[0]
  *deltas, last = omni.stream(conversations[2], seed=4, **SAMPLED)
  assert all(isinstance(event, TextDelta) for event in deltas) and isinstance(last, Finished)
  assert last.reply.token_ids == expected.token_ids
  assert ''.join(event.text for event in deltas) == expected.text == last.reply.text


def test_rows_end_at_their_own_limit_and_stop_token(omni, conversations):
  long = omni.generate(conversations[:3], max_new_tokens=20, stop_token_ids=())
  stop = long[1].token_ids[4]
  replies = omni.generate(conversations[:3], max_new_tokens=[3, 20, 20], stop_token_ids=[stop])
  assert replies[0].token_ids == long[0].token_ids[:3] and replies[0].finish_reason == 'length'
  first = long[1].token_ids.index(stop)
  assert replies[1].token_ids == long[1].token_ids[: first + 1] and replies[1].finish_reason == 'stop'


def test_scores_are_the_probabilities_greedy_decoding_saw(omni):
  question = [{'role': 'user', 'content': 'What is it?'}]
  words = 'A red disc.'
  score = omni.score([[*question, {'role': 'assistant', 'content': words}]])[0]
  assert score.prompt_tokens == len(omni.processor(question).ids)
  by_hand = []
  from qwen3_omni_jax.infer.collate import collate
  from qwen3_omni_jax.models.thinker import Features, logits, thinker_forward

  row = omni.processor([*question, {'role': 'assistant', 'content': words}], add_generation_prompt=False)
  tokens = collate([row], omni.cfg.thinker).tokens
  out, _ = thinker_forward(omni.params['thinker'], omni.cfg.thinker, tokens, Features())
  values = np.asarray(logits(omni.params['thinker'], out.hidden[0]), np.float64)
  for t in range(score.prompt_tokens, score.prompt_tokens + len(score.token_ids)):
    z = values[t - 1] - values[t - 1].max()
    by_hand.append(z[row.ids[t]] - np.log(np.exp(z).sum()))
  np.testing.assert_allclose(score.logprobs, by_hand, atol=2e-5)


def test_bad_conversations_fail_alone(omni, conversations):
  broken = [{'role': 'user', 'content': [{'type': 'audio', 'audio': '/nowhere.wav'}]}]
  rows = [conversations[0], broken, conversations[1]]
  with pytest.raises(ValueError, match=r'conversation 1: .*/nowhere\.wav'):
    omni.generate(rows, max_new_tokens=2)
  replies = omni.generate(rows, max_new_tokens=2, on_error='return')
  assert [reply.finish_reason for reply in replies] == ['length', 'error', 'length']
  assert '/nowhere.wav' in replies[1].error
  assert replies[2].token_ids == omni.generate([conversations[1]], max_new_tokens=2)[0].token_ids


def test_a_prompt_longer_than_the_model_is_refused(omni):
  text = dataclasses.replace(omni.cfg.thinker.text, max_position_embeddings=20)
  thinker = dataclasses.replace(omni.cfg.thinker, text=text)
  small = Omni(dataclasses.replace(omni.cfg, thinker=thinker), omni.params, omni.processor, omni.defaults, 'float32')
  with pytest.raises(ValueError, match=r'the prompt has \d+ tokens but the model was made for 20'):
    small.generate([[{'role': 'user', 'content': 'word ' * 40}]])


def test_reasoning_is_split_from_the_answer():
  assert split_reasoning('<think>\nwhy\n</think>\n\nso', False) == ('so', 'why')
  assert split_reasoning('why\n</think>\n\nso', True) == ('so', 'why')
  assert split_reasoning('<think>\nstill thinking', False) == ('', 'still thinking')
  assert split_reasoning('still thinking', True) == ('', 'still thinking')
  assert split_reasoning('plain', False) == ('plain', None)


def test_generation_config_is_honoured_by_the_documented_rule(tmp_path):
  read = lambda text: ((tmp_path / 'generation_config.json').write_text(text), GenerationDefaults.from_folder(tmp_path, 7))[1]
  assert GenerationDefaults.from_folder(tmp_path, 7) == GenerationDefaults(stop_token_ids=(7,))
  assert read('{"temperature": 0.6, "top_k": 20}').sampling == Sampling()  # no do_sample: greedy
  chosen = read('{"do_sample": true, "temperature": 0.6, "top_k": 20, "eos_token_id": [3, 4], "max_new_tokens": 9}')
  assert chosen == GenerationDefaults(Sampling(temperature=0.6, top_k=20), 9, (3, 4))
  with pytest.raises(ValueError, match=r'generation_config\.json.*top_p'):
    read('{"do_sample": true, "top_p": "high"}')
  with pytest.warns(UserWarning, match='not used here: typo'):
    read('{"typo": 1}')
