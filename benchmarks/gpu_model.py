"""The whole model at released size with random bfloat16 weights, for the parts of gpu.py; made once a process."""

import functools
import json
import os
import pathlib
import tempfile

import gpu


@functools.cache
def omni():
  """The tokenizer is that of a tiny checkpoint, whose token ids the config takes over. GPU_MODEL=tiny in the environment: that
  checkpoint itself, to try a script on a CPU."""
  import jax
  import jax.numpy as jnp
  from qwen3_omni_jax.tools import tiny

  from qwen3_omni_jax.config_json import load_config, parse_config
  from qwen3_omni_jax.infer.omni import Omni
  from qwen3_omni_jax.infer.settings import GenerationDefaults
  from qwen3_omni_jax.infer.voice import Voice
  from qwen3_omni_jax.media.processor import Processor
  from qwen3_omni_jax.models.omni import omni_spec

  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary) / 'tiny'
    tiny.make_checkpoint(folder)
    if os.environ.get('GPU_MODEL') == 'tiny':
      cfg = load_config(folder)
    else:
      ids, data = json.loads((folder / 'config.json').read_text()), json.loads(gpu.MODEL.read_text())
      data |= {field: ids[field] for field in tiny.TOKEN_FIELDS}
      for part in ('thinker_config', 'talker_config'):
        data[part] |= {field: ids[part][field] for field in tiny.MEDIA_TOKEN_FIELDS if field in ids[part]}
      cfg = parse_config(data)
    processor, defaults = Processor.from_folder(folder), GenerationDefaults.from_folder(folder, cfg.im_end_token_id)
    voice = Voice.from_folder(folder).without_guards()
  params = gpu.cheap_params(omni_spec(cfg), jnp.bfloat16)
  head, end = params['talker']['head'], cfg.talker.codec_eos_token_id
  params['talker']['head'] = head.at[:, end].set(0)  # a logit of 0 is never drawn: frames end where they are told to
  jax.block_until_ready(params)
  gpu.report(what='weights', gb=round(sum(x.nbytes for x in jax.tree.leaves(params)) / 1e9, 2))
  return Omni(cfg, params, processor, defaults, 'bfloat16', voice)
