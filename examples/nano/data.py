"""Synthetic speech and pictures to train a small model on: `python -m qwen3_omni_jax.examples.nano.data --out DIR`.

What the model hears: single words, phrases of a 20-word vocabulary and what is said of pictures, spoken by espeak-ng in many
voices, speeds and pitches, as a microphone gives them. What it sees: pictures of one to four discs, squares or triangles of one
colour. What it says: the same phrases and names in its own two voices, alone (read aloud) and as answers. Records are in the
schemas of training (docs/data.md). Phrases that are held out occur in no training record, and no held-out picture is one of those
trained on; each held-out phrase is there as it was made, and through each effect of a microphone.
"""

import argparse
import json
import pathlib
import random
import shutil

from .speech import EFFECTS, SPEAKERS, any_voice, as_heard, say, some_effects

WORDS = ('zero one two three four five six seven eight nine left right up down stop go yes no open close').split()
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
NAMES = 0.15  # of the phrases are what is said of a picture
ASK_SPEECH, ASK_PICTURE = 'Write down the words.', 'What is there?'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--out', required=True, type=pathlib.Path, metavar='DIR', help='new folder')
  parser.add_argument('--words', type=int, default=4000, help='spoken training records of one word')
  parser.add_argument('--speech', type=int, default=12000, help='training phrases of one to five words, to hear and to say')
  parser.add_argument('--pictures', type=int, default=4000, help='training records with a picture')
  parser.add_argument('--held-out', type=int, default=300, help='records of each kind to test on')
  parser.add_argument('--seed', type=int, default=0)


def run(args: argparse.Namespace) -> int:
  if shutil.which('espeak-ng') is None:
    raise ValueError('espeak-ng is not installed; install the package espeak-ng of your system')
  if args.out.exists():
    raise ValueError(f'{args.out}: exists already; give a new folder')
  for kind in ('speech', 'voices', 'pictures'):
    (args.out / kind).mkdir(parents=True)
  rng = random.Random(args.seed)
  held_out = sorted({phrase(rng, least=3) for _ in range(2 * args.held_out)})
  rng.shuffle(held_out)
  held_out = held_out[: args.held_out]
  phrases: list[str] = []
  while len(phrases) < args.speech:
    words = name(rng) if rng.random() < NAMES else phrase(rng, least=1)
    if words not in held_out:
      phrases.append(words)

  drawn: set[bytes] = set()
  pictures = [picture(args.out, f'train_{i:05d}', rng, drawn) for i in range(args.pictures)]
  heard = hear(args.out, 'train', phrases, rng)
  _write(args.out / 'speech.jsonl', heard)
  _write(args.out / 'words.jsonl', hear(args.out, 'word', [rng.choice(WORDS) for _ in range(args.words)], rng))
  _write(args.out / 'pictures.jsonl', pictures)
  spoken = read_aloud(args.out, 'train', phrases, rng)
  _write(args.out / 'read_aloud.jsonl', spoken)
  names = read_aloud(args.out, 'name', sorted(set(map(answer, pictures))) * len(SPEAKERS), rng)
  _write(args.out / 'answers.jsonl', spoken_answers(heard, spoken, rng) + spoken_answers(pictures, names, rng))

  tests = [picture(args.out, f'held_out_{i:05d}', rng, drawn) for i in range(args.held_out)]
  _write(args.out / 'pictures_held_out.jsonl', tests)
  _write(args.out / 'read_aloud_held_out.jsonl', read_aloud(args.out, 'held_out', held_out, rng))
  clean = hear(args.out, 'held_out', held_out, rng, effects=())
  _write(args.out / 'speech_held_out.jsonl', clean)
  for effect in EFFECTS:
    _write(args.out / f'speech_{effect}_held_out.jsonl', [through(args.out, item, effect, rng) for item in clean])
  made = f'{args.words} words and {args.speech} phrases to hear, {len(spoken)} to say, {args.pictures} pictures'
  print(f'{args.out}: {made}; {args.held_out} phrases and pictures held out')
  return 0


