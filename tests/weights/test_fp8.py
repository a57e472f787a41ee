"""fp8 weights are read as q * scale, as transformers widens them, in every command; other kinds are refused by name."""

import itertools
import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest

from qwen3_omni_jax.cli import main
from qwen3_omni_jax.config_json import load_config
from qwen3_omni_jax.models.omni import omni_spec
from qwen3_omni_jax.sharding import make_mesh, param_shardings
from qwen3_omni_jax.weights.folder import open_folder
from qwen3_omni_jax.weights.fp8 import Scaled, Scheme
from qwen3_omni_jax.weights.load import load_params
from qwen3_omni_jax.weights.opened import open_checkpoint
from qwen3_omni_jax.weights.safetensors import write_shards
from qwen3_omni_jax.weights.source import views_of
from qwen3_omni_jax.weights.to_hf import convert_to_hf
from qwen3_omni_jax.weights.to_jax import convert_to_jax
from tests.reference import prepare_torchvision

from .folders import assert_same, fuse, odd_config, odd_dict, random_tensors, write

E4M3, BF16 = ml_dtypes.float8_e4m3fn, ml_dtypes.bfloat16
BLOCK = (16, 20)  # neither divides the widths of the odd preset: 52, 18, 72, 36


def is_quantised(name: str) -> bool:
  """What the released fp8 checkpoints of this family quantise: attention and experts of the language models."""
  return '.layers.' in name and 'model.' in name and name.endswith('_proj.weight') and 'code_predictor' not in name


def quantise(value: np.ndarray, block: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
  """(q, factor) of a matrix, or of matrices: blocks whose largest value is 448."""
  rows, columns = value.shape[-2:]
  counts = -(-rows // block[0]), -(-columns // block[1])
  factor = np.zeros((*value.shape[:-2], *counts), np.float32)
  q = np.zeros(value.shape, E4M3)
  for i, j in itertools.product(*map(range, counts)):
    at = (..., slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1]))
    factor[..., i, j] = np.abs(value[at].astype(np.float32)).max(axis=(-2, -1)) / 448
    q[at] = (value[at].astype(np.float32) / factor[..., i, j, None, None]).astype(E4M3)
  return q, factor


def widened(q: np.ndarray, factor: np.ndarray, block: tuple[int, int]) -> np.ndarray:
  """float32."""
  spread = np.repeat(np.repeat(factor, block[0], axis=-2), block[1], axis=-1)[..., : q.shape[-2], : q.shape[-1]]
  return q.astype(np.float32) * spread


def quantised(tensors, block=BLOCK) -> tuple[dict, dict]:
  """The tensors with fp8 weights, and the same widened in float32."""
  out, wide = {}, {}
  for name, value in tensors.items():
    if not (is_quantised(name) or name.endswith(('experts.gate_up_proj', 'experts.down_proj'))):
      out[name] = wide[name] = value
      continue
    out[name], out[f'{name}_scale_inv'] = quantise(value, block)
    wide[name] = widened(out[name], out[f'{name}_scale_inv'], block)
  return out, wide


def config_of(block=BLOCK, **more) -> dict:
  fp8 = {'quant_method': 'fp8', 'activation_scheme': 'dynamic', 'weight_block_size': list(block)}
  return odd_dict() | {'dtype': 'bfloat16', 'quantization_config': fp8 | more}


@pytest.fixture(scope='module')
def tensors():
  return random_tensors(odd_config(), dtype=BF16)


@pytest.fixture(scope='module')
def folders(tensors, tmp_path_factory) -> dict[str, pathlib.Path]:
  """The same weights as fp8, as bfloat16 and as float32."""
  root = tmp_path_factory.mktemp('fp8')
  out, wide = quantised(tensors)
  as_bf16 = {name: value.astype(BF16) for name, value in wide.items()}
  return {
    'fp8': write(root / 'fp8', out, config_of()),
    'bfloat16': write(root / 'bfloat16', as_bf16, odd_dict() | {'dtype': 'bfloat16'}),
    'float32': write(root / 'float32', {n: v.astype(np.float32) for n, v in wide.items()}),
  }


