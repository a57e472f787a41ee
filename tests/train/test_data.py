"""The input pipeline: every record once, in an order that processes and restarts cannot change; bad ones fail alone."""

import copy
import dataclasses
import itertools
import json
import multiprocessing
import re
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from qwen3_omni_jax.train import decode
from qwen3_omni_jax.train.bad_records import too_many
from qwen3_omni_jax.train.data import DataConfig, ExampleStream, Loader, SourceConfig, WeightAt, merge_states
from qwen3_omni_jax.train.decode import decode_record
from qwen3_omni_jax.train.geometry import lane_shape
from qwen3_omni_jax.train.mixing import Mixture

from qwen3_omni_jax.media.processor import Processor
from tests.train.data_folder import RECORDS, chat_records, small_config, write_jsonl


@pytest.fixture(scope='module')
def processor(tiny_folder):
  return Processor.from_folder(tiny_folder)


@pytest.fixture(scope='module')
def root(samples):
  return samples['audio'].parent


@pytest.fixture(scope='module')
def mixed(samples, tmp_path_factory):
  return write_jsonl(tmp_path_factory.mktemp('data') / 'records.jsonl', chat_records(samples))


def texts(path, number: int, name: str = 'word'):
  return write_jsonl(
    path,
    [
      {'messages': [{'role': 'user', 'content': f'{name} {i} ' * (1 + i % 5)}, {'role': 'assistant', 'content': str(i)}]}
      for i in range(number)
    ],
  )


def text_config(*sources: SourceConfig, **changes) -> DataConfig:
  base = {'sources': sources, 'rows': 4, 'length': 64, 'lanes': 4, 'buffer': 4, 'threads': 1, 'max_bad': 0}
  return DataConfig(**base | changes)


def take(loader: Loader, number: int | None = None):
  """The next `number` batches (all of them for None) and a closed loader."""
  found = []
  while number is None or len(found) < number:
    if (item := next(loader, None)) is None:
      break
    found.append(item)
  loader.close()
  return found


