"""Random arrays made by numpy. jax.random would compile a program for every shape, which takes longer than most tests."""

import jax
import numpy as np

from qwen3_omni_jax.nn.params import Param, Spec, is_param


def normal(seed: int, *shape: int) -> np.ndarray:
  return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def params_of(spec: Spec, seed: int = 0) -> dict:
  """Initial values of a spec's parameters, distributed as those of nn.params.init_params."""
  rng = np.random.default_rng(seed)

  def create(p: Param) -> np.ndarray:
    if p.init == 'normal':
      return rng.standard_normal(p.shape, dtype=np.float32) * np.float32(p.fan_in**-0.5)
    return np.full(p.shape, {'zeros': 0, 'ones': 1}[p.init], np.float32)

  return jax.tree.map(create, spec, is_leaf=is_param)
