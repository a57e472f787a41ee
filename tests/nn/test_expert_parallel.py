"""Tokens reach their experts and come back, on every kind of mesh, however lopsided the routing; nothing is lost unseen."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from qwen3_omni_jax.nn.expert_parallel import LOSSLESS, METHODS, Dispatch
from qwen3_omni_jax.nn.expert_weights import Experts
from qwen3_omni_jax.nn.int8 import Int8, quantize
from qwen3_omni_jax.nn.lora import weight_map
from qwen3_omni_jax.nn.moe import expert_load, moe, moe_spec
from qwen3_omni_jax.nn.params import abstract_params, init_params, stack
from qwen3_omni_jax.sharding import make_mesh, param_shardings

D, F, E, A = 12, 8, 16, 3
MESHES = {
  'expert=8': {'expert': 8},
  'expert=4,fsdp=2': {'fsdp': 2, 'expert': 4},
  'tensor=2,expert=4': {'expert': 4, 'tensor': 2},
  'context=2,expert=4': {'expert': 4, 'context': 2},
  'data=8': {'data': 8},
}


@pytest.fixture(autouse=True)
def ragged_all_to_all_on_cpu(monkeypatch):
  """XLA for CPU has no ragged all-to-all: the same by its definition, from an all-gather."""

  def by_definition(operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name):
    gather = lambda a: jax.lax.all_gather(a, axis_name)
    operands, start, sizes, at = map(gather, (operand, input_offsets, send_sizes, output_offsets))
    me = jax.lax.axis_index(axis_name)
    for sender in range(len(operands)):
      row = jnp.arange(len(output)) - at[sender, me]
      rows = operands[sender][jnp.clip(start[sender, me] + row, 0, len(operand) - 1)]
      output = jnp.where(((row >= 0) & (row < sizes[sender, me]))[:, None], rows, output)
    return output

  monkeypatch.setattr(jax.lax, 'ragged_all_to_all', by_definition)


@pytest.fixture(scope='module')
def params():
  return init_params(moe_spec(D, F, E, shared_ffn=6), jax.random.key(0))


def tokens(kind: str, shape=(8, 6)):
  """Balanced, all to the same experts, or a few experts of one device alone."""
  x = jax.random.normal(jax.random.key(1), (*shape, D))
  if kind == 'one':
    return jnp.broadcast_to(x[:1, :1], x.shape)
  return jnp.where(jnp.arange(shape[0])[:, None, None] % 3 == 0, x, x[:1, :1]) if kind == 'few' else x


def run(x, params, mesh=None, dispatch=LOSSLESS, live=None):
  """Output, gradients and the number of lost pairs."""

  def loss(x, params):
    y, routing = moe(x, params, Experts.of_layer(params['experts']), A, True, live=live, dispatch=dispatch)
    return jnp.sum(jnp.sin(y)), (y, routing.lost)

  step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
  if mesh is None:
    (_, (y, lost)), grads = step(x, params)
  else:
    with jax.set_mesh(mesh):
      (_, (y, lost)), grads = step(x, params)
  return jax.device_get((y, grads, lost))


@pytest.mark.parametrize('method', sorted(METHODS))
def test_padding_takes_no_expert_and_no_room(params, method):
  x, live = tokens('balanced'), np.arange(48).reshape(8, 6) % 4 == 0
  expected, expected_grads, _ = run(x, params, live=live)
  y, grads, lost = run(x, params, make_mesh({'expert': 4, 'fsdp': 2}), Dispatch(method=method, buffer=1.0), live)
  assert lost == 0  # with room for all tokens equally shared out, all of these fit wherever they go
  np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
  for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(np.abs(b).max(), 1))


@pytest.mark.parametrize('kind', ['balanced', 'few', 'one'])
@pytest.mark.parametrize('method', sorted(METHODS))
@pytest.mark.parametrize('shape', MESHES.values(), ids=MESHES.keys())
def test_every_method_equals_one_device_forward_and_backward(params, shape, method, kind):
  x = tokens(kind)
  expected, expected_grads, _ = run(x, params)
  y, grads, lost = run(x, params, make_mesh(shape), Dispatch(method=method))
  assert lost == 0
  np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
  for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(np.abs(b).max(), 1))


@pytest.mark.parametrize('rows', [1, 2, 3])
def test_rows_that_do_not_fill_the_mesh_are_summed_over_its_experts(params, rows):
  x = tokens('balanced', (rows, 1))
  expected, expected_grads, _ = run(x, params)
  y, grads, _ = run(x, params, make_mesh({'data': 2, 'expert': 4}))
  np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
  for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize('kind', ['balanced', 'one'])
@pytest.mark.parametrize('method', ['padded', 'ragged'])
def test_the_overflow_metric_fires_exactly_when_the_buffer_is_exceeded(params, method, kind):
  """Of 8 senders with 18 pairs each: what a receiver has no room for, counted here by hand, and zero in the output."""
  mesh, x = make_mesh({'expert': 8}), tokens(kind)
  _, routing = moe(x, params, Experts.of_layer(params['experts']), A, True)
  pairs = np.sort(np.asarray(routing.experts).reshape(8, -1), axis=1) // (E // 8)  # receivers of each sender's pairs
  sent = np.stack([np.bincount(receivers, minlength=8) for receivers in pairs])
  whole, _, _ = run(x, params)
  seen = set()
  for buffer in (None, 8.0, 2.0, 1.0, 0.5):
    room = 8 * 6 * 2 if buffer is None else min(8 * 6 * 2, 8 * int(np.ceil(buffer * 18 / 8)))
    over = np.maximum(sent - -(-room // 8), 0) if method == 'padded' else np.maximum(sent.sum(axis=0) - room, 0)
    y, _, lost = run(x, params, mesh, Dispatch(method=method, buffer=buffer))
    assert lost == over.sum(), f'buffer {buffer}'
    assert np.isfinite(y).all() and (lost > 0) == (np.abs(y - whole).max() > 1e-5)
    seen.add(bool(lost))
  assert seen == {False, True}


def test_int8_experts_are_shared_out_too(params):
  experts = {name: Int8(*map(jnp.asarray, quantize(w, (1,)))) for name, w in params['experts'].items()}
  wide = {**params, 'experts': weight_map(lambda w: w.astype(jnp.float32), experts)}
  x = tokens('balanced')
  for shape in ({'expert': 8}, {'expert': 4, 'tensor': 2}):
    with jax.set_mesh(make_mesh(shape)):
      y, _ = jax.jit(lambda x, e: moe(x, params, Experts.of_layer(e), A, True))(x, experts)
    np.testing.assert_allclose(y, run(x, wide)[0], rtol=0, atol=1e-5)


def test_experts_that_cannot_be_shared_out_are_refused(params):
  six = init_params(moe_spec(D, F, 6), jax.random.key(0))
  with pytest.raises(ValueError, match='6 experts over expert=4: choose a mesh'):
    run(tokens('balanced'), six, make_mesh({'data': 2, 'expert': 4}))
  with pytest.raises(ValueError, match="dispatch 'mail': expected one of ragged"):
    run(tokens('balanced'), params, make_mesh({'expert': 8}), Dispatch(method='mail'))


def test_load_is_each_experts_share_of_what_counts(params):
  x = tokens('few')
  _, routing = moe(x, params, Experts.of_layer(params['experts']), A, True)
  counts = np.bincount(np.asarray(routing.experts).ravel(), minlength=E)
  np.testing.assert_allclose(expert_load(routing), counts / (48 * A), rtol=1e-6)
  keep = jnp.zeros((8, 6), bool).at[0, 0].set(True)
  load = expert_load(routing, keep)
  np.testing.assert_allclose(np.sort(load)[-A:], 1 / A, rtol=1e-6)
  assert set(np.flatnonzero(load)) == set(np.asarray(routing.experts[0, 0]))


@pytest.mark.parametrize('stacked', [False, True], ids=['scanned', 'in stack'])
def test_a_layers_weights_are_gathered_never_the_whole_stack(stacked):
  """Of 5 layers, forward and backward: 5 times the traffic and memory otherwise."""
  mesh = make_mesh({'fsdp': 2, 'expert': 4})
  spec = stack(5, moe_spec(D, F, E))
  shape = lambda p, cut: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=cut)
  params = jax.tree.map(shape, abstract_params(spec), param_shardings(spec, mesh))
  x = jax.ShapeDtypeStruct((8, 6, D), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(('fsdp', 'expert'))))

  def loss(params, x):
    def layer(x, inputs):
      p, i = inputs
      experts = Experts.in_stack(params['experts'], i) if stacked else Experts.of_layer(p['experts'])
      return moe(x, p, experts, A, True)[0], None

    return jax.lax.scan(layer, x, (params, jnp.arange(5)))[0].sum()

  with jax.set_mesh(mesh):
    hlo = jax.jit(jax.value_and_grad(loss)).lower(params, x).compile().as_text()
  gathered = re.findall(r'f32\[([\d,]+)\]\S* all-gather\(', hlo)
  assert gathered and not [dims for dims in gathered if dims.startswith('5,')]
