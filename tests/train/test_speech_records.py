"""Records with speech: how an answer names what is said, what makes such a record bad, and how utterances are packed."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
from qwen3_omni_jax.train.codes import open_codes
from qwen3_omni_jax.train.fitting import read_fitting
from qwen3_omni_jax.train.mask import SpecialIds
from qwen3_omni_jax.train.packing import PlacedExample, assemble_batch, fill_stats
from qwen3_omni_jax.train.records import Rules, read_record
from qwen3_omni_jax.train.room import Bins, ExampleSize, LaneShape
from qwen3_omni_jax.train.sources import open_source
from qwen3_omni_jax.train.spoken import SpeechRules
from qwen3_omni_jax.train.utterances import OPENING, make_utterance

from qwen3_omni_jax.media.image import ImageSettings
from qwen3_omni_jax.media.processor import Processor
from tests.train.records import write_codes
from tests.train.test_sources import write_tar

CODES = np.random.default_rng(0).integers(0, 256, (5, 16)).astype(np.int16)


@pytest.fixture(scope='module')
def processor(tiny_folder, samples):
  processor = Processor.from_folder(tiny_folder, media_root=samples['audio'].parent)
  processor.raw_patches = True
  return processor


@pytest.fixture(scope='module')
def rules(tmp_path_factory):
  recordings = {'a.wav': CODES, 'constant.wav': np.tile(CODES[:1], (4, 1)), 'once.wav': CODES[:1]}
  return SpeechRules('chelsie', open_codes(write_codes(tmp_path_factory.mktemp('codes'), recordings)))


def turn(role, content, **more):
  return {'role': role, 'content': content, **more}


def chat(**answer):
  return {'messages': [turn('user', 'Say it.'), turn('assistant', 'A disc.') | answer]}


def read(record, processor, rules, form='chat'):
  special = SpecialIds.of(processor.cfg, processor.tokenizer)
  (example,) = read_record(record, Rules(form, speech=rules), processor, special)
  return example


def test_every_way_of_naming_a_recording_gives_the_same_utterance_and_the_thinker_hears_none_of_them(processor, rules):
  written = read(chat(), processor, rules)
  sound = {'type': 'audio', 'audio': 'a.wav'}
  ways = [
    chat(audio='a.wav'),
    chat(audio={'path': 'a.wav', 'bytes': None}, speaker=None),
    chat(content=[sound, {'type': 'text', 'text': 'A disc.'}]),
    chat(content=['A disc.', {'type': 'audio_url', 'audio_url': {'url': 'a.wav'}}], speaker='Chelsie'),
    chat(content='<audio>A disc.') | {'audios': ['a.wav']},
    chat(codes=CODES.tolist()),
    chat(codes=CODES.astype('<i2').tobytes(), audio='not/there.wav'),
  ]
  examples = [read(record, processor, rules) for record in ways]
  for example in examples:
    assert not example.inputs.audios
    np.testing.assert_array_equal(example.inputs.ids, written.inputs.ids)
    np.testing.assert_array_equal(example.learn, written.learn)
    for field in dataclasses.fields(example.utterances[0]):
      a, b = (getattr(e.utterances[0], field.name) for e in (examples[0], example))
      np.testing.assert_array_equal(a, b, err_msg=field.name)
  assert not written.utterances and examples[0].utterances[0].frames == len(CODES)


def test_an_answer_that_is_not_learnt_or_only_written_is_not_spoken(processor, rules):
  messages = [
    turn('user', 'One.'),
    turn('assistant', 'No.', audio='a.wav', loss=False),
    turn('user', 'Two.'),
    turn('assistant', 'Yes.', speaker='ethan'),
    turn('user', 'Three.'),
    turn('assistant', 'Aloud.', audio='a.wav', speaker='ethan'),
  ]
  example = read({'messages': messages}, processor, rules)
  (utterance,) = example.utterances
  text = processor.tokenizer.decode(utterance.text[: -OPENING - len(CODES)].tolist(), skip_special_tokens=False)
  turns = ''.join(f'<|im_start|>user\n{number}<|im_end|>\n' for number in ('One.', 'Two.', 'Three.'))
  assert text == turns
  assert dict(processor.cfg.talker.speaker_id)['ethan'] in utterance.opening


@pytest.mark.parametrize(
  'words, frames, expected',
  [(1, 1, 'aE'), (2, 1, 'ab'), (4, 1, 'ab'), (1, 4, 'aEPPP'), (2, 3, 'abEP'), (3, 2, 'abc'), (4, 4, 'abcdE'), (5, 4, 'abcde')],
)
def test_the_text_runs_a_token_ahead_then_ends_once_and_is_cut_where_speech_ends(processor, words, frames, expected):
  cfg, special = processor.cfg, SpecialIds.of(processor.cfg, processor.tokenizer)
  nothing = np.zeros(0, np.int32), np.zeros((3, 0), np.float32)
  said = np.arange(100, 100 + words, dtype=np.int32)
  made = make_utterance(*nothing, said, np.zeros((frames, 16), np.int16), 300, cfg, special)
  letter = {cfg.tts_eos_token_id: 'E', cfg.tts_pad_token_id: 'P'} | {100 + i: 'abcde'[i] for i in range(words)}
  assert ''.join(letter[token] for token in made.text[OPENING - 1 :].tolist()) == expected


BAD = {
  'an unknown speaker': (chat(audio='a.wav', speaker='Bob'), r"messages\[1\].speaker: speaker 'Bob' .* aiden, chelsie, ethan"),
  'a recording that is not there': (chat(audio='b.wav'), r'messages\[1\].audio: b.wav: not among the 3 recordings of .*codes'),
  'a recording that could not be read': (chat(audio='broken.wav'), 'broken.wav: could not be read: no sound in it'),
  'a sound without a name': (chat(audio=b'RIFF'), 'expected the path of a recording, .* found bytes'),
  'a data URL': (chat(audio='data:audio/wav;base64,AA'), 'expected the path of a recording'),
  'an empty name': (chat(audio=''), 'expected the path of a recording'),
  'two recordings': (chat(audio='a.wav', content=['x', {'type': 'audio', 'audio': 'a.wav'}]), '2 recordings of one answer'),
  'no words': (chat(audio='a.wav', content=''), r'messages\[1\]: audio without text; .* give the words'),
  'only a sound': (chat(content=[{'type': 'audio', 'audio': 'a.wav'}]), 'audio without text'),
  'a picture in it': (chat(audio='a.wav', content='<image>') | {'images': ['shapes.png']}, 'a spoken answer with media'),
  'silence': (chat(audio='constant.wav'), r'messages\[1\].audio: 4 times the same frame: silence'),
  'no frames': (chat(codes=[]), r'messages\[1\].codes: 0 frames; the recording is empty'),
  'too few codebooks': (chat(codes=[[1, 2], [3, 4]]), r'\[2, 2\]; expected frames × 16 codebooks'),
  'codebooks first': (chat(codes=CODES.T.tolist()), r'\[16, 5\]; expected frames × 16'),
  'frames of unlike width': (chat(codes=[[1] * 16, [1] * 15]), 'lists of unlike length'),
  'half a frame of bytes': (chat(codes=b'x' * 33), '33 bytes; expected a multiple of 32'),
  'fractions': (chat(codes=[[0.5] * 16]), 'expected whole numbers, found float64'),
  'words': (chat(codes='codes'), 'expected whole numbers'),
  'too large a code': (chat(codes=(CODES + 200).tolist()), r'the codebooks have entries 0 to 255'),
  'a negative code': (chat(codes=(CODES - 1 - CODES.min()).tolist()), r'codes from -1 to'),
}


@pytest.mark.parametrize('what', BAD)
def test_what_cannot_be_said_is_refused_with_its_place_and_reason(processor, rules, what):
  record, complaint = BAD[what]
  with pytest.raises(ValueError, match=complaint):
    read(record, processor, rules)


def test_speech_needs_room_codes_and_somebody_to_say_it(processor, rules):
  with pytest.raises(ValueError, match=r'messages\[1\]: an answer with audio, and no room for speech \(data.speech_rows is 0\)'):
    read(chat(audio='a.wav'), processor, None)
  with pytest.raises(ValueError, match='a.wav: the source has no folder of codes; make one with `qwen3-omni codes`'):
    read(chat(audio='a.wav'), processor, SpeechRules('ethan'))
  with pytest.raises(ValueError, match=r"messages\[1\].speaker: missing; give it there, or the source's `speaker`"):
    read(chat(audio='a.wav'), processor, dataclasses.replace(rules, speaker=''))
  assert len(read(chat(audio='once.wav'), processor, rules).utterances) == 1  # one frame is no silence


def test_a_text_read_aloud_is_an_utterance_without_tokens(processor, rules):
  example = read({'text': 'A disc.', 'audio': 'a.wav', 'id': 3}, processor, rules, 'speech')
  asked = read({'messages': [turn('assistant', 'A disc.', audio='a.wav')]}, processor, rules)  # nobody asks
  assert not len(example.inputs.ids) and len(asked.inputs.ids)
  np.testing.assert_array_equal(example.utterances[0].text, asked.utterances[0].text)
  np.testing.assert_array_equal(example.utterances[0].positions, asked.utterances[0].positions)
  for record, complaint in (
    ({'audio': 'a.wav'}, 'text: missing'),
    ({'text': '', 'audio': 'a.wav'}, 'text: missing'),
    ({'text': 'x'}, 'audio: missing; expected the recording'),
    ({'text': 'x', 'audio': 'b.wav'}, 'the record.audio: b.wav: not among'),
    ({'text': 'x', 'audio': 'a.wav', 'messages': []}, "unknown keys 'messages' in a speech record; known are audio, codes, id"),
  ):
    with pytest.raises(ValueError, match=complaint):
      read(record, processor, rules, 'speech')


SHAPE = LaneShape(
  rows=1, length=256, audio_rows=0, chunks=8, visual_rows=0, patches=4, speech_rows=2, speech_length=40, codebooks=16
)


def test_utterances_are_packed_best_fit_and_what_can_never_fit_names_the_size_to_raise():
  bins = Bins.of(SHAPE)
  size = lambda *speech: ExampleSize(4, (), (), speech)
  assert bins.place(size(30)) == (0, [], [], [0])
  assert bins.place(size(12, 20)) == (0, [], [], [1, 1])
  assert bins.place(size(9, 9)) is None and bins.place(size(8)) == (0, [], [], [1])  # the row with 8 left, not the one with 10
  assert bins.speech == [10, 0] and size(8, 9).cost == 21
  with pytest.raises(ValueError, match=r'41 positions of speech, .* a row has 40 \(speech_length\)'):
    size(3, 41).check(SHAPE)
  with pytest.raises(
    ValueError, match=r'90 positions of speech in 3 answers; a lane has 2 rows of 40 \(speech_rows, speech_length\)'
  ):
    size(30, 30, 30).check(SHAPE)
  size(40, 40).check(SHAPE)


def test_taps_count_the_tokens_of_all_lanes_whichever_are_here(processor, rules):
  sound = [{'type': 'audio', 'audio': 'melody.wav'}, 'Well?']
  example = read({'messages': [turn('user', sound), turn('assistant', 'A melody.', audio='a.wav')]}, processor, rules)
  shape = dataclasses.replace(SHAPE, rows=2, audio_rows=2, speech_length=100)
  cfg = processor.cfg.thinker
  placed = [PlacedExample(example, 1, [0], [], [1]), PlacedExample(example, 1, [1], [], [0])]
  batch = lambda *lanes: assemble_batch(lanes, shape, cfg, ImageSettings(patch=16)).speech
  first, third, whole = batch((0, placed)), batch((2, placed)), batch((0, []), (1, []), (2, placed))
  assert (first.tap >= 0).sum() == 2 * 39
  np.testing.assert_array_equal(third.tap, np.where(first.tap >= 0, first.tap + 2 * 2 * 256, -1))
  np.testing.assert_array_equal(whole.tap[4:], third.tap)
  assert (whole.tap[:4] == -1).all() and not whole.segment[:4].any()
  assert first.tap[1].max() < 256 + len(example.learn) <= first.tap[0][first.tap[0] >= 0].min()  # one after the other in row 1
  assert (
    first.source is None and assemble_batch([(0, placed)], shape, cfg, ImageSettings(patch=16), ('a',)).speech.source is not None
  )
  stats = fill_stats(assemble_batch([(0, placed)], shape, cfg, ImageSettings(patch=16)))
  length = len(example.utterances[0])
  assert (stats['speech'], stats['speech_room'], stats['speech_frames'], stats['utterances']) == (2 * length, 200, 10, 2)


def test_pictures_are_shrunk_until_the_talker_has_room_for_them_too(processor, rules):
  record = {'messages': [turn('user', '<image>'), turn('assistant', 'A disc.', audio='a.wav')], 'images': ['shapes.png']}
  special = SpecialIds.of(processor.cfg, processor.tokenizer)
  shape = LaneShape(
    rows=1, length=512, audio_rows=0, chunks=8, visual_rows=1, patches=1024, speech_rows=1, speech_length=60, codebooks=16
  )
  ask = Rules(speech=rules)
  (whole,) = read_record(record, ask, processor, special)
  (fitted,) = read_fitting(record, ask, processor, special, shape)
  assert len(whole.utterances[0]) > 60 >= len(fitted.utterances[0]) > 40
  ExampleSize.of(fitted, processor.cfg.thinker).check(shape)


def test_of_a_tar_file_recordings_of_answers_stay_names(tmp_path, processor, rules, samples):
  melody = samples['audio'].read_bytes()
  asked = [turn('user', '<audio>Well?'), turn('assistant', 'A melody.', audio='a.wav')]
  parts = [turn('user', [{'type': 'audio', 'audio': '0.wav'}]), turn('assistant', ['x', {'type': 'audio', 'audio': 'a.wav'}])]
  records = ({'messages': asked}, {'messages': parts}, {'text': 'A disc.', 'audio': 'a.wav'})
  members = {}
  for i, record in enumerate(records):
    members |= {f'{i}.json': json.dumps(record).encode(), f'{i}.a.wav': b'not read', f'{i}.0.wav': melody}
  del members['2.0.wav']
  write_tar(tmp_path / 'a.tar', members)
  source = open_source(tmp_path / 'a.tar')
  for i, form in enumerate(('chat', 'chat', 'speech')):
    example = read(source.read(source.locate(i)), processor, rules, form)
    assert len(example.inputs.audios) == (form == 'chat') and example.utterances[0].frames == len(CODES)


def test_codes_are_read_from_their_folder_also_by_a_copy_in_another_process(tmp_path):
  recordings = {'x/a.wav': CODES, 'ü b.flac': CODES[:2] + 1}
  codes = open_codes(write_codes(tmp_path / 'codes', recordings))
  assert (codes.num_code_groups, codes.codebook_size, codes.frame_rate, len(codes)) == (16, 256, 12.5, 2)
  copied = pickle.loads(pickle.dumps(codes))
  assert len(pickle.dumps(codes)) < 500 and set(copied) == set(recordings) and 'a.wav' not in copied
  for key, value in recordings.items():
    np.testing.assert_array_equal(copied[key], value)
    assert copied[key].dtype == np.int16


@pytest.mark.parametrize(
  'index, complaint',
  [
    (None, 'no index.json in it; expected a folder made by `qwen3-omni codes`'),
    ('{', 'not valid JSON'),
    ('{"format": "qwen3_omni_jax.codes.v0"}', 'expected the format qwen3_omni_jax.codes.v1'),
    ('{"format": "qwen3_omni_jax.codes.v1", "files": {}, "codec": ""}', 'without num_code_groups, codebook_size, frame_rate'),
  ],
)
def test_a_folder_that_holds_no_codes_is_refused(tmp_path, index, complaint):
  if index is not None:
    (tmp_path / 'index.json').write_text(index)
  with pytest.raises(ValueError, match=complaint):
    open_codes(tmp_path)
