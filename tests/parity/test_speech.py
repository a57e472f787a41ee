"""Codes and wave of the whole chain, greedy, against the reference's top-level generate."""

import numpy as np
import pytest

from tests.parity import report

FRAMES, TOKENS = 64, 10
CASES = ('text', 'one audio', 'two images', 'audio in video', 'mixed, several turns')


@pytest.mark.filterwarnings('ignore:Passing `repetition_penalty` with `inputs_embeds`')
@pytest.mark.parametrize('case', CASES)
def test_speech_equals_the_reference(pair, conversations, case):
  import torch

  messages, hear = conversations[case]
  model, cfg = pair.theirs.model, pair.ours.cfg
  # The reference reads a field that its Talker's config lacks whenever sound comes with pictures: lend it the Thinker's.
  model.talker.config.audio_config = model.config.thinker_config.audio_config
  batch = pair.theirs.inputs([messages], hear)
  seen = []
  decode = model.code2wav.chunked_decode
  model.code2wav.chunked_decode = lambda codes, **kw: seen.append(codes.numpy()) or decode(codes, **kw)
  try:
    with torch.no_grad():
      ids, wave = model.generate(
        **batch, use_audio_in_video=hear, speaker='Chelsie', thinker_max_new_tokens=TOKENS, talker_do_sample=False,
        thinker_eos_token_id=cfg.im_end_token_id, talker_max_new_tokens=FRAMES + 1,
      )  # fmt: skip
  finally:
    model.code2wav.chunked_decode = decode
  reply = pair.ours.generate(
    [messages], audio_in_video=hear, max_new_tokens=TOKENS, speech=True, speaker='Chelsie', talker_temperature=0,
    max_frames=FRAMES, reference_exact=True,
  )[0]  # fmt: skip
  np.testing.assert_array_equal(reply.token_ids, ids[0, batch['input_ids'].shape[1] :])
  codes = seen[0][0].T
  report.equal(f'speech: greedy codes, up to {FRAMES} frames', pair.name, reply.speech.codes, codes[: len(reply.speech.codes)])
  assert len(reply.speech.codes) == FRAMES or reply.speech.finish_reason == 'stop'
  report.close('speech: wave', pair.name, reply.speech.samples, wave[0, 0], 1e-4, relative=False)
