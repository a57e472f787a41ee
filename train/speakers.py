"""New voices: a name and a row of the Talker's table of codes for each, in the config, the parameters and what is exported."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from qwen3_omni_jax.config import OmniConfig, TalkerConfig
from qwen3_omni_jax.models.talker import SUPPRESSED
from qwen3_omni_jax.shapes import Params

from .config import Part, Recipe, Speaker

TABLE = 'talker/embed'


def with_speakers(cfg: OmniConfig, speakers: Sequence[Speaker]) -> OmniConfig:
  """The config with new speakers. Raises ValueError listing every one that cannot be added, and why."""
  if not speakers:
    return cfg
  if cfg.talker is None:
    raise ValueError('speakers: this checkpoint has no Talker (Thinking and Captioner variants write only)')
  known, problems = dict(cfg.talker.speaker_id), []
  low, high = cfg.talker.text.vocab_size - SUPPRESSED, cfg.talker.text.vocab_size
  low = max(low, cfg.talker.code_predictor.vocab_size)
  taken = _special_ids(cfg.talker)
  for speaker in speakers:
    name, here = speaker.name.lower(), f'speaker {speaker.name!r}'
    if not name or name in known:
      problems.append(f'{here}: ' + ('there is one already' if name else 'give a name'))
      continue
    if speaker.like is not None and speaker.like.lower() not in dict(cfg.talker.speaker_id):
      problems.append(f'{here}: like {speaker.like!r}, which is not one of {", ".join(sorted(dict(cfg.talker.speaker_id)))}')
    if speaker.like is None and not cfg.talker.speaker_id:
      problems.append(f'{here}: the checkpoint has no speaker to begin with')
    used = {*taken, *known.values()}
    free = [i for i in (*range(max(known.values(), default=low) + 1, high), *range(low, high)) if i not in used and i >= low]
    if speaker.id is None and not free:
      problems.append(f'{here}: no id from {low} to {high - 1} is free')
      continue
    number = free[0] if speaker.id is None else speaker.id
    if number in used or not low <= number < high:
      problems.append(f'{here}: id {number} is taken or no id for a speaker; expected a free one from {low} to {high - 1}')
    known[name] = number
  if problems:
    raise ValueError('speakers: ' + '; '.join(problems))
  return dataclasses.replace(cfg, talker=dataclasses.replace(cfg.talker, speaker_id=tuple(sorted(known.items()))))


def _special_ids(cfg: TalkerConfig) -> set[int]:
  names = ('codec_pad_id', 'codec_bos_id', 'codec_eos_token_id', 'codec_nothink_id', 'codec_think_bos_id', 'codec_think_eos_id')
  return {getattr(cfg, name) for name in names}


def add_speakers(params: Params, cfg: OmniConfig, speakers: Sequence[Speaker]) -> Params:
  """Parameters with the first values of the new speakers' rows. cfg: with_speakers'."""
  if not speakers or cfg.talker is None or 'talker' not in params:
    return params
  ids = dict(cfg.talker.speaker_id)
  new = {speaker.name.lower() for speaker in speakers}
  old = [i for name, i in ids.items() if name not in new]
  like = [old if speaker.like is None else [ids[speaker.like.lower()]] for speaker in speakers]
  rows = [ids[speaker.name.lower()] for speaker in speakers]

  def fill(table):
    first = jnp.stack([table[jnp.array(i)].astype(jnp.float32).mean(axis=0) for i in like])
    return table.at[jnp.array(rows)].set(first.astype(table.dtype))

  table = params['talker']['embed']
  table = jax.jit(fill, out_shardings=table.sharding)(table)
  return {**params, 'talker': {**params['talker'], 'embed': table}}


def trained_rows(cfg: OmniConfig, recipe: Recipe, trainable: Mapping[str, Part]) -> dict[str, tuple[int, ...]]:
  """{path: the rows that are trained} of parameters of which not all are. Raises ValueError for settings that make no sense."""
  chosen = [path for path, part in trainable.items() if part.rows == 'speakers']
  if wrong := [path for path in chosen if path != TABLE]:
    raise ValueError(f'parts: rows: speakers is for {TABLE} alone, and its pattern decides over {", ".join(wrong[:3])}')
  if chosen and not recipe.speakers:
    raise ValueError(f'parts: {TABLE} trains the rows of new speakers, and there are none; give speakers')
  if recipe.speakers and TABLE not in trainable:
    raise ValueError(
      f'speakers: {TABLE}, where their rows are, is not trained; give it a part (of `rows: speakers`, for them alone)'
    )
  ids = dict(cfg.talker.speaker_id) if cfg.talker else {}
  return {path: tuple(ids[speaker.name.lower()] for speaker in recipe.speakers) for path in chosen}


def describe_speakers(config: bytes, speakers: Iterable[Speaker], cfg: OmniConfig) -> bytes:
  """config.json with the new speakers in it. cfg: with_speakers'."""
  data: dict[str, Any] = json.loads(config)
  ids = dict(cfg.talker.speaker_id) if cfg.talker else {}
  for speaker in speakers:
    data['talker_config'].setdefault('speaker_id', {})[speaker.name.lower()] = ids[speaker.name.lower()]
  return (json.dumps(data, indent=2, ensure_ascii=False) + '\n').encode()
