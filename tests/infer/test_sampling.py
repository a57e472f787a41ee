"""Sampling: settings do what they say, and a row draws the same whatever its neighbours."""

import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_omni_jax.infer.sampling import Sampling, penalise, sample, sampling_rows

V = 11
LOGITS = jnp.asarray(np.random.RandomState(0).randn(3, V) * 2, jnp.float32)


def draws(setting: Sampling, logits, number=4000):
  """`number` draws from one row's logits, as a histogram of frequencies."""
  rows = sampling_rows([setting] * number, V)
  tokens = sample(jnp.broadcast_to(logits, (number, V)), rows, jnp.arange(number, dtype=jnp.int32))
  return np.bincount(tokens, minlength=V) / number


def softmax(x):
  e = np.exp(x - x.max())
  return e / e.sum()


def test_temperature_zero_is_greedy():
  tokens = sample(LOGITS, sampling_rows([Sampling()] * 3, V), jnp.zeros(3, jnp.int32))
  np.testing.assert_array_equal(tokens, LOGITS.argmax(axis=-1))


@pytest.mark.parametrize('temperature', [0.7, 1.5])
def test_frequencies_follow_the_softmax(temperature):
  expected = softmax(np.asarray(LOGITS[0]) / temperature)
  # 4000 draws: standard error of a frequency is at most 0.008
  np.testing.assert_allclose(draws(Sampling(temperature=temperature), LOGITS[0]), expected, atol=0.035)


def test_top_k_then_top_p_over_what_is_left():
  probs = softmax(np.asarray(LOGITS[0]))
  order = np.argsort(-probs)
  kept = order[:4]
  renormalised = probs[kept] / probs[kept].sum()
  top_p = float(renormalised[:2].sum()) - 0.01  # reached inside the second token: exactly two stay
  frequencies = draws(Sampling(temperature=1.0, top_k=4, top_p=top_p), LOGITS[0])
  assert set(np.nonzero(frequencies)[0]) == set(kept[:2])
  np.testing.assert_allclose(frequencies[kept[:2]], renormalised[:2] / renormalised[:2].sum(), atol=0.035)


def test_top_p_always_keeps_one_token():
  frequencies = draws(Sampling(temperature=1.0, top_p=1e-6), LOGITS[1], 50)
  assert frequencies[int(LOGITS[1].argmax())] == 1


def test_a_row_does_not_depend_on_its_neighbours():
  mine = Sampling(temperature=1.0, top_k=3, seed=7)
  alone = [int(sample(LOGITS[:1], sampling_rows([mine], V), jnp.array([t], jnp.int32))[0]) for t in range(40)]
  crowd = [mine, Sampling(temperature=2.0, seed=1), Sampling()]  # no top_k: more candidates for everybody
  together = [int(sample(LOGITS, sampling_rows(crowd, V), jnp.array([t, 5, 9], jnp.int32))[0]) for t in range(40)]
  assert alone == together
  assert len(set(alone)) == 3


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits():
  logits = jnp.array([[2.0, -2.0, 3.0]])
  out = penalise(logits, jnp.array([[True, True, False]]), jnp.array([2.0]))
  np.testing.assert_allclose(out, [[1.0, -4.0, 3.0]])


def test_impossible_settings_are_all_named():
  with pytest.raises(ValueError, match='temperature -1.*top_k -2.*top_p 0.*repetition_penalty 0.*seed -1'):
    Sampling(temperature=-1, top_k=-2, top_p=0, repetition_penalty=0, seed=-1)
