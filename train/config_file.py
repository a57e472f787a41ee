"""Reads a configuration: frozen dataclasses from a YAML file and `key=value` overrides, and plain data from them.

An unknown key is an error, with the key that was probably meant. `extends: other.yaml` starts from another file.
"""

import dataclasses
import difflib
import importlib.resources
import pathlib
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

import yaml

T = TypeVar('T')


def from_data(cls: type[T], data: Any, where: str = '') -> T:
  """An instance of a dataclass from plain data. Raises ValueError listing every unknown key and every value that does not fit."""
  problems: list[str] = []
  built: Any = _convert(cls, data, where, problems)
  if problems:
    raise ValueError('\n  '.join([f'{len(problems)} mistakes in the configuration:', *problems]))
  return built


def _convert(kind, value, where: str, problems: list[str]):
  origin, inner = typing.get_origin(kind), typing.get_args(kind)
  if dataclasses.is_dataclass(kind):
    return _convert_object(kind, value, where, problems)
  if origin in (typing.Union, types.UnionType):
    if value is None and type(None) in inner:
      return None
    return _convert(next(k for k in inner if k is not type(None)), value, where, problems)
  if origin is tuple:
    if not isinstance(value, (list, tuple)):
      return _add_problem(where, 'a list', value, problems)
    return tuple(_convert(inner[0], item, f'{where}[{i}]', problems) for i, item in enumerate(value))
  if origin is dict:
    if not isinstance(value, dict):
      return _add_problem(where, 'an object', value, problems)
    return {str(key): _convert(inner[1], item, f'{where}.{key}', problems) for key, item in value.items()}
  if origin is typing.Literal:
    return value if value in inner else _add_problem(where, f'one of {", ".join(inner)}', value, problems)
  if kind is Any:
    return value
  if kind is float and isinstance(value, str):  # YAML 1.1 reads 1e-4 as a word
    try:
      return float(value)
    except ValueError:
      pass
  fits = isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))
  return kind(value) if fits else _add_problem(where, kind.__name__, value, problems)


def _convert_object(cls, data, where: str, problems: list[str]):
  if dataclasses.is_dataclass(data):
    return data
  if not isinstance(data, dict):
    return _add_problem(where or cls.__name__, 'an object', data, problems)
  hints, fields = typing.get_type_hints(cls), {f.name: f for f in dataclasses.fields(cls)}
  dotted = f'{where}.' if where else ''
  values = {}
  for key, value in data.items():
    if key not in fields:
      close = difflib.get_close_matches(str(key), fields, 1)
      hint = f"; did you mean '{close[0]}'?" if close else f'; known: {", ".join(fields)}'
      problems.append(f'{dotted}{key}: unknown{hint}')
    else:
      values[key] = _convert(hints[key], value, dotted + str(key), problems)
  needed = (f for f in fields.values() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING)
  missing = [f.name for f in needed if f.name not in values]
  problems += [f'{dotted}{name}: missing, and it has no default' for name in missing]
  return None if missing else cls(**values)


def _add_problem(where: str, expected: str, value, problems: list[str]) -> None:
  problems.append(f'{where}: expected {expected}, found {str(value)[:80]!r}')


def read(cls: type[T], file: str | pathlib.Path | None, overrides: Sequence[str] = ()) -> T:
  """An instance of cls from a file and then from overrides such as `optimiser.name=muon` (values in YAML).

  file: a path, or the name of one that comes with the package (`s2_general`). A string `extends` in it names a file to start
  from, in its own folder.
  """
  data = {} if file is None else _load(_find(file))
  for item in overrides:
    key, equals, text = item.partition('=')
    if not equals:
      raise ValueError(f'{item!r}: expected key=value')
    try:
      value = yaml.safe_load(text)
    except yaml.YAMLError as error:
      raise ValueError(f'{item!r}: the value is not YAML ({str(error).splitlines()[0]})') from error
    _set(data, key.split('.'), value, item)
  return from_data(cls, data)


def _find(file: str | pathlib.Path) -> pathlib.Path:
  path = pathlib.Path(file)
  if path.is_file():
    return path
  own = pathlib.Path(str(importlib.resources.files('qwen3_omni_jax.configs'))) / 'train'
  if (own / f'{path.name}.yaml').is_file() and path.parent == pathlib.Path():
    return own / f'{path.name}.yaml'
  names = ', '.join(sorted(p.stem for p in own.glob('*.yaml')))
  raise ValueError(f'{file}: no such file, nor a configuration that comes with the package ({names})')


def _load(path: pathlib.Path, above: tuple[pathlib.Path, ...] = ()) -> dict:
  if path in above:
    raise ValueError(f'{path}: extends itself')
  try:
    data = yaml.safe_load(path.read_text(encoding='utf-8')) or {}
  except (yaml.YAMLError, UnicodeDecodeError) as error:
    raise ValueError(f'{path}: not YAML ({error})') from error
  if not isinstance(data, dict):
    raise ValueError(f'{path}: expected keys and values, found {type(data).__name__}')
  base = data.pop('extends', None)
  if base is None:
    return data
  below = path.parent / base
  if not below.is_file():
    raise ValueError(f'{path}: extends {base}, which is not there')
  return _merge(_load(below, (*above, path)), data)


def _merge(base: dict, over: dict) -> dict:
  """over's values in base; objects are merged, lists replaced."""
  merged = dict(base)
  for key, value in over.items():
    both = isinstance(value, dict) and isinstance(base.get(key), dict)
    merged[key] = _merge(base[key], value) if both else value
  return merged


def _set(data: dict, keys: list[str], value, item: str) -> None:
  for key in keys[:-1]:
    data = data.setdefault(key, {})
    if not isinstance(data, dict):
      raise ValueError(f'{item!r}: {key} is not an object')
  data[keys[-1]] = value


def to_data(config) -> Any:
  """Plain data, from which `from_data` makes the same config again."""
  if dataclasses.is_dataclass(config):
    return {f.name: to_data(getattr(config, f.name)) for f in dataclasses.fields(config)}
  if isinstance(config, dict):
    return {key: to_data(value) for key, value in config.items()}
  return [to_data(item) for item in config] if isinstance(config, (list, tuple)) else config
