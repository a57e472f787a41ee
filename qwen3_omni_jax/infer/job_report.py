"""What a finished batch job amounted to: counts, speeds, failures by kind; as JSON and as an HTML page with plots."""

import collections
import json
import pathlib
from typing import Any

import numpy as np

from ..report import figure, histograms, page, svg, table, text
from . import job_examples
from .job_store import Store


def summarise(store: Store, manifest: dict[str, Any], own: dict[str, Any] | None) -> dict[str, Any]:
  """Counts every row of a complete job. Raises ValueError if a row is missing or doubled, or its sound is not there."""
  kinds: collections.Counter[str] = collections.Counter()
  totals: collections.Counter[str] = collections.Counter()
  ends: collections.Counter[str] = collections.Counter()
  seconds, rows, problems = 0.0, 0, []
  archives: dict[str, set[str]] = {}
  for row in store.results():
    if row['row'] != rows:
      problems.append(f'row {rows} is missing or doubled')
      break
    rows += 1
    if 'error' in row:
      kinds[row['error']['kind']] += 1
      continue
    totals.update(row.get('usage', {}))
    ends[row.get('finish_reason', 'scored')] += 1
    if audio := row.get('audio'):
      seconds += audio['seconds']
      if 'path' in audio and not _has_sound(store.out, audio, archives):
        part = store.path(row['row'] // store.block_rows).name
        problems.append(f'row {row["row"]} of {part}: {audio["path"]} is not there')
  if rows != manifest['rows']:
    problems.append(f'{rows} of {manifest["rows"]} rows')
  if problems:
    raise ValueError(f'{store.out}: ' + '; '.join(problems[:5]) + '. Remove the part files named here and run the job again')
  timings = store.timings()
  wall = _wall([t['finished'] for t in timings.values()], own)
  failed = sum(kinds.values())
  return {
    'complete': True,
    'rows': rows,
    'answered': rows - failed,
    'failed': failed,
    'failures': dict(sorted(kinds.items())),
    'finish_reasons': dict(sorted(ends.items())),
    **dict(sorted(totals.items())),
    'audio_s': round(seconds, 3),
    'processes': len({t['process'] for t in timings.values()}),
    'seconds': wall,
    'rows_per_s': _rate(rows, wall),
    'tokens_per_s': _rate(totals['completion_tokens'], wall),
    'audio_s_per_s': _rate(seconds, wall),
    'own': _use(own),
  }


def _has_sound(out: pathlib.Path, audio: dict[str, Any], archives: dict[str, set[str]]) -> bool:
  path = out / audio['path']
  if 'member' not in audio or not path.is_file():
    return path.is_file()
  if audio['path'] not in archives:
    import tarfile

    archives.clear()  # rows come in order: one archive at a time
    with tarfile.open(path) as tar:
      archives[audio['path']] = set(tar.getnames())
  return audio['member'] in archives[audio['path']]


def _wall(finished: list[float], own: dict[str, Any] | None) -> float:
  """Seconds the job took: of the only process, or from the first finished row to the last where several had a part in it."""
  span = max(finished, default=0.0) - min(finished, default=0.0)
  return round(max(span, own['seconds'] if own and own['rows'] == len(finished) else 0.0), 3)


def _rate(amount: float, seconds: float) -> float | None:
  return round(amount / seconds, 3) if seconds > 0 else None


def _use(own: dict[str, Any] | None) -> dict[str, Any] | None:
  """The engine's counts as shares: of slots that were at work, of what was padding."""
  if not own or not own['engine']:
    return own
  e = own['engine']
  share = lambda part, whole: round(part / whole, 4) if whole else None
  return own | {
    'slot_use': {
      'thinker': share(e['thinker_live'], e['thinker_steps']),
      'talker': share(e['talker_live'], e['talker_steps']),
      'occupied_while_rows_wait': share(e['occupied'], e['occupied_of']),
      'peak': round(e['peak_use'], 4),
    },
    'padding': {
      'prompt': share(e['padded_tokens'], e['padded_tokens'] + e['prompt_tokens']),
      'vocoder': share(e['wave_padding'], e['wave_padding'] + e['wave_frames']),
    },
    'reused_prompt_tokens': e['reused_tokens'],
  }


def write_report(path: pathlib.Path, store: Store, manifest: dict[str, Any], summary: dict[str, Any]) -> None:
  """The page: what there is, answers and failures to look at, throughput over time, lengths, latency."""
  prompt, reply, sound = [], [], []
  for row in store.results():
    if 'usage' in row:
      prompt.append(row['usage']['prompt_tokens'])
      reply.append(row['usage']['completion_tokens'])
      if 'audio' in row:
        sound.append(row['audio']['seconds'])
  timings = list(store.timings().values())
  plain = {k: v for k, v in summary.items() if not isinstance(v, dict) and v is not None}
  sections = [('Result', table(('', ''), plain.items()))]
  if summary['failures']:
    sections.append(('Failures', table(('kind', 'rows'), summary['failures'].items())))
  sections += job_examples.sections(store, manifest)
  sections.append(('Throughput', _throughput([t['finished'] for t in timings])))
  lengths = {'prompt, tokens': prompt, 'reply, tokens': reply, 'speech, s': sound}
  sections.append(('Lengths', _spread(lengths)))
  stages = {
    name: [t[key] for t in timings if key in t]
    for name, key in (('to first token, s', 'first_token_s'), ('to end of text, s', 'text_s'), ('to result, s', 'total_s'))
  }
  sections.append(('Latency, from when a row was taken up', _spread(stages)))
  if summary.get('own'):
    sections.append(('The process that finished the job', text(json.dumps(summary['own'], indent=1), code=True)))
  path.write_text(page('Batch job', sections), encoding='utf-8')


def _spread(groups: dict[str, list[float]]) -> str:
  groups = {label: values for label, values in groups.items() if values}
  return histograms(groups) if groups else text('Nothing to plot.')


def _throughput(finished: list[float]) -> str:
  if len(finished) < 2:
    return text('Too few rows to plot.')
  t = np.sort(np.array(finished)) - min(finished)
  edges = np.linspace(0, max(t[-1], 1e-3), min(60, len(t)) + 1)
  fig = figure()
  axes = fig.subplots()
  axes.stairs(np.histogram(t, edges)[0] / np.diff(edges), edges, fill=True, alpha=0.7)
  axes.set_xlabel('seconds')
  axes.set_ylabel('rows per second')
  return svg(fig)
