"""Equal weights agree however they are stored; every difference is found and named."""

import json
import pathlib
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from qwen3_omni_jax.cli import main
from qwen3_omni_jax.config_json import parse_config
from qwen3_omni_jax.weights import verify as verify_module
from qwen3_omni_jax.weights.table import published_shapes
from qwen3_omni_jax.weights.to_jax import convert_to_jax
from qwen3_omni_jax.weights.verify import difference, verify

from .folders import Tensors, fuse, odd_config, odd_dict, random_tensors, write

pytestmark = pytest.mark.quick_to_compile

BF16_RTOL = 2**-8  # rounding to 8 significant bits: at most 2**-9 of a value, and a little for the rounded maximum
EXPERT = 'thinker.model.layers.2.mlp.experts.3.up_proj.weight'


@pytest.fixture(scope='module')
def tensors() -> Tensors:
  return random_tensors(odd_config('thinking'))


@pytest.fixture(scope='module')
def folders(tensors, tmp_path_factory) -> dict[str, pathlib.Path]:
  root, config = tmp_path_factory.mktemp('verify'), odd_dict('thinking')
  plain = write(root / 'plain', tensors, config)
  write(root / 'fused', fuse(tensors), config)
  write(root / 'alone', {name.removeprefix('thinker.'): value for name, value in tensors.items()}, config)
  convert_to_jax(plain, root / 'jax')
  convert_to_jax(plain, root / 'jax_bf16', 'bfloat16')
  return {path.name: path for path in root.iterdir()}


@pytest.mark.parametrize('pair', ['plain plain', 'plain fused', 'fused jax', 'jax plain', 'alone jax'])
def test_equal_weights_agree_in_every_layout(folders, tensors, pair):
  verdict = verify(*(folders[name] for name in pair.split()))
  assert verdict.agree and not verdict.differences and not verdict.dtypes
  assert verdict.tensors == len(tensors) and verdict.values == sum(value.size for value in tensors.values())


def test_another_dtype_agrees_within_its_rounding_only(folders, tensors):
  exact = verify(folders['plain'], folders['jax_bf16'])
  assert not exact.agree
  assert len(exact.problems['of_different_dtypes']) == len(tensors)
  assert exact.problems['of_different_dtypes'][0].endswith(': float32 and bfloat16')
  rounded = verify(folders['plain'], folders['jax_bf16'], rtol=BF16_RTOL)
  assert rounded.agree and len(rounded.dtypes) == len(tensors)
  assert 0 < rounded.differences[0].relative <= BF16_RTOL
  tight = verify(folders['jax_bf16'], folders['plain'], rtol=2**-12)
  assert not tight.agree and 'of_different_dtypes' not in tight.problems and EXPERT in tight.problems['of_different_values']


def changed(tmp_path, tensors: Tensors, **changes) -> pathlib.Path:
  return write(tmp_path / 'changed', tensors | changes.pop('values', {}), odd_dict('thinking'), **changes)


def test_one_changed_value_is_found_named_and_measured(folders, tensors, tmp_path):
  value = tensors[EXPERT].copy()
  value[7, 11] += 0.25
  verdict = verify(folders['jax'], changed(tmp_path, tensors, values={EXPERT: value}))
  assert not verdict.agree and verdict.problems['of_different_values'] == [EXPERT]
  (found,) = verdict.differences
  assert (found.name, found.differing, found.size) == (EXPERT, 1, value.size)
  assert found.max_abs == pytest.approx(0.25, rel=1e-5)
  assert found.relative == pytest.approx(0.25 / np.abs(value).max(), rel=1e-5)
  assert verify(folders['jax'], tmp_path / 'changed', rtol=found.relative * 1.001).agree
  assert not verify(tmp_path / 'changed', folders['fused'], rtol=found.relative * 0.999).agree


def test_the_worst_differences_come_first(folders, tensors, tmp_path):
  small, large = 'thinker.model.norm.weight', 'thinker.lm_head.weight'
  scaled = {small: 1.01 * tensors[small], large: 2 * tensors[large]}
  verdict = verify(folders['plain'], changed(tmp_path, tensors, values=scaled))
  assert [d.name for d in verdict.differences] == [large, small]
  assert verdict.differences[0].relative == pytest.approx(0.5)


