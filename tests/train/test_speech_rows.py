"""What the Talker learns from is what it is given when it speaks: every row of every utterance, and where it stands."""

import jax.numpy as jnp
import numpy as np
import pytest
from qwen3_omni_jax.train.mask import SpecialIds
from qwen3_omni_jax.train.packing import PlacedExample, assemble_batch
from qwen3_omni_jax.train.records import Rules, read_record
from qwen3_omni_jax.train.room import Bins, ExampleSize, LaneShape
from qwen3_omni_jax.train.spoken import SpeechRules

from qwen3_omni_jax.infer.talker_inputs import talker_inputs, thinker_rows
from qwen3_omni_jax.media.image import ImageSettings
from qwen3_omni_jax.media.inputs import ModelInputs
from qwen3_omni_jax.media.processor import Processor
from qwen3_omni_jax.media.turns import speaker_code
from qwen3_omni_jax.models.code_predictor import code_predictor_spec
from qwen3_omni_jax.models.talker import project, talker_prompt, talker_spec, text_track
from tests.arrays import normal, params_of

pytestmark = pytest.mark.quick_to_compile

ATOL = 1e-6  # of embeddings of about 1, summed in another order
SHAPE = LaneShape(
  rows=2, length=1024, audio_rows=2, chunks=8, visual_rows=6, patches=1024, speech_rows=2, speech_length=1024, codebooks=16
)


def turn(role, content, **more):
  return {'role': role, 'content': content, **more}


def spoken(text, frames, speaker='ethan', **more):
  codes = np.random.default_rng((frames, len(text))).integers(0, 256, (frames, 16))
  return turn('assistant', text, codes=codes.tolist(), speaker=speaker, **more)


RECORDS = {
  'text alone': [turn('user', 'Say it.'), spoken('A red disc and a blue square.', 9)],
  'speech that is longer than its text': [turn('user', 'Short.'), spoken('Hello', 30, 'Chelsie')],
  'one frame': [turn('user', 'One.'), spoken('There is a small dog near the water.', 1)],
  'a spoken question after a system turn': [
    turn('system', 'You are a helpful assistant.'),
    turn('user', [{'type': 'audio', 'audio': 'melody.wav'}, {'type': 'text', 'text': 'Well?'}]),
    spoken('A melody.', 7),
  ],
  'several answers, of which one is only written': [
    turn('system', 'Listen.'),
    turn('user', [{'type': 'text', 'text': 'Hear '}, {'type': 'audio', 'audio': 'melody.wav'}]),
    spoken('A few notes.', 4),
    turn('user', 'And?'),
    turn('assistant', 'Nothing else in it.'),
    turn('user', [{'type': 'image', 'image': 'shapes.png'}]),
    spoken('A disc, and a square.', 12, 'aiden'),
  ],
  'a video with its sound': [
    turn('system', 'Look.'),
    turn('user', [{'type': 'video', 'video': 'moving.mp4'}, 'What happens?']),
    spoken('The disc moves.', 5),
    turn('user', 'Where?'),
    spoken('To the right.', 3),
  ],
  'nobody asks': [spoken('It is a sunny day.', 6)],
}
READ_ALOUD = spoken('Someone is singing a song.', 8, 'chelsie')


@pytest.fixture(scope='module')
def processor(tiny_folder, samples):
  processor = Processor.from_folder(tiny_folder, media_root=samples['audio'].parent, fps=2.0)
  processor.raw_patches = True
  return processor


@pytest.fixture(scope='module')
def params(processor):
  talker = processor.cfg.talker
  cfg = processor.cfg.thinker.text
  tree = params_of({'talker': talker_spec(talker), 'code_predictor': code_predictor_spec(talker)}, seed=3)
  return tree | {'thinker': {'embed': normal(4, cfg.vocab_size, cfg.hidden_size)}}


