"""Token ids and positions exact; mel frames and pixel values within rounding."""

import numpy as np
from hypothesis import given, settings

from tests.media import chats
from tests.parity import report
from tests.reference import split_rows


def test_processor_equals_the_reference(pair, conversations):
  for messages, hear in conversations.values():
    batch = pair.theirs.inputs([messages], hear)
    row = pair.ours.processor(messages, audio_in_video=hear, reference_exact=True)
    report.equal('processor: token ids', pair.name, row.ids, split_rows(batch['input_ids'], batch['attention_mask'])[0])
    report.equal('processor: positions', pair.name, row.positions, their_positions(pair, batch, hear)[0])
    if row.audios:
      mel = batch['input_features'].numpy()
      frames = batch['feature_attention_mask'].sum(-1).tolist()
      for k, audio in enumerate(row.audios):
        report.close('processor: log-mel', pair.name, audio.mel, mel[k, :, : frames[k]].T, 1e-4, relative=False)
    for kind, key in (('image', 'pixel_values'), ('video', 'pixel_values_videos')):
      ours = [v.patches for v in row.visuals if v.kind == kind]
      if ours:
        # one level of 255, at mean = std = 0.5: the two resizes may round differently
        report.close('processor: pixel values', pair.name, np.concatenate(ours), batch[key], 1 / 127.5 + 1e-6, relative=False)


@settings(max_examples=100)
@given(chats.chats)
def test_reference_exact_reads_special_tokens_in_contents_as_the_reference_does(pair, chat):
  """The text of the prompt and its token ids, of commands in contents and of the same chat without them."""
  tokenizer, processor = pair.theirs.processor.tokenizer, pair.ours.processor
  for hostile in (True, False):
    messages, variables = chats.spell(list(chat), hostile)
    text = tokenizer.apply_chat_template(messages, chat_template=processor.template._source, tokenize=False, **variables)
    assert processor.template.render(messages, **variables) == text
    theirs = tokenizer(text, add_special_tokens=False)['input_ids']
    assert processor.prompt_ids(messages, True, **variables)[0] == theirs
  assert processor.prompt_ids(messages, **variables)[0] == theirs, 'a harmless chat has the very same tokens'


@settings(max_examples=100)
@given(chats.text)
def test_a_text_is_encoded_as_the_reference_encodes_it_without_special_tokens(pair, text):
  text = chats.spell(text, True)
  theirs = pair.theirs.processor.tokenizer(text, add_special_tokens=False, split_special_tokens=True)['input_ids']
  assert pair.ours.processor.tokenizer.encode(text) == theirs


def test_a_batch_is_padded_like_the_reference_call(pair, conversations):
  chosen = [m for name, (m, hear) in conversations.items() if not hear]
  batch = pair.theirs.inputs(chosen)
  rows = pair.ours.processor.batch(chosen, reference_exact=True)
  for row, theirs in zip(rows, split_rows(batch['input_ids'], batch['attention_mask']), strict=True):
    report.equal('processor: token ids', pair.name, row.ids, theirs)


def their_positions(pair, batch, hear: bool) -> list[np.ndarray]:
  """Positions of each row as the reference model computes them, '3 T'."""
  import torch

  mask = batch['attention_mask']
  grids = {k: batch.get(k) for k in ('image_grid_thw', 'video_grid_thw')}
  frames = batch['feature_attention_mask'].sum(-1) if batch.get('feature_attention_mask') is not None else None
  seconds = batch.get('video_second_per_grid')
  if all(grid is None for grid in grids.values()):  # the text path: one counter for all three axes
    positions = (mask.cumsum(-1) - 1).float().expand(3, -1, -1)
  else:
    positions, _ = pair.theirs.model.thinker.get_rope_index(
      batch['input_ids'],
      **grids,
      attention_mask=mask,
      use_audio_in_video=hear,
      audio_seqlens=frames,
      second_per_grids=None if seconds is None else torch.as_tensor(seconds),
    )
  return [np.stack(split_rows(positions[:, b], mask[b].expand(3, -1))) for b in range(len(mask))]