def test_names_shapes_and_dtypes_are_compared(folders, tensors, tmp_path):
  b = dict(tensors)
  del b['thinker.audio_tower.proj1.bias']
  b['thinker.extra.weight'] = np.ones(3, np.float32)
  b['thinker.model.norm.weight'] = np.ones(53, np.float32)
  b['thinker.lm_head.weight'] = tensors['thinker.lm_head.weight'].astype(np.float16)
  problems = verify(folders['jax'], write(tmp_path / 'b', b, odd_dict('thinking'))).problems
  assert problems == {
    'missing_in_B': ['thinker.audio_tower.proj1.bias'],
    'unknown_in_B': ['thinker.extra.weight'],
    'of_another_shape_in_B': ['thinker.model.norm.weight: found [53], expected [52]'],
    'only_in_B': ['thinker.extra.weight'],
    'of_different_shapes': ['thinker.model.norm.weight: [52] and [53]'],
    'of_different_dtypes': ['thinker.lm_head.weight: float32 and float16'],
    'of_different_values': ['thinker.lm_head.weight'],
  }


def test_a_folder_that_lacks_what_its_config_asks_for_does_not_even_agree_with_itself(tensors, tmp_path):
  b = dict(tensors)
  del b[EXPERT]
  folder = write(tmp_path / 'b', b, odd_dict('thinking'))
  assert not verify(folder, folder).agree


def test_configs_that_mean_different_models_disagree(folders, tensors, tmp_path):
  config = odd_dict('thinking')
  config['thinker_config']['text_config']['rms_norm_eps'] = 1e-5
  config['transformers_version'] = '9'
  verdict = verify(folders['plain'], write(tmp_path / 'b', tensors, config))
  assert verdict.problems['different_in_config'] == ['thinker_config.text_config.rms_norm_eps: 1e-06 and 1e-05']
  assert not verdict.agree


@pytest.mark.parametrize('dtype', [np.float32, np.float16, np.dtype(ml_dtypes.bfloat16)])
def test_infinite_and_undefined_values(dtype):
  a = np.array([1, np.inf, np.nan, -2, 0], dtype)
  assert difference('x', a, a.copy()).differing == 0
  b = np.array([1, np.inf, np.nan, -2, -0.0], dtype)
  assert (difference('x', a, b).differing, difference('x', a, b).max_abs) == (1, 0)
  for at, value in ((1, -np.inf), (2, 3), (0, np.nan), (1, 5)):
    b = a.copy()
    b[at] = value
    assert (difference('x', a, b).differing, difference('x', a, b).relative) == (1, np.inf)


def test_large_tensors_are_compared_in_blocks(monkeypatch):
  monkeypatch.setattr(verify_module, '_BLOCK', 7)
  a = np.arange(40, dtype=np.float32).reshape(4, 10)
  b = a.copy()
  b[0, 3], b[3, 9] = 5, 38
  found = difference('x', a, b)
  assert (found.differing, found.size, found.max_abs, found.relative) == (2, 40, 2, 2 / 39)


def test_a_flipped_bit_in_a_converted_folder_is_named(folders, tensors, tmp_path):
  copy = shutil.copytree(folders['jax'], tmp_path / 'copy')
  name = 'thinker.visual.blocks.1.mlp.linear_fc1.weight'
  flip(copy, np.ascontiguousarray(tensors[name].T).tobytes())
  verdict = verify(copy, folders['plain'])
  assert not verdict.agree
  (damaged,) = verdict.problems['damaged']
  assert str(copy) in damaged and 'vision/layers/mlp/up/kernel' in damaged


