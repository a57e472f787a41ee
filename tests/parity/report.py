"""Collects what the parity tests measured, for the table in the README (`make parity`)."""

import json
import pathlib

import numpy as np

ROWS: list[dict] = []


def close(part: str, checkpoint: str, ours, theirs, bound: float, relative: bool = True) -> None:
  """Asserts the largest difference, as a share of the largest magnitude (or absolute), and records it."""
  ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
  assert ours.shape == theirs.shape, f'{part}: shape {ours.shape}, reference {theirs.shape}'
  difference = float(np.abs(ours - theirs).max(initial=0))
  if relative:
    difference /= float(np.abs(theirs).max())
  unit = 'of the largest magnitude' if relative else 'absolute'
  ROWS.append({'part': part, 'checkpoint': checkpoint, 'measured': difference, 'bound': bound, 'unit': unit})
  assert difference <= bound, f'{part}: difference {difference:.2e} exceeds {bound:.0e} ({unit})'


def equal(part: str, checkpoint: str, ours, theirs) -> None:
  """Asserts exact equality and records how much was compared."""
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  assert ours.shape == theirs.shape, f'{part}: shape {ours.shape}, reference {theirs.shape}'
  differing = int((ours != theirs).sum())
  ROWS.append({'part': part, 'checkpoint': checkpoint, 'measured': differing, 'bound': 0, 'unit': f'differ of {ours.size}'})
  assert differing == 0, f'{part}: {differing} of {ours.size} differ'


def no_worse(part: str, checkpoint: str, ours, theirs_rounded, theirs, bound: float) -> None:
  """Asserts our error against `theirs`, as a multiple of the reference's own where it rounds too, and records it.

  The error is the root mean square over the values of a token, averaged over tokens: a rounding that sends a token to another
  expert makes errors fifty times the usual one, and of a plain mean of squares a few such tokens would be all.
  """
  assert np.shape(ours) == np.shape(theirs_rounded) == np.shape(theirs), f'{part}: shapes differ'
  error = lambda x: float(np.sqrt(np.square(np.asarray(x, np.float64) - np.asarray(theirs, np.float64)).mean(axis=-1)).mean())
  ratio, unit = error(ours) / error(theirs_rounded), "of the reference's own error"
  ROWS.append({'part': part, 'checkpoint': checkpoint, 'measured': ratio, 'bound': bound, 'unit': unit})
  assert ratio <= bound, f"{part}: error {error(ours):.2e} is {ratio:.2f} times the reference's {error(theirs_rounded):.2e}"


def write(path: str) -> None:
  pathlib.Path(path).write_text(json.dumps(ROWS, indent=1) + '\n')
