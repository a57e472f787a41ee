"""Compares our readers of answers with the official functions on generated replies.

Nothing of the official code is in this repository. Check the repositories out yourself, each at the commit below, under one
folder as OWNER+NAME, and run:

    python benchmarks/scorer_agreement.py --official DIR [--replies 1000] [--json benchmarks/results/scorer_agreement.json]

It takes single functions out of their files (their imports, such as torch and API clients, are not needed) and calls them.
`zhon`, `nltk` and `langdetect` must be importable for the rows that use them. Replies are made from a seed.
"""

import argparse
import ast
import collections
import contextlib
import io
import json
import pathlib
import random
import re
import string
import sys
import types

from scorer_official import COMMITS, Sentinel, mmstar_official, mmsu_official, taken
from scorer_replies import ARGUMENTS, PIECES, WORDS, chinese_piece, english_text, generated_replies


def same(ours, official) -> bool:
  """Equal, where the official code says nothing, '' or False for None."""
  return (ours if ours is not None else '') == (official if official not in (None, False) else '')


def multiple_choice_rows(root: pathlib.Path, number: int):
  from qwen3_omni_jax.eval import multiple_choice as mc

  phrases = mc.phrases()['choice']
  guessing = types.SimpleNamespace(choice=Sentinel.choice, seed=lambda s: None)
  import numpy as np

  official = {}
  f = taken(root, 'MMMU-Benchmark+MMMU', 'mmmu/utils/eval_utils.py', random=guessing, np=np, Dict=dict)
  official['mmmu'] = lambda r, o: f.parse_multi_choice_response(r, list(o), o)
  v = taken(root, 'MatthewCYM+VoiceBench', 'src/evaluator/mcq.py', Evaluator=object)
  official['voicebench'] = lambda r, o: v.MCQEvaluator().extract_answer(r)
  m = taken(root, 'open-compass+VLMEvalKit', 'vlmeval/dataset/utils/videomme.py', 'extract_characters_regex')
  official['video_mme'] = lambda r, o: m.extract_characters_regex(r)
  q = taken(root, 'QwenLM+Qwen3-VL', 'evaluation/mmmu/eval_utils.py', 'can_infer_option', 'can_infer_text', 'can_infer')

  def can_infer(r, o):
    letter = q.can_infer(r, dict(o))
    return None if letter == 'Z' else letter

  official['qwen'] = can_infer
  lv = taken(root, 'THUDM+LVBench', 'lvbench/utils/answer_util.py')
  official['lvbench'] = lambda r, o: letter if (letter := lv.polish_answer(r)) in o else None
  ml = taken(root, 'JUNJIE99+MLVU', 'evaluation/multiple_choice_evaluation/choice_bench.py', 'check_ans')
  official['mlvu'] = lambda r, o: next((k for k in o if ml.check_ans(r, f'({k}) x')), None)
  do = taken(root, 'Lliar-liar+Daily-Omni', 'test_model_api/test_utils.py', 'evaluate_answer')
  official['daily_omni'] = lambda r, o: next((k for k in o if do.evaluate_answer(r, k)), None)
  official['mmsu'] = mmsu_official(root)
  official['mmstar'] = mmstar_official(root)
  for name, function in official.items():
    agree, read = 0, 0
    for reply, choices in generated_replies(number, 8, phrases):
      options = mc.lettered(choices)
      ours = mc.read_choice(name, reply, options)
      with contextlib.redirect_stdout(io.StringIO()):
        theirs = function(reply, options)
      agree += same(ours, theirs)
      read += ours is not None
      if not same(ours, theirs):
        print(f'  {name}: {reply!r}: ours {ours!r}, official {theirs!r}', file=sys.stderr)
    yield f'choice: {name}', mc.DIALECTS[name].official, agree, number, f'{read} read as a letter'


