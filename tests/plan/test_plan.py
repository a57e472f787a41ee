"""Plans: real programs compile for TPUs that are not there, what does not fit says what would help, and nothing is made up."""

import json

import jax
import pytest

from qwen3_omni_jax.cli import main
from qwen3_omni_jax.plan.collectives import collectives
from qwen3_omni_jax.plan.memory import needed_bytes


@pytest.fixture(scope='module')
def folder(tiny_folder):
  return str(tiny_folder)


def planned(capsys, *arguments: str) -> tuple[int, dict]:
  code = main(['plan', '--json', *arguments])
  out, err = capsys.readouterr()
  assert out, err
  return code, json.loads(out)


def test_a_decode_step_compiles_for_a_tpu_slice(folder, capsys, tmp_path):
  page = tmp_path / 'plan.html'
  code, plan = planned(
    capsys,
    '--model',
    folder,
    '--job',
    'decode',
    '--topology',
    'v5e:2x2',
    '--strategy',
    'data=2,expert=2',
    '--batch',
    '4',
    '--length',
    '64',
    '--html',
    str(page),
  )
  memory = plan['per_device']
  assert code == 0 and plan['fits'] and plan['memory_source'] == 'compiled' and plan['compile_seconds'] > 0
  assert memory['weights_bytes'] + memory['activations_bytes'] < memory['peak_bytes'] < memory['hbm_bytes']
  assert plan['flops']['total'] == pytest.approx(sum(n for name, n in plan['flops'].items() if name != 'total'))
  assert plan['collectives']['ragged-all-to-all'].keys() == {'expert'}  # tokens travel as on a TPU, not as on this CPU
  assert plan['estimate']['is_estimate'] and 0 < plan['estimate']['mfu'] < 1
  text = page.read_text()
  assert '<svg' in text and 'HBM' in text


def test_gpus_are_counted_and_what_does_not_fit_says_what_would(capsys):
  fits, small = planned(capsys, '--job', 'decode', '--topology', 'gpu:8xH200', '--batch', '64')
  assert fits == 0 and small['compile_seconds'] is None and small['collectives'] is None and 'estimate' in small['memory_source']
  code, large = planned(capsys, '--job', 'prefill', '--topology', 'gpu:8xH100', '--batch', '512', '--length', '16384')
  assert code == 1 and not large['fits'] and large['per_device']['peak_bytes'] > large['per_device']['hbm_bytes']
  flags = [line.split()[:2] for line in large['advice'] if line.startswith('--')]
  assert flags, large['advice']
  name, value = flags[0]
  again = {'--batch': '512', '--length': '16384'} | {name: value}
  helped, _ = planned(capsys, '--job', 'prefill', '--topology', 'gpu:8xH100', *(word for item in again.items() for word in item))
  assert helped == 0  # the advice is true


def test_a_training_step_is_counted_with_its_optimiser_and_what_is_frozen(capsys):
  ask = ('--job', 'train', '--topology', 'gpu:64xH200')
  _, full = planned(capsys, *ask, 'step.buffer=null')
  _, adapter = planned(capsys, *ask, '--config', 's1_audio_adapter')
  memory, frozen = full['per_device'], adapter['per_device']
  assert memory['optimiser_bytes'] == pytest.approx(2 * memory['weights_bytes'], rel=1e-6)  # Adam's two moments beside masters
  assert frozen['optimiser_bytes'] < 1e-2 * memory['optimiser_bytes'] and frozen['weights_bytes'] < 0.51 * memory['weights_bytes']
  assert full['flops']['audio.layers'] == 3 * adapter['flops']['audio.layers'] > 0
  bounded = planned(capsys, *ask, 'step.buffer=2')[1]['per_device']
  assert bounded['temporary_bytes'] < memory['temporary_bytes']
  assert full['job']['batch'] == full['job']['run']['data']['rows'] == 64  # a row for each device
  twice = planned(capsys, '--job', 'train', '--topology', 'gpu:128xH200')[1]
  assert twice['job']['batch'] == 128 and twice['per_device']['activations_bytes'] == memory['activations_bytes']
  silent = planned(capsys, *ask, 'data.audio_s=0', 'data.visual_patches=0')[1]['per_device']
  assert silent['activations_bytes'] < 0.01 * memory['activations_bytes']


