"""When bad records are too many."""

import math

# The chance that a run with exactly the allowed share is stopped, for one look. A run looks at every bad record, and so do its
# processes: a hundred thousand looks together stop it with a chance of 1e-4, and far fewer of them are independent.
FALSE_ALARM = 1e-9


def too_many(bad: int, read: int, limit: float) -> bool:
  """Whether so many bad records of those read exceed the limit: a number (0, or 1 and more), or a share (between 0 and 1).

  A share is judged with a bound: records that are bad with probability `limit` each are no more often this bad than FALSE_ALARM
  (Chernoff: n D(bad/n ‖ limit) > log(1 / FALSE_ALARM)). At limit 0.01, 5 bad records of 5 are too many, 26 of 500 are, 100 of
  9,000 are not.
  """
  if not 0 < limit < 1:
    return bad > limit
  if bad <= limit * read:
    return False
  share = bad / read
  divergence = share * math.log(share / limit)
  if share < 1:
    divergence += (1 - share) * math.log((1 - share) / (1 - limit))
  return read * divergence > math.log(1 / FALSE_ALARM)


def check_bad(bad: int, read: int, limit: float, last: dict[str, str] | None = None) -> None:
  """Raises ValueError if they are too many. last: the last one, to be told."""
  if too_many(bad, read, limit):
    said = '' if last is None else f'; the last one is {last["source"]} {last["id"]}: {last["reason"]}'
    raise ValueError(f'{bad} of {read} records are bad, more than max_bad {limit:g} allows{said}')
