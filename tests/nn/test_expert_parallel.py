"""Tokens reach their experts and come back, on every kind of mesh, however lopsided the routing; nothing is lost unseen."""

import contextlib
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from qwen3_omni_jax.nn.expert_parallel import LOSSLESS, METHODS, Dispatch
from qwen3_omni_jax.nn.expert_weights import Experts
from qwen3_omni_jax.nn.int8 import Int8, dequantize, quantize
from qwen3_omni_jax.nn.moe import expert_load, expert_pairs, moe, moe_spec, route
from qwen3_omni_jax.nn.params import abstract_params, stack
from qwen3_omni_jax.sharding import make_mesh, param_shardings
from tests.arrays import normal, params_of

pytestmark = pytest.mark.quick_to_compile

D, F, E, A = 12, 8, 16, 3
ALL_LIVE = np.ones((8, 6), bool)


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
  return params_of(moe_spec(D, F, E, shared_ffn=6))


def tokens(kind: str, shape=(8, 6)):
  """Balanced, all to the same experts, or a few experts of one device alone."""
  x = normal(1, *shape, D)
  if kind == 'one':
    return np.broadcast_to(x[:1, :1], x.shape)
  return np.where(np.arange(shape[0])[:, None, None] % 3 == 0, x, x[:1, :1]) if kind == 'few' else x


@functools.partial(jax.jit, static_argnames='dispatch')
def forward(x, params, live, dispatch):
  y, routing = moe(x, params, Experts.of_layer(params['experts']), A, True, live=live, dispatch=dispatch)
  return y, routing.lost


@functools.partial(jax.jit, static_argnames='dispatch')
def forward_and_backward(x, params, live, dispatch):
  def loss(x, params):
    y, lost = forward(x, params, live, dispatch)
    return jnp.sum(jnp.sin(y)), (y, lost)

  (_, (y, lost)), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, params)
  return y, lost, grads


@jax.jit
def routed(x, params):
  return route(x, params['router'], A, True)


def run(x, params, shape=None, dispatch=LOSSLESS, live=None, do=forward_and_backward):
  """Output, the number of lost pairs, and gradients. shape: of the mesh; None: one device."""
  with jax.set_mesh(make_mesh(shape)) if shape else contextlib.nullcontext():
    return jax.device_get(do(x, params, live, dispatch))


def assert_equal_one_device(got, expected):
  (y, lost, grads), (expected_y, _, expected_grads) = got, expected
  assert lost == 0
  np.testing.assert_allclose(y, expected_y, rtol=0, atol=1e-5 * np.abs(expected_y).max())
  for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(np.abs(b).max(), 1))


@pytest.mark.parametrize('method', sorted(METHODS))
def test_padding_takes_no_expert_and_no_room(params, method):
  """With room for all tokens equally shared out, all of those that are live fit wherever they go."""
  x, live = tokens('balanced'), np.arange(48).reshape(8, 6) % 4 == 0
  got = run(x, params, {'expert': 8}, Dispatch(method=method, buffer=1.0), live)
  assert_equal_one_device(got, run(x, params, live=live))


# The axes that the methods do not know of are together in one mesh; without an expert axis nothing travels.
MESHES = [({'expert': 8}, method) for method in sorted(METHODS)]
MESHES += [({'fsdp': 2, 'expert': 4}, method) for method in sorted(METHODS)]
MESHES += [({'context': 2, 'expert': 2, 'tensor': 2}, method) for method in sorted(METHODS)]
MESHES += [({'data': 8}, None)]


@pytest.mark.parametrize('kind', ['balanced', 'few', 'one'])
@pytest.mark.parametrize(('shape', 'method'), MESHES, ids=str)
def test_every_method_equals_one_device_forward_and_backward(params, shape, method, kind):
  x = tokens(kind)
  assert_equal_one_device(run(x, params, shape, Dispatch(method=method), ALL_LIVE), run(x, params, live=ALL_LIVE))


@pytest.mark.parametrize('rows', [1, 2, 3])
def test_rows_that_do_not_fill_the_mesh_are_summed_over_its_experts(params, rows):
  x = tokens('balanced', (rows, 1))
  expected, _, expected_grads = run(x, params)
  y, _, grads = run(x, params, {'data': 2, 'expert': 4})
  np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
  for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize('kind', ['balanced', 'one'])
@pytest.mark.parametrize('method', ['padded', 'ragged'])
def test_the_overflow_metric_fires_exactly_when_the_buffer_is_exceeded(params, method, kind):
  """Of 8 senders with 18 pairs each: what a receiver has no room for, counted here by hand, and zero in the output."""
  x = tokens(kind)
  pairs = np.sort(np.asarray(routed(x, params).experts).reshape(8, -1), axis=1) // (E // 8)  # receivers of each sender's pairs
  sent = np.stack([np.bincount(receivers, minlength=8) for receivers in pairs])
  whole, _ = run(x, params, do=forward)
  seen = set()
  for buffer in (None, 8.0, 2.0, 1.0, 0.5):
    room = 8 * 6 * 2 if buffer is None else min(8 * 6 * 2, 8 * int(np.ceil(buffer * 18 / 8)))
    over = np.maximum(sent - -(-room // 8), 0) if method == 'padded' else np.maximum(sent.sum(axis=0) - room, 0)
    y, lost = run(x, params, {'expert': 8}, Dispatch(method=method, buffer=buffer), do=forward)
    assert lost == over.sum(), f'buffer {buffer}'
    assert np.isfinite(y).all() and (lost > 0) == (np.abs(y - whole).max() > 1e-5)
    seen.add(bool(lost))
  assert seen == {False, True}


def test_int8_experts_are_shared_out_too(params):
  int8 = {name: Int8(*quantize(w, (1,))) for name, w in params['experts'].items()}
  wide = {name: dequantize(w.values, w.scale, np.float32) for name, w in int8.items()}
  x = tokens('balanced')
  expected, _ = run(x, {**params, 'experts': wide}, do=forward)
  for shape in ({'expert': 8}, {'expert': 4, 'tensor': 2}):
    y, _ = run(x, {**params, 'experts': int8}, shape, do=forward)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)


def test_experts_that_cannot_be_shared_out_are_refused(params):
  six = params_of(moe_spec(D, F, 6))
  with pytest.raises(ValueError, match='6 experts over expert=4: choose a mesh'):
    run(tokens('balanced'), six, {'data': 2, 'expert': 4})
  with pytest.raises(ValueError, match="dispatch 'mail': expected one of ragged"):
    run(tokens('balanced'), params, {'expert': 8}, Dispatch(method='mail'))


def test_load_is_each_experts_share_of_what_counts(params):
  routing = routed(tokens('few'), params)
  counts = np.bincount(np.asarray(routing.experts).ravel(), minlength=E)
  np.testing.assert_allclose(expert_load(expert_pairs(routing)), counts / (48 * A), rtol=1e-6)
  keep = np.arange(48).reshape(8, 6) == 0
  load = expert_load(expert_pairs(routing, keep))
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
  if not stacked:  # its gradients come back in parts: no device is given a whole sum
    reduced = re.findall(r'f32\[([\d,]+)\]\S* all-reduce\(', hlo)
    assert not [dims for dims in reduced if dims.count(',') > 1 and {str(D), str(F)} <= set(dims.split(','))], reduced
    assert re.findall(rf'f32\[{E // 4},{D // 2},{F}\]\S* reduce-scatter\(', hlo)
