"""Text to token ids and back.

A prompt is a list of pieces: a `SpecialToken` is one token; every other string is text, and becomes ordinary tokens whatever it
spells.
"""

import itertools
import json
import pathlib
import re
from collections.abc import Collection, Iterable
from typing import Any

from ..config import OmniConfig

# The split of Qwen2's tokenizer: contractions, words, single digits, punctuation, line ends, spaces.
_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
MAX_FILE_BYTES = 256 * 2**20

# Lone surrogates are no characters: they stand in no valid text, so a text cannot forge what they mark (see chat_template).
SURROGATE = re.compile('([\ud800-\udfff])')


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


def any_of(tokens: Collection[str]) -> re.Pattern[str]:
  """Matches and captures any of the tokens, the longest where several begin."""
  names = '|'.join(map(re.escape, sorted(tokens, key=len, reverse=True)))
  return re.compile(f'({names})' if names else '(?!)')


class SpecialToken(str):
  """A piece of a prompt that is one special token. A plain str that spells the same is text."""


def check_characters(text: str) -> None:
  """ValueError if the text holds half a surrogate pair, which no UTF-8 file can hold and no tokenizer takes."""
  if not text.isascii() and (found := SURROGATE.search(text)):
    raise ValueError(
      f'a lone surrogate {ascii(found[0])} at character {found.start()}: not valid Unicode; decode the text anew '
      "(such as with errors='replace')"
    )


class Tokenizer:
  """Byte-level BPE. special: the tokens marked special in the checkpoint, and their ids."""

  def __init__(self, tokenizer):
    """tokenizer: of the tokenizers library; it is changed to read special tokens spelled in a text as text."""
    added = tokenizer.get_added_tokens_decoder()
    self.special = {token.content: number for number, token in added.items() if token.special}
    greedy = [t.content for t in added.values() if t.special and (t.lstrip or t.rstrip or t.single_word)]
    if greedy:
      raise ValueError(f'special tokens that look at the text beside them (lstrip, rstrip, single_word): {", ".join(greedy)}')
    tokenizer.encode_special_tokens = True
    self._tokenizer = tokenizer

  def __reduce__(self):
    return Tokenizer, (self._tokenizer,)  # encode_special_tokens is not stored with the tokenizer

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
      return cls(tokenizer)
    except Exception as e:  # bad merges, bad vocabulary, bad config: all are the files' fault
      raise ValueError(f'{folder}: vocab.json, merges.txt and tokenizer_config.json make no tokenizer ({str(e)[:200]})') from e

  def encode(self, text: str) -> list[int]:
    """Token ids of a text. Special tokens spelled in it are text; added tokens that are not special (<think>) are themselves."""
    check_characters(text)
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def encode_prompt(self, prompt: Iterable[str]) -> list[int]:
    """Token ids of a prompt's pieces; pieces of text that stand side by side are one text."""
    ids: list[int] = []
    for special, group in itertools.groupby(prompt, lambda piece: isinstance(piece, SpecialToken)):
      pieces = list(group)
      ids += map(self._special_id, pieces) if special else self.encode(''.join(pieces))
    return ids

  def split(self, text: str) -> list[str]:
    """The pieces of a prompt whose author is trusted with special tokens: every one spelled in it is itself."""
    return [SpecialToken(piece) if i % 2 else piece for i, piece in enumerate(any_of(self.special).split(text)) if piece]

  def _special_id(self, token: str) -> int:
    if token not in self.special:
      raise ValueError(f'the tokenizer has no special token {token}')
    return self.special[token]

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
    special = {
      '<|im_start|>': cfg.im_start_token_id,
      '<|im_end|>': cfg.im_end_token_id,
      '<|audio_pad|>': thinker.audio_token_id,
      '<|image_pad|>': thinker.image_token_id,
      '<|video_pad|>': thinker.video_token_id,
      '<|audio_start|>': thinker.audio_start_token_id,
      '<|audio_end|>': thinker.audio_end_token_id,
      '<|vision_start|>': thinker.vision_start_token_id,
      '<|vision_end|>': thinker.vision_end_token_id,
    }
    roles = {'system': cfg.system_token_id, 'user': cfg.user_token_id, 'assistant': cfg.assistant_token_id}
    found = {token: self.encode_prompt(self.split(token)) for token in (*special, *roles)}
    wrong = [f'{t} becomes {found[t]}, config.json says {n}' for t, n in (special | roles).items() if found[t] != [n]]
    wrong += [f'{t} is not marked special, so that any text could write it' for t in special if t not in self.special]
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
