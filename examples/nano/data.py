"""Synthetic speech and pictures to train a small model on: `python -m qwen3_omni_jax.examples.nano.data --out DIR`.

Single words and phrases of a 20-word vocabulary, spoken by espeak-ng in many voices, speeds and pitches, and pictures of one to
four discs, squares or triangles of one colour. Records are in the chat schema of training (`messages` with `audios` or `images`).
Phrases that are held out occur in no training record, and no held-out picture is one of those trained on.
"""

import argparse
import concurrent.futures
import json
import pathlib
import random
import shutil
import subprocess

WORDS = ('zero one two three four five six seven eight nine left right up down stop go yes no open close').split()
VOICES = ('m1', 'm2', 'm3', 'm4', 'm7', 'f1', 'f2', 'f3', 'f4')
COLOURS = {
  'red': (220, 40, 40),
  'green': (40, 170, 60),
  'blue': (50, 80, 220),
  'yellow': (235, 205, 40),
  'white': (245, 245, 245),
}
SHAPES = ('disc', 'square', 'triangle')
COUNTS = ('one', 'two', 'three', 'four')
SIDE = 96  # pixels: nine tokens
ASK_SPEECH, ASK_PICTURE = 'Write down the words.', 'What is there?'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--out', required=True, type=pathlib.Path, metavar='DIR', help='new folder')
  parser.add_argument('--words', type=int, default=3000, help='spoken training records of one word')
  parser.add_argument('--speech', type=int, default=6000, help='spoken training records of one to five words')
  parser.add_argument('--pictures', type=int, default=4000, help='training records with a picture')
  parser.add_argument('--held-out', type=int, default=300, help='records of each kind to test on')
  parser.add_argument('--seed', type=int, default=0)


def run(args: argparse.Namespace) -> int:
  if shutil.which('espeak-ng') is None:
    raise ValueError('espeak-ng is not installed; install the package espeak-ng of your system')
  if args.out.exists():
    raise ValueError(f'{args.out}: exists already; give a new folder')
  for kind in ('speech', 'pictures'):
    (args.out / kind).mkdir(parents=True)
  rng = random.Random(args.seed)
  held_out = sorted({phrase(rng, least=3) for _ in range(2 * args.held_out)})
  rng.shuffle(held_out)
  held_out = held_out[: args.held_out]
  phrases: list[str] = []
  while len(phrases) < args.speech:
    if (words := phrase(rng, least=1)) not in held_out:
      phrases.append(words)
  drawn: set[bytes] = set()
  write = lambda name, records: (args.out / name).write_text(''.join(json.dumps(r) + '\n' for r in records), encoding='utf-8')
  write('speech.jsonl', speak(args.out, 'train', phrases, rng))
  write('words.jsonl', speak(args.out, 'word', [rng.choice(WORDS) for _ in range(args.words)], rng))
  write('speech_held_out.jsonl', speak(args.out, 'held_out', held_out, rng))
  write('pictures.jsonl', [picture(args.out, f'train_{i:05d}', rng, drawn) for i in range(args.pictures)])
  write('pictures_held_out.jsonl', [picture(args.out, f'held_out_{i:05d}', rng, drawn) for i in range(args.held_out)])
  made = f'{args.words} spoken words, {args.speech} phrases, {args.pictures} pictures'
  print(f'{args.out}: {made}; {args.held_out} phrases and pictures held out')
  return 0


def corpus() -> str:
  """Text from which a tokenizer learns that each word of the answers, first or later in a line, is one token."""
  words = (*WORDS, *COLOURS, *(shape + end for shape in SHAPES for end in ('', 's')), *COUNTS, ASK_SPEECH, ASK_PICTURE)
  return ''.join(f'{word} {word} {word}\n' * 20 for word in words)


def phrase(rng: random.Random, least: int) -> str:
  return ' '.join(rng.choice(WORDS) for _ in range(rng.randint(least, 5)))


def record(ask: str, answer: str, kind: str, path: str) -> dict:
  tag = {'audios': '<audio>', 'images': '<image>'}[kind]
  return {'messages': [{'role': 'user', 'content': tag + ask}, {'role': 'assistant', 'content': answer}], kind: [path]}


def speak(out: pathlib.Path, split: str, phrases: list[str], rng: random.Random) -> list[dict]:
  """A wav file for each phrase, in a voice, speed and pitch of its own."""
  jobs = []
  for i, words in enumerate(phrases):
    path = f'speech/{split}_{i:05d}.wav'
    voice = ['-v', f'en-us+{rng.choice(VOICES)}', '-s', str(rng.randint(150, 210)), '-p', str(rng.randint(25, 75))]
    jobs.append((['espeak-ng', *voice, '-w', str(out / path), words], record(ASK_SPEECH, words, 'audios', path)))
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    list(pool.map(lambda job: subprocess.run(job[0], check=True, capture_output=True), jobs))
  return [made for _, made in jobs]


def picture(out: pathlib.Path, name: str, rng: random.Random, drawn: set[bytes]) -> dict:
  """A picture unlike all those drawn before, in which no two figures touch."""
  from PIL import Image, ImageDraw

  while True:
    count, colour, shape = rng.randint(1, 4), rng.choice(sorted(COLOURS)), rng.choice(SHAPES)
    ground = rng.randint(0, 60)
    image = Image.new('RGB', (SIDE, SIDE), (ground,) * 3)
    pen = ImageDraw.Draw(image)
    for cell in rng.sample(range(9), count):
      size = rng.randint(9, 13)
      x, y = (16 + 32 * at + rng.randint(-2, 2) for at in (cell % 3, cell // 3))
      box = (x - size, y - size, x + size, y + size)
      if shape == 'disc':
        pen.ellipse(box, COLOURS[colour])
      elif shape == 'square':
        pen.rectangle(box, COLOURS[colour])
      else:
        pen.polygon([(x, y - size), (x - size, y + size), (x + size, y + size)], COLOURS[colour])
    if (pixels := image.tobytes()) not in drawn:
      break
  drawn.add(pixels)
  path = f'pictures/{name}.png'
  image.save(out / path)
  return record(ASK_PICTURE, f'{COUNTS[count - 1]} {colour} {shape}' + 's' * (count > 1), 'images', path)


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
  add_arguments(parser)
  raise SystemExit(run(parser.parse_args()))
