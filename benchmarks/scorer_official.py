"""Single functions out of checkouts of the official repositories, each at the commit named here."""

import ast
import collections
import contextlib
import copy
import json
import pathlib
import random
import re
import string
import types
import unicodedata

COMMITS = {
  'MatthewCYM+VoiceBench': '533815410e3f4d602bd15a1de7105aea4acd828c',
  'Sakshi113+MMAU': '110127f54c0dfba3faa5ec9feee4a7e4148679c5',
  'QwenLM+Qwen2-Audio': '595360e82b5839c1507492ec83cae5bda6d5c7d4',
  'dingdongwang+MMSU_Bench': 'f0ef334bb10167821dbfdbe56b6b09bad2c1a67e',
  'MMMU-Benchmark+MMMU': 'bb0b95a945998d91dfef37e969e07d49d1139438',
  'lupantech+MathVista': '53d525874bdde205128e6b160b7357a88277d479',
  'open-compass+VLMEvalKit': 'e8e78f05f3080fe28154f2130321f17951c3be94',
  'QwenLM+Qwen3-VL': '96588727e44c78b25ba03ea03b8e12f7e64fd0da',
  'MMStar-Benchmark+MMStar': '88f243ab4a39cb339530085c33aecb22819881a1',
  'JUNJIE99+MLVU': 'fd060c10a43ea48a35100a22688a927b8e531199',
  'THUDM+LVBench': 'f998d95541cd5f0953c52449b185c6467b9b099d',
  'Lliar-liar+Daily-Omni': 'fccb83806fb5c7a4b791beafb8771b22bd55c557',
  'BytedanceSpeech+seed-tts-eval': '752f4297f090c46bb1a55a1f7439e5944ddefe8d',
  'openai+whisper': 'c0d2f624c09dc18e709e37c2ad90c039a4eb72a2',
}


def taken(root: pathlib.Path, repo: str, path: str, *names: str, **env):
  """The named top-level definitions of an official file, executed without its imports. env: what they need by name."""
  tree = ast.parse((root / repo / path).read_text(encoding='utf-8'))
  constants = [n for n in tree.body if isinstance(n, ast.Assign) and 'import' not in ast.unparse(n)]
  wanted = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and (not names or n.name in names)]
  scope = {
    're': re,
    'random': random,
    'string': string,
    'copy': copy,
    'cp': copy,
    'json': json,
    'collections': collections,
    'unicodedata': unicodedata,
    '__name__': 'official',
    **env,
  }
  for node in constants:
    with contextlib.suppress(Exception):  # constants that need what was not imported
      exec(compile(ast.Module([node], []), path, 'exec'), scope)
  for node in wanted:
    exec(compile(ast.Module([node], []), path, 'exec'), scope)
  return types.SimpleNamespace(**scope)


class Sentinel(random.Random):
  """Stands in for `random`: what the official code draws is known to be a guess."""

  @staticmethod
  def choice(options):
    return None


def mmsu_official(root: pathlib.Path):
  """The official file counts over records; one record at a time tells which letter it read."""
  f = taken(root, 'dingdongwang+MMSU_Bench', 'mmsu_evaluation.py', defaultdict=collections.defaultdict)

  def read(reply, options):
    for letter in options:
      record = {'response': reply, 'answer_gt': letter, **{f'choice_{k.lower()}': k for k in options}}
      try:
        accuracy = f.calculate_accuracy_per_task_and_category([record])[2]
      except UnboundLocalError:  # an empty reply in the first row has no stale value to leak
        return None
      if accuracy:
        return letter
    return None

  return read


def mmstar_official(root: pathlib.Path):
  path = 'eval/vlmeval/evaluate/mmstar.py'
  rows: list = []
  held: dict = {}
  row = {'bench': 'x', 'category': 'math', 'l2_category': 'geometry'}

  class Frame:
    iloc = rows

    def __len__(self):
      return len(rows)

  f = taken(
    root,
    'MMStar-Benchmark+MMStar',
    path,
    deepcopy=copy.deepcopy,
    tqdm=lambda x: x,
    load=lambda p: Frame(),
    get_logger=lambda n: types.SimpleNamespace(info=lambda *a: None),
    dump=lambda score, p: held.update(score),
  )
  source = (root / 'MMStar-Benchmark+MMStar' / path).read_text()
  # Categories without a row divide by zero in the official code: the other 17 get one wrong row each.
  names = re.findall(r"'([a-z&\-. ]+)': 0", source)
  owner = {n: c for c, block in re.findall(r"'([a-z&\- ]+)': \{([^}]*)\}", source) for n in re.findall(r"'([^']+)': 0", block)}
  others = [
    {'prediction': '', 'answer': 'A', 'bench': 'x', 'category': owner[n], 'l2_category': n} for n in names if n != 'geometry'
  ]

  def read(reply, options):
    for letter in options:
      rows[:] = [{**row, 'prediction': reply, 'answer': letter}, *others]
      f.MMStar_eval('x.xlsx')
      if held['math(geometry)']:
        return letter
    return None

  return read
