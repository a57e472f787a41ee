"""The order of a lane: every record once an epoch, and any place of it at once."""

import numpy as np
import pytest
from qwen3_omni_jax.train.order import WINDOW, Dealing, GroupOrder, Pieces, RecordOrder

GROUPS = [7, 1, 12, 5, 9, 3, 0, 8, 6, 10, 4, 11]


def orders(kind: str, lanes: int, epochs: int | None = 2, seed: int = 3):
  dealing = Dealing(lanes, (seed, 0), True, epochs)
  if kind == 'records':
    return [RecordOrder(sum(GROUPS), lane, dealing) for lane in range(lanes)]
  return [GroupOrder(Pieces(GROUPS, lanes), lane, dealing) for lane in range(lanes)]


def whole(order) -> list[int]:
  found = []
  while (index := order[len(found)]) is not None:
    found.append(index)
  return found


@pytest.mark.parametrize('kind', ['records', 'groups'])
@pytest.mark.parametrize('lanes', [1, 3, 16])
def test_the_lanes_read_every_record_once_an_epoch_and_each_epoch_otherwise(kind, lanes):
  found = [whole(order) for order in orders(kind, lanes)]
  np.testing.assert_array_equal(np.bincount([i for lane in found for i in lane]), np.full(sum(GROUPS), 2))
  first = [whole(order) for order in orders(kind, lanes, epochs=1)]
  one = [i for lane in first for i in lane]
  assert sorted(one) == list(range(sum(GROUPS))) != one
  assert all(lane[: len(begin)] == begin for lane, begin in zip(found, first, strict=True))
  again = [lane[len(begin) :] for lane, begin in zip(found, first, strict=True)]
  assert again != first and (lanes == 1 or [set(lane) for lane in again] != [set(lane) for lane in first])
  assert found != [whole(order) for order in orders(kind, lanes, seed=4)]


@pytest.mark.parametrize('kind', ['records', 'groups'])
def test_any_place_of_an_order_is_the_same_from_anywhere(kind):
  for order in orders(kind, 2):
    expected = whole(order)
    for k in np.random.default_rng(0).permutation(len(expected))[:20]:
      assert orders(kind, 2)[order.lane][int(k)] == expected[k]
    assert order[2] == expected[2]  # and after others were asked for


def test_a_lane_reads_few_groups_at_a_time_and_mixes_them():
  group_of = np.repeat(np.arange(len(GROUPS)), GROUPS)
  for order in orders('groups', 2, epochs=1):
    groups = group_of[whole(order)]
    spans = [np.flatnonzero(groups == g)[[0, -1]] for g in np.unique(groups)]
    for at in range(len(groups)):
      assert sum(begin <= at <= end for begin, end in spans) <= WINDOW
    assert np.count_nonzero(np.diff(groups)) > 2 * len(spans)


def test_few_groups_are_cut_so_that_every_lane_has_some():
  pieces = Pieces([100, 50], 8)
  assert len(pieces) == 8 and pieces.sizes.sum() == 150 and pieces.sizes.max() == 25
  with pytest.raises(ValueError, match='3 pieces for 4 lanes'):
    GroupOrder(Pieces([2, 1], 4), 0, Dealing(4, (0,), True, None))
