"""Two config.json compared by what they mean: parsed first, so that old and new spellings of a value are one."""

import dataclasses
import json
import pathlib
from typing import Any

from ..config import AudioConfig, Code2WavConfig, OmniConfig, TalkerConfig, TextConfig, ThinkerConfig, VisionConfig
from ..config_json import load_config

ABSENT = 'absent'
_SECTIONS = {
  '': OmniConfig,
  'thinker_config.': ThinkerConfig,
  'thinker_config.audio_config.': AudioConfig,
  'thinker_config.vision_config.': VisionConfig,
  'thinker_config.text_config.': TextConfig,
  'talker_config.': TalkerConfig,
  'talker_config.text_config.': TextConfig,
  'talker_config.code_predictor_config.': TextConfig,
  'code2wav_config.': Code2WavConfig,
}
_SPELLINGS = ('rope_theta', 'rope_scaling', 'rope_parameters', 'num_local_experts')  # read into fields of another name


@dataclasses.dataclass(frozen=True)
class Change:
  """A field and its value in A and in B; ABSENT where it is not."""

  field: str
  a: Any
  b: Any

  def __str__(self) -> str:
    return f'{self.field}: {_brief(self.a)} and {_brief(self.b)}'


def _brief(value: Any) -> str:
  return ABSENT if value is ABSENT else json.dumps(value)[:80]


def changes(a: OmniConfig, b: OmniConfig) -> list[Change]:
  """The fields that differ and matter."""
  return _differing(fields(a), fields(b))


def ignored_changes(a: pathlib.Path, b: pathlib.Path) -> list[Change]:
  """The fields that differ between two valid config.json and have no effect here, values as they are written."""
  return _differing(_ignored(_read(a)), _ignored(_read(b)))


def diff(a: str | pathlib.Path, b: str | pathlib.Path) -> tuple[list[Change], list[Change]]:
  """(changes, ignored changes) of two config.json, each given as the file or its folder."""
  first, second = load_config(a), load_config(b)
  return changes(first, second), ignored_changes(pathlib.Path(a), pathlib.Path(b))


def fields(cfg: OmniConfig) -> dict[str, Any]:
  """Every field of the config under its published name ('thinker_config.text_config.hidden_size'), plain JSON values."""
  out: dict[str, Any] = {}

  def walk(node: Any, where: str) -> None:
    for field in dataclasses.fields(node):
      value = getattr(node, field.name)
      if dataclasses.is_dataclass(value):
        walk(value, f'{where}{field.name}_config.')
      elif value is not None:
        out[where + field.name] = dict(value) if field.name == 'speaker_id' else json.loads(json.dumps(value))

  walk(cfg, '')
  return out


def _differing(a: dict[str, Any], b: dict[str, Any]) -> list[Change]:
  found = (Change(name, a.get(name, ABSENT), b.get(name, ABSENT)) for name in {**a, **b})
  return [change for change in found if change.a != change.b]


def _read(path: pathlib.Path) -> dict[str, Any]:
  data = json.loads((path / 'config.json' if path.is_dir() else path).read_text(encoding='utf-8'))
  return data if 'thinker_config' in data else {'thinker_config': data}  # a Thinker saved alone


def _ignored(data: dict[str, Any]) -> dict[str, Any]:
  """The keys of a config.json that no field is read from."""
  out: dict[str, Any] = {}

  def walk(node: dict[str, Any], where: str) -> None:
    known = {field.name for field in dataclasses.fields(_SECTIONS[where])}
    for key, value in node.items():
      inside = f'{where}{key}.'
      if inside in _SECTIONS and isinstance(value, dict):
        walk(value, inside)
      elif key not in known and key not in _SPELLINGS:
        out[where + key] = value

  walk(data, '')
  return out
