"""Checkpoints: restored by name, a changed configuration told from damage, and processes that fall back together."""

import dataclasses
import errno
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from qwen3_omni_jax.train import checkpoint as checkpoint_module
from qwen3_omni_jax.train.agreement import Outcome, agree
from qwen3_omni_jax.train.checkpoint import Checkpoints, judge
from qwen3_omni_jax.train.checkpoint_items import ConfigurationChanged, to_items
from qwen3_omni_jax.train.config import LoraPart, Optimiser, Part, Recipe, Step
from qwen3_omni_jax.train.config_file import to_data
from qwen3_omni_jax.train.optimiser import moments_by_name
from qwen3_omni_jax.train.state import abstract_state, assign_roles, init_state

from qwen3_omni_jax.sharding import make_mesh
from tests.train import batches

pytestmark = [
  pytest.mark.filterwarnings('ignore'),  # Orbax warns that it runs outside a distributed job
  pytest.mark.quick_to_compile,
  pytest.mark.usefixtures('failed_reads'),
]

ATTN, MLP = 'thinker/layers/attn_norm', 'thinker/layers/mlp_norm'
RECIPE = Recipe(parts=(Part(ATTN, 1e-3), Part('thinker/norm', 1e-3)), lora=(LoraPart('thinker/layers/attn/q', 2),))


def numbered(recipe: Recipe, step: int):
  """A state in which no two leaves are alike."""
  state = init_state(None, batches.config(), recipe, make_mesh({}))
  mark = lambda tree: {path: jnp.full(p.shape, i + step / 8, p.dtype) for i, (path, p) in enumerate(tree.items())}
  leaves, structure = jax.tree.flatten(state.optimiser)
  moments = jax.tree.unflatten(structure, [jnp.full(m.shape, i, m.dtype) for i, m in enumerate(leaves, start=1)])
  ema = state.ema and mark(dict(reversed(state.ema.items())))
  return state.replace(step=jnp.int32(step), trainable=mark(state.trainable), optimiser=moments, ema=ema)


@pytest.fixture(scope='module')
def saved(tmp_path_factory) -> pathlib.Path:
  """Checkpoints 2 and 4 of RECIPE with averages."""
  folder = tmp_path_factory.mktemp('saved') / 'checkpoints'
  save(folder, AVERAGED)
  return folder


AVERAGED = dataclasses.replace(RECIPE, step=Step(ema=0.9))


def save(folder: pathlib.Path, recipe: Recipe, steps=(2, 4)) -> None:
  checkpoints = Checkpoints(folder)
  for step in steps:
    checkpoints.save(numbered(recipe, step), assign_roles(batches.config(), recipe), {'at': step}, plain(recipe))
  checkpoints.close()


def plain(recipe: Recipe) -> dict:
  return json.loads(json.dumps(to_data(recipe)))


def restore(folder: pathlib.Path, recipe: Recipe):
  checkpoints = Checkpoints(folder)
  like = abstract_state(batches.config(), recipe, make_mesh({}))
  try:
    return checkpoints.restore(like, assign_roles(batches.config(), recipe), recipe)
  finally:
    checkpoints.close()


