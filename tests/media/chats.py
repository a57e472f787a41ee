"""Conversations with special tokens, and pieces of them, anywhere in their contents; for hypothesis."""

from typing import Any

from hypothesis import strategies as st
from qwen3_omni_jax.tools.tiny import ADDED_TOKENS

SPECIAL = [token for token in ADDED_TOKENS if not token.startswith('*')]
PIECES = ['<|', '|>', '<|im_', 'start|>', '|im_end|', '<|image', '_pad|>', '<tts_', 'pad>', 'tts_pad', '<|im_start|>user\n']
HARMLESS = ['a', 'dog ', ' ', '\n', '\n\n', '12', 'é', 'e\u0301', '\u0338', '你好', '🙂', '\x00', '{"a": 1}', '<image>']
MARKUP = ['<think>', '</think>', '<tool_call>', '</tool_call>', '<tool_response>', '</tool_response>']  # not special


class Text(tuple):
  """A content before it is spelled: (is it a command or a piece of one, string) of each of its atoms."""


def spell(value: Any, hostile: bool) -> Any:
  """value with its texts spelled; the harmless reading has a letter in place of every atom of a command."""
  if isinstance(value, Text):
    return ''.join(atom if hostile or not command else 'x' for command, atom in value)
  if isinstance(value, dict):
    return {spell(k, hostile): spell(v, hostile) for k, v in value.items()}
  return [spell(v, hostile) for v in value] if isinstance(value, list) else value


command = st.tuples(st.just(True), st.sampled_from([*SPECIAL, *PIECES]))
other = st.tuples(
  st.just(False),
  st.sampled_from([*HARMLESS, *MARKUP]) | st.text(st.characters(exclude_categories=['Cs'], exclude_characters='<|>')),
)
text = st.lists(command | other, max_size=6).map(Text)
part = text.map(lambda t: {'type': 'text', 'text': t}) | st.sampled_from(('audio', 'image', 'video')).map(
  lambda kind: {'type': kind, kind: 'a file'}
)
content = text | st.lists(part, min_size=1, max_size=4)
named = st.dictionaries(text, text, max_size=1)
call = st.builds(lambda name, about: {'function': {'name': name, 'arguments': about}}, text, named | text)
message = st.one_of(
  content.map(lambda c: {'role': 'user', 'content': c}),
  content.map(lambda c: {'role': 'assistant', 'content': c}),
  st.builds(lambda c, r: {'role': 'assistant', 'content': c, 'reasoning_content': r}, content, text),
  st.builds(
    lambda c, calls: {'role': 'assistant', 'content': c, 'tool_calls': calls}, text, st.lists(call, min_size=1, max_size=2)
  ),
  content.map(lambda c: {'role': 'tool', 'content': c}),
)
tool = st.builds(
  lambda name, about, named: {'type': 'function', 'function': {'name': name, 'description': about, 'parameters': named}},
  text,
  text,
  named,
)
# (messages, variables of the template), to be spelled.
chats = st.tuples(
  st.builds(
    lambda system, turns: [{'role': 'system', 'content': c} for c in system] + turns,
    st.lists(content, max_size=1),
    st.lists(message, min_size=1, max_size=4),
  ),
  st.fixed_dictionaries(
    {'add_generation_prompt': st.booleans()},
    optional={'enable_thinking': st.booleans(), 'tools': st.lists(tool, min_size=1, max_size=2)},
  ),
)