def same(a, b) -> bool:
  return jax.tree.structure(a) == jax.tree.structure(b) and all(
    np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def test_an_epoch_holds_every_record_once_and_reports_its_padding(mixed, root, processor):
  found = take(Loader(small_config(mixed, root, epochs=1), processor))
  ids = [name for _, stats in found for _, name in stats['ids']]
  assert len(ids) == len(set(ids)) == RECORDS
  assert len(found) > 1
  for batch, stats in found:
    assert stats['tokens'] == np.count_nonzero(batch.tokens.segment) <= stats['tokens_room'] == 2 * 512
    assert stats['audio_s_room'] == 16 and stats['patches_room'] == 2048 and stats['targets'] == batch.weights.sum()
  assert sum(stats['audio_s'] for _, stats in found) == 4 * 3 + 2 * 4  # clips of 3 s, and sound tracks of a little more


def test_a_restore_at_every_step_equals_an_undisturbed_run(mixed, root, processor):
  cfg = small_config(mixed, root, lanes=2, audio_s=32)
  loader, states = Loader(cfg, processor), []
  states.append(loader.get_state())
  whole = []
  for _ in range(4):
    whole.append(next(loader))
    states.append(json.loads(json.dumps(loader.get_state())))
  loader.close()
  assert len(json.dumps(states[-1])) < 2000
  for step in range(4):
    ((batch, stats),) = take(Loader(cfg, processor, state=states[step]), 1)
    assert same(batch, whole[step][0]) and stats['ids'] == whole[step][1]['ids'], f'after step {step}'


def test_a_restart_decodes_what_waited_all_at_once(tmp_path, processor, monkeypatch):
  cfg = text_config(SourceConfig(path=str(texts(tmp_path / 'a.jsonl', 60))), lanes=2, buffer=6)
  loader = Loader(cfg, processor)
  next(loader)
  state, expected = loader.get_state(), next(loader)[1]['ids']
  loader.close()
  waiting = sum(len(lane['waiting']) for lane in state['lanes'].values())
  together = threading.Barrier(waiting)  # each waits for all the others
  calls = itertools.count()

  def decoded(*record):
    if next(calls) < waiting:
      together.wait(timeout=10)
    return decode_record(*record)

  monkeypatch.setattr(decode, 'decode_record', decoded)
  again = take(Loader(dataclasses.replace(cfg, threads=waiting), processor, state=state), 1)
  assert waiting >= 8 and again[0][1]['ids'] == expected


def test_set_state_goes_back(tmp_path, processor):
  cfg = text_config(SourceConfig(path=str(texts(tmp_path / 'a.jsonl', 50))))
  loader = Loader(cfg, processor)
  next(loader)
  state = loader.get_state()
  second = [next(loader) for _ in range(3)]
  loader.set_state(state)
  again = take(loader, 3)
  assert all(same(a[0], b[0]) for a, b in zip(second, again, strict=True))


def test_any_number_of_processes_makes_the_same_batches_also_after_a_change(tmp_path, processor):
  cfg = text_config(SourceConfig(path=str(texts(tmp_path / 'a.jsonl', 60))))
  alone = take(Loader(cfg, processor), 4)
  state = None
  for step, count in enumerate((1, 2, 4, 2)):
    parts, states = [], []
    for index in range(count):
      loader = Loader(cfg, processor, index, count, state)
      parts.append(next(loader))
      states.append(loader.get_state())
      loader.close()
    state = merge_states(states)
    joined = np.concatenate([batch.tokens.ids for batch, _ in parts])
    np.testing.assert_array_equal(joined, alone[step][0].tokens.ids)
    assert [name for _, stats in parts for name in stats['ids']] == alone[step][1]['ids']


def test_worker_processes_change_nothing_and_all_lanes_share_them(tmp_path, processor):
  cfg = text_config(SourceConfig(path=str(texts(tmp_path / 'a.jsonl', 20))), epochs=1)
  own = take(Loader(cfg, processor))
  before = set(multiprocessing.active_children())
  loader = Loader(dataclasses.replace(cfg, workers=2), processor)
  others = [next(loader)]
  assert cfg.lanes == 4 and len(set(multiprocessing.active_children()) - before) == 2
  others += take(loader)
  assert len(own) == len(others) and all(same(a[0], b[0]) for a, b in zip(own, others, strict=True))
  assert not set(multiprocessing.active_children()) - before


def test_worker_processes_do_without_jax():
  code = "import sys, qwen3_omni_jax.train.decode; sys.exit('jax' in sys.modules)"
  assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def test_epochs_are_shuffled_anew_and_each_is_whole(tmp_path, processor):
  path = texts(tmp_path / 'a.jsonl', 16)
  cfg = text_config(SourceConfig(path=str(path)), lanes=1, rows=1, buffer=1, epochs=2)
  ids = [name for _, stats in take(Loader(cfg, processor)) for _, name in stats['ids']]
  first, second = ids[:16], ids[16:]
  assert sorted(first) == sorted(second) and first != second and len(set(first)) == 16


@pytest.fixture(scope='module')
def mixture(tmp_path_factory):
  """Records of some 35 tokens, and of some 215."""
  folder = tmp_path_factory.mktemp('mixture')
  said = lambda i, n: {'messages': [{'role': 'user', 'content': f'{i}'}, {'role': 'assistant', 'content': 'word ' * n}]}
  write_jsonl(folder / 'short.jsonl', [said(i, 4) for i in range(40)])
  write_jsonl(folder / 'long.jsonl', [said(i, 50) for i in range(60)])
  return lambda **changes: tuple(
    SourceConfig(path=str(folder / f'{name}.jsonl'), name=name, **(changes.get(name) or {'weight': 1.0}))
    for name in ('short', 'long')
  )


def tokens_by_source(found) -> dict[str, int]:
  return {name: sum(stats['by_source'][name]['tokens'] for _, stats in found) for name in found[0][1]['by_source']}


MIXED = {'length': 256, 'rows': 2, 'lanes': 2, 'buffer': 3}


def test_a_weight_is_a_share_of_tokens_not_of_records(mixture, processor):
  found = take(Loader(text_config(*mixture(short={'weight': 3.0}), **MIXED), processor), 60)
  tokens = tokens_by_source(found)
  records = {name: sum(stats['by_source'][name]['records'] for _, stats in found) for name in tokens}
  assert sum(tokens.values()) == sum(stats['tokens'] for _, stats in found)
  for batch, stats in found:  # what a step counts
    starts = (batch.tokens.segment > 0) & (batch.tokens.positions[0] == 0)
    for i, name in enumerate(batch.sources):
      of = (batch.source == i) & (batch.tokens.segment > 0)
      assert {'records': (starts & of).sum(), 'tokens': of.sum()} == stats['by_source'][name]
  # In each lane off by less than the row that it begins with, a record, and what waits.
  slack = 2 * (256 + 220 + 3 * 220)
  assert abs(tokens['short'] - 0.75 * sum(tokens.values())) < slack < 0.1 * sum(tokens.values())
  assert records['short'] > 20 * records['long']


def test_a_mixture_is_the_same_for_any_processes_workers_and_restarts(mixture, processor):
  cfg = text_config(*mixture(short={'weight': 3.0}), **MIXED)
  whole = take(Loader(cfg, processor), 6)
  state = None
  for step, (count, threads) in enumerate(((1, 1), (2, 3), (1, 2), (2, 1), (1, 4), (2, 2))):
    parts, states = [], []
    for index in range(count):
      loader = Loader(dataclasses.replace(cfg, threads=threads), processor, index, count, state)
      parts.append(next(loader))
      states.append(json.loads(json.dumps(loader.get_state())))
      loader.close()
    state = merge_states(states)
    assert [name for _, stats in parts for name in stats['ids']] == whole[step][1]['ids'], step


def test_lanes_do_not_read_a_rare_source_all_at_once(mixture):
  """Records of a row each, one in ten of them rare: of 40 lanes, each time about four."""
  sources = mixture(short={'weight': 9.0})
  lanes = [Mixture(sources, lane, 40, 100) for lane in range(40)]
  accounts = [lane.begin() for lane in lanes]
  for _ in range(20):
    chosen = []
    for lane, account in zip(lanes, accounts, strict=True):
      weights = lane.weights(0)
      chosen.append(lane.choose(account, weights))
      lane.pay(account, weights, chosen[-1], 100)
    assert sum(chosen) == 4


def test_a_schedule_changes_the_shares_as_the_run_goes_on(mixture, processor):
  points = (WeightAt(0, 0.0), WeightAt(6000, 0.0), WeightAt(6000, 4.0))
  found = take(Loader(text_config(*mixture(short={'schedule': points}), **MIXED), processor), 60)
  drawn = np.cumsum([stats['tokens'] for _, stats in found])
  before, after = [batch for batch, end in zip(found, drawn, strict=True) if end < 4000], found[-30:]
  assert tokens_by_source(before)['short'] == 0 < tokens_by_source(before)['long']
  late = tokens_by_source(after)
  assert late['short'] / sum(late.values()) == pytest.approx(0.8, abs=0.06)
  halfway = SourceConfig(path='a', schedule=(WeightAt(0, 1.0), WeightAt(100, 3.0)))
  assert [Mixture([halfway], 0, 2, 8).weights(t)[0] for t in (0, 25, 50, 80)] == [1, 2, 3, 3]


def test_a_source_ends_after_its_epochs_and_the_others_go_on(mixture, processor):
  found = take(Loader(text_config(*mixture(short={'weight': 3.0, 'epochs': 2}), **MIXED), processor), 80)
  ids = [record for _, stats in found for source, record in stats['ids'] if source == 'short']
  assert len(ids) == 2 * 40 and all(ids.count(name) == 2 for name in set(ids))
  assert found[-1][1]['by_source']['short']['records'] == 0 < found[-1][1]['by_source']['long']['records']


def test_a_run_says_who_chooses_sizes(tmp_path, processor):
  """A picture of 100 × 100: 96 pixels a side by the processor alone, 112 and then 128 through the utilities."""
  from PIL import Image

  Image.new('RGB', (100, 100)).save(tmp_path / 'p.png')
  path = write_jsonl(tmp_path / 'a.jsonl', [said('<image>', images=['p.png'])])
  sides = {}
  for media in ('processor', 'utils'):
    cfg = small_config(path, tmp_path, epochs=1, media=media)
    sides[media] = ExampleStream(cfg, processor)[0].examples[0].inputs.visuals[0].grid[1:]
  assert sides == {'processor': (6, 6), 'utils': (8, 8)} and processor.media == 'processor'
  with pytest.raises(ValueError, match="media 'both': expected processor or utils"):
    Loader(small_config(path, tmp_path, media='both'), processor)


def said(content: str, **more) -> dict:
  return {'messages': [{'role': 'user', 'content': content}, {'role': 'assistant', 'content': 'y'}], **more}


BAD = [
  ('{"messages": ', 'not valid JSON'),
  ({'messages': [{'role': 'user', 'content': 'x'}]}, 'nothing to learn'),
  (said('x', labels=1), "unknown keys 'labels'"),
  (said('<image>', images=['no.png']), 'no such file'),
  (said('<image>', images=['../../x.png']), 'outside'),
  (said('x', images=['shapes.png']), '1 images but 0'),
  (said('<image>', images=['melody.wav']), 'not readable as an image'),
  (said('w ' * 600), 'a row has 512'),
  (said('a\udc00'), r"messages\[0\].content: a lone surrogate '.udc00' at character 1"),
  (said('x', fps=-1), 'fps: expected'),
]


def test_bad_records_are_skipped_counted_and_named(samples, root, tmp_path, processor):
  good = chat_records(samples)[4]
  records = [bad for bad, _ in BAD] + [good]
  path = write_jsonl(tmp_path / 'bad.jsonl', records)
  found = take(Loader(small_config(path, root, epochs=1, max_bad=len(BAD), shuffle=False), processor))
  assert [stats['ids'] for _, stats in found] == [[('all', f'bad.jsonl:{len(records)}')]]
  reasons = {record['id']: record['reason'] for _, stats in found for record in stats['bad_records']}
  assert found[-1][1]['bad'] == len(BAD) == len(reasons)
  for line, (_, pattern) in enumerate(BAD, start=1):
    assert re.search(pattern, reasons[f'bad.jsonl:{line}']), (line, reasons[f'bad.jsonl:{line}'])


@pytest.mark.parametrize('limit, complaint', [(2, '3 of 3 records are bad'), (0.5, '30 of 30 records are bad')])
def test_too_many_bad_records_stop_the_job(tmp_path, processor, limit, complaint):
  path = write_jsonl(tmp_path / 'bad.jsonl', ['nonsense'] * 3)
  with pytest.raises(ValueError, match=complaint):
    next(Loader(text_config(SourceConfig(path=str(path)), lanes=1, max_bad=limit), processor))


def test_a_share_of_bad_records_ends_a_run_only_for_certain():
  """At a true rate half of the limit no process of 64 is stopped, in 100,000 records each; at twice the limit all of them are."""
  rng = np.random.default_rng(0)
  for rate, stopped in ((0.005, 0), (0.02, 64)):
    found = 0
    for _ in range(64):
      at = np.flatnonzero(rng.random(100_000) < rate)  # looked at with every bad record
      found += any(too_many(bad, int(read), 0.01) for bad, read in enumerate(at + 1, start=1))
    assert found == stopped
  assert [too_many(*case) for case in ((0, 0, 0), (1, 9, 0), (3, 3, 3), (4, 9, 3), (5, 5, 0.01), (4, 4, 0.01))] == [
    *(False, True, False, True),
    *(True, False),
  ]


def test_bad_records_are_judged_over_all_processes(tmp_path, processor):
  """Each of two processes has as many bad records as are allowed; together they have one too many."""
  good = json.dumps(said('x'))
  path = write_jsonl(tmp_path / 'a.jsonl', [*('nonsense',) * 6, *(good,) * 200])
  cfg = text_config(SourceConfig(path=str(path)), max_bad=5, shuffle=False, lanes=2)
  loaders = [Loader(cfg, processor, index, 2) for index in range(2)]
  states = []
  for loader in loaders:
    assert next(loader)[1]['bad'] == 3
    states.append(loader.get_state())
  for loader in loaders:
    with pytest.raises(ValueError, match=r'6 of \d+ records are bad, more than max_bad 5'):
      loader.merge(states)
    loader.close()
  # What the others had counts when the run goes on, too: one more is too many for either.
  more = dataclasses.replace(cfg, max_bad=6)
  write_jsonl(path, [*('nonsense',) * 6, *(good,) * 40, *('nonsense',) * 4])
  merged = merge_states(states)
  merged['config'] = Loader(more, processor, 0, 2).fingerprint
  loader = Loader(more, processor, 1, 2, merged)
  with pytest.raises(ValueError, match=r'7 of \d+ records are bad, more than max_bad 6'):
    take(loader, 20)


def test_a_state_of_other_data_is_refused_with_what_changed(tmp_path, processor):
  path = texts(tmp_path / 'a.jsonl', 9)
  cfg = text_config(SourceConfig(path=str(path)))
  loader = Loader(cfg, processor)
  loader.close()
  state = loader.get_state()
  with pytest.raises(ValueError, match='seed was 0, is 1'):
    Loader(dataclasses.replace(cfg, seed=1), processor, state=state)
  moved = texts(tmp_path / 'elsewhere.jsonl', 9)
  Loader(text_config(SourceConfig(path=str(moved))), processor, state=state).close()
  half = copy.deepcopy(state)
  del half['lanes']['2']
  with pytest.raises(ValueError, match='without lanes .2.: merge the states'):
    Loader(cfg, processor, state=half)
  path.write_text(path.read_text().replace('word 3', 'work 3'))  # as many records of the same sizes
  with pytest.raises(ValueError, match=r'sources\[0\].contents was .*, is .*data.restart=true begins these data'):
    Loader(cfg, processor, state=state)
  texts(path, 10)
  with pytest.raises(ValueError, match=r'sources\[0\].records was 9, is 10'):
    Loader(cfg, processor, state=state)
  with pytest.raises(ValueError, match='the state is of version 1, and this program reads version 2'):
    Loader(cfg, processor, state=state | {'version': 1})


def test_other_data_begin_once_where_that_is_asked_for(tmp_path, processor):
  """As data.restart=true does: also when the run that began them is started again by the same command."""
  first, second = (text_config(SourceConfig(path=str(texts(tmp_path / f'{n}.jsonl', 60, n)))) for n in ('a', 'b'))
  loader = Loader(first, processor)
  next(loader)
  state = loader.get_state()
  loader.close()
  asked = dataclasses.replace(second, restart=True, lanes=2, buffer=6)
  expected = take(Loader(asked, processor), 3)
  loader = Loader(asked, processor, state=state)
  assert next(loader)[1]['ids'] == expected[0][1]['ids']
  state = loader.get_state()
  loader.close()
  assert [stats['ids'] for _, stats in take(Loader(asked, processor, state=state), 2)] == [s['ids'] for _, s in expected[1:]]


@pytest.mark.parametrize(
  'changes, complaint',
  [
    ({'rows': 3}, 'rows 3: expected a multiple of lanes 4'),
    ({'audio_s': 8}, 'audio_s 8 makes 1 encoder rows of 8 s'),
    ({'visual_patches': 512, 'visual_row': 510}, 'visual_row 510: expected a multiple of 4'),
    ({'sources': ()}, 'sources: none'),
    ({'sources': (SourceConfig(path='a', weight=1.0), SourceConfig(path='b'))}, 'weights: some sources'),
    ({'sources': (SourceConfig(path='a', weight=1.0),), 'epochs': 1}, 'a mixture with weights has no end'),
    ({'sources': (SourceConfig(path='a', weight=1.0, epochs=1),)}, 'no source without epochs has a weight at 0 tokens'),
    ({'sources': (SourceConfig(path='a'),) * 2}, 'sources: a twice; give them names'),
    ({'sources': (SourceConfig(path='a', schedule=(WeightAt(9, 1), WeightAt(0, 1))),)}, 'schedule of a: expected rising tokens'),
    ({'max_bad': -1}, 'max_bad -1: expected at least 0'),
  ],
)
def test_sizes_that_do_not_go_together_are_refused(processor, changes, complaint):
  cfg = text_config(SourceConfig(path='a'), **changes)
  with pytest.raises(ValueError, match=complaint):
    cfg.check_sources()
    lane_shape(cfg, processor.cfg)