def copied(saved: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
  return pathlib.Path(shutil.copytree(saved, tmp_path / 'checkpoints'))


def names(folder: pathlib.Path) -> set[str]:
  return {path.name for path in folder.iterdir() if path.is_dir()}


def assert_leaves_equal(found, expected) -> None:
  assert set(found) == set(expected)
  for path, leaf in expected.items():
    np.testing.assert_array_equal(found[path], leaf, err_msg=path)
    assert found[path].dtype == leaf.dtype, path


def test_every_leaf_comes_back_by_its_name(saved):
  found, expected = restore(saved, AVERAGED), numbered(AVERAGED, 4)
  roles = assign_roles(batches.config(), AVERAGED)
  items, wanted = to_items(found.state, roles), to_items(expected, roles)
  assert set(items) == set(wanted) == {'params', 'lora', 'optimiser', 'ema', 'state'}
  for item, leaves in wanted.items():
    assert_leaves_equal(items[item], leaves)
  assert found.data == {'at': 4} and not found.changed and not found.notes


def test_moments_of_other_parameters_are_refused_and_begin_anew_on_request(saved, tmp_path):
  """The parameters have the same shapes: by position their moments were exchanged without a word."""
  folder = copied(saved, tmp_path)
  other = dataclasses.replace(AVERAGED, parts=(Part(MLP, 1e-3), Part('thinker/norm', 1e-3)))
  with pytest.raises(ConfigurationChanged, match='restart=true') as caught:
    restore(folder, other)
  text = str(caught.value)
  assert 'parts: ' in text and f'adam/mu/{MLP}' in text and f'adam/mu/{ATTN}' in text and 'damaged' not in text
  assert names(folder) == {'2', '4'}

  found = restore(folder, dataclasses.replace(other, optimiser=Optimiser(restart=True)))
  before, moments = moments_by_name(numbered(AVERAGED, 4).optimiser), moments_by_name(found.state.optimiser)
  expected = {name: jnp.zeros_like(m) if MLP in name else before[name] for name, m in moments.items()}
  assert_leaves_equal(moments, expected)
  assert any('2 of' in note and f'adam/mu/{MLP}' in note for note in found.notes)
  assert_leaves_equal({MLP: found.state.ema[MLP]}, {MLP: found.state.trainable[MLP]})


def test_counts_begin_anew_with_the_last_of_their_moments(saved, tmp_path):
  """A new Adam, or its bias correction would take zeros for the mean of many steps."""
  found = restore(saved, dataclasses.replace(AVERAGED, optimiser=Optimiser('muon', restart=True)))
  moments = moments_by_name(found.state.optimiser)
  assert moments['adam/count'] == moments_by_name(numbered(AVERAGED, 4).optimiser)['adam/count'] and moments['muon/count'] == 0
  save(tmp_path / 'alone', Recipe(parts=(Part(ATTN, 1e-3),)))
  found = restore(tmp_path / 'alone', Recipe(parts=(Part(MLP, 1e-3),), optimiser=Optimiser(restart=True)))
  assert all(not np.any(np.asarray(m)) for m in moments_by_name(found.state.optimiser).values())


@pytest.mark.parametrize(
  ('changed', 'words'),
  [
    (
      {'optimiser': Optimiser('adafactor')},
      ['optimiser.name: "adamw" -> "adafactor"', 'another optimiser', 'optimiser.restart=true'],
    ),
    (
      {'parts': (Part('audio/proj', 1e-3), *RECIPE.parts)},
      ['parts: ', 'other parameters', 'not in the checkpoint (audio/', 'its export'],
    ),
    ({'lora': (LoraPart('thinker/layers/attn/q', 3),)}, ['lora: ', 'other parameters', 'of another shape']),
    ({'lora': ()}, ['lora: ', 'other parameters', 'not in this run']),
  ],
  ids=['optimiser', 'parts', 'rank', 'no LoRA'],
)
def test_a_changed_configuration_is_named_and_no_checkpoint_is_called_damaged(saved, tmp_path, changed, words):
  folder = copied(saved, tmp_path)
  with pytest.raises(ConfigurationChanged) as caught:
    restore(folder, dataclasses.replace(AVERAGED, **changed))
  assert all(word in str(caught.value) for word in words) and 'damaged' not in str(caught.value), str(caught.value)
  assert names(folder) == {'2', '4'}


def test_a_changed_configuration_is_noticed_before_any_array_is_read(saved, monkeypatch):
  monkeypatch.setattr(checkpoint_module, '_read_leaves', lambda *_: pytest.fail('read'))
  with pytest.raises(ConfigurationChanged):
    restore(saved, dataclasses.replace(AVERAGED, optimiser=Optimiser('adafactor')))


def test_averages_may_be_given_up_and_begin_at_the_parameters(saved, tmp_path):
  found = restore(saved, RECIPE)
  assert found.state.ema is None and any('not used' in note for note in found.notes)
  save(tmp_path / 'raw', RECIPE)
  found = restore(tmp_path / 'raw', AVERAGED)
  assert_leaves_equal(found.state.ema, found.state.trainable)
  assert any('averages begin at the parameters' in note for note in found.notes)


def test_the_newest_and_those_of_the_lowest_held_out_loss_are_kept(tmp_path):
  recipe = Recipe(parts=(Part('thinker/norm', 1e-3),))
  checkpoints = Checkpoints(tmp_path / 'checkpoints', keep=1, best=2)
  for step, loss in enumerate([3.0, 1.0, None, 2.0, 5.0, None, 4.0], start=1):
    checkpoints.save(numbered(recipe, step), assign_roles(batches.config(), recipe), {}, plain(recipe), loss)
  checkpoints.close()
  assert names(tmp_path / 'checkpoints') == {'2', '4', '7'}
  checkpoints = Checkpoints(tmp_path / 'checkpoints', keep=1, best=2)  # the losses are read again
  checkpoints.save(numbered(recipe, 8), assign_roles(batches.config(), recipe), {}, plain(recipe), 1.5)
  checkpoints.close()
  assert names(tmp_path / 'checkpoints') == {'2', '8'}


def cut(file: pathlib.Path) -> None:
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: pathlib.Path) -> None:
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 16
  file.write_bytes(data)


