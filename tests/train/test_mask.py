"""What is learnt of a record, token by token."""

import numpy as np
import pytest
from qwen3_omni_jax.train.mask import SpecialIds, chat_mask
from qwen3_omni_jax.train.records import Rules, read_record

from qwen3_omni_jax.media.processor import Processor


@pytest.fixture(scope='module')
def processor(tiny_folder, samples):
  return Processor.from_folder(tiny_folder, media_root=samples['audio'].parent)


def learnt(record, processor, **rules):
  """The learnt stretches of a record as text."""
  (example,) = read_record(record, Rules(**rules), processor, SpecialIds.of(processor.cfg, processor.tokenizer))
  edges = np.flatnonzero(np.diff(np.concatenate([[0], example.learn.astype(int), [0]])))
  pieces = [example.inputs.ids[a:b].tolist() for a, b in zip(edges[::2], edges[1::2], strict=True)]
  return [processor.tokenizer.decode(piece, skip_special_tokens=False) for piece in pieces]


def turn(role, content, **more):
  return {'role': role, 'content': content, **more}


def test_of_several_turns_the_assistants_words_and_their_ends_are_learnt(processor):
  record = {
    'messages': [
      turn('system', 'Be brief.'),
      turn('user', 'One <audio>?'),
      turn('assistant', ' A disc, said once.'),
      turn('user', 'assistant\n and <image>?'),
      turn('assistant', 'A square.'),
    ],
    'audios': ['melody.wav'],
    'images': ['shapes.png'],
  }
  assert learnt(record, processor) == [' A disc, said once.<|im_end|>', 'A square.<|im_end|>']


def test_the_mask_is_that_of_a_prompt_written_by_hand(processor):
  record = {'messages': [turn('user', 'Hi'), turn('assistant', 'Yo'), turn('user', 'Go'), turn('assistant', 'No')]}
  (example,) = read_record(record, Rules(), processor, SpecialIds.of(processor.cfg, processor.tokenizer))
  ids, mask = [], []
  for text, wanted in (
    ('<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n', 0),
    ('Yo<|im_end|>', 1),
    ('\n<|im_start|>user\nGo<|im_end|>\n<|im_start|>assistant\n', 0),
    ('No<|im_end|>', 1),
    ('\n', 0),
  ):
    piece = processor.tokenizer.encode_prompt(processor.tokenizer.split(text))
    ids += piece
    mask += [wanted] * len(piece)
  assert example.inputs.ids.tolist() == ids and example.learn.astype(int).tolist() == mask


def test_special_tokens_spelled_in_a_record_are_learnt_as_text(processor):
  said = 'It ends with <|im_end|>.\n<|im_start|>user\nYes?'
  record = {'messages': [turn('user', '<|im_start|>assistant\n'), turn('assistant', said, reasoning_content='<|im_end|>')]}
  assert learnt(record, processor) == [f'<think>\n<|im_end|>\n</think>\n\n{said}<|im_end|>']
  text = 'The mark <|image_pad|> stands for a picture, <|endoftext|> for an end.'
  record = {'text': f'<image>{text}', 'images': ['shapes.png']}
  assert learnt(record, processor, form='document') == [f'{text}<|endoftext|>']


def test_the_last_turn_is_learnt_as_it_would_be_generated(processor):
  messages = [turn('user', 'What do you hear?'), turn('assistant', 'A melody, then a voice.')]
  (example,) = read_record({'messages': messages}, Rules(), processor, SpecialIds.of(processor.cfg, processor.tokenizer))
  whole, begin = processor.for_scoring(messages)
  assert np.flatnonzero(example.learn).tolist() == list(range(begin, len(whole.ids)))


def test_thoughts_are_learnt_unless_told_not_to(processor):
  record = {'messages': [turn('user', 'x'), turn('assistant', 'The dog.', reasoning_content='It is small.')]}
  assert learnt(record, processor) == ['<think>\nIt is small.\n</think>\n\nThe dog.<|im_end|>']
  assert learnt(record, processor, thinking=False) == ['The dog.<|im_end|>']


def test_a_turn_can_be_left_out_and_tool_calls_are_learnt(processor):
  call = {'type': 'function', 'function': {'name': 'look', 'arguments': {'at': 'dog'}}}
  record = {
    'messages': [
      turn('user', 'x'),
      turn('assistant', 'no', loss=False),
      turn('user', 'y'),
      turn('assistant', '', tool_calls=[call]),
      turn('tool', 'a dog'),
      turn('assistant', 'Yes.'),
    ]
  }
  first, second = learnt(record, processor)
  assert '"name": "look"' in first and first.endswith('<|im_end|>') and second == 'Yes.<|im_end|>'


def test_of_a_document_the_text_and_its_end_are_learnt_but_no_medium(processor):
  record = {
    'text': 'A dog <audio>sings in <video>the park.',
    'audios': ['melody.wav'],
    'videos': ['moving.mp4'],
    'audio_in_video': True,
  }
  assert learnt(record, processor, form='document') == ['A dog ', 'sings in ', 'the park.<|endoftext|>']
  parts = {'content': ['A dog ', {'type': 'audio', 'audio': 'melody.wav'}, {'type': 'text', 'text': 'sings.'}]}
  assert learnt(parts, processor, form='document') == ['A dog ', 'sings.<|endoftext|>']


def test_parts_as_in_the_cookbooks_are_the_same_record_as_placeholders(processor):
  special = SpecialIds.of(processor.cfg, processor.tokenizer)
  a = {'messages': [turn('user', 'See <image>!'), turn('assistant', 'Yes.')], 'images': ['shapes.png']}
  parts = [{'type': 'text', 'text': 'See '}, {'type': 'image', 'image': 'shapes.png'}, {'type': 'text', 'text': '!'}]
  b = {'messages': [turn('user', parts), turn('assistant', [{'type': 'text', 'text': 'Yes.'}])]}
  (one,), (two,) = (read_record(record, Rules(), processor, special) for record in (a, b))
  np.testing.assert_array_equal(one.inputs.ids, two.inputs.ids)
  np.testing.assert_array_equal(one.learn, two.learn)


def test_fps_and_sound_of_videos_are_the_records_own_choice(processor):
  special = SpecialIds.of(processor.cfg, processor.tokenizer)
  base = {'messages': [turn('user', '<video>'), turn('assistant', 'Yes.')], 'videos': ['moving.mp4']}
  size = lambda record, **rules: read_record(record, Rules(**rules), processor, special)[0].inputs
  assert not size(base).audios and size(base, audio_in_video=True).audios
  assert size(base | {'audio_in_video': True}).audios and not size(base | {'audio_in_video': False}, audio_in_video=True).audios
  assert size(base | {'fps': 4}).visuals[0].grid[0] == 2 * size(base).visuals[0].grid[0] == size(base, fps=4).visuals[0].grid[0]


def test_a_prompt_that_does_not_match_the_record_is_refused():
  special = SpecialIds(turn=1, end=2, assistant=3, newline=4, newlines=(4,), think=None, media=())
  ids = np.array([1, 3, 4, 9, 2, 4])
  assert chat_mask(ids, [True], special).tolist() == [False, False, False, True, True, False]
  for wrong, count, complaint in (
    (ids, 2, '1 assistant turns, the record has 2'),
    (ids[:4], 1, 'no <.im_end.>'),
    (np.array([1, 3, 8, 2]), 1, 'white space'),
  ):
    with pytest.raises(ValueError, match=complaint):
      chat_mask(wrong, [True] * count, special)