def test_every_weight_is_widened_as_transformers_widens_it(tensors, tmp_path):
  """Blocks that divide the widths, as transformers asks for; its model, loaded without a GPU, holds widened weights."""
  import torch
  import transformers

  prepare_torchvision()
  folder = write(tmp_path / 'hf', quantised(tensors, (2, 2))[0], config_of((2, 2)))
  theirs = transformers.Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).state_dict()
  convert_to_hf(folder, tmp_path / 'wide', fused_experts=True)
  ours = open_folder(tmp_path / 'wide')
  assert ours.keys() == theirs.keys()
  for name, shard in ours.items():
    np.testing.assert_array_equal(shard.read(name).view(np.uint16), theirs[name].view(torch.uint16).numpy(), err_msg=name)


def test_ragged_blocks_are_widened_as_transformers_widens_them_in_its_backward_pass(folders):
  """Its loader refuses them; float32, since it rounds the scales to the dtype first."""
  import torch
  from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

  stored = open_folder(folders['fp8'])
  views, _ = views_of(stored, Scheme(BLOCK, np.dtype(np.float32)))
  names = [name for name in stored if is_quantised(name)]
  assert len(names) > 100
  for name in names:
    scale = torch.from_numpy(stored[f'{name}_scale_inv'].read(f'{name}_scale_inv'))
    q = torch.from_numpy(stored[name].read(name).view(np.uint8)).view(torch.float8_e4m3fn)
    theirs = _dequantize_fp8_weight(q, scale, list(BLOCK), torch.float32)
    np.testing.assert_array_equal(views[name].read(), theirs.numpy(), err_msg=name)


@pytest.mark.parametrize('dtype', [None, 'bfloat16', 'float32'])
def test_loading_and_converting_read_the_dtype_asked_for(folders, tmp_path, dtype):
  wide = folders[dtype or 'bfloat16']
  expected = load_params(wide, dtype=dtype)
  assert_same(load_params(folders['fp8'], dtype=dtype), expected)
  convert_to_jax(folders['fp8'], tmp_path / 'jax', dtype)
  assert_same(load_params(tmp_path / 'jax'), expected)
  convert_to_hf(folders['fp8'], tmp_path / 'hf', dtype=dtype)
  convert_to_hf(tmp_path / 'jax', tmp_path / 'back')
  for folder in (tmp_path / 'hf', tmp_path / 'back'):
    assert main(['convert', 'verify', str(wide), str(folder), *(['--rtol', '0'] if dtype else [])]) == 0
    config = json.loads((folder / 'config.json').read_text())
    assert 'quantization_config' not in config and config['dtype'] == (dtype or 'bfloat16')


def test_a_part_of_a_matrix_is_that_part_of_the_whole(folders):
  cfg = load_config(folders['fp8'])
  mesh = make_mesh({'tensor': 2, 'fsdp': 4})
  shardings = param_shardings({'thinker': omni_spec(cfg)['thinker']}, mesh)
  loaded = load_params(folders['fp8'], parts=('thinker',), shardings=shardings)
  assert_same(jax.device_get(loaded), load_params(folders['bfloat16'], parts=('thinker',)))
  views, _ = views_of(open_folder(folders['fp8']), Scheme(BLOCK, np.dtype(np.float32)))
  view = views['thinker.model.layers.1.self_attn.q_proj.weight']
  whole = view.read()
  for start, stop in itertools.combinations(range(0, 73, 3), 2):
    np.testing.assert_array_equal(view.read(slice(start, stop)), whole[start:stop])


def test_inspect_verify_and_dry_run(folders, tmp_path, capsys):
  assert main(['convert', 'verify', str(folders['fp8']), str(folders['bfloat16'])]) == 0
  assert 'agree bit for bit' in capsys.readouterr().out
  assert main(['convert', 'inspect', str(folders['fp8']), '--json']) == 0
  found = json.loads(capsys.readouterr().out)
  assert not found['problems'] and not found['notes']
  stored = open_folder(folders['fp8'])
  sizes = {name: stored[name].read(name).nbytes for name in stored if is_quantised(name.removesuffix('_scale_inv'))}
  assert found['dtypes']['float8_e4m3fn']['tensors'] == sum(map(is_quantised, sizes))
  assert found['dtypes']['float8_e4m3fn']['bytes'] == sum(sizes.values())
  assert main(['convert', 'to-jax', '--from', str(folders['fp8']), '--to', str(tmp_path / 'jax'), '--dry-run']) == 0
  assert f': {found["total"]["tensors"]} tensors' in capsys.readouterr().out