@pytest.mark.parametrize(
  ('file', 'damage'),
  [
    (file, damage)
    for file in ('params/manifest.ocdbt', 'optimiser/_METADATA', 'config/metadata', 'params')
    for damage in (pathlib.Path.unlink, cut, flip)
    if damage is not flip or file == 'params/manifest.ocdbt'  # Orbax has checksums of the manifest and of nodes, not of chunks
  ],
)
def test_damage_is_told_by_what_storage_says(saved, tmp_path, caplog, file, damage):
  folder = copied(saved, tmp_path)
  place = folder / '4' / file
  if place.is_dir():
    place = max((f for f in place.rglob('*') if f.is_file()), key=lambda f: f.stat().st_size)
  damage(place)
  found = restore(folder, AVERAGED)
  assert found.state.step == 2 and names(folder) == {'2', 'damaged-4'}
  assert 'checkpoints/4 is damaged' in caplog.text


ERRORS = [
  OSError(errno.EIO, 'Input/output error'),
  OSError(errno.ESTALE, 'Stale file handle'),
  TimeoutError('timed out'),
  ValueError('UNAVAILABLE: Error reading local file "x": connection reset'),
  ValueError('RESOURCE_EXHAUSTED: out of memory'),
  ValueError('PERMISSION_DENIED: Error opening "zarr" driver'),
  ValueError('DEADLINE_EXCEEDED: Barrier timed out'),
  RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes'),
  MemoryError(),
  KeyError('thinker'),
]


@pytest.mark.parametrize('error', ERRORS, ids=repr)
def test_an_error_that_says_nothing_of_the_checkpoint_is_raised_and_renames_nothing(saved, tmp_path, monkeypatch, error):
  folder = copied(saved, tmp_path)

  def fail(*_):
    try:
      raise error
    except Exception as cause:
      raise Exception('Encountered error while reading array index') from cause  # as Orbax does

  monkeypatch.setattr(checkpoint_module, '_read_leaves', fail)
  with pytest.raises(Exception, match='Encountered') as caught:
    restore(folder, AVERAGED)
  assert judge(caught.value) is Outcome.FAILED and names(folder) == {'2', '4'}


def test_the_worst_that_a_process_met_is_what_all_act_on():
  read, damaged, failed = Outcome
  assert agree([read, read]) is read and agree([read, damaged, read]) is damaged and agree([damaged, failed, read]) is failed


def test_a_process_that_could_read_falls_back_with_one_that_found_damage(saved, tmp_path, monkeypatch):
  """As on the first of two hosts, of which the second finds 4 damaged, and then none."""
  folder, others = copied(saved, tmp_path), [Outcome.DAMAGED, Outcome.READ]
  monkeypatch.setattr(checkpoint_module, 'agree_over_processes', lambda own: agree([own, others.pop(0)]))
  assert restore(folder, AVERAGED).state.step == 2 and names(folder) == {'2', 'damaged-4'}


def test_a_process_that_could_read_gives_up_with_one_that_could_not(saved, tmp_path, monkeypatch):
  folder = copied(saved, tmp_path)
  monkeypatch.setattr(checkpoint_module, 'agree_over_processes', lambda own: agree([own, Outcome.FAILED]))
  with pytest.raises(RuntimeError, match='another process could not read it'):
    restore(folder, AVERAGED)
  assert names(folder) == {'2', '4'}


def test_hosts_that_see_other_checkpoints_do_not_begin_anew(saved, tmp_path, monkeypatch):
  """As with a folder that they do not share; of those that both see, the newest is used."""
  folder, others = copied(saved, tmp_path), [[]]
  monkeypatch.setattr(checkpoint_module, 'merge_over_processes', lambda own, merge: merge([own, *others]))
  with pytest.raises(ValueError, match=r'process 0: 4, 2; process 1: none.*one folder for all hosts'):
    restore(folder, AVERAGED)
  others[0] = [2]
  assert restore(folder, AVERAGED).state.step == 2
  shutil.rmtree(folder)
  others[0] = []
  assert restore(folder, AVERAGED) is None


def test_if_all_are_damaged_none_is_renamed(saved, tmp_path):
  folder = copied(saved, tmp_path)
  for step in ('2', '4'):
    cut(folder / step / 'data' / 'metadata')
  with pytest.raises(ValueError, match='all of 4, 2 are damaged'):
    restore(folder, AVERAGED)
  assert names(folder) == {'2', '4'}
