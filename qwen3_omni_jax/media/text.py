"""Text to token ids and back, and conversations to text through the checkpoint's own chat template."""

import datetime
import json
import pathlib
from typing import Any

from ..config import OmniConfig

# The split of Qwen2's tokenizer: contractions, words, single digits, punctuation, line ends, spaces.
_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
MAX_FILE_BYTES = 256 * 2**20
MAX_PROMPT_CHARACTERS = 16 * 2**20


def read_json(path: pathlib.Path) -> Any:
  """A JSON file of bounded size; ValueError naming the file if it is not one."""
  try:
    if path.stat().st_size > MAX_FILE_BYTES:
      raise ValueError(f'{path}: {path.stat().st_size} bytes; the limit is {MAX_FILE_BYTES}')
    return json.loads(path.read_text(encoding='utf-8'))
  except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as e:
    raise ValueError(f'{path}: not valid JSON ({e})') from e
  except OSError as e:
    raise ValueError(f'{path}: cannot be read ({e.strerror or e})') from e


class Tokenizer:
  """Byte-level BPE with special tokens."""

  def __init__(self, tokenizer):
    self._tokenizer = tokenizer

  @classmethod
  def from_folder(cls, folder: str | pathlib.Path) -> 'Tokenizer':
    """From tokenizer.json, or from vocab.json + merges.txt + tokenizer_config.json as published."""
    import tokenizers

    folder = pathlib.Path(folder)
    whole = folder / 'tokenizer.json'
    if whole.is_file():
      try:
        return cls(tokenizers.Tokenizer.from_file(str(whole)))
      except Exception as e:  # the library raises bare Exception
        raise ValueError(f'{whole}: not a tokenizer ({str(e)[:200]})') from e
    files = [folder / name for name in ('vocab.json', 'merges.txt', 'tokenizer_config.json')]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
      raise ValueError(f'{folder}: no tokenizer.json, and {", ".join(missing)} missing; expected one or the others')
    vocab, config = read_json(files[0]), read_json(files[2])
    try:
      lines = files[1].read_text(encoding='utf-8').split('\n')
      merges = [tuple(line.split(' ')) for line in lines if line and not line.startswith('#version')]
      model = tokenizers.models.BPE(vocab, merges)  # type: ignore[arg-type]
      tokenizer = tokenizers.Tokenizer(model)
      tokenizer.normalizer = tokenizers.normalizers.NFC()  # type: ignore[assignment]
      tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [  # type: ignore[assignment]
          tokenizers.pre_tokenizers.Split(tokenizers.Regex(_SPLIT), 'isolated'),
          tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
      )
      tokenizer.decoder = tokenizers.decoders.ByteLevel()  # type: ignore[assignment]
      for number, token in sorted(config['added_tokens_decoder'].items(), key=lambda item: int(item[0])):
        flags = {k: bool(token.get(k, False)) for k in ('lstrip', 'rstrip', 'single_word', 'normalized')}
        added = tokenizers.AddedToken(token['content'], special=bool(token.get('special', False)), **flags)
        (tokenizer.add_special_tokens if added.special else tokenizer.add_tokens)([added])
        if tokenizer.token_to_id(token['content']) != int(number):
          raise ValueError(
            f'{token["content"]} gets id {tokenizer.token_to_id(token["content"])}, tokenizer_config.json says {number}'
          )
    except Exception as e:  # bad merges, bad vocabulary, bad config: all are the files' fault
      raise ValueError(f'{folder}: vocab.json, merges.txt and tokenizer_config.json make no tokenizer ({str(e)[:200]})') from e
    return cls(tokenizer)

  def encode(self, text: str) -> list[int]:
    """Token ids; special tokens written out in the text become themselves."""
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
    return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

  def token_id(self, token: str) -> int | None:
    return self._tokenizer.token_to_id(token)

  def token(self, number: int) -> str | None:
    """The token as stored (bytes spelled as printable characters), None for an unused id."""
    return self._tokenizer.id_to_token(number)

  def check(self, cfg: OmniConfig, where: str) -> None:
    """Config and tokenizer must mean the same tokens; the names are those the prompt logic relies on."""
    thinker = cfg.thinker
    wanted = {
      '<|im_start|>': cfg.im_start_token_id,
      '<|im_end|>': cfg.im_end_token_id,
      '<|audio_pad|>': thinker.audio_token_id,
      '<|image_pad|>': thinker.image_token_id,
      '<|video_pad|>': thinker.video_token_id,
      '<|audio_start|>': thinker.audio_start_token_id,
      '<|audio_end|>': thinker.audio_end_token_id,
      '<|vision_start|>': thinker.vision_start_token_id,
      '<|vision_end|>': thinker.vision_end_token_id,
      'system': cfg.system_token_id,
      'user': cfg.user_token_id,
      'assistant': cfg.assistant_token_id,
    }
    wrong = [f'{t} becomes {self.encode(t)}, config.json says {n}' for t, n in wanted.items() if self.encode(t) != [n]]
    if wrong:
      raise ValueError(f'{where}: tokenizer and config.json disagree: ' + '; '.join(wrong))


