"""Speech: the same alone, in a batch and as a stream; every kind of conversation speaks; speech always ends."""

import dataclasses

import numpy as np
import pytest
from qwen3_omni_jax.tools.tiny import make_checkpoint

from qwen3_omni_jax import AudioChunk, Finished, Omni, TextDelta, Voice

FRAMES = 24


@pytest.fixture(scope='module')
def omni(tiny_folder):
  return Omni.load(tiny_folder, dtype='float32')


@pytest.fixture(scope='module')
def conversations(samples):
  part = lambda kind: {'type': kind, kind: str(samples[kind])}
  ask = lambda *parts: [{'role': 'user', 'content': [*parts, {'type': 'text', 'text': 'What is it?'}]}]
  several = [
    {'role': 'system', 'content': 'Be kind.'},
    *ask(part('audio')),
    {'role': 'assistant', 'content': 'A song.'},
    *ask(),
  ]
  return {
    'text': ask(),
    'audio': ask(part('audio')),
    'image': ask(part('image')),
    'video': ask(part('video')),
    'several images': ask(part('image'), part('image')),
    'audio and image': ask(part('audio'), part('image')),
    'several turns': several,
  }


SPOKEN = dict(speech=True, max_new_tokens=5, max_frames=FRAMES)


@pytest.mark.parametrize('temperature', [0, pytest.param(None, marks=pytest.mark.slow)])
def test_every_kind_of_conversation_speaks_and_a_batch_equals_single_runs(omni, conversations, temperature):
  """Greedily code for code. Drawn at random too, save where rounding (a batch sums in another order) moves a value across a
  boundary: in a row here and there, one of 400. The slow run has every row alone, the quick one a row of each shape."""
  rows = list(conversations.values())
  speakers = ['Ethan', 'chelsie', 'AIDEN', 'Ethan', 'Chelsie', 'Aiden', 'Ethan']
  options = dict(audio_in_video=True, talker_temperature=temperature, **SPOKEN)
  together = omni.generate(rows, seed=list(range(7)), speaker=speakers, **options)
  assert len({reply.speech.codes.tobytes() for reply in together}) == len(rows)
  differing = []
  for i in range(len(rows)) if temperature is None else (0, 3, 5):
    alone = omni.generate([rows[i]], seed=i, speaker=speakers[i], **options)[0]
    assert alone.token_ids == together[i].token_ids
    if not np.array_equal(alone.speech.codes, together[i].speech.codes):
      differing.append(i)
      continue
    np.testing.assert_allclose(alone.speech.samples, together[i].speech.samples, rtol=0, atol=1e-5)
    assert len(alone.speech.samples) == 1920 * len(alone.speech.codes) - 555
  assert len(differing) <= (1 if temperature is None else 0), f'rows {differing}'


@pytest.mark.parametrize(('case', 'schedule'), [('text', (1, 2, 4, 8)), ('audio and image', (3,))])
def test_streaming_gives_the_same_tokens_codes_and_samples(omni, conversations, case, schedule):
  expected = omni.generate([conversations[case]], seed=3, **SPOKEN)[0]
  *events, last = omni.stream(conversations[case], seed=3, chunk_schedule=schedule, **SPOKEN)
  assert isinstance(last, Finished) and last.reply.token_ids == expected.token_ids
  np.testing.assert_array_equal(last.reply.speech.codes, expected.speech.codes)
  chunks = [event for event in events if isinstance(event, AudioChunk)]
  np.testing.assert_allclose(np.concatenate([c.samples for c in chunks]), expected.speech.samples, atol=1e-5)
  assert [c.first_frame for c in chunks][:3] == [0, schedule[0], schedule[0] + schedule[min(1, len(schedule) - 1)]]
  assert all(c.rate_hz == 24_000 for c in chunks)
  assert ''.join(e.text for e in events if isinstance(e, TextDelta)) == expected.text
  assert last.usage['audio_frames'] == len(expected.speech.codes) and last.timings['first_audio_s'] > 0


def test_audio_is_heard_before_the_text_is_finished(omni, conversations):
  events = list(omni.stream(conversations['text'], seed=3, stop_token_ids=(), **{**SPOKEN, 'max_new_tokens': 12}))
  kinds = [type(event) for event in events]
  last_text = max(i for i, kind in enumerate(kinds) if kind is TextDelta)
  assert kinds.index(AudioChunk) < last_text


def test_rows_have_their_own_frame_limits(omni, conversations):
  row = conversations['text']
  long = omni.generate([row], seed=1, **SPOKEN)[0].speech
  short, whole = omni.generate([row, row], seed=1, speech=True, max_new_tokens=5, max_frames=[7, FRAMES])
  np.testing.assert_array_equal(short.speech.codes, long.codes[:7])
  np.testing.assert_array_equal(whole.speech.codes, long.codes)
  assert short.speech.finish_reason == 'length'


