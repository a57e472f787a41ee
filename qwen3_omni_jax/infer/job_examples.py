"""Rows of a finished batch job to look at and listen to: questions, answers, and why rows failed."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from ..media.messages import parse_messages
from ..media.source import name_of
from ..report_media import Shown, examples
from .job_rows import Index, parse_row
from .job_store import Store
from .prepare import RowError

ANSWERED = 6  # the first rows
FAILED = 8  # the first of each kind of error, then the next


def sections(store: Store, manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
  """(heading, HTML) of the first answers and of failures, as far as there are any."""
  answered: list[dict[str, Any]] = []
  failed: dict[str, list[dict[str, Any]]] = {}
  for row in store.results():
    if 'error' in row:
      of_kind = failed.setdefault(row['error']['kind'], [])
      if len(of_kind) < FAILED:
        of_kind.append(row)
    elif len(answered) < ANSWERED:
      answered.append(row)
  inputs, root = _Inputs(store, manifest), manifest.get('media_root')
  shown = Shown(None if root is None else pathlib.Path(root))
  if answered:
    yield 'The first answers', examples(_card(row, inputs, store, shown) for row in answered)
  if failed:
    first = [rows[0] for rows in failed.values()]
    rest = [row for rows in failed.values() for row in rows[1:]]
    yield 'The first failures of each kind', examples(_card(row, inputs, store, shown) for row in (first + rest)[:FAILED])


class _Inputs:
  """The job's input, by row; nothing of it once its files have gone or changed."""

  def __init__(self, store: Store, manifest: dict[str, Any]):
    files = [pathlib.Path(fact['path']) for fact in manifest['input']]
    same = all(f.is_file() and f.stat().st_size == fact['bytes'] for f, fact in zip(files, manifest['input'], strict=True))
    self.index = Index.load(store.out / 'index.npz', files) if same else None

  def read(self, number: int) -> tuple[str, list[tuple[str, Any]]]:
    """(the conversation as text, its media as (kind, source))."""
    if self.index is None:
      return '', []
    contents = next(contents for _, contents in self.index.read(number, number + 1))
    try:
      messages, media = parse_messages(parse_row(contents, number, '', {}, False).messages)
    except (RowError, ValueError):
      raw = contents.decode('utf-8', 'backslashreplace') if isinstance(contents, bytes) else json.dumps(contents, default=str)
      return raw, []
    said = [(str(message['role']), _words(message['content'])) for message in messages]
    text = said[0][1] if len(said) == 1 else '\n'.join(f'{role}: {words}' for role, words in said)
    return text, [(item.kind, item.source) for item in media]


def _words(content: Any) -> str:
  if isinstance(content, str):
    return content
  return ' '.join(part['text'] if part['type'] == 'text' else f'[{part["type"]}]' for part in content)


def _card(row: dict[str, Any], inputs: _Inputs, store: Store, shown: Shown) -> tuple[dict[str, Any], list[str]]:
  question, sources = inputs.read(row['row'])
  facts: dict[str, Any] = {'id': row['custom_id'], 'question': question}
  media = [shown.medium(kind, source, name_of(source)) for kind, source in sources]
  if 'error' in row:
    return facts | {row['error']['kind']: row['error']['message']}, media
  if 'text' not in row:  # scored
    return facts | {'log-probability': f'{row["total_logprob"]:.4f} of {len(row["token_ids"])} tokens'}, media
  calls = json.dumps(row['tool_calls'], ensure_ascii=False) if 'tool_calls' in row else None
  facts |= {'reasoning': row.get('reasoning'), 'answer': row['text'], 'tool calls': calls}
  if row['finish_reason'] != 'stop':
    facts['ended by'] = row['finish_reason']
  if (audio := row.get('audio')) and 'path' in audio:
    media.append(shown.own_sound(store.read_audio(audio), f'spoken answer, {audio["seconds"]:.1f} s'))
  return facts, media
