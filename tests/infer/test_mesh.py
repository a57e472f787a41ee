"""Answers do not depend on the mesh: rows over `data`, experts over `expert`, text and speech, equal one device's."""

import jax
import numpy as np
import pytest

from qwen3_omni_jax.infer.omni import Omni
from qwen3_omni_jax.sharding import make_mesh

pytestmark = pytest.mark.quick_to_compile


@pytest.fixture(scope='module')
def conversations(samples):
  user = lambda *parts: [{'role': 'user', 'content': list(parts)}]
  return [
    user({'type': 'audio', 'audio': str(samples['audio'])}, {'type': 'text', 'text': 'What do you hear?'}),
    user({'type': 'text', 'text': 'Say hello to the small dog.'}),
    user({'type': 'image', 'image': str(samples['image'])}, {'type': 'text', 'text': 'What do you see?'}),
  ]


@pytest.mark.slow
def test_replies_equal_those_of_one_device(tiny_folder, conversations):
  options = dict(max_new_tokens=12, temperature=0, speech=True, max_frames=6, talker_temperature=0)
  alone = Omni.load(tiny_folder, dtype='float32').generate(conversations, **options)
  mesh = make_mesh({'data': 2, 'expert': 2}, jax.devices()[:4])
  omni = Omni.load(tiny_folder, dtype='float32', mesh=mesh)
  gate = omni.params['thinker']['layers']['moe']['experts']['gate']
  assert gate.sharding.shard_shape(gate.shape)[1] == gate.shape[1] // 2
  for got, want in zip(omni.generate(conversations, **options), alone, strict=True):
    assert got.token_ids == want.token_ids
    np.testing.assert_array_equal(got.speech.codes, want.speech.codes)
    np.testing.assert_allclose(got.speech.samples, want.speech.samples, rtol=0, atol=1e-5)


def test_a_mesh_by_name(tiny_folder):
  with pytest.raises(ValueError, match="'rack' is not understood|'rack'.*expected one of single"):
    Omni.load(tiny_folder, mesh='rack')
  with pytest.raises(ValueError, match=r'talker/layers/moe/experts/gate: expert 6 over expert=8'):
    Omni.load(tiny_folder, mesh='serve')
