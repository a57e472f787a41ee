"""Conversations to prompts, through the checkpoint's own chat template.

The template writes special tokens only where its own source names them, so that no content can open a turn or stand for a medium.
"""

import datetime
import functools
import json
import pathlib
from collections.abc import Collection
from typing import Any

from .text import SURROGATE, SpecialToken, any_of, read_json

MAX_PROMPT_CHARACTERS = 16 * 2**20


class ChatTemplate:
  """The checkpoint's jinja template, run in a sandbox as transformers runs it.

  special: the tokenizer's special tokens. Where the template's own source names one, `prompt` lets it write a lone surrogate in
  its place, which no valid text can hold; what contents spell stays what it is, whatever the template does with it.
  """

  def __init__(self, source: str, where: str, special: Collection[str]):
    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    self._where = where
    self._source = source
    self._special = tuple(special)
    self._marks: dict[str, str] = {}  # of each special token that the source names
    environment = ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _generation_tag()]
    )
    environment.filters['tojson'] = _to_json
    environment.globals['raise_exception'] = _raise
    environment.globals['strftime_now'] = lambda form: datetime.datetime.now().strftime(form)
    self._environment = environment
    try:
      self._marked = environment.from_string(self._mark(environment.parse(source)))
    except jinja2.TemplateError as e:
      raise ValueError(f'{where}: the chat template does not compile ({e})') from e
    self._tokens = {mark: SpecialToken(token) for token, mark in self._marks.items()}
    self._check()

  @classmethod
  def from_folder(cls, folder: str | pathlib.Path, special: Collection[str]) -> 'ChatTemplate':
    folder = pathlib.Path(folder)
    plain = folder / 'chat_template.jinja'
    if plain.is_file():
      return cls(plain.read_text(encoding='utf-8'), str(plain), special)
    for name in ('chat_template.json', 'tokenizer_config.json'):
      if (folder / name).is_file():
        data = read_json(folder / name)
        source = data.get('chat_template') if isinstance(data, dict) else None
        if isinstance(source, str):
          return cls(source, str(folder / name), special)
    raise ValueError(f'{folder}: no chat template; expected chat_template.json or chat_template.jinja')

  def __reduce__(self):
    return ChatTemplate, (self._source, self._where, self._special)  # compiled anew in a worker process

  def render(self, messages: list[dict[str, Any]], **variables: Any) -> str:
    """The prompt as transformers writes it, contents and special tokens in one text.

    messages, variables: checked by `media.messages`, so plain JSON of valid Unicode; media as placeholders.
    """
    return self._run(self._unmarked, messages, variables)

  def prompt(self, messages: list[dict[str, Any]], **variables: Any) -> list[str]:
    """The prompt in pieces: special tokens where the template writes them, all else as text. Arguments as of `render`."""
    pieces = SURROGATE.split(self._run(self._marked, messages, variables))
    return [self._tokens[piece] if i % 2 else piece for i, piece in enumerate(pieces) if piece]

  @functools.cached_property
  def _unmarked(self):
    return self._environment.from_string(self._source)

  def _mark(self, tree):
    """The parsed template with a mark for every special token that its texts and constants name."""
    from jinja2 import nodes

    names = any_of(self._special)
    mark = lambda found: self._marks.setdefault(found[0], chr(0xDC00 + len(self._marks)))
    for node in tree.find_all((nodes.TemplateData, nodes.Const)):
      field = 'data' if isinstance(node, nodes.TemplateData) else 'value'
      if isinstance(value := getattr(node, field), str):
        setattr(node, field, names.sub(mark, value))
    if len(self._marks) > 1024:
      raise ValueError(f'{self._where}: the chat template names {len(self._marks)} special tokens; the limit is 1024')
    return tree

  def _check(self) -> None:
    """ValueError for a template that makes special tokens out of pieces ('<|' + role + '|>'): they would be but text."""
    names = any_of(self._special)
    for messages, variables in _PROBES:
      try:
        prompt = self.prompt(messages, add_generation_prompt=True, **variables)
      except ValueError:
        continue  # not every template takes every conversation
      text = ''.join('\n' if isinstance(piece, SpecialToken) else piece for piece in prompt)
      if found := names.search(text):
        raise ValueError(f'{self._where}: the chat template makes {found[0]} out of pieces; write it as one string')

  def _run(self, template, messages: list[dict[str, Any]], variables: dict[str, Any]) -> str:
    import jinja2

    pieces, length = [], 0
    try:
      for piece in template.generate(messages=messages, **variables):
        pieces.append(piece)
        length += len(piece)
        if length > MAX_PROMPT_CHARACTERS:
          raise ValueError(f'{self._where}: the rendered prompt exceeds {MAX_PROMPT_CHARACTERS} characters')
    except (jinja2.TemplateError, TypeError, AttributeError, KeyError, OverflowError, RecursionError) as e:
      raise ValueError(f'{self._where}: the chat template refuses the conversation: {e}') from e
    return ''.join(pieces)


_CALL = {'type': 'function', 'function': {'name': 'look', 'arguments': {'at': 'it'}}}
# Conversations in which a chat template writes all that it can.
_PROBES: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [
  ([{'role': 'user', 'content': 'Hi'}], {}),
  ([{'role': 'user', 'content': [{'type': kind, kind: kind} for kind in ('audio', 'image', 'video', 'text')]}], {}),
  ([{'role': role, 'content': 'Hi'} for role in ('system', 'user', 'assistant', 'user')], {'enable_thinking': False}),
  (
    [
      {'role': 'system', 'content': 'Hi'},
      {'role': 'user', 'content': 'Hi'},
      {'role': 'assistant', 'content': 'Hi', 'reasoning_content': 'Hm', 'tool_calls': [_CALL]},
      {'role': 'tool', 'content': 'Hi'},
    ],
    {'tools': [{'type': 'function', 'function': {'name': 'look', 'description': 'Looks.', 'parameters': {}}}]},
  ),
]


def _raise(message: str):
  import jinja2

  raise jinja2.TemplateError(message)


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
  return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _generation_tag():
  """{% generation %} … {% endgeneration %} marks assistant text in some templates: rendered as its contents."""
  import jinja2.ext
  from jinja2 import nodes

  class GenerationTag(jinja2.ext.Extension):
    tags = {'generation'}  # noqa: RUF012

    def parse(self, parser):
      line = next(parser.stream).lineno
      body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
      return nodes.Scope(body, lineno=line)

  return GenerationTag
