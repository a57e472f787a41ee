"""Encoders, every deepstack level, every Thinker layer, router choices and logits, in float32."""

import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_omni_jax.infer import decode
from qwen3_omni_jax.infer.collate import collate
from qwen3_omni_jax.models.thinker import logits, thinker_forward
from tests.parity import report
from tests.parity.conftest import with_their_pixels
from tests.reference import split_rows

BOUND = 5e-5  # of the largest magnitude: float32 sums of up to a few thousand terms in another order
CASES = ('two audios, padded', 'audio over 30 s', 'two images', 'audio in video', 'mixed, several turns')


@pytest.mark.parametrize('case', CASES)
def test_networks_equal_the_reference(pair, conversations, case):
  messages, hear = conversations[case]
  batch = pair.theirs.inputs([messages], hear)
  theirs = run_reference(pair.theirs.model.thinker, batch, hear)
  row = with_their_pixels([pair.ours.processor(messages, audio_in_video=hear, reference_exact=True)], batch)
  cfg, params = pair.ours.cfg.thinker, pair.ours.params
  packed = collate(row, cfg)
  features = decode.encode_media(params, cfg, packed.media)
  length = int(packed.length[0])
  if row[0].audios:
    index = packed.tokens.audio_index[0]
    report.close('AuT features', pair.name, features.audio[index[index >= 0]], theirs['audio'], BOUND)
  if row[0].visuals:
    index = packed.tokens.visual_index[0]
    kind = np.asarray(row[0].ids)[index[:length] >= 0] == cfg.video_token_id
    for part, chosen in (('image', ~kind), ('video', kind)):
      if chosen.any():
        picked = index[index >= 0][chosen]
        report.close('vision features', pair.name, features.visual[picked], theirs[part], BOUND)
        for level, values in enumerate(theirs[part + ' deepstack']):
          report.close(f'vision deepstack level {level}', pair.name, features.deepstack[level][picked], values, BOUND)
  out, trace = thinker_forward(params['thinker'], cfg, packed.tokens, features)
  for layer, hidden in enumerate(theirs['layers']):
    report.close('Thinker layers, each', pair.name, trace.hidden[layer, 0, :length], hidden, BOUND)
    chosen = trace.routing.experts[layer].reshape(1, -1, cfg.text.num_experts_per_tok)[0, :length]
    report.equal('router choices', pair.name, np.sort(chosen, axis=-1), np.sort(theirs['routers'][layer], axis=-1))
  report.close('logits', pair.name, logits(params['thinker'], out.hidden[0, :length]), theirs['logits'], BOUND)


def run_reference(thinker, batch, hear: bool) -> dict:
  """One forward pass with every intermediate, padding removed."""
  import torch

  seen: dict = {'layers': [], 'routers': []}
  visual = []
  model = thinker.model
  handles = [
    model.audio_tower.register_forward_hook(lambda m, a, out: seen.update(audio=out.last_hidden_state)),
    model.visual.register_forward_hook(lambda m, a, out: visual.append((out.pooler_output, out.deepstack_features))),
  ]
  for layer in model.language_model.layers:
    handles.append(layer.register_forward_hook(lambda m, a, out: seen['layers'].append(_first(out)[0].float().numpy())))
    handles.append(layer.mlp.gate.register_forward_hook(lambda m, a, out: seen['routers'].append(out[-1].numpy())))
  with torch.no_grad():
    out = thinker(**batch, use_audio_in_video=hear)
  for handle in handles:
    handle.remove()
  seen['logits'] = out.logits[0].float().numpy()
  kinds = [kind for kind, key in (('image', 'pixel_values'), ('video', 'pixel_values_videos')) if batch.get(key) is not None]
  for kind, (features, deepstack) in zip(kinds, visual, strict=True):
    seen[kind] = features.float().numpy()
    seen[kind + ' deepstack'] = [level.float().numpy() for level in deepstack]
  seen['audio'] = seen['audio'].float().numpy() if 'audio' in seen else None
  assert split_rows(batch['input_ids'], batch['attention_mask'])[0].shape[0] == len(seen['layers'][0])
  return seen


def _first(out):
  return out[0] if isinstance(out, tuple) else out


def test_bfloat16_stays_near_float32(pair, conversations):
  messages, _ = conversations['mixed, several turns']
  row = [pair.ours.processor(messages)]
  cfg, params = pair.ours.cfg.thinker, pair.ours.params
  packed = collate(row, cfg)
  values = {}
  for dtype in (jnp.float32, jnp.bfloat16):
    features = decode.encode_media(params, cfg, packed.media, dtype)
    out, _ = thinker_forward(params['thinker'], cfg, packed.tokens, features, dtype=dtype)
    values[dtype] = np.asarray(logits(params['thinker'], out.hidden[0, : int(packed.length[0])]), np.float64)
  difference = values[jnp.bfloat16] - values[jnp.float32]
  # 8 bits of mantissa through ~6 layers, and now and then another expert: a quarter of the spread, not more
  assert np.sqrt((difference**2).mean()) < 0.25 * values[jnp.float32].std()