def test_memory_grows_with_what_is_asked(capsys):
  peak = lambda *more: planned(capsys, '--job', 'decode', '--topology', 'gpu:8xH200', '--batch', '64', *more)[1]['per_device']
  short, long, one = peak('--length', '1024'), peak('--length', '4096'), peak('--strategy', 'data=8')
  assert long['activations_bytes'] > 3.9 * short['activations_bytes'] and one['weights_bytes'] > 5 * short['weights_bytes']


def test_bad_requests_are_one_line(capsys):
  for arguments, message in (
    (('--job', 'decode', '--topology', 'v5p:4'), 'expected a TPU slice as in v5p:4x4x4'),
    (('--job', 'decode', '--topology', 'gpu:8xH200', 'data.rows=8'), 'are for --job train'),
    (('--job', 'train', '--topology', 'gpu:8xH200', '--batch', '8'), 'give mesh=…, data.rows=…'),
    (('--job', 'train', '--topology', 'gpu:8xH200', 'data.row=8'), "did you mean 'rows'?"),
    (('--job', 'decode', '--topology', 'gpu:8xH200', '--strategy', 'expert=3'), '3 devices, there are 8'),
  ):
    assert main(['plan', *arguments]) == 1
    assert message in capsys.readouterr().err


def test_collectives_are_counted_by_kind_axis_and_turn_of_loop():
  hlo = """
%body (p: f32[8]) -> f32[8] {
  %g = bf16[64,32]{1,0} all-gather(%x), channel_id=5, replica_groups=[2,4]<=[8], dimensions={0}
  %again = bf16[64,32]{1,0} all-gather(%x), channel_id=5, replica_groups=[2,4]<=[8], dimensions={0}
  %sent = bf16[32,8]{1,0} parameter(0)
  %one = bf16[512,8]{1,0} ragged-all-to-all(%sent, %room), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}
  %other = bf16[512,8]{1,0} ragged-all-to-all(%sent, %room), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}
  %r = f32[16]{0} reduce-scatter(%y), channel_id=2, replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%sum
}

%all-reduce-scatter.1 (p: bf16[64,32]) -> bf16[16,32] {
  %all-reduce.7 = bf16[64,32]{1,0} all-reduce(%input), channel_id=6, replica_groups=[2,4]<=[8], to_apply=%sum
  ROOT %part = bf16[16,32]{1,0} dynamic-slice(%all-reduce.7, %place, %zero), dynamic_slice_sizes={16,32}
}

%cond (p: f32[8]) -> pred[] {
  %limit = s32[] constant(48)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]) while(%t), condition=%cond, body=%body
  %a = f32[100]{0} all-reduce(%z), channel_id=3, replica_groups=mesh['a'=2,'b'=4] {'a','b'}, to_apply=%sum
  %f = bf16[16,32]{1,0} fusion(%grad), kind=kCustom, calls=%all-reduce-scatter.1
  %e = ((bf16[32,8]{1,0}, bf16[512,8]{1,0}), bf16[512,8]{1,0}) ragged-all-to-all-start(%q), channel_id=4, replica_groups={{0,1,2,3},{4,5,6,7}}
}
"""  # noqa: E501
  assert collectives(hlo, {'data': 2, 'expert': 4}) == {
    'all-gather': {'expert': 48 * 64 * 32 * 2 * 3 / 4},
    'reduce-scatter': {'data': 48 * 16 * 4 * 1.0, 'expert': 64 * 32 * 2 * 3 / 4},
    'all-reduce': {'data+expert': 2 * 400 * 7 / 8},
    'ragged-all-to-all': {'expert': (1 + 2 * 48) * 32 * 8 * 2 * 3 / 4},  # channel 1 is no one's own
  }


def test_what_the_compiler_says_it_needs_is_read():
  message = 'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the memory required (1.50T) exceeds available HBM (15.75G).'
  assert needed_bytes(message) == int(1.5 * 2**40)
  assert needed_bytes('RESOURCE_EXHAUSTED: Used 18.25G of 15.75G hbm. Exceeded by 2.50G') == int(18.25 * 2**30)
  assert needed_bytes('INTERNAL: something else') is None
  assert jax.devices()[0].platform == 'cpu'  # compiling for a TPU does not make it one
