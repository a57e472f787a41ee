"""The input pipeline: every record once, in an order that processes and restarts cannot change; bad ones fail alone."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from qwen3_omni_jax.train.data import DataConfig, Loader, SourceConfig, example_stream, merge_states

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


def test_worker_processes_change_nothing(tmp_path, processor):
  cfg = text_config(SourceConfig(path=str(texts(tmp_path / 'a.jsonl', 20))), lanes=1, epochs=1)
  own = take(Loader(cfg, processor))
  others = take(Loader(dataclasses.replace(cfg, workers=1), processor))
  assert len(own) == len(others) and all(same(a[0], b[0]) for a, b in zip(own, others, strict=True))


def test_epochs_are_shuffled_anew_and_each_is_whole(tmp_path, processor):
  path = texts(tmp_path / 'a.jsonl', 16)
  cfg = text_config(SourceConfig(path=str(path)), lanes=1, rows=1, buffer=1, epochs=2)
  ids = [name for _, stats in take(Loader(cfg, processor)) for _, name in stats['ids']]
  first, second = ids[:16], ids[16:]
  assert sorted(first) == sorted(second) and first != second and len(set(first)) == 16


def test_mixtures_keep_their_weights_in_every_lane(tmp_path, processor):
  sources = [
    SourceConfig(path=str(texts(tmp_path / f'{name}.jsonl', n, name)), name=name, weight=weight)
    for name, n, weight in (('rare', 7, 1.0), ('common', 30, 3.0))
  ]
  cfg = text_config(*sources)
  loader = Loader(cfg, processor)
  counts = {'rare': 0, 'common': 0}
  for _, stats in take(loader, 20):
    for name, number in stats['by_source'].items():
      counts[name] += number
  # Of what the lanes took, every fourth record is rare, exactly; some still wait to be packed.
  share = counts['rare'] / sum(counts.values())
  assert abs(share - 0.25) < 2 * cfg.buffer * cfg.lanes / sum(counts.values())


def test_a_run_says_who_chooses_sizes(tmp_path, processor):
  """A picture of 100 × 100: 96 pixels a side by the processor alone, 112 and then 128 through the utilities."""
  from PIL import Image

  Image.new('RGB', (100, 100)).save(tmp_path / 'p.png')
  path = write_jsonl(tmp_path / 'a.jsonl', [said('<image>', images=['p.png'])])
  sides = {}
  for media in ('processor', 'utils'):
    cfg = small_config(path, tmp_path, epochs=1, media=media)
    sides[media] = example_stream(cfg, processor)[0]['examples'][0].inputs.visuals[0].grid[1:]
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


@pytest.mark.parametrize('limit, complaint', [(2, '3 of 3 records are bad'), (0.5, '100 of 100 records are bad')])
def test_too_many_bad_records_stop_the_job(tmp_path, processor, limit, complaint):
  path = write_jsonl(tmp_path / 'bad.jsonl', ['nonsense'] * 3)
  with pytest.raises(ValueError, match=complaint):
    next(Loader(text_config(SourceConfig(path=str(path)), lanes=1, max_bad=limit), processor))


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
  texts(path, 10)
  with pytest.raises(ValueError, match="'records': 9.*'records': 10"):
    Loader(cfg, processor, state=state)
  loader = Loader(cfg, processor)
  loader.close()
  half = loader.get_state()
  del half['lanes']['2']
  with pytest.raises(ValueError, match='without lanes .2.: merge the states'):
    Loader(cfg, processor, state=half)


@pytest.mark.parametrize(
  'changes, complaint',
  [
    ({'rows': 3}, 'rows 3: expected a multiple of lanes 4'),
    ({'audio_s': 8}, 'audio_s 8 makes 1 encoder rows of 8 s'),
    ({'visual_patches': 512, 'visual_row': 510}, 'visual_row 510: expected a multiple of 4'),
    ({'sources': ()}, 'sources: none'),
    ({'sources': (SourceConfig(path='a', weight=1.0), SourceConfig(path='b'))}, 'weights: some sources'),
  ],
)
def test_sizes_that_do_not_go_together_are_refused(processor, changes, complaint):
  with pytest.raises(ValueError, match=complaint):
    text_config(SourceConfig(path='a'), **changes).lane_shape(processor.cfg)
