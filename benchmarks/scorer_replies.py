"""Replies and transcripts generated from a seed, in the forms of models and in forms that are hard to read."""

import random

CHOICES = ('a red disc', 'the blue square', 'two dogs barking', 'man', 'woman', '12', '3.5', 'yes', 'A major', 'rain on a roof')


def generated_replies(number: int, seed: int, phrases: list[str]) -> list[tuple[str, list[str]]]:
  """(reply, choices) pairs of the forms that models give: bare letters, sentences, markdown, reasoning, noise, nothing."""
  rng = random.Random(seed)
  forms = (
    '{L}',
    '{l}',
    '({L})',
    '{L}.',
    '{L})',
    '{L}. {c}',
    '({L}) {c}',
    '{c}',
    '{C}',
    'The answer is {L}.',
    'The answer is ({L}) {c}.',
    'The best answer is: {L}',
    'Answer: {L}',
    'Option {L}',
    'option {l}',
    '**{L}**',
    'the correct answer is **{L}. {c}**',
    'I think it is {c}, so the answer must be {L}',
    'Both {L} and {M} are possible, but {M} is better.',
    '{L} or {M}',
    '{L},{M}',
    'A person says {c}.',
    'A',
    'Sorry, I cannot tell.',
    '',
    ' ',
    '\n{L}\n',
    'None',
    'Z',
    '{L}{M}',
    'Based on the audio, {c} is heard; ({M})',
    "I can't process this file.",
    'Cannot determine the answer',
    'Best option:{L}',
    'The best option is {L}',
    'It is {c} and not {d}.',
    'First, {c}. Then, {d}. Therefore {L}',
    '答案是{L}',
    '选{L}',
    'E',
    'X) {L}',
    '){L}',
    '(',
    'Yes',
    'no',
    'Yes, {c}',
    'No. {c}',
    'yes and no',
    'My answer: <{L}>',
    '{L}: {c}',
    'would be {l}.',
    '\\boxed{{{L}}}',
    '  {l} ',
    'The answer is "{c}".',
    '{n}',
    '{n}.0',
    '-{n}',
    '{n},000',
    'x = {n}',
    'The result is {n}.',
    'so the total is {n} cm\nfinal answer {m}',
    '{n}e3',
    'thus {c}',
    'So the answer is ',
  )
  out = []
  for _ in range(number):
    choices = rng.sample(CHOICES, 4)
    i, j = rng.sample(range(4), 2)
    values = {
      'L': 'ABCD'[i],
      'l': 'abcd'[i],
      'M': 'ABCD'[j],
      'c': choices[i],
      'C': choices[i].title(),
      'd': choices[j],
      'n': str(rng.choice((rng.randrange(100), round(rng.uniform(0, 100), 3)))),
      'm': str(rng.randrange(2000)),
    }
    reply = rng.choice(forms).format(**values)
    if phrases and rng.random() < 0.5:
      phrase = rng.choice(phrases).replace('[CHOICE]', rng.choice('abcdABCD')).replace('(.+?)', rng.choice(CHOICES))
      reply = ' '.join(rng.sample([phrase, reply], 2)) if rng.random() < 0.5 else phrase
    out.append((reply, choices))
  return out


def chinese_piece(rng: random.Random) -> str:
  n = rng.randrange(10 ** rng.randrange(1, 12))
  return rng.choice(
    (
      f'{n}',
      f'{n}.{rng.randrange(1000)}',
      f'{rng.randrange(1, 13)}月{rng.randrange(1, 31)}日',
      f'{rng.randrange(1900, 2100)}年{rng.randrange(1, 13)}月',
      f'{n}元',
      f'{n}万元',
      f'{rng.randrange(100)}块{rng.randrange(10)}毛',
      f'{n}%',
      f'{rng.randrange(100)}.{rng.randrange(100)}％',
      f'{n}个',
      f'{rng.randrange(99)}/{rng.randrange(1, 99)}',
      '13812345678',
      '+86 13812345678',
      '010-68123456',
      '0755-8123456',
      f'{n}多公里',
      f'{n}千克',
      'B2B',
      '今天',
      '，',
      '。',
      '“你好”',
      'hello ',
      ' ',
      '的',
      '們',
      '00',
      f'0{n}',
      '2',
      '22',
      '200',
      '2000',
      '12',
      '110',
      '1010',
      f'{rng.randrange(80, 100)}年',
      '、',
      '~',
      '-',
    )
  )