@pytest.fixture(scope='module')
def packed(processor):
  """(batch of two lanes, (first token in the batch, prompts with their answers) of every example)."""
  special, rules = SpecialIds.of(processor.cfg, processor.tokenizer), SpeechRules()
  options = {'audio_in_video': True}
  read = lambda record, form: read_record(
    record, Rules(form, speech=rules, **(options if form == 'chat' else {})), processor, special
  )
  examples = [read({'messages': messages}, 'chat')[0] for messages in RECORDS.values()]
  aloud = {'text': READ_ALOUD['content'], 'codes': READ_ALOUD['codes'], 'speaker': READ_ALOUD['speaker']}
  examples.insert(2, read(aloud, 'speech')[0])
  asked = [prompts_of(processor, messages, options) for messages in RECORDS.values()]
  asked.insert(2, [(no_prompt(processor), READ_ALOUD)])
  lanes, first = [], {}
  for lane in range(2):
    bins, placed, used = Bins.of(SHAPE), [], [0] * SHAPE.rows
    for number in range(lane, len(examples), 2):
      where = bins.place(ExampleSize.of(examples[number], processor.cfg.thinker))
      assert where is not None
      placed.append(PlacedExample(examples[number], *where, source=lane))
      first[number] = (lane * SHAPE.rows + where[0]) * SHAPE.length + used[where[0]], where[3], lane
      used[where[0]] += len(examples[number].learn)
    lanes.append((lane, placed))
  batch = assemble_batch(lanes, SHAPE, processor.cfg.thinker, ImageSettings(patch=16), ('a', 'b'))
  return batch, [(*first[number], asked[number]) for number in range(len(examples))]


def prompts_of(processor, messages, options):
  """(prompt, answer) of every spoken answer, as a conversation up to there is answered."""
  plain = [{key: value for key, value in m.items() if key in ('role', 'content')} for m in messages]
  return [
    (processor(plain[:i], **options), m) if i else (no_prompt(processor), m) for i, m in enumerate(messages) if 'codes' in m
  ]


def no_prompt(processor):
  """As in Omni.speak."""
  header = np.array(processor.tokenizer.encode_prompt(processor.tokenizer.split('<|im_start|>assistant\n')), np.int32)
  return ModelInputs(header, np.broadcast_to(np.arange(len(header), dtype=np.float32), (3, len(header))))


def generated_rows(processor, params, asked, tapped):
  """(rows of the prompt and of each frame 'S D', positions '3 S') that generation computes for each (prompt, answer) with the
  answer's codes drawn. tapped: 'T I' of each, the Thinker's states of the prompt's tokens."""
  cfg, talker, pad = (
    processor.cfg,
    processor.cfg.talker,
    lambda rows: np.stack([np.resize(row, (512, *row.shape[1:])) for row in rows]),
  )
  inputs = talker_inputs([prompt for prompt, _ in asked], cfg)
  replies = [np.array(processor.tokenizer.encode(answer['content']), np.int32) for _, answer in asked]
  special = jnp.array([cfg.tts_bos_token_id, cfg.tts_eos_token_id, cfg.tts_pad_token_id])
  table, count = params['thinker']['embed'], jnp.array(list(map(len, replies)), jnp.int32)
  track = text_track(params['talker'], table[pad(replies)], count, table[special])
  speaker = jnp.array([speaker_code(talker, answer['speaker']) for _, answer in asked])
  rows = thinker_rows(params['thinker'], jnp.asarray(pad([prompt.ids for prompt, _ in asked])), jnp.asarray(pad(tapped)), inputs)
  start = talker_prompt(params['talker'], talker, rows, track, speaker)
  text = np.stack([track.row(jnp.full(len(asked), t + 1)) for t in range(max(len(answer['codes']) for _, answer in asked))])
  found = []
  for b, (_, answer) in enumerate(asked):
    codes, length = np.array(answer['codes']), int(start.length[b])
    sums = params['talker']['embed'][codes[:, 0]] + sum(
      params['code_predictor']['embed'][q - 1, codes[:, q]] for q in range(1, 16)
    )
    places = np.broadcast_to(inputs.next_position[b] + np.arange(len(codes)), (3, len(codes)))
    places = np.concatenate([inputs.positions[:, b, :length], places], axis=1)
    found.append((np.concatenate([start.embeds[b, :length], text[: len(codes), b] + sums]), places))
  return found


