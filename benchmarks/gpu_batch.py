"""Part `batch` of gpu.py: the batch engine over a model of released size with random weights, text and speech."""

import dataclasses
import json
import pathlib
import random
import tempfile
import time

import gpu

WORDS = 'The quick brown fox jumps over the lazy dog while children sing near the water and someone listens'.split()
TEXT = (1, 64, 256)  # slots
SPEECH = (64, 256)
FRAMES_PER_TOKEN = 3  # speech takes 3 to 4


def batch() -> None:
  """Rows per second of text, seconds of sound per second of speech; every row has a given number of tokens and frames."""
  with tempfile.TemporaryDirectory() as folder:
    omni = _omni(pathlib.Path(folder) / 'tiny')
  for slots in TEXT:
    rows = _rows(max(2, 2 * slots), tokens=64 if slots == 1 else 128)
    gpu.tried('batch of text', lambda rows=rows, slots=slots: _answered(omni, rows, slots), slots=slots, rows=len(rows))
  for slots in SPEECH:
    rows = _rows(slots, tokens=32, speech=True)
    gpu.tried('batch of speech', lambda rows=rows, slots=slots: _answered(omni, rows, slots), slots=slots, rows=len(rows))


def _omni(folder: pathlib.Path):
  """The tokenizer is that of a tiny checkpoint, whose token ids the config takes over."""
  import jax
  import jax.numpy as jnp
  from qwen3_omni_jax.tools import tiny

  from qwen3_omni_jax.config_json import parse_config
  from qwen3_omni_jax.infer.omni import Omni
  from qwen3_omni_jax.infer.settings import GenerationDefaults
  from qwen3_omni_jax.infer.voice import Voice
  from qwen3_omni_jax.media.processor import Processor
  from qwen3_omni_jax.models.omni import omni_spec

  tiny.make_checkpoint(folder)
  ids, data = json.loads((folder / 'config.json').read_text()), json.loads(gpu.MODEL.read_text())
  data |= {field: ids[field] for field in tiny.TOKEN_FIELDS}
  for part in ('thinker_config', 'talker_config'):
    data[part] |= {field: ids[part][field] for field in tiny.MEDIA_TOKEN_FIELDS if field in ids[part]}
  cfg = parse_config(data)
  params = gpu.cheap_params(omni_spec(cfg), jnp.bfloat16)
  head, end = params['talker']['head'], cfg.talker.codec_eos_token_id
  params['talker']['head'] = head.at[:, end].set(0)  # a logit of 0 is never the largest: frames end where they are told to
  jax.block_until_ready(params)
  gpu.report(what='weights', gb=round(sum(x.nbytes for x in jax.tree.leaves(params)) / 1e9, 2))
  defaults = GenerationDefaults.from_folder(folder, cfg.im_end_token_id)
  voice = Voice.from_folder(folder).changed(temperature=0).without_guards()
  return Omni(cfg, params, Processor.from_folder(folder), defaults, 'bfloat16', voice)


def _rows(number: int, tokens: int, speech: bool = False) -> list:
  from qwen3_omni_jax.infer.prepare import Row

  rng = random.Random(0)
  says = lambda: [{'role': 'user', 'content': ' '.join(rng.choices(WORDS, k=rng.randint(20, 80)))}]
  spoken = {'speech': True, 'max_frames': FRAMES_PER_TOKEN * tokens} if speech else {}
  return [Row(str(i), says(), max_new_tokens=tokens, temperature=0.0, **spoken) for i in range(number)]


def _answered(omni, rows: list, slots: int) -> dict:
  """The second of two runs: the first compiles. What it has computed is forgotten, not what it has compiled."""
  from qwen3_omni_jax.infer.batch import Engine, Stats
  from qwen3_omni_jax.infer.batch_plan import EngineConfig

  speech = rows[0].speech
  config = EngineConfig(slots=slots, lengths=(512,), workers=8)
  engine = Engine(omni, config, omni.voice if speech else None, stop_token_ids=())
  times = []
  for part in (rows[: max(2, slots // 2)], rows):
    engine.stats = Stats()
    engine.kept.clear()
    started = time.perf_counter()
    results = list(engine.answer(dataclasses.replace(row) for row in part))
    times.append(time.perf_counter() - started)
    wrong = [r.error for r in results if r.error]
    assert not wrong, wrong[0]
  stats, seconds = engine.stats, times[-1]
  out = {
    'seconds': round(seconds, 2),
    'rows_per_s': round(len(rows) / seconds, 2),
    'first_run_s': round(times[0], 1),
    'tokens_per_s': round(stats.output_tokens / seconds, 1),
    'prompt_tokens': stats.prompt_tokens,
  }
  if speech:
    sound = sum(r.reply.speech.duration_s for r in results)
    out |= {'audio_s': round(sound, 1), 'audio_s_per_s': round(sound / seconds, 1)}
  return out
