"""What is told of the Talker's training, from its sums: losses and accuracy by codebook, and of the end of speech."""

from collections.abc import Mapping
from typing import Any


def speech_metrics(sums: Mapping[str, Any]) -> dict[str, Any]:
  """Scalars by name, from sums of arrays of jax or numpy (speech_loss.speech_sums).

  speech/loss/q, speech/accuracy/q: of codebook q; those behind 0 over the frames that were chosen. speech/codes,
  speech/predictor: the loss of code 0, the mean of the others'. speech/end_loss, speech/end_probability: at the true ends;
  end_elsewhere: the mean probability of an end where speech goes on. speech/frames, speech/positions, speech/ends: numbers. The
  router's, as the Thinker's.
  """
  loss, right = (sums[name] / _at_least(sums['weight']) for name in ('loss', 'right'))
  of = {'codes': loss[0], 'predictor': loss[1:].mean(), 'weight': sums['weight'][0]}
  of |= {f'loss/{q}': loss[q] for q in range(len(loss))} | {f'accuracy/{q}': right[q] for q in range(len(right))}
  of |= {name: sums[name] for name in ('frames', 'positions', 'ends')}
  of |= {name: sums[key] / _at_least(sums['ends']) for name, key in (('end_loss', 'end_loss'), ('end_probability', 'end_chance'))}
  of['end_elsewhere'] = sums['end_elsewhere'] / _at_least(sums['frames'])
  of |= {name: sums[name] / _at_least(sums['weight'][0]) for name in ('balance', 'router_z', 'busiest') if name in sums}
  if 'lost' in sums:
    of |= {'lost': sums['lost'], 'lost_share': sums['lost'] / _at_least(sums['routed'])}
  metrics = {f'speech/{name}': value for name, value in of.items()}
  for name, source in sums.get('sources', {}).items():
    metrics[f'source/{name}/codes'] = source['speech_loss'] / _at_least(source['speech_weight'])
    metrics |= {f'source/{name}/{key}': source[key] for key in ('speech_weight', 'frames')}
  return metrics


def _at_least(number):
  """To divide by: what nothing was summed over is 0."""
  return number + (number == 0)