def learnt_rows(params, speech, tapped):
  """Embeddings 'R S D' of the rows of a batch. tapped: 'BT I', of all its tokens."""
  talker = params['talker']
  text = project(talker['text_projection'], params['thinker']['embed'][speech.text])
  heard = project(talker['hidden_projection'], tapped[np.maximum(speech.tap, 0)])
  x = np.where(speech.tap[..., None] >= 0, heard, text)
  for r, p in np.ndindex(speech.text.shape):
    before = (
      speech.codes[r, p - 1] if p and speech.segment[r, p - 1] == speech.segment[r, p] else np.full(speech.codes.shape[2], -1)
    )
    if before[1] >= 0:
      x[r, p] += talker['embed'][before[0]] + sum(
        params['code_predictor']['embed'][q - 1, before[q]] for q in range(1, len(before))
      )
    elif speech.opening[r, p] >= 0:
      x[r, p] += talker['embed'][speech.opening[r, p]]
  return x


def utterances(packed):
  """(speech row, its columns, prompt, answer, first token of the example) of every utterance."""
  batch, examples = packed
  used = {}
  for first, rows, lane, asked in examples:
    for row, (prompt, answer) in zip(rows, asked, strict=True):
      row += lane * SHAPE.speech_rows
      number = used[row] = used.get(row, 0) + 1
      yield row, np.flatnonzero(batch.speech.segment[row] == number), prompt, answer, first


def test_rows_and_positions_of_packed_utterances_are_those_that_generation_computes(processor, params, packed):
  batch, _ = packed
  tapped = normal(5, batch.tokens.ids.size, processor.cfg.thinker.text.hidden_size)
  learnt, places, seen = learnt_rows(params, batch.speech, tapped), list(utterances(packed)), 0
  states = [tapped[first : first + len(prompt.ids)] for _, _, prompt, _, first in places]
  generated = generated_rows(processor, params, [(prompt, answer) for _, _, prompt, answer, _ in places], states)
  for (row, columns, _, answer, _), (rows, positions) in zip(places, generated, strict=True):
    assert len(rows) == len(columns)
    np.testing.assert_allclose(learnt[row, columns], rows, rtol=0, atol=ATOL, err_msg=answer['content'])
    np.testing.assert_array_equal(batch.speech.positions[:, row, columns], positions, err_msg=answer['content'])
    seen += len(columns)
  assert seen == np.count_nonzero(batch.speech.segment) > 1000 and (batch.speech.tap >= 0).sum() > 300
  assert batch.speech.segment.max() > 2  # several to a row


def test_the_last_row_of_the_opening_predicts_the_first_frame_and_that_of_the_last_frame_the_end(processor, packed):
  speech = packed[0].speech
  for row, columns, _, answer, _ in utterances(packed):
    frames = np.array(answer['codes'])
    targets = speech.codes[row, columns]
    np.testing.assert_array_equal(targets[-1 - len(frames) : -1], frames)
    assert targets[-1].tolist() == [processor.cfg.talker.codec_eos_token_id] + [-1] * 15
    assert (targets[: -1 - len(frames)] == -1).all()
    assert speech.opening[row, columns[-1 - len(frames)]] == processor.cfg.talker.codec_bos_id
    np.testing.assert_array_equal(speech.weights[row, columns], targets[:, 0] >= 0)
  assert not speech.weights[speech.segment == 0].any()


def test_taps_point_at_the_media_of_the_utterances_own_record(processor, packed):
  batch = packed[0]
  ids = np.asarray(batch.tokens.ids).ravel()
  tapped = batch.speech.tap >= 0
  np.testing.assert_array_equal(ids[batch.speech.tap[tapped]], batch.speech.text[tapped])
  media = (processor.cfg.thinker.audio_token_id, processor.cfg.thinker.image_token_id, processor.cfg.thinker.video_token_id)
  np.testing.assert_array_equal(tapped, np.isin(batch.speech.text, media))
  np.testing.assert_array_equal(batch.speech.source[batch.speech.segment > 0] > 0, (np.nonzero(batch.speech.segment)[0] >= 2))
