"""FLOPs of a batch: what is in it counts, padding does not, and frozen parts cost less."""

import dataclasses

from qwen3_omni_jax.train.config import LoraPart, Part, Recipe, Speech
from qwen3_omni_jax.train.state import assign_roles
from qwen3_omni_jax.train.utilisation import step_flops, trained_flops, work_of

from qwen3_omni_jax.flops import causal_pairs
from tests.train import batches, spoken


def test_work_is_what_is_in_the_batch():
  batch = batches.batch()
  work = work_of(batches.config(), batch)
  T, B = batches.T, batches.B
  assert work.tokens == (batch.tokens.segment != 0).sum() == B * T - 12
  assert work.pairs == (B - 2) * causal_pairs(T) + causal_pairs(25) + causal_pairs(7) + causal_pairs(20)  # one packed, one padded
  assert work.logits == (batch.weights > 0).sum()
  assert (work.audio_chunks, work.audio_tokens, work.patches) == (2 * B, 26 * B, 16 * B)


def test_windows_and_frames_that_share_a_row_count_alone():
  import numpy as np

  batch = batches.batch()
  (audio,), (visual,) = batch.media.audio, batch.media.visual
  rows = batches.B
  audio = audio.replace(frames=np.tile([100, 37], (rows, 1)), segment=np.tile([1, 2], (rows, 1)))
  visual = visual.replace(segment=np.tile(np.repeat([1, 2, 0], [4, 8, 4]), (rows, 1)))
  work = work_of(batches.config(), batch.replace(media=batch.media.replace(audio=(audio,), visual=(visual,))))
  assert (work.audio_chunks, work.audio_tokens, work.audio_pairs) == (2 * rows, (13 + 5) * rows, (13**2 + 5**2) * rows)
  assert (work.patches, work.patch_pairs) == (12 * rows, (4**2 + 8**2) * rows)


def test_frozen_parts_cost_less():
  cfg, batch = batches.config(), batches.batch()
  everything = Recipe(tuple(Part(part, 1e-3) for part in ('audio/', 'vision/', 'thinker/')))
  recipes = [
    everything,
    *(
      dataclasses.replace(everything, parts=parts)
      for parts in ((Part('audio/', 1e-3), Part('thinker/', 1e-3)), (Part('audio/', 1e-3),), (Part('audio/proj', 1e-3),))
    ),
  ]
  recipes.append(Recipe(lora=(LoraPart('thinker/layers/attn/q'),)))
  flops = [step_flops(cfg, assign_roles(cfg, recipe), [batch]) for recipe in recipes]
  assert flops[0] > flops[1] > flops[2] > flops[3] > 0 and flops[4] < flops[1]
  assert step_flops(cfg, assign_roles(cfg, everything), [batch, batch]) == 2 * flops[0]


def test_of_speech_the_talker_counts_and_of_a_frozen_thinker_what_is_run():
  cfg, batch = spoken.config(), spoken.batch(spoken.records())
  speech, frames = batch.speech, (batch.speech.codes[..., 1] >= 0).sum()
  work = work_of(cfg, batch)
  lengths = [int((speech.segment[r] == k).sum()) for r in range(spoken.ROWS) for k in (1, 2)]
  assert (work.talker_tokens, work.talker_pairs, work.code_frames) == (sum(lengths), sum(map(causal_pairs, lengths)), frames)
  assert 0 < work_of(cfg, batch, 0.01).code_frames == 2 * spoken.ROWS < frames  # room for two in each row
  frozen = Recipe((Part('talker/', 1e-3), Part('code_predictor/', 1e-3)), speech=Speech())
  joint = Recipe((*frozen.parts, Part('thinker/', 1e-3)), speech=Speech(text=1.0))
  flops = lambda recipe, work: trained_flops(cfg, assign_roles(cfg, recipe), work, recipe.speech)
  some, all_of_it, none = (
    flops(frozen, work),
    flops(joint, work),
    flops(frozen, dataclasses.replace(work, audio_tokens=0, patches=0)),
  )
  assert some['talker.experts'] == all_of_it['talker.experts'] == none['talker.experts'] > 0
  assert some['thinker.experts'] * 3 * 3 / 2 == all_of_it['thinker.experts']  # two layers of three, forward alone
  assert 'thinker.head' not in some and not any(name.startswith(('thinker', 'audio', 'vision')) for name in none)
