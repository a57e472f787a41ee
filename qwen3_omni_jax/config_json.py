"""An OmniConfig from a checkpoint's config.json, with every problem of the file in one error."""

import json
import pathlib
from typing import Any

from .config import AudioConfig, Code2WavConfig, OmniConfig, TalkerConfig, TextConfig, ThinkerConfig, VisionConfig
from .config_reader import Reader


def load_config(path: str | pathlib.Path) -> OmniConfig:
  """Reads config.json (the file, or the folder that holds it). Raises ValueError naming every problem at once."""
  path = pathlib.Path(path)
  if path.is_dir():
    path = path / 'config.json'
  if not path.is_file():
    raise ValueError(f'{path}: no such file; expected the config.json of a Qwen3-Omni checkpoint')
  try:
    data = json.loads(path.read_text(encoding='utf-8'))
  except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as e:
    raise ValueError(f'{path}: not valid JSON ({e})') from e
  return parse_config(data, str(path))


def parse_config(data: Any, where: str = 'config') -> OmniConfig:
  """An OmniConfig from the parsed config.json. `where` names the source in errors."""
  reader = Reader()
  config = _read_omni(reader, data)
  if reader.errors or config is None:
    raise ValueError(f'{where}: {len(reader.errors)} problem(s)\n  ' + '\n  '.join(reader.errors))
  return config


def _read_omni(reader: Reader, data: Any) -> OmniConfig | None:
  if not isinstance(data, dict):
    reader.errors.append(f'expected a JSON object, found {type(data).__name__}')
    return None
  if 'thinker_config' not in data and 'text_config' in data:
    data = {'thinker_config': data, 'enable_audio_output': False}  # a Thinker saved alone
  thinker = _read_thinker(reader, reader.object(data, 'thinker_config', ''))
  talker = code2wav = None
  if data.get('talker_config') is not None and data.get('enable_audio_output', True):
    talker = _read_talker(reader, reader.object(data, 'talker_config', ''))
    wav = _without_rope(reader, reader.object(data, 'code2wav_config', ''), 'code2wav_config.', {'rope_theta': 1e4})
    code2wav = wav and reader.build(Code2WavConfig, wav[0], 'code2wav_config.', {'rope_theta': wav[1]['rope_theta']})
  parts = {'thinker': thinker, 'talker': talker, 'code2wav': code2wav}
  renamed = ('thinker_config', 'talker_config', 'code2wav_config')
  return reader.build(OmniConfig, data, '', parts, renamed)


def _read_thinker(reader: Reader, data: dict | None) -> ThinkerConfig | None:
  if data is None:
    return None
  where = 'thinker_config.'
  audio = reader.object(data, 'audio_config', where)
  vision = reader.object(data, 'vision_config', where)
  parts = {
    'audio': audio and reader.build(AudioConfig, audio, where + 'audio_config.', {}),
    'vision': _read_vision(reader, vision, where + 'vision_config.'),
    'text': _read_text(reader, reader.object(data, 'text_config', where), where + 'text_config.', True),
  }
  return reader.build(ThinkerConfig, data, where, parts, ('audio_config', 'vision_config', 'text_config'))


def _read_vision(reader: Reader, data: dict | None, where: str) -> VisionConfig | None:
  found = _without_rope(reader, data, where, {'rope_theta': 1e4})
  return found and reader.build(VisionConfig, found[0], where, {'rope_theta': found[1]['rope_theta']})


def _read_talker(reader: Reader, data: dict | None) -> TalkerConfig | None:
  if data is None:
    return None
  where = 'talker_config.'
  predictor = reader.object(data, 'code_predictor_config', where)
  speakers = data.get('speaker_id') or {}
  if not isinstance(speakers, dict) or not all(isinstance(v, int) for v in speakers.values()):
    reader.errors.append(f'{where}speaker_id: expected an object of name: id')
    speakers = {}
  parts = {
    'text': _read_text(reader, reader.object(data, 'text_config', where), where + 'text_config.', True),
    'code_predictor': _read_text(reader, predictor, where + 'code_predictor_config.', False),
    'speaker_id': tuple(sorted((k.lower(), v) for k, v in speakers.items())),
  }
  return reader.build(TalkerConfig, data, where, parts, ('text_config', 'code_predictor_config', 'speaker_id'))


def _read_text(reader: Reader, data: dict | None, where: str, moe: bool) -> TextConfig | None:
  """A transformer's config: both spellings of RoPE and of the number of experts."""
  found = _without_rope(reader, data, where, {'rope_theta': 1e6})
  if found is None:
    return None
  data, rope = found
  if 'num_local_experts' in data:
    local = data.pop('num_local_experts')
    if data.setdefault('num_experts', local) != local:
      reader.errors.append(f'{where}num_experts {data["num_experts"]} and num_local_experts {local} disagree')
  if moe:  # the reference's class defaults
    for key, default in (('num_experts', 128), ('num_experts_per_tok', 8)):
      data.setdefault(key, default)
    if 'norm_topk_prob' not in data:
      data['norm_topk_prob'] = not where.startswith('talker_config')
    if 'moe_intermediate_size' not in data:
      reader.errors.append(f'{where}moe_intermediate_size: missing, and it has no default')
    if where.startswith('talker_config') and 'shared_expert_intermediate_size' not in data:
      reader.errors.append(f'{where}shared_expert_intermediate_size: missing, and it has no default')
    if not rope['mrope_section']:
      reader.errors.append(f'{where}rope_parameters.mrope_section (or rope_scaling.mrope_section): missing')
  return reader.build(TextConfig, data, where, rope)


def _without_rope(reader: Reader, data: dict | None, where: str, default: dict) -> tuple[dict, dict] | None:
  """(data without RoPE keys, {'rope_theta', 'mrope_section'}) from old or new style keys."""
  if data is None:
    return None
  data = dict(data)
  rope: dict[str, Any] = {}
  for key in ('rope_scaling', 'rope_parameters'):
    value = data.pop(key, None)
    if value is not None and not isinstance(value, dict):
      reader.errors.append(f'{where}{key}: expected an object, found {type(value).__name__}')
    elif value:
      rope |= value
  theta = rope.pop('rope_theta', data.pop('rope_theta', default['rope_theta']))
  data.pop('rope_theta', None)
  section = rope.pop('mrope_section', [])
  usual = {'default', 'mrope'} | ({'axial'} if where.endswith('vision_config.') else set())  # names of what we implement
  kinds = {rope.pop('rope_type', 'default'), rope.pop('type', 'default')} - usual
  for flag in ('interleaved', 'mrope_interleaved'):
    rope.pop(flag, None)  # the reference interleaves whatever the flags say
  if kinds or rope:
    reader.errors.append(f'{where}rope: unknown type or field {sorted(kinds) + sorted(rope)}; only default is implemented')
  return data, {
    'rope_theta': reader.typed(theta, float, where + 'rope_theta') or default['rope_theta'],
    'mrope_section': reader.typed(section, tuple, where + 'mrope_section') or (),
  }