def flip(folder: pathlib.Path, content: bytes) -> None:
  """Flips a bit in the middle of these bytes, which some data file of a converted folder holds."""
  for path in (folder / 'params').rglob('*'):
    if path.is_file() and (at := (data := bytearray(path.read_bytes())).find(content)) >= 0:
      data[at + len(content) // 2] ^= 1
      path.write_bytes(data)
      return
  raise AssertionError('no file holds these bytes')


def call(capsys, *args) -> tuple[int, str, str]:
  code = main(['convert', 'verify', *map(str, args)])
  out, err = capsys.readouterr()
  return code, out, err


def test_command_line_succeeds_only_when_they_agree(folders, tensors, tmp_path, capsys):
  code, out, _ = call(capsys, folders['plain'], folders['jax'])
  assert code == 0 and out.splitlines()[-1] == f'A and B agree bit for bit: {len(tensors)} tensors, 258,108 values'
  code, out, _ = call(capsys, folders['plain'], folders['jax_bf16'])
  assert code == 1 and f'{len(tensors)} of different dtypes' in out
  code, out, _ = call(capsys, folders['plain'], folders['jax_bf16'], '--rtol', BF16_RTOL)
  assert code == 0 and 'within 0.00390625' in out and f'and {len(tensors) - 20} more' in out
  b = changed(tmp_path, tensors, values={EXPERT: -tensors[EXPERT]})
  code, out, _ = call(capsys, folders['jax'], b)
  assert code == 1 and f'  1 of different values:\n    {EXPERT}' in out
  assert [line.split()[:4] for line in out.splitlines() if line.startswith(EXPERT)] == [[EXPERT, '936', 'of', '936']]
  code, out, _ = call(capsys, folders['jax'], b, '--json')
  data = json.loads(out)
  assert code == 1 and data['agree'] is False and data['differences'][0]['relative'] == pytest.approx(2)
  code, out, err = call(capsys, folders['jax'], tmp_path / 'nowhere')
  assert code == 1 and not out and 'nowhere: no such folder' in err
  assert call(capsys, folders['jax'], folders['jax'], '--rtol', '-1')[0] == 1


def test_a_short_pass_of_every_network_agrees_and_notices_a_change(tiny_folder, tmp_path, capsys):
  convert_to_jax(tiny_folder, tmp_path / 'jax')
  convert_to_jax(tiny_folder, tmp_path / 'wide', 'float16')
  code, out, _ = call(capsys, tiny_folder, tmp_path / 'jax', '--numerics', '--json')
  outputs = json.loads(out)['outputs']
  assert code == 0 and not any(o['differing'] for o in outputs)
  assert [o['name'].split()[0] for o in outputs] == ['audio', 'vision', 'thinker', 'talker', 'code_predictor', 'code2wav']
  run = (tiny_folder, tmp_path / 'wide', '--rtol', '1e-3', '--numerics', '--numerics-rtol', '1e-9')
  code, out, _ = call(capsys, *run)
  assert code == 1 and '  6 of different outputs:\n    audio output\n' in out


def test_the_orbax_checkpoint_inside_agrees_but_cannot_be_run(folders):
  params = folders['jax'] / 'params'
  assert verify(params, folders['fused']).agree
  with pytest.raises(ValueError, match='params: a checkpoint of Orbax alone has no forward pass; compare without numerics'):
    verify(params, folders['fused'], numerics=True)


def test_parts_agree_with_parts_and_not_with_the_whole(tiny_folder, tmp_path):
  for name in 'ab':
    convert_to_jax(tiny_folder, tmp_path / name, only=['audio', 'code2wav'])
  verdict = verify(tmp_path / 'a', tmp_path / 'b', numerics=True)
  assert verdict.agree and verdict.outputs is not None
  assert [o.name for o in verdict.outputs] == ['audio output', 'code2wav output']
  assert 'thinker.model.norm.weight' in verify(tmp_path / 'a', tiny_folder).problems['only_in_B']


MEASURE = """
import sys
from qwen3_omni_jax.weights.verify import verify

def peak_mb():  # not ru_maxrss, which a child inherits from the process that started it
  return int(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1]) / 1e3

small, *pair = sys.argv[1:]
assert verify(small, small).agree  # everything is imported
before = peak_mb()
assert verify(*pair).agree
print(before, peak_mb())
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='peak memory is read from /proc')
def test_memory_holds_a_few_tensors_whatever_the_stacks(folders, tmp_path):
  """310 MB of bf16, three stacks of 100 MB, largest tensor 8.4 MB. Four threads hold two tensors each, and tensorstore what
  it reads: 50 MB seen. One stack read whole on either side would pass the bound."""
  config = odd_dict('thinking')
  config['thinker_config']['text_config'] |= {
    'hidden_size': 512,
    'num_hidden_layers': 16,
    'num_experts': 16,
    'moe_intermediate_size': 384,
    'vocab_size': 8192,
  }
  config['thinker_config']['vision_config'] |= {'out_hidden_size': 512}
  config['thinker_config']['audio_config'] |= {'output_dim': 512}
  shapes = published_shapes(parse_config(config))
  large = write(tmp_path / 'large', {n: np.ones(s, ml_dtypes.bfloat16) for n, s in shapes.items()}, config, 10**9)
  convert_to_jax(large, tmp_path / 'large_jax')
  command = [sys.executable, '-c', MEASURE, *map(str, (folders['jax'], large, tmp_path / 'large_jax'))]
  run = subprocess.run(command, capture_output=True, text=True)
  assert run.returncode == 0, run.stderr
  before, peak = map(float, run.stdout.split()[-2:])
  print(f'{before:.0f} MB before, {peak:.0f} MB at most')
  assert peak - before < 100
