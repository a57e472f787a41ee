"""One step on every modality at once, beside transformers: loss, load-balance loss, and the gradient of every parameter."""

import functools

import jax
import numpy as np
import pytest
from qwen3_omni_jax.tools.tiny import make_checkpoint
from qwen3_omni_jax.train.batch import TrainBatch
from qwen3_omni_jax.train.config import Loss, Part, Recipe, Step
from qwen3_omni_jax.train.state import PARTS, assign_roles, flatten
from qwen3_omni_jax.train.step import loss_sums

from qwen3_omni_jax.infer.collate import collate
from qwen3_omni_jax.infer.omni import Omni
from qwen3_omni_jax.weights.spelling import published_name
from qwen3_omni_jax.weights.table import published
from tests.parity import cases
from tests.parity.conftest import with_their_pixels
from tests.reference import Reference

pytestmark = pytest.mark.quick_to_compile

RELATIVE = 1e-4  # of a gradient's norm: float32 sums in another order, through every layer and back
RECIPE = Recipe(
  parts=tuple(Part(part, 1e-3) for part in PARTS),
  loss=Loss(balance_form='reference'),
  step=Step(dtype='float32', remat='none', encoder_remat='none'),
)


@pytest.fixture(scope='module')
def both(tmp_path_factory, samples):
  """(theirs, ours): {'loss', 'balance', 'gradients' by published name}, of a padded batch of two conversations."""
  folder = tmp_path_factory.mktemp('train') / 'hf'
  make_checkpoint(folder, 'tiny', seed=1)
  reference, omni = Reference.load(folder), Omni.load(folder, dtype='float32', speech=False)
  every = cases.conversations(cases.make_media(tmp_path_factory.mktemp('cases'), samples))
  conversations = [every['mixed, several turns'][0], every['one audio'][0]]
  batch = reference.inputs(conversations)
  rows = with_their_pixels([omni.processor(c, reference_exact=True) for c in conversations], batch)
  return of_reference(reference.model.thinker, batch), of_ours(omni, rows)


def of_reference(thinker, batch) -> dict:
  keep = batch['attention_mask'] != 0
  keep[:, 1:] &= batch['attention_mask'][:, :-1] != 0  # else a row's first token would be predicted from the padding to its left
  labels = batch['input_ids'].masked_fill(~keep, -100)
  out = thinker(**batch, labels=labels, output_router_logits=True)
  out.loss.backward()
  gradients: dict[str, np.ndarray] = {}
  for name, parameter in thinker.named_parameters():
    grad = parameter.grad.numpy()
    if name.endswith('experts.gate_up_proj'):
      for e, (gate, up) in enumerate(zip(*np.split(grad, 2, axis=1), strict=True)):
        gradients |= {published_name(f'{name[:-12]}{e}.gate_proj.weight', True): gate}
        gradients |= {published_name(f'{name[:-12]}{e}.up_proj.weight', True): up}
    elif name.endswith('experts.down_proj'):
      gradients |= {published_name(f'{name[:-9]}{e}.down_proj.weight', True): down for e, down in enumerate(grad)}
    else:
      gradients[published_name(name, True)] = grad
  return {'loss': out.loss.item(), 'balance': out.aux_loss.item(), 'gradients': gradients}


def of_ours(omni: Omni, rows) -> dict:
  packed = collate(rows, omni.cfg.thinker)
  ids, segment = packed.tokens.ids, packed.tokens.segment
  shift = lambda x: np.concatenate([x[:, 1:], np.zeros_like(x[:, :1])], axis=1)
  weights = ((segment != 0) & (shift(segment) != 0)).astype(np.float32)
  batch = TrainBatch(packed.tokens, packed.media, shift(ids), weights, np.zeros_like(ids))
  sums_fn = functools.partial(loss_sums, cfg=omni.cfg, recipe=RECIPE, roles=assign_roles(omni.cfg, RECIPE))
  gradient = jax.jit(jax.value_and_grad(sums_fn, has_aux=True))
  trainable = {path: p for path, p in flatten(omni.params).items() if path.split('/')[0] in PARTS}
  (_, sums), grads = jax.device_get(gradient(trainable, {}, batch))
  gradients = {
    name: tensor.to_theirs(grads[tensor.row.ours][tensor.index]) / sums['weight']
    for name, tensor in published(omni.cfg).items()
    if tensor.row.ours in grads
  }
  return {name: float(sums[kind] / sums['weight']) for name, kind in (('loss', 'total'), ('balance', 'balance'))} | {
    'gradients': gradients
  }


def test_losses_equal_the_reference(both):
  theirs, ours = both
  np.testing.assert_allclose(ours['loss'], theirs['loss'], rtol=1e-5)
  np.testing.assert_allclose(ours['balance'], theirs['balance'], rtol=1e-5)


def test_every_gradient_equals_the_reference(both):
  theirs, ours = both[0]['gradients'], both[1]['gradients']
  assert set(theirs) == set(ours) and len(ours) > 300
  # Key biases have no gradient in exact arithmetic: theirs is rounding on both sides.
  floor = 1e-7 * max(np.linalg.norm(g) for g in theirs.values())
  wrong = []
  for name, expected in theirs.items():
    difference, size = np.linalg.norm(ours[name] - expected), np.linalg.norm(expected)
    if difference > max(RELATIVE * size, floor):
      wrong.append(f'{name}: {difference / max(size, 1e-30):.1e} of {size:.1e}')
  assert not wrong, wrong