@pytest.mark.parametrize('layout', [dict, fuse])
def test_fused_experts_and_a_thinker_saved_alone(tensors, tmp_path, layout):
  """Of fused experts, a block may hold rows of gate and up."""
  thinker = layout({name: value for name, value in tensors.items() if name.startswith('thinker.')})
  out, wide = quantised({name.removeprefix('thinker.'): value for name, value in thinker.items()})
  assert layout is dict or 'model.language_model.layers.1.mlp.experts.gate_up_proj_scale_inv' in out
  quantization = config_of()['quantization_config']
  folder = write(tmp_path / 'fp8', out, odd_dict('thinking') | {'quantization_config': quantization})
  expected = write(tmp_path / 'wide', {n: v.astype(BF16) for n, v in wide.items()}, odd_dict('thinking'))
  assert_same(load_params(folder), load_params(expected))


NAME = 'thinker.model.layers.0.self_attn.q_proj.weight'
E8M0 = ml_dtypes.float8_e8m0fnu
GRIDS = {  # the scale's end, its shape and dtype for a weight of that shape, and rows and columns of a block
  'one a tensor': ('_scale', (), np.float32, (7, 10), (7, 10)),
  'one a tensor, in a list': ('_scale', (1,), np.float32, (7, 10), (7, 10)),
  'one a row': ('_scale', (7, 1), BF16, (7, 10), (1, 10)),
  'one a row, flat': ('_scale', (7,), np.float32, (7, 10), (1, 10)),
  'blocks of the usual size': ('_scale_inv', (1, 1), np.float32, (7, 10), (128, 128)),
  'ragged blocks': ('_scale_inv', (3, 4), np.float32, (257, 400), (128, 128)),
  'a power of two for each 5 of a row': ('_scale_inv', (7, 2), E8M0, (7, 10), (1, 5)),
  'one a tensor, experts': ('_scale', (3, 1, 1), np.float32, (3, 7, 10), (7, 10)),
  'one for all experts': ('_scale', (), np.float32, (3, 7, 10), (7, 10)),
  'one a row, experts': ('_scale', (3, 7, 1), np.float32, (3, 7, 10), (1, 10)),
}


@pytest.mark.parametrize(('end', 'scale', 'dtype', 'shape', 'block'), GRIDS.values(), ids=GRIDS.keys())
@pytest.mark.parametrize('kind', [E4M3, ml_dtypes.float8_e5m2])
def test_scales_of_every_grid(tmp_path, end, scale, dtype, shape, block, kind):
  name = NAME if len(shape) == 2 else 'thinker.model.layers.0.mlp.experts.down_proj'
  rng = np.random.default_rng(0)
  q = (rng.integers(-8, 8, shape) / 4).astype(kind)
  factor = np.exp2(-rng.integers(1, 9, scale).astype(np.float32)).astype(dtype)
  tensors = {name: q, f'{name}{end}': factor}
  write_shards(tmp_path, tensors.items(), {name: (value.dtype, value.shape) for name, value in tensors.items()})
  views, _ = views_of(open_folder(tmp_path), Scheme(dtype=np.dtype(np.float32)))
  grid = factor.astype(np.float32).reshape(scale + (1,) * (len(shape) - len(scale)))
  expected = widened(q, np.broadcast_to(grid, (*shape[:-2], *grid.shape[-2:])), block)
  for view, matrix in zip(views.values(), expected.reshape(-1, *shape[-2:]), strict=True):
    assert isinstance(view, Scaled) and view.grid is not None
    np.testing.assert_array_equal(view.read(), matrix)


def test_scales_that_are_reciprocals_divide(folders, tensors, tmp_path, capsys):
  """As in the fp8 checkpoint of Qwen3-Omni that is used most; what transformers makes of it is another model."""
  out, _ = quantised(tensors)
  out = {name: 1 / value if name.endswith('_inv') else value for name, value in out.items()}
  folder = write(tmp_path / 'hf', out, config_of())
  assert main(['convert', 'verify', str(folder), str(folders['float32']), '--rtol', str(2**-8)]) == 0
  assert 'divided by their scales, which are over 1 in A:' in capsys.readouterr().out
  mixed = {name: 1 / value if name.endswith('down_proj.weight_scale_inv') else value for name, value in out.items()}
  with pytest.raises(ValueError, match='weight_scale_inv is over 1 and .*_inv is not: whether these scales multiply or divide'):
    load_params(write(tmp_path / 'mixed', mixed, config_of()))


