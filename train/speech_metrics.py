"""What is told of the Talker's training, from its sums: losses and accuracy by codebook, and of the end of speech."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from qwen3_omni_jax.shapes import Array


def speech_metrics(sums: Mapping[str, Any]) -> dict[str, Array]:
  """Scalars by name, from sums (speech_loss.speech_sums).

  speech/loss/q, speech/accuracy/q: of codebook q; those behind 0 over the frames that were chosen. speech/codes,
  speech/predictor: the loss of code 0, the mean of the others'. speech/end_loss, speech/end_probability: at the true ends;
  end_elsewhere: the mean probability of an end where speech goes on. speech/frames, speech/positions, speech/ends: numbers. The
  router's, as the Thinker's. Of each source: the loss of code 0, its weight, frames.
  """
  loss, right = (_mean(sums[name], sums['weight']) for name in ('loss', 'right'))
  weight = sums['weight'][0]
  of = {'codes': loss[0], 'predictor': loss[1:].mean(), 'weight': weight}
  of |= {f'loss/{q}': loss[q] for q in range(len(loss))} | {f'accuracy/{q}': right[q] for q in range(len(right))}
  of |= {name: sums[name] for name in ('frames', 'positions', 'ends')}
  of |= {name: _mean(sums[name], sums['ends']) for name in ('end_loss', 'end_probability')}
  of['end_elsewhere'] = _mean(sums['end_elsewhere'], sums['frames'])
  of |= {name: _mean(sums[name], weight) for name in ('balance', 'router_z', 'busiest') if name in sums}
  if 'lost' in sums:
    of |= {'lost': sums['lost'], 'lost_share': _mean(sums['lost'], sums['routed'])}
  metrics = {f'speech/{name}': value for name, value in of.items()}
  for name, source in sums.get('sources', {}).items():
    metrics[f'source/{name}/codes'] = _mean(source['speech_loss'], source['speech_weight'])
    metrics |= {f'source/{name}/{key}': source[key] for key in ('speech_weight', 'frames')}
  return metrics


def _mean(total, number) -> Array:
  """0 where nothing was summed over."""
  total, number = jnp.asarray(total, jnp.float32), jnp.asarray(number, jnp.float32)
  return total / jnp.where(number == 0, 1, number)
