"""`qwen3-omni score`: log-probability of the last assistant turn of a conversation."""

import argparse
import json

from qwen3_omni_jax import devices

from .conversation import add_input_arguments, add_model_arguments, prompt_options, read_conversation


def add_arguments(parser: argparse.ArgumentParser) -> None:
  add_model_arguments(parser)
  add_input_arguments(parser)


def run(args: argparse.Namespace) -> int:
  import pathlib

  if not args.input:
    raise ValueError('give --input conversation.json, ending with the assistant turn to score')
  messages, extra = read_conversation(args.input)
  devices.start(args.compile_cache)
  from ..infer.omni import Omni

  root = args.media_root or pathlib.Path(args.input).parent
  omni = Omni.load(args.model, mesh=args.mesh, dtype=args.dtype, speech=False, media_root=root)
  score = omni.score([messages], **prompt_options(args), **extra)[0]
  if args.json:
    print(json.dumps(score.to_json(), ensure_ascii=False))
  else:
    for token, logprob in zip(score.tokens, score.logprobs, strict=True):
      print(f'{logprob:10.4f}  {token!r}')
    print(f'{score.total_logprob:10.4f}  total of {len(score.tokens)} tokens')
  return 0
