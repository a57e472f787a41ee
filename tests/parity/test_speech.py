"""The whole speech path, greedy, against the reference's generate: Talker prompt, hidden states, logits, codes, wave."""

import numpy as np
import pytest

from qwen3_omni_jax.infer import speech
from qwen3_omni_jax.infer.talker_inputs import thinker_rows
from qwen3_omni_jax.models.talker import code_logits, talker_forward, talker_prompt
from tests.parity import report

BOUND = 5e-5  # of the largest magnitude: float32 sums in another order
FRAMES, TOKENS = 64, 10
SLOW = [pytest.param(case, marks=pytest.mark.slow) for case in ('one audio', 'two images')]
CASES = ('text', *SLOW, 'audio in video', 'mixed, several turns')


@pytest.mark.filterwarnings('ignore:Passing `repetition_penalty` with `inputs_embeds`')
@pytest.mark.parametrize('case', CASES)
def test_speech_equals_the_reference(pair, conversations, case, monkeypatch):
  import torch

  messages, hear = conversations[case]
  model, cfg = pair.theirs.model, pair.ours.cfg
  # The reference reads a field that its Talker's config lacks whenever sound comes with pictures: lend it the Thinker's.
  model.talker.config.audio_config = model.config.thinker_config.audio_config
  batch = pair.theirs.inputs([messages], hear)
  seen, steps = [], []
  decode = model.code2wav.chunked_decode
  model.code2wav.chunked_decode = lambda codes, **kw: seen.append(codes.numpy()) or decode(codes, **kw)
  hook = model.talker.model.register_forward_hook(
    lambda module, args, kw, out: steps.append((kw['inputs_embeds'], out.last_hidden_state)), with_kwargs=True
  )
  begun, begin = [], speech.begin_speech
  monkeypatch.setattr(speech, 'begin_speech', lambda *args, **kw: begun.append(args) or begin(*args, **kw))
  try:
    with torch.no_grad():
      ids, wave = model.generate(
        **batch,
        use_audio_in_video=hear,
        speaker='Chelsie',
        thinker_max_new_tokens=TOKENS,
        talker_do_sample=False,
        thinker_eos_token_id=cfg.im_end_token_id,
        talker_max_new_tokens=FRAMES + 1,
      )
  finally:
    model.code2wav.chunked_decode = decode
    hook.remove()
  reply = pair.ours.generate(
    [messages],
    audio_in_video=hear,
    max_new_tokens=TOKENS,
    speech=True,
    speaker='Chelsie',
    talker_temperature=0,
    max_frames=FRAMES,
    reference_exact=True,
  )[0]
  np.testing.assert_array_equal(reply.token_ids, ids[0, batch['input_ids'].shape[1] :])
  codes = seen[0][0].T
  report.equal(f'speech: greedy codes, up to {FRAMES} frames', pair.name, reply.speech.codes, codes[: len(reply.speech.codes)])
  assert len(reply.speech.codes) == FRAMES or reply.speech.finish_reason == 'stop'
  report.close('speech: wave', pair.name, reply.speech.samples, wave[0, 0], 1e-4, relative=False)
  prompt, hidden, logits = talker_prefill(*begun[0])
  report.close('Talker prompt rows', pair.name, prompt, steps[0][0][0], BOUND)
  report.close('Talker hidden states', pair.name, hidden, steps[0][1][0], BOUND)
  report.close('Talker logits', pair.name, logits, model.talker.codec_head(steps[0][1][0]).detach(), BOUND)


def talker_prefill(params, cfg, ids, tap, inputs, text, speaker, *_):
  """Prompt rows, hidden states after the final norm and logits of the one row that begin_speech was called for."""
  rows = thinker_rows(params['thinker'], ids, tap, inputs)
  prompt = talker_prompt(params['talker'], cfg.talker, rows, text, speaker)
  hidden, _ = talker_forward(params['talker'], cfg.talker, prompt.embeds, inputs.positions, prompt.segment)
  length = int(prompt.length[0])
  return prompt.embeds[0, :length], hidden[0, :length], code_logits(params['talker'], hidden[0, :length])
