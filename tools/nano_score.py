"""Scores a nano model on held-out data: `python -m qwen3_omni_jax.tools.nano_score --model DIR --data DIR`.

Answers every held-out record of tools.nano_data by greedy generation, and prints one JSON object: the word error rate of spoken
phrases of at least three words, and the pictures whose count, colour and shape are all right, both in percent.
"""

import argparse
import json
import pathlib

from qwen3_omni_jax import devices


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--model', required=True, metavar='DIR', help='the trained model')
  parser.add_argument('--data', required=True, type=pathlib.Path, metavar='DIR', help='the folder that nano_data has written')
  parser.add_argument('--limit', type=int, help='of each kind, the first so many')
  parser.add_argument('--wrong', action='store_true', help='print what was not right too')


def run(args: argparse.Namespace) -> int:
  devices.start()
  from ..eval.wer import corpus_rate, edits
  from ..infer.omni import Omni

  omni = Omni.load(args.model, dtype='float32', speech=False, media_root=args.data)

  def answers(name: str, kind: str, field: str) -> list[tuple[str, str]]:
    """(right, said) of each record."""
    records = [json.loads(line) for line in (args.data / name).read_text(encoding='utf-8').splitlines()][: args.limit]
    texts = [record['messages'][0]['content'].split('>', 1)[1] for record in records]
    conversations = [
      [{'role': 'user', 'content': [{'type': kind, kind: record[field][0]}, {'type': 'text', 'text': text}]}]
      for record, text in zip(records, texts, strict=True)
    ]
    replies = omni.generate(conversations, max_new_tokens=12, temperature=0.0, batch_size=32)
    return [(record['messages'][1]['content'], reply.text) for record, reply in zip(records, replies, strict=True)]

  speech = answers('speech_held_out.jsonl', 'audio', 'audios')
  pictures = answers('pictures_held_out.jsonl', 'image', 'images')
  result = {
    'wer_percent': corpus_rate([edits(right.split(), said.split()) for right, said in speech]),
    'phrases': len(speech),
    'words': sum(len(right.split()) for right, _ in speech),
    'pictures_right_percent': 100 * sum(right == said for right, said in pictures) / len(pictures),
    'pictures': len(pictures),
  }
  print(json.dumps(result))
  if args.wrong:
    for right, said in speech + pictures:
      if right != said:
        print(f'{right!r} -> {said!r}')
  return 0


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
  add_arguments(parser)
  raise SystemExit(run(parser.parse_args()))