def english_text(rng: random.Random) -> str:
  words = (
    'Mr. Quilter',
    'is',
    'the',
    "apostle's",
    '$20.5',
    'twenty-one',
    "won't",
    'colour',
    '(noise)',
    'um',
    'and',
    '3rd',
    'cafés',
    '!',
    ',',
    '"',
    'it’s',
    '1,000',
    'half',
    'double oh seven',
  )
  return ' '.join(rng.choice(words) for _ in range(rng.randrange(1, 9)))


# For the instructions of IFEval: pieces of replies, and arguments of each instruction.
WORDS = ('ocean', 'cat', 'Sun', 'answer', 'LOUD', 'WORDS', 'die', 'und', 'Straße', 'is')
RELATION = ('less than', 'at least')
ARGUMENTS = {
  'keywords:existence': lambda r: {'keywords': r.sample(WORDS, 2)},
  'keywords:frequency': lambda r: {'keyword': r.choice(WORDS), 'frequency': r.randrange(1, 4), 'relation': r.choice(RELATION)},
  'keywords:forbidden_words': lambda r: {'forbidden_words': r.sample(WORDS, 2)},
  'keywords:letter_frequency': lambda r: {
    'letter': r.choice('aeS'),
    'let_frequency': r.randrange(1, 9),
    'let_relation': r.choice(RELATION),
  },
  'language:response_language': lambda r: {'language': r.choice(('en', 'de'))},
  'length_constraints:number_sentences': lambda r: {'num_sentences': r.randrange(1, 5), 'relation': r.choice(RELATION)},
  'length_constraints:number_paragraphs': lambda r: {'num_paragraphs': r.randrange(1, 4)},
  'length_constraints:number_words': lambda r: {'num_words': r.randrange(3, 20), 'relation': r.choice(RELATION)},
  'length_constraints:nth_paragraph_first_word': lambda r: {
    'num_paragraphs': 2,
    'nth_paragraph': r.randrange(1, 3),
    'first_word': r.choice(WORDS),
  },
  'detectable_content:number_placeholders': lambda r: {'num_placeholders': r.randrange(1, 4)},
  'detectable_content:postscript': lambda r: {'postscript_marker': r.choice(('P.S.', 'P.P.S'))},
  'detectable_format:number_bullet_lists': lambda r: {'num_bullets': r.randrange(1, 4)},
  'detectable_format:number_highlighted_sections': lambda r: {'num_highlights': r.randrange(1, 4)},
  'detectable_format:multiple_sections': lambda r: {
    'section_spliter': r.choice(('Section', 'SECTION')),
    'num_sections': r.randrange(1, 4),
  },
  'combination:repeat_prompt': lambda r: {'prompt_to_repeat': r.choice(WORDS)},
  'startend:end_checker': lambda r: {'end_phrase': r.choice(WORDS)},
  'change_case:capital_word_frequency': lambda r: {
    'capital_frequency': r.randrange(1, 4),
    'capital_relation': r.choice(RELATION),
  },
}
PIECES = (
  'the cat is in the ocean',
  'Sun. ',
  'answer! ',
  'LOUD WORDS',
  '\n\n',
  '\n',
  '***',
  '* ',
  '- ',
  '**bold**',
  '*x*',
  '[name]',
  '<<T>>',
  '"',
  'P.S. bye',
  'p. p. s. ',
  'Section 1',
  '******',
  '{"a": 1}',
  '```json',
  '```',
  ', ',
  'die Straße und der Hund sind hier',
  ' ',
  'My answer is yes.',
)