def answer_rows(root: pathlib.Path, number: int):
  import numpy as np
  from qwen3_omni_jax.eval import answers
  from qwen3_omni_jax.eval.multiple_choice import phrases

  plain = generated_replies(number, 21, [])
  f = taken(root, 'Sakshi113+MMAU', 'evaluation.py', 'string_match')
  agree = sum(answers.mmau_correct(c[k % 4], r, c) == f.string_match(c[k % 4], r, c) for k, (r, c) in enumerate(plain))
  yield 'MMAU string match', 'MMAU evaluation.py string_match', agree, number, ''

  f = taken(root, 'MMMU-Benchmark+MMMU', 'mmmu/utils/eval_utils.py', np=np, Dict=dict)
  agree = 0
  for k, (reply, choices) in enumerate(plain):
    gold = choices[k % 4] if k % 3 else [choices[0], str(k % 100)]
    agree += set(f.parse_open_response(reply)) == answers.mmmu_open_candidates(reply) and f.eval_open(
      gold, f.parse_open_response(reply)
    ) == answers.mmmu_open_correct(reply, gold)
  yield 'MMMU open questions', 'MMMU eval_utils.py parse_open_response, eval_open', agree, number, ''

  from rapidfuzz.distance import Levenshtein

  class Asked(Exception):
    pass

  class Model:
    def get_response(self, **_):
      raise Asked

  silent = types.SimpleNamespace(info=lambda *a: None)
  e = taken(
    root,
    'lupantech+MathVista',
    'evaluation/extract_answer.py',
    'extract_answer',
    'create_test_prompt',
    demo_prompt='',
    logging=silent,
  )
  s = taken(
    root,
    'lupantech+MathVista',
    'evaluation/calculate_score.py',
    'normalize_extracted_answer',
    'get_most_similar',
    distance=Levenshtein.distance,
  )
  agree = 0
  for k, (reply, choices) in enumerate(plain):
    kind = ('multi_choice', 'integer', 'float', 'list')[k % 4]
    problem = {
      'question_type': 'multi_choice' if kind == 'multi_choice' else 'free_form',
      'choices': choices,
      'query': '',
      'pid': k,
      'answer_type': 'text' if kind == 'multi_choice' else kind,
      'precision': 2,
    }
    theirs = e.extract_answer(Model(), reply, problem, quick_extract=True)
    ours = answers.mathvista_extract(reply, problem)
    ours_text = ours if ours is not None else ''  # the official code returns '' when its judge fails
    normal = s.normalize_extracted_answer(reply, choices, problem['question_type'], problem['answer_type'], 2)
    agree += ours_text == theirs and answers.mathvista_normalise(reply, problem) == normal
  yield 'MathVista extraction and form', 'MathVista extract_answer.py, calculate_score.py', agree, number, 'judge left out'

  misc = taken(root, 'open-compass+VLMEvalKit', 'vlmeval/smp/misc.py', 'process_punctuation')
  y = taken(
    root,
    'open-compass+VLMEvalKit',
    'vlmeval/dataset/utils/yorn.py',
    'YOrN_Extraction',
    process_punctuation=misc.process_punctuation,
  )
  rng = random.Random(5)
  agree = 0
  for reply, _ in plain:
    reply = rng.choice(('{r}', 'Yes{p} {r}', 'No{p}{r}', '{r}{p} yes', '{r} {p}no', 'yes{p}no', '1,000 yes-{r}')).format(
      r=reply, p=rng.choice('.,;!-/()?')
    )
    theirs = y.YOrN_Extraction(reply)
    agree += (answers.yes_or_no(reply) or 'Unknown') == theirs
  yield 'HallusionBench yes or no', 'VLMEvalKit yorn.py YOrN_Extraction', agree, number, ''

  guessing = types.SimpleNamespace(choice=Sentinel.choice)
  b = taken(root, 'MatthewCYM+VoiceBench', 'src/evaluator/bbh.py', Evaluator=object, random=guessing).BBHEvaluator()
  agree, read, total = 0, 0, 0
  for kind in answers.BBH_KINDS:
    table = [p[1] for p in phrases()[kind]] + [p[1] for p in phrases()['yes_no']]
    for reply, _ in generated_replies(number // 4, 13, table):
      reply = reply.replace('(.+?)', 'that')
      ours = answers.bbh_answer(reply, f'{kind}_7')
      with contextlib.redirect_stdout(io.StringIO()):
        theirs = b.extract_answer(reply, f'{kind}_7')
      agree, read, total = agree + (ours == theirs), read + (ours is not None), total + 1
  yield 'VoiceBench BBH', 'VoiceBench bbh.py BBHEvaluator.extract_answer', agree, total, f'{read} read'

  h = taken(root, 'MatthewCYM+VoiceBench', 'src/evaluator/harm.py', Evaluator=object).HarmEvaluator()
  words = generated_replies(number, 34, [p.upper() if i % 2 else p for i, p in enumerate(phrases()['refusal'])])
  agree = sum(bool(h.evaluate_single(r)) == answers.refuses(r) for r, _ in words)
  yield 'VoiceBench refusals', 'VoiceBench harm.py HarmEvaluator.evaluate_single', agree, number, ''

  qa = taken(root, 'MatthewCYM+VoiceBench', 'src/evaluator/qa.py', 'majority_vote')
  votes = [[rng.choice(('Yes', 'No', 'yes', 'no')) for _ in range(3)] for _ in range(number)]
  agree = sum(qa.majority_vote(v) == answers.majority_is_yes(v) for v in votes)
  yield 'VoiceBench majority vote', 'VoiceBench qa.py majority_vote', agree, number, ''


def ifeval_row(root: pathlib.Path, number: int):
  import langdetect
  import nltk
  from qwen3_omni_jax.eval import ifeval

  langdetect.DetectorFactory.seed = 0
  try:
    nltk.sent_tokenize('One. Two.')
  except LookupError:  # no 'punkt_tab' data: an untrained splitter, the same one on both sides
    splitter, words_of = nltk.tokenize.PunktSentenceTokenizer(), nltk.tokenize.TreebankWordTokenizer()
    nltk.sent_tokenize = splitter.tokenize
    nltk.word_tokenize = lambda text: [w for sentence in splitter.tokenize(text) for w in words_of.tokenize(sentence)]
  folder = 'src/evaluator/instruction_following_eval/'
  repo = 'MatthewCYM+VoiceBench'
  util = types.SimpleNamespace(
    nltk=nltk,
    count_sentences=lambda t: len(nltk.sent_tokenize(t)),
    count_words=lambda t: len(re.findall(r'\w+', t)),
    generate_keywords=None,
    LANGUAGE_CODES=collections.defaultdict(str, en='English', de='German', zh='Chinese'),
  )
  log = types.SimpleNamespace(error=lambda *a: None)
  env = {
    'langdetect': langdetect,
    'instructions_util': util,
    'logging': log,
    'Dict': dict,
    'Optional': None,
    'Sequence': None,
    'Union': None,
  }
  inst = taken(root, repo, folder + 'instructions.py', **env)
  prefix = {
    n.targets[0].id: n.value.value
    for n in ast.parse((root / repo / folder / 'instructions_registry.py').read_text()).body
    if isinstance(n, ast.Assign) and isinstance(n.value, ast.Constant)
  }
  registry = eval(
    ast.unparse(
      next(
        n.value
        for n in ast.parse((root / repo / folder / 'instructions_registry.py').read_text()).body
        if isinstance(n, ast.Assign) and n.targets[0].id == 'INSTRUCTION_DICT'
      )
    ),
    {'instructions': inst, **prefix},
  )
  rng = random.Random(55)
  agree, total, followed = 0, 0, 0
  names = sorted(ifeval.CHECKS)
  assert set(names) == set(registry), set(names) ^ set(registry)
  for k in range(number):
    name = names[k % len(names)]
    reply = ''.join(rng.choice(PIECES) for _ in range(rng.randrange(0, 9)))
    reply = rng.choice((reply, reply.upper(), reply.lower(), f'"{reply}"', rng.choice(WORDS) + reply, reply + rng.choice(WORDS)))
    arguments = ARGUMENTS.get(name, lambda r: {})(rng)
    checker = registry[name](name)
    checker.build_description(**arguments)
    theirs = bool(reply.strip() and checker.check_following(reply))
    ours = ifeval.follows(reply, name, arguments)
    agree, total, followed = agree + (ours == theirs), total + 1, followed + theirs
    if ours != theirs:
      print(f'  ifeval {name} {arguments} {reply!r}: ours {ours}, official {theirs}', file=sys.stderr)
  yield 'VoiceBench IFEval', 'VoiceBench instruction_following_eval/instructions.py', agree, total, f'{followed} followed'


def text_rows(root: pathlib.Path, number: int):
  import jiwer
  import zhconv
  from qwen3_omni_jax.eval import normalise, normalise_zh, wer
  from rapidfuzz.distance import Levenshtein
  from whisper_normalizer.basic import BasicTextNormalizer
  from whisper_normalizer.english import EnglishTextNormalizer

  # Its classes and functions refer to names that are assigned between them; it imports nothing unusual.
  scope = {'__name__': 'official'}
  exec(compile((root / 'QwenLM+Qwen2-Audio/eval_audio/cn_tn.py').read_text(), 'cn_tn', 'exec'), scope)
  norm = scope['TextNorm'](False, False, False, False, False, False, False, '')
  rng = random.Random(3)
  agree, changed = 0, 0
  for _ in range(number):
    text = ''.join(chinese_piece(rng) for _ in range(rng.randrange(1, 6)))
    agree += norm(text) == normalise_zh.spell_out(text)
    changed += norm(text) != text
    if norm(text) != normalise_zh.spell_out(text):
      print(f'  zh {text!r}: ours {normalise_zh.spell_out(text)!r}, official {norm(text)!r}', file=sys.stderr)
  yield 'Chinese normalisation', 'Qwen2-Audio eval_audio/cn_tn.py TextNorm', agree, number, f'{changed} changed by it'

  tokenizer = taken(root, 'QwenLM+Qwen2-Audio', 'eval_audio/evaluate_tokenizer.py', 'EvaluationTokenizer')
  import sacrebleu.tokenizers

  sacrebleu.tokenizers.TOKENIZERS = {'none': lambda: lambda line: line}  # removed from sacrebleu 2; 'none' changed nothing
  asr = taken(
    root,
    'QwenLM+Qwen2-Audio',
    'eval_audio/evaluate_asr.py',
    'remove_sp',
    'compute_wer',
    zhconv=zhconv,
    english_normalizer=EnglishTextNormalizer(),
    basic_normalizer=BasicTextNormalizer(),
    chinese_normalizer=norm,
    EvaluationTokenizer=tokenizer.EvaluationTokenizer,
    ed=types.SimpleNamespace(eval=Levenshtein.distance),
  )
  languages = ('en', 'zh', 'yue', 'fr', 'ja')
  agree = 0
  for k in range(number):
    language = languages[k % 5]
    make = (
      (lambda: ''.join(chinese_piece(rng) for _ in range(6))) if language in ('zh', 'yue', 'ja') else (lambda: english_text(rng))
    )
    ref = make() + '好word'
    hyp = ref if rng.random() < 0.3 else make() + rng.choice(('', '<|en|>', ' , 好', 'word'))
    with contextlib.redirect_stdout(io.StringIO()):
      theirs = asr.compute_wer([asr.remove_sp(ref, language)], [asr.remove_sp(hyp, language)], language)
    ours = wer.corpus_rate([wer.transcript_edits(ref, hyp, language)]) / 100
    agree += abs(ours - theirs) < 1e-12
  yield 'Word error rate', 'Qwen2-Audio eval_audio/evaluate_asr.py remove_sp, compute_wer', agree, number, 'en zh yue fr ja'

  from zhon.hanzi import punctuation

  agree = 0
  for k in range(number):
    language = 'en' if k % 2 else 'zh'
    seed = taken(
      root,
      'BytedanceSpeech+seed-tts-eval',
      'run_wer.py',
      'process_one',
      lang=language,
      punctuation_all=punctuation + string.punctuation,
      compute_measures=lambda t, h: {'wer': jiwer.wer(t, h), 'substitutions': 0, 'deletions': 0, 'insertions': 0},
    )
    make = (
      (lambda: ''.join(chinese_piece(rng) for _ in range(4)) + '好') if language == 'zh' else (lambda: english_text(rng) + ' end')
    )
    ref, hyp = make(), make()
    counts = wer.seed_tts_edits(ref, hyp, language)
    agree += abs(counts.total / counts.length - seed.process_one(hyp, ref)[2]) < 1e-12
  yield 'SEED-TTS utterance error rate', 'seed-tts-eval run_wer.py process_one', agree, number, 'measured with jiwer 4'

  cases = re.findall(
    r'std\(\s*("(?:[^"\\]|\\.)*")\s*\)\s*==\s*("(?:[^"\\]|\\.)*")', (root / 'openai+whisper/tests/test_normalizer.py').read_text()
  )
  english = EnglishTextNormalizer()
  agree = sum(english(ast.literal_eval(a)) == ast.literal_eval(b) for a, b in cases)
  yield 'Whisper normaliser cases', 'openai/whisper tests/test_normalizer.py', agree, len(cases), 'whisper-normalizer'
  assert normalise.normalise('Mr. Quilter', 'en') == 'mister quilter'


def vector_rows(root: pathlib.Path):
  """Published outputs scored again: our score beside the stored one."""
  from qwen3_omni_jax.eval import answers
  from qwen3_omni_jax.eval import multiple_choice as mc

  folder = root / 'MMMU-Benchmark+MMMU' / 'mmmu'
  truth = json.loads((folder / 'answer_dict_val.json').read_text())
  for name, expected in (('llava1.5_13b', 330), ('qwen_vl', 325)):
    right = number = 0
    rng = random.Random(42)
    for file in sorted((folder / 'example_outputs' / name).glob('*/output.json')):
      for sample in json.loads(file.read_text()):
        answer = truth[sample['id']]['ground_truth']
        number += 1
        if sample['question_type'] == 'multiple-choice':
          letter = mc.read_choice('mmmu', sample['response'], sample['index2ans']) or mc.guess('mmmu', sample['index2ans'], rng)
          right += letter in answer if isinstance(answer, list) else letter == answer
        else:
          right += answers.mmmu_open_correct(sample['response'], answer)
    yield f'MMMU example outputs {name}', 'mmmu/example_outputs', right, expected, f'of {number}; guesses drawn with seed 42'

  bard = json.loads((root / 'lupantech+MathVista/results/bard/output_bard.json').read_text())
  right = agree = 0
  for problem in bard.values():
    correct = answers.mathvista_normalise(problem['extraction'], problem) == problem['answer']
    right += correct
    agree += correct == problem['true_false']
  yield 'MathVista results/bard', 'results/bard/output_bard.json', right, 348, f'{agree} of {len(bard)} items as stored'

  try:
    import openpyxl
  except ImportError:
    return
  book = openpyxl.load_workbook(root / 'MMStar-Benchmark+MMStar/eval/submits/llava_next_yi_34b_MMStar.xlsx', read_only=True)
  lines = list(book.active.iter_rows(values_only=True))
  column = {name: i for i, name in enumerate(lines[0])}
  right = sum(
    mc.read_choice('mmstar', str(line[column['prediction']]), dict.fromkeys('ABCD', '')) == str(line[column['answer']]).strip()
    for line in lines[1:]
  )
  yield 'MMStar llava_next_yi_34b', 'eval/submits/llava_next_yi_34b_MMStar.xlsx', right, 781, f'of {len(lines) - 1}'


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--official', type=pathlib.Path, required=True, metavar='DIR')
  parser.add_argument('--replies', type=int, default=1000)
  parser.add_argument('--json', type=pathlib.Path, metavar='FILE')
  args = parser.parse_args()
  table = []
  for rows in (multiple_choice_rows, answer_rows, ifeval_row, text_rows):
    for row in rows(args.official, args.replies):
      print('{0:32} {2:5} of {3:5}  {4}'.format(*row))
      table.append(dict(zip(('what', 'official', 'agree', 'of', 'note'), row, strict=True)))
  vectors = []
  for row in vector_rows(args.official):
    print('{0:32} {2:5} stored {3:5}  {4}'.format(*row))
    vectors.append(dict(zip(('what', 'official', 'ours', 'stored', 'note'), row, strict=True)))
  if args.json:
    args.json.write_text(
      json.dumps({'commits': COMMITS, 'agreement': table, 'vectors': vectors}, indent=1, ensure_ascii=False) + '\n'
    )
  return 0 if all(row['agree'] == row['of'] for row in table) and all(v['ours'] == v['stored'] for v in vectors) else 1


if __name__ == '__main__':
  sys.exit(main())
