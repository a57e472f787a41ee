"""Where tokens of several media stand in time: every video by its own clock, as the reference's position function places them."""

import types

import numpy as np
import pytest

from qwen3_omni_jax.media.layout import VideoSpan, lay_out
from tests.infer.test_talker_inputs import AUDIO, AUDIO_END, AUDIO_START, IMAGE, VIDEO, VISION_END, VISION_START, Conversation
from tests.media.made import picture, tone, video

CFG = types.SimpleNamespace(
  audio_token_id=AUDIO,
  image_token_id=IMAGE,
  video_token_id=VIDEO,
  audio_start_token_id=AUDIO_START,
  audio_end_token_id=AUDIO_END,
  position_id_per_seconds=13,
  vision=types.SimpleNamespace(spatial_merge_size=2),
)


@pytest.mark.parametrize('hear', [False, True])
@pytest.mark.parametrize('seconds', [(1.0, 1.0), (1.0, 2.6), (5.2, 0.5), (0.37, 1.91)])
def test_two_videos_keep_their_own_seconds_per_grid(hear, seconds):
  conversation, ids, spans = Conversation(), [20, 21], []
  for per_grid, t in zip(seconds, (3, 4), strict=True):
    sound = 9 if hear else None
    spans.append(VideoSpan((t, 4, 6), per_grid, sound))
    conversation.ids += conversation.audio_in_video(t, 2, 3, 9, per_grid) if hear else conversation.video(t, 2, 3)
    ids += [VISION_START, VIDEO, VISION_END]
  got_ids, got = lay_out(ids, [], [], spans, CFG)
  assert got_ids.tolist() == [20, 21, *conversation.ids]
  want = conversation.reference_positions(got_ids.tolist(), hear, np.array(seconds, np.float32))
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_a_frame_limit_of_one_video_leaves_the_other_alone(small_processor):
  """6 s asked for at 2 a second, and 20 s at a fifth, where the least number of frames binds: 4 of them, 10 s a grid."""
  one = {'type': 'video', 'video': video([picture(i) for i in range(12)], fps=2, sound=tone(6.0))}
  two = {'type': 'video', 'video': video([picture(i) for i in range(40)], fps=2, sound=tone(20.0)), 'fps': 0.1}
  token = small_processor.cfg.thinker.video_token_id
  for hear in (False, True):
    alone = [small_processor([{'role': 'user', 'content': [v]}], audio_in_video=hear) for v in (one, two)]
    both = small_processor([{'role': 'user', 'content': [one, two]}], audio_in_video=hear)
    times = np.split(both.positions[0, both.ids == token], [int(np.sum(alone[0].ids == token))])
    for got, single, per_grid in zip(times, alone, (1.0, 10.0), strict=True):
      want = single.positions[0, single.ids == token]
      np.testing.assert_allclose(got - got[0], want - want[0], atol=1e-4)
      np.testing.assert_allclose(np.unique(np.round(got - got[0], 3)), 13 * per_grid * np.arange(len(np.unique(want))), atol=1e-3)


def test_late_pictures_are_placed_later_among_the_sound():
  span = lambda late: VideoSpan((2, 2, 2), 1.0, 60, late)
  ids = [VISION_START, VIDEO, VISION_END]
  for late in (0.0, 0.5, 1.0, 2.25):
    got, positions = lay_out(ids, [], [], [span(late)], CFG)
    body, times = got[2:-2], positions[0, 2:-2]
    pictures = np.flatnonzero(body == VIDEO)
    assert pictures.tolist() == [int(np.ceil(13 * late)), int(np.ceil(13 * late)) + 14]
    np.testing.assert_allclose(times[pictures] - times[0], [13 * late, 13 * late + 13] if late else [0, 13], atol=1e-5)
    np.testing.assert_array_equal(times[body == AUDIO] - times[body == AUDIO][0], np.arange(60))
