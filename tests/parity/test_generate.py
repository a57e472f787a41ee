"""64 greedy tokens, the same as the reference's, for every kind of conversation and for a batch of all of them."""

import numpy as np
import pytest

from qwen3_omni_jax.infer.omni import _Row
from qwen3_omni_jax.infer.sampling import Sampling
from tests.parity import report
from tests.parity.conftest import with_their_pixels

TOKENS = 64


def their_tokens(pair, batch, hear: bool) -> np.ndarray:
  import torch

  with torch.no_grad():
    out = pair.theirs.model.thinker.generate(
      **batch, use_audio_in_video=hear, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
    )
  return out[:, batch['input_ids'].shape[1] :].numpy()


def our_tokens(pair, rows) -> np.ndarray:
  *_, last = pair.ours._run([_Row(row, Sampling(), TOKENS) for row in rows], ())
  return np.asarray(last.state.output)[: len(rows), :TOKENS]


@pytest.mark.parametrize(
  'case',
  [
    'text',
    'one audio',
    'two audios, padded',
    'audio over 30 s',
    'image',
    'two images',
    'video',
    'audio in video',
    'image + video',
    'mixed, several turns',
  ],
)
def test_greedy_tokens_equal_the_reference(pair, conversations, case):
  messages, hear = conversations[case]
  batch = pair.theirs.inputs([messages], hear)
  rows = with_their_pixels([pair.ours.processor(messages, audio_in_video=hear, reference_exact=True)], batch)
  report.equal(f'{TOKENS} greedy tokens: {case}', pair.name, our_tokens(pair, rows), their_tokens(pair, batch, hear))


@pytest.mark.parametrize('hear', [False, True], ids=['silent', 'sound'])
def test_greedy_tokens_of_a_batch_equal_the_reference(pair, conversations, hear):
  """All cases in one call; the reference hears the sound of either all videos of a call or none."""
  chosen = [messages for messages, _ in conversations.values()]
  batch = pair.theirs.inputs(chosen, hear)
  rows = with_their_pixels(pair.ours.processor.batch(chosen, audio_in_video=hear, reference_exact=True), batch)
  part = f'{TOKENS} greedy tokens: a batch of all' + (', videos with sound' if hear else '')
  report.equal(part, pair.name, our_tokens(pair, rows), their_tokens(pair, batch, hear))
