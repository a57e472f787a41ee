"""A speech codec from a published folder, and one that was trained here into such a folder."""

import dataclasses
import json
import pathlib

import numpy as np
import xxhash

from ..codec_config import CodecConfig, codec_config_json, load_codec_config
from ..shapes import Params
from .load import load_params
from .remote import local_folder
from .safetensors import as_bytes, write_file
from .table import export


def load_codec(
  folder: str | pathlib.Path, num_code_groups: int | None = None, *, dtype: str | None = 'float32'
) -> tuple[Params, CodecConfig]:
  """(parameters of encoder and quantiser, as numpy arrays; config).

  folder: in the layout of transformers' MimiModel, or a Qwen3-TTS 12 Hz tokenizer; safetensors. Its decoder is not read; what is
  left out is said. num_code_groups: codebooks to use; see parse_codec_config.
  Raises ValueError listing everything that does not fit.
  """
  place = local_folder(folder)
  cfg = load_codec_config(place, num_code_groups)
  return load_params(place, cfg, dtype=dtype)['codec'], cfg


def save_codec(folder: str | pathlib.Path, params: Params, cfg: CodecConfig) -> None:
  """Writes config.json and model.safetensors, as transformers reads a MimiModel without a decoder (of a tokenizer too)."""
  cfg = dataclasses.replace(cfg, prefix='')
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  tensors = {name: np.asarray(array) for name, array in export({'codec': params}, cfg)}
  books = [name.removesuffix('embed_sum') for name in tensors if name.endswith('.codebook.embed_sum')]
  tensors |= {
    f'{book}initialized': np.ones(1, np.float32) for book in books
  }  # a flag of its training, which the reference expects
  (folder / 'config.json').write_text(json.dumps(codec_config_json(cfg), indent=2) + '\n', encoding='utf-8')
  write_file(folder / 'model.safetensors', tensors)


def fingerprint(params: Params, cfg: CodecConfig) -> str:
  """Of all that decides about codes: equal for equal weights, whatever folder they came from and how many codebooks are used."""
  digest = xxhash.xxh3_128()
  fields = {name: value for name, value in vars(cfg).items() if name not in ('prefix', 'num_code_groups')}
  digest.update(json.dumps(fields, sort_keys=True).encode())
  for name, array in export({'codec': params}, cfg):
    digest.update(name.removeprefix(cfg.prefix).encode())
    digest.update(as_bytes(np.ascontiguousarray(array, np.float32)))
  return digest.hexdigest()
