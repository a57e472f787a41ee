"""Weight-only int8: which arrays are kept so, and how near they stay. (That the experts take them: test_moe.)"""

import math

import ml_dtypes
import numpy as np
import pytest

from qwen3_omni_jax.config_json import load_config
from qwen3_omni_jax.models.omni import omni_spec
from qwen3_omni_jax.nn.int8 import Int8, dequantize, quantize, summed_axes
from qwen3_omni_jax.nn.params import Param, leaves
from tests.conftest import ROOT


@pytest.fixture(scope='module')
def released() -> dict[str, Param]:
  return dict(leaves(omni_spec(load_config(ROOT / 'configs' / 'model' / 'instruct.json'))))


@pytest.mark.parametrize(
  ('path', 'axes'),
  [
    ('thinker/layers/attn/q', (1,)),
    ('thinker/layers/attn/o', (1, 2)),
    ('thinker/layers/moe/experts/gate', (2,)),
    ('thinker/layers/moe/experts/down', (2,)),
    ('thinker/head', (0,)),
    ('talker/layers/moe/shared/up', (1,)),
    ('audio/layers/attn/o/kernel', (1, 2)),
    ('audio/conv_out/kernel', (0, 1)),
    ('vision/layers/attn/qkv/kernel', (1,)),
    ('vision/deepstack/up/kernel', (1,)),
    ('talker/text_projection/fc1/kernel', (0,)),
    ('thinker/embed', ()),
    ('thinker/layers/moe/router', ()),
    ('thinker/layers/attn_norm', ()),
    ('audio/conv1/kernel', ()),
    ('talker/layers/moe/shared_gate', ()),
    ('code_predictor/layers/attn/q', ()),
    ('code2wav/layers/attn/q', ()),
    ('audio/layers/attn/q/bias', ()),
    ('vision/positions', ()),
  ],
)
def test_matrices_are_scaled_per_output(released, path, axes):
  assert summed_axes(path, released[path]) == axes


def test_the_released_model_takes_half_the_bytes(released):
  int8 = 0
  for path, param in released.items():
    axes, size = summed_axes(path, param), math.prod(param.shape)
    scales = size // math.prod(param.shape[a] for a in axes)
    int8 += size + 4 * scales if axes else 2 * size
  bf16 = 2 * sum(math.prod(param.shape) for param in released.values())
  assert bf16 == 2 * 35_259_818_545
  assert int8 / bf16 < 0.515


def test_rounding_is_to_the_nearest_of_255_steps():
  array = np.random.default_rng(0).standard_normal((3, 20, 7), dtype=np.float32)
  array[1, :, 2] = 0
  values, scale = quantize(array, (1,))
  assert values.dtype == np.int8 and scale.shape == (3, 1, 7)
  back = dequantize(values, scale, np.float32)
  assert (np.abs(back - array) <= np.abs(array).max(axis=1, keepdims=True) / 254 * 1.0001).all()
  assert not back[1, :, 2].any()
  again, _ = quantize(back, (1,))
  np.testing.assert_array_equal(again, values)
  for dtype in (np.float32, ml_dtypes.bfloat16):
    np.testing.assert_array_equal(Int8(values, scale).astype(dtype), dequantize(values, scale, dtype))


def test_what_is_not_finite_is_refused():
  with pytest.raises(ValueError, match='not finite'):
    quantize(np.array([[1.0, np.nan]]), (0,))