def test_the_talkers_own_end_is_respected(omni, conversations):
  """The end-of-speech code is whatever greedy speech says at frame 5."""
  greedy = dict(talker_temperature=0, voice=omni.voice.without_guards(), **SPOKEN)
  codes = omni.generate([conversations['text']], **greedy)[0].speech.codes
  first = int(np.flatnonzero(codes[:, 0] == codes[5, 0])[0])
  talker = dataclasses.replace(omni.cfg.talker, codec_eos_token_id=int(codes[5, 0]))
  ending = Omni(dataclasses.replace(omni.cfg, talker=talker), omni.params, omni.processor, omni.defaults, 'float32', omni.voice)
  speech = ending.generate([conversations['text']], **greedy)[0].speech
  assert speech.finish_reason == 'stop'
  np.testing.assert_array_equal(speech.codes, codes[:first])


def test_runaway_speech_is_stopped_and_reported(omni, conversations):
  voice = dataclasses.replace(omni.voice, frames_per_token=2, loop_frames=0)
  reply = omni.generate([conversations['text']], speech=True, max_new_tokens=3, voice=voice, stop_token_ids=())[0]
  assert reply.speech.finish_reason == 'runaway' and len(reply.speech.codes) == 2 * 3 + 50


def test_speech_that_loops_is_stopped_and_reported(omni, conversations):
  """A Talker without preferences says the first code for ever."""
  talker = omni.params['talker'] | {'head': np.zeros_like(omni.params['talker']['head'])}
  stuck = Omni(omni.cfg, omni.params | {'talker': talker}, omni.processor, omni.defaults, 'float32')
  voice = Voice(temperature=0, predictor_temperature=0, frames_per_token=0, loop_frames=12)
  speech = stuck.generate([conversations['text']], speech=True, max_new_tokens=3, voice=voice, max_frames=100)[0].speech
  assert speech.finish_reason == 'loop' and len(speech.codes) == 13 and not speech.codes[:, 0].any()


def test_the_last_token_of_a_reply_cut_by_its_limit_is_spoken(omni, conversations):
  """A reply of n tokens, cut, is fed to the Talker as the reference feeds one of n + 1."""
  row = [conversations['text']]
  common = dict(speech=True, talker_temperature=0, max_frames=FRAMES, stop_token_ids=(), voice=omni.voice.without_guards())
  ours = omni.generate(row, max_new_tokens=3, **common)[0]
  dropped = omni.generate(row, max_new_tokens=3, reference_exact=True, **common)[0]
  longer = omni.generate(row, max_new_tokens=4, reference_exact=True, **common)[0]
  np.testing.assert_array_equal(ours.speech.codes, longer.speech.codes)
  assert not np.array_equal(ours.speech.codes, dropped.speech.codes)


def test_replies_of_one_token(omni, conversations):
  row = [conversations['text']]
  only = omni.generate(row, max_new_tokens=1, stop_token_ids=(), speech=True, max_frames=5)[0]
  assert len(only.token_ids) == 1 and len(only.speech.codes) == 5
  empty = omni.generate(row, max_new_tokens=1, stop_token_ids=only.token_ids, speech=True, max_frames=5)[0]
  assert empty.finish_reason == 'stop' and len(empty.speech.samples) == 0
  events = list(omni.stream(row[0], max_new_tokens=1, stop_token_ids=only.token_ids, speech=True, max_frames=5))
  assert len(events[-1].reply.speech.samples) == 0


def test_given_text_is_spoken_in_a_batch_as_alone(omni):
  texts, speakers = ['Hello there', 'The quick brown fox jumps'], ['Ethan', 'Aiden']
  both = omni.speak(texts, speakers, seed=[4, 5], max_frames=12)
  for i, text in enumerate(texts):
    alone = omni.speak(text, speakers[i], seed=4 + i, max_frames=12)
    np.testing.assert_array_equal(alone.codes, both[i].codes)
  one, other = (omni.speak(text, max_frames=12, seed=1).codes for text in ('<|im_end|>', '<|im_start|>'))
  assert not np.array_equal(one, other), 'a special token in a text is spelled out'
  with pytest.raises(ValueError, match='nothing to say'):
    omni.speak('')


def test_what_cannot_be_spoken_is_refused(omni, conversations, tmp_path):
  with pytest.raises(ValueError, match="speaker 'Bob' is not one of .*: aiden, chelsie, ethan"):
    omni.generate([conversations['text']], speaker='Bob', **SPOKEN)
  with pytest.raises(ValueError, match='chunk schedule'):
    list(omni.stream(conversations['text'], chunk_schedule=(), **SPOKEN))
  make_checkpoint(tmp_path / 'thinking', variant='thinking')
  thinking = Omni.load(tmp_path / 'thinking', dtype='float32')
  with pytest.raises(ValueError, match='no Talker'):
    thinking.generate([conversations['text']], **SPOKEN)
