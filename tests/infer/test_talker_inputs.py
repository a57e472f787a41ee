"""Which tokens the Talker is given and where it places them, against the reference's own position function."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from qwen3_omni_jax.infer import talker_inputs as ti
from qwen3_omni_jax.media.turns import speaker_code
from qwen3_omni_jax.models.talker import OPENING
from tests.models.speech_reference import ref

IM_START, IM_END, SYSTEM, USER, ASSISTANT, BREAK, TTS_PAD = 1, 2, 3, 4, 5, 6, 7
VISION_START, VISION_END, AUDIO_START, AUDIO_END, IMAGE, VIDEO, AUDIO = 8, 9, 10, 11, 12, 13, 14
PER_SECOND = 13
CFG = types.SimpleNamespace(
  im_start_token_id=IM_START,
  user_token_id=USER,
  assistant_token_id=ASSISTANT,
  thinker=types.SimpleNamespace(
    audio_token_id=AUDIO,
    image_token_id=IMAGE,
    video_token_id=VIDEO,
    vision_start_token_id=VISION_START,
    audio_start_token_id=AUDIO_START,
  ),
)


@dataclasses.dataclass
class Row:
  ids: np.ndarray
  positions: np.ndarray


class Conversation:
  """Builds ids turn by turn, and remembers the media for the reference."""

  def __init__(self):
    self.ids, self.images, self.videos, self.frames = [], [], [], []

  def turn(self, role, *parts):
    self.ids += [IM_START, role, BREAK, *(t for part in parts for t in part), IM_END, BREAK]
    return self

  def text(self, n):
    return [20 + i for i in range(n)]

  def image(self, h, w):
    self.images.append([1, 2 * h, 2 * w])
    return [VISION_START, *[IMAGE] * (h * w), VISION_END]

  def video(self, t, h, w):
    self.videos.append([t, 2 * h, 2 * w])
    return [VISION_START, *[VIDEO] * (t * h * w), VISION_END]

  def audio(self, tokens):
    assert tokens < 13
    self.frames.append(8 * tokens)
    return [AUDIO_START, *[AUDIO] * tokens, AUDIO_END]

  def audio_in_video(self, t, h, w, tokens, seconds_per_grid):
    self.videos.append([t, 2 * h, 2 * w])
    self.frames.append(8 * tokens)
    times = [(g * seconds_per_grid * PER_SECOND, 0, VIDEO) for g in range(t) for _ in range(h * w)]
    times += [(k, 1, AUDIO) for k in range(tokens)]
    return [VISION_START, AUDIO_START, *[token for _, _, token in sorted(times)], AUDIO_END, VISION_END]

  def reference_positions(self, ids, in_video, seconds_per_grid):
    """get_rope_index of the reference over these ids."""
    cls = ref.Qwen3OmniMoePreTrainedModelForConditionalGeneration
    names = dict(
      image_token_id=IMAGE,
      video_token_id=VIDEO,
      audio_token_id=AUDIO,
      vision_start_token_id=VISION_START,
      audio_start_token_id=AUDIO_START,
      position_id_per_seconds=PER_SECOND,
      audio_config=types.SimpleNamespace(n_window=50),
    )
    owner = types.SimpleNamespace(spatial_merge_size=2, config=types.SimpleNamespace(**names))
    owner.get_llm_pos_ids_for_vision = types.MethodType(cls.get_llm_pos_ids_for_vision, owner)
    optional = lambda x: torch.tensor(x) if x else None
    ids = torch.tensor(ids)[None]
    positions, _ = cls.get_rope_index(
      owner,
      ids,
      optional(self.images),
      optional(self.videos),
      torch.ones_like(ids),
      in_video,
      optional(self.frames),
      torch.as_tensor(np.full(len(self.videos), seconds_per_grid, np.float32)),  # one for all videos, or one each
    )
    return positions[:, 0].numpy()


def spoken(conversation: Conversation, *, in_video=False, seconds_per_grid=0.5, talker_in_video=None, exact=False):
  """(our positions, the reference's) of the Talker's prompt."""
  ids = np.array([*conversation.ids, IM_START, ASSISTANT, BREAK])
  row = Row(ids, conversation.reference_positions(ids, in_video, seconds_per_grid).astype(np.float32))
  inputs = ti.talker_inputs([row], CFG, reference_exact=exact)
  n = int(inputs.length[0]) + OPENING
  talker_ids = [*ids[inputs.index[0, : n - OPENING]], *[TTS_PAD] * OPENING]
  talker_in_video = in_video if talker_in_video is None else talker_in_video
  want = conversation.reference_positions(talker_ids, talker_in_video, seconds_per_grid)
  assert inputs.next_position[0] == want.max() + 1
  return inputs.positions[:, 0, :n], want


def test_text_and_audio_count_up():
  c = Conversation()
  c.turn(SYSTEM, c.text(5)).turn(USER, c.audio(9), c.text(3)).turn(ASSISTANT, c.text(4)).turn(USER, c.audio(2))
  ours, theirs = spoken(c)
  np.testing.assert_array_equal(ours, theirs)
  np.testing.assert_array_equal(ours, np.broadcast_to(np.arange(ours.shape[1]), ours.shape))


@pytest.mark.parametrize('seconds_per_grid', [0.5, 2.0, 1.3])
def test_images_videos_and_audio_keep_the_reference_positions(seconds_per_grid):
  c = Conversation()
  c.turn(SYSTEM, c.text(7)).turn(USER, c.text(2), c.image(3, 5), c.audio(4), c.video(3, 2, 4))
  c.turn(ASSISTANT, c.text(11)).turn(USER, c.image(6, 2), c.image(2, 2), c.text(1)).turn(USER, c.video(2, 1, 3))
  ours, theirs = spoken(c, seconds_per_grid=seconds_per_grid)
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)  # fractions: float32 rounding at another offset
  if seconds_per_grid != 1.3:
    np.testing.assert_array_equal(ours, theirs)


def audio_in_video():
  c = Conversation()
  return c.turn(SYSTEM, c.text(3)).turn(USER, c.text(2), c.audio_in_video(3, 2, 2, 12, 0.5), c.text(4))


def test_audio_in_video_is_placed_as_the_thinker_places_it():
  ours, theirs = spoken(audio_in_video(), in_video=True)
  np.testing.assert_array_equal(ours, theirs)


def test_reference_exact_counts_audio_in_video_as_the_reference_does():
  ours, theirs = spoken(audio_in_video(), in_video=True, talker_in_video=False, exact=True)
  np.testing.assert_array_equal(ours, theirs)
  np.testing.assert_array_equal(ours[0], np.arange(ours.shape[1]))


@pytest.mark.parametrize('image_first', [True, False])
def test_reference_exact_beside_an_image(image_first):
  c = Conversation()
  parts = [c.image(2, 3), c.audio_in_video(3, 2, 2, 12, 0.5)]
  c.turn(USER, *(parts if image_first else parts[::-1]), c.text(2))
  ours, theirs = spoken(c, in_video=True, talker_in_video=False, exact=True)
  np.testing.assert_array_equal(ours, theirs)


def test_only_user_turns_are_kept_and_rows_are_padded_at_the_end():
  c, d = Conversation(), Conversation()
  c.turn(SYSTEM, c.text(5)).turn(USER, c.audio(2)).turn(ASSISTANT, c.text(4)).turn(USER, c.text(1))
  d.turn(USER, d.text(2))
  rows = []
  for conversation in (c, d):
    ids = np.array([*conversation.ids, IM_START, ASSISTANT, BREAK])
    rows.append(Row(ids, np.tile(np.arange(len(ids), dtype=np.float32), (3, 1))))
  inputs = ti.talker_inputs(rows, CFG, pad_rows_to=3)
  np.testing.assert_array_equal(inputs.length, [9 + 6, 7, 0])
  kept = rows[0].ids[inputs.index[0, :15]]
  np.testing.assert_array_equal(kept, [1, 4, 6, 10, 14, 14, 11, 2, 6, 1, 4, 6, 20, 2, 6])
  np.testing.assert_array_equal(np.flatnonzero(inputs.media[0]), [4, 5])
  np.testing.assert_array_equal(inputs.header, [len(rows[0].ids) - 3, len(rows[1].ids) - 3, 0])
  np.testing.assert_array_equal(inputs.next_position, [24, 16, 9])
  np.testing.assert_array_equal(inputs.positions[0, 2, :9], np.arange(9))

  table = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
  T = max(len(r.ids) for r in rows)
  ids = np.zeros((3, T), np.int32)
  for b, row in enumerate(rows):
    ids[b, : len(row.ids)] = row.ids
  tap = np.random.default_rng(1).standard_normal((3, T, 4)).astype(np.float32)
  picked = jax.jit(ti.thinker_rows)({'embed': table}, ids, tap, inputs)
  np.testing.assert_array_equal(picked.embeds[0, :15], table[kept])
  np.testing.assert_array_equal(picked.tap[0, :15], tap[0, inputs.index[0, :15]])
  np.testing.assert_array_equal(picked.header[1], table[[IM_START, ASSISTANT, BREAK]])
  assert picked.embeds.dtype == jnp.float32


def test_a_prompt_without_an_open_assistant_turn_is_refused():
  ids = np.array(Conversation().turn(USER, [20]).ids)
  with pytest.raises(ValueError, match='no open assistant turn'):
    ti.talker_inputs([Row(ids, np.zeros((3, len(ids)), np.float32))], CFG)


def test_speakers_are_found_in_any_case_and_listed_when_unknown():
  cfg = types.SimpleNamespace(speaker_id=(('aiden', 7), ('ethan', 5)))
  assert speaker_code(cfg, 'Ethan') == 5
  with pytest.raises(ValueError, match="'Bob' is not one of this checkpoint's: aiden, ethan"):
    speaker_code(cfg, 'Bob')