def _write(path: pathlib.Path, records: list[dict]) -> None:
  path.write_text(''.join(json.dumps(r) + '\n' for r in records), encoding='utf-8')


def corpus() -> str:
  """Text from which a tokenizer learns that each word of the answers, first or later in a line, is one token."""
  words = (*WORDS, *COLOURS, *(shape + end for shape in SHAPES for end in ('', 's')), *COUNTS, ASK_SPEECH, ASK_PICTURE)
  return ''.join(f'{word} {word} {word}\n' * 20 for word in words)


def phrase(rng: random.Random, least: int) -> str:
  return ' '.join(rng.choice(WORDS) for _ in range(rng.randint(least, 5)))


def name(rng: random.Random) -> str:
  """What is said of a picture."""
  return of_picture(rng.randint(1, 4), rng.choice(sorted(COLOURS)), rng.choice(SHAPES))


def of_picture(count: int, colour: str, shape: str) -> str:
  return f'{COUNTS[count - 1]} {colour} {shape}' + 's' * (count > 1)


def record(ask: str, answer: str, kind: str, path: str) -> dict:
  tag = {'audios': '<audio>', 'images': '<image>'}[kind]
  return {'messages': [{'role': 'user', 'content': tag + ask}, {'role': 'assistant', 'content': answer}], kind: [path]}


def answer(item: dict) -> str:
  return item['messages'][1]['content']


def hear(
  out: pathlib.Path, split: str, phrases: list[str], rng: random.Random, effects: tuple[str, ...] | None = None
) -> list[dict]:
  """Records of phrases to write down, each in a voice, speed and pitch of its own. effects: of a microphone; None: some."""
  paths = [f'speech/{split}_{i:05d}.wav' for i in range(len(phrases))]
  say([(out / path, words, any_voice(rng)) for path, words in zip(paths, phrases, strict=True)])
  for path in paths:
    if chosen := some_effects(rng) if effects is None else effects:
      as_heard(out / path, out / path, chosen, rng)
  return [record(ASK_SPEECH, words, 'audios', path) for path, words in zip(paths, phrases, strict=True)]


def through(out: pathlib.Path, item: dict, effect: str, rng: random.Random) -> dict:
  """The record with its sound through one effect of a microphone."""
  [path] = item['audios']
  changed = path.replace('.wav', f'_{effect}.wav')
  as_heard(out / path, out / changed, (effect,), rng)
  return item | {'audios': [changed]}


def read_aloud(out: pathlib.Path, split: str, phrases: list[str], rng: random.Random) -> list[dict]:
  """Records of phrases said in the voice of one of the speakers, in turn."""
  speakers = sorted(SPEAKERS)
  order = [speakers[i % len(speakers)] for i in range(len(phrases))]
  rng.shuffle(order)
  paths = [f'voices/{split}_{i:05d}.wav' for i in range(len(phrases))]
  say([(out / path, words, SPEAKERS[who]) for path, words, who in zip(paths, phrases, order, strict=True)])
  return [{'text': words, 'audio': path, 'speaker': who} for path, words, who in zip(paths, phrases, order, strict=True)]


def spoken_answers(questions: list[dict], spoken: list[dict], rng: random.Random) -> list[dict]:
  """The questions whose answer has been said, with its sound."""
  said: dict[str, list[dict]] = {}
  for item in spoken:
    said.setdefault(item['text'], []).append(item)
  made = []
  for item in questions:
    user, reply = item['messages']
    if reply['content'] in said:
      voice = rng.choice(said[reply['content']])
      made.append(item | {'messages': [user, reply | {'audio': voice['audio'], 'speaker': voice['speaker']}]})
  return made


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
  return record(ASK_PICTURE, of_picture(count, colour, shape), 'images', path)


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
  add_arguments(parser)
  raise SystemExit(run(parser.parse_args()))