class StreamDecoder:
  """Text of a growing list of ids, without ever showing half a character."""

  def __init__(self, tokenizer: Tokenizer):
    self._tokenizer = tokenizer
    self._ids: list[int] = []
    self._shown = ''

  def push(self, ids: list[int]) -> str:
    """The text that `ids` complete."""
    self._ids += ids
    text = self._tokenizer.decode(self._ids)
    if text.endswith('\ufffd'):  # the bytes so far end inside a character
      return ''
    new, self._shown = text[len(self._shown) :], text
    if '\n' in new or len(self._ids) > 256:  # a safe place to forget what was shown, so that long texts stay linear
      self._ids, self._shown = self._ids[-1:], self._tokenizer.decode(self._ids[-1:])
    return new

  def flush(self) -> str:
    """What was held back, at the end."""
    return self._tokenizer.decode(self._ids)[len(self._shown) :]


class ChatTemplate:
  """The checkpoint's jinja template, rendered in a sandbox as transformers renders it."""

  def __init__(self, source: str, where: str):
    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    self._where = where
    self._source = source
    environment = ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _generation_tag()]
    )
    environment.filters['tojson'] = _to_json
    environment.globals['raise_exception'] = _raise
    environment.globals['strftime_now'] = lambda form: datetime.datetime.now().strftime(form)
    try:
      self._template = environment.from_string(source)
    except jinja2.TemplateError as e:
      raise ValueError(f'{where}: the chat template does not compile ({e})') from e

  @classmethod
  def from_folder(cls, folder: str | pathlib.Path) -> 'ChatTemplate':
    folder = pathlib.Path(folder)
    plain = folder / 'chat_template.jinja'
    if plain.is_file():
      return cls(plain.read_text(encoding='utf-8'), str(plain))
    for name in ('chat_template.json', 'tokenizer_config.json'):
      if (folder / name).is_file():
        data = read_json(folder / name)
        source = data.get('chat_template') if isinstance(data, dict) else None
        if isinstance(source, str):
          return cls(source, str(folder / name))
    raise ValueError(f'{folder}: no chat template; expected chat_template.json or chat_template.jinja')

  def __reduce__(self):
    return ChatTemplate, (self._source, self._where)  # compiled anew in a worker process

  def render(self, messages: list[dict[str, Any]], **variables: Any) -> str:
    """The prompt text. messages must hold plain JSON values only; media as placeholders."""
    import jinja2

    pieces, length = [], 0
    try:
      for piece in self._template.generate(messages=messages, **variables):
        pieces.append(piece)
        length += len(piece)
        if length > MAX_PROMPT_CHARACTERS:
          raise ValueError(f'{self._where}: the rendered prompt exceeds {MAX_PROMPT_CHARACTERS} characters')
    except (jinja2.TemplateError, TypeError, AttributeError, KeyError, OverflowError, RecursionError) as e:
      raise ValueError(f'{self._where}: the chat template refuses the conversation: {e}') from e
    return ''.join(pieces)


def _raise(message: str):
  import jinja2

  raise jinja2.TemplateError(message)


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
  return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _generation_tag():
  """{% generation %} … {% endgeneration %} marks assistant text in some templates: rendered as its contents."""
  import jinja2
  import jinja2.ext

  class GenerationTag(jinja2.ext.Extension):
    tags = {'generation'}  # noqa: RUF012

    def parse(self, parser):
      line = next(parser.stream).lineno
      body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
      return jinja2.nodes.Scope(body, lineno=line)

  return GenerationTag