def test_scales_of_activations_are_not_needed(folders, tensors, tmp_path):
  out, _ = quantised(tensors)
  layer = 'thinker.model.layers.0.self_attn'
  for name in ('q_proj.input_scale', 'q_proj.activation_scale', 'k_proj.output_scale', 'k_scale', 'v_scale'):
    out[f'{layer}.{name}'] = np.ones((), np.float32)
  folder = write(tmp_path / 'hf', out, config_of())
  assert_same(load_params(folder, parts=('thinker',)), load_params(folders['bfloat16'], parts=('thinker',)))
  out['thinker.visual.blocks.0.attn.qkv.input_scale'] = np.ones((), np.float32)  # of a layer that is not fp8
  with pytest.raises(ValueError, match='1 unknown:\n +thinker.visual.blocks.0.attn.qkv.input_scale'):
    load_params(write(tmp_path / 'more', out, config_of()))


def test_int8_of_fp8_comes_back_in_the_dtype_it_was_widened_to(folders, tmp_path):
  convert_to_jax(folders['fp8'], tmp_path / 'jax', 'int8')
  opened = open_checkpoint(tmp_path / 'jax')
  assert {opened.dtype(name) for name in opened.names()} == {np.dtype(BF16)}


def test_fp8_without_fitting_scales_is_named(tensors, tmp_path):
  out, _ = quantised(tensors)
  del out[f'{NAME}_scale_inv']
  out['thinker.model.layers.1.self_attn.q_proj.weight_scale_inv'] = np.ones((7, 3), np.float32)
  with pytest.raises(ValueError) as caught:
    load_params(write(tmp_path / 'hf', out, config_of()))
  assert f'1 fp8 without their scales:\n    {NAME}' in str(caught.value)
  assert 'layers.1.self_attn.q_proj.weight: [72, 52] with [7, 3] float32' in str(caught.value)


LINEAR = NAME.removesuffix('.weight')
OTHERS = {  # what other tools leave of a matrix
  'gptq': ({'qweight': (9, 52), 'qzeros': (1, 6), 'scales': (1, 52), 'g_idx': (72,)}, 'gptq'),
  'awq': ({'qweight': (52, 9), 'qzeros': (1, 9), 'scales': (1, 72)}, 'awq'),
  'bitsandbytes': ({'weight': (1872, 1), 'weight.absmax': (30,), 'weight.quant_map': (16,)}, 'bitsandbytes'),
  'bitsandbytes, 8 bits': ({'weight': (72, 52), 'SCB': (72,)}, None),
  'compressed-tensors, packed': ({'weight_packed': (72, 7), 'weight_scale': (72, 1), 'weight_shape': (2,)}, 'compressed-tensors'),
  'compressed-tensors, int8': ({'weight': (72, 52), 'weight_scale': (72, 1)}, 'compressed-tensors'),
  'ModelOpt NVFP4': ({'weight': (72, 26), 'weight_scale': (72, 4), 'weight_scale_2': ()}, 'modelopt'),
}


@pytest.mark.parametrize('command', ['to-jax', 'to-hf', 'inspect'])
@pytest.mark.parametrize(('parts', 'method'), OTHERS.values(), ids=OTHERS.keys())
def test_other_kinds_of_quantisation_are_refused_with_what_to_do(tmp_path, capsys, command, parts, method):
  tensors = {f'{LINEAR}.{name}': np.ones(shape, np.uint8 if 'scale' not in name else np.float32) for name, shape in parts.items()}
  folder = write(tmp_path / 'hf', tensors, odd_dict() | ({'quantization_config': {'quant_method': method}} if method else {}))
  paths = [str(folder)] if command == 'inspect' else ['--from', str(folder), '--to', str(tmp_path / 'target')]
  assert main(['convert', command, *paths]) == 1
  said = capsys.readouterr().err
  assert f'{folder}: quantised ({method or "bitsandbytes"}): ' in said and f'tensors such as {LINEAR}.' in said
  assert 'Take the checkpoint that it was made from, or widen it with transformers' in said and len(said) < 600
  assert [path.name for path in tmp_path.iterdir()] == ['hf']
