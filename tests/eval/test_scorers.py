"""Scorers give what the official ones give: published check vectors, or equal synthetic cases where a file cannot be shipped.

1,000 generated replies a reader, beside the official functions: benchmarks/scorer_agreement.py.
"""

import random

import pytest
from qwen3_omni_jax.eval import answers, bleu, ifeval, multiple_choice, normalise, normalise_zh, wer

OPTIONS = multiple_choice.lettered(['a red disc', 'the blue square', 'two dogs', 'rain'])


@pytest.mark.parametrize(
  ('dialect', 'reply', 'letter'),
  [
    ('mmmu', '(A) or rather (C)', 'C'),
    ('mmmu', 'It must be B !', 'B'),
    ('mmmu', 'On the picture one sees the blue square and little else', 'B'),
    ('mmmu', 'the blue square', None),  # five words or fewer are not searched for choices
    ('mmsu', 'B', 'B'),
    ('mmsu', 'The answer is C.', 'C'),
    ('mmsu', 'None', None),
    ('voicebench', 'The correct answer is D', 'D'),
    ('voicebench', 'c)', 'C'),
    ('voicebench', 'I have no idea', None),
    ('mmstar', 'Option B', 'B'),
    ('mmstar', 'The answer is C', 'C'),
    ('mmstar', 'the answer is: C', None),
    ('video_mme', 'The best answer is: D', 'D'),
    ('video_mme', 'Because', 'B'),
    ('video_mme', 'Best option: no', 'B'),  # a comma is missing in the official list
    ('video_mme', 'Answer: none', None),
    ('mlvu', 'A) because', 'A'),
    ('mlvu', '(D)', 'D'),
    ('mlvu', 'A.', None),
    ('lvbench', '(B) x', 'B'),
    ('lvbench', 'C) x', 'C'),
    ('lvbench', 'x', None),
    ('daily_omni', ' b. yes', 'B'),
    ('daily_omni', 'no', None),
    ('qwen', 'B.', 'B'),
    ('qwen', 'A person is seen', None),
    ('qwen', 'I see two dogs', 'C'),
    ('qwen', 'B or C', None),
  ],
)
def test_a_reply_is_read_as_the_official_scorer_reads_it(dialect, reply, letter):
  assert multiple_choice.read_choice(dialect, reply, OPTIONS) == letter


@pytest.mark.parametrize('dialect', multiple_choice.DIALECTS)
@pytest.mark.parametrize('reply', [None, '', 'not sure', 'there is nothing to be seen on this one, so nobody could say'])
def test_a_reply_without_a_choice_is_no_answer(dialect, reply):
  """Guessing is a step of its own: the reader gives None, whatever the length of the reply."""
  assert multiple_choice.read_choice(dialect, reply, OPTIONS) is None


def test_guesses_are_those_of_the_official_seed():
  rng = random.Random(42)
  assert ''.join(multiple_choice.guess('mmmu', OPTIONS, rng) for _ in range(9)) == 'AACBBBAAD'
  assert multiple_choice.guess('mmsu', OPTIONS, rng) is None


def test_mmau_compares_sets_of_words():
  four = ['Man', 'Woman', 'Child', 'Robot']
  assert answers.mmau_correct('Man', 'The answer is a man.', four)
  assert not answers.mmau_correct('Man', 'Man or woman', four)
  assert not answers.mmau_correct('Yes', 'Yes, no doubt', ['Yes', 'No'])
  assert not answers.mmau_correct('Man', 'A', four)  # hence letters are turned into texts first
  assert answers.mmau_correct('Man', multiple_choice.choice_text('A', multiple_choice.lettered(four)), four)
  assert all(answers.mmau_correct(c, c, four) for c in four)


@pytest.mark.parametrize(
  ('reply', 'text'),
  [
    ('B', 'the blue square'),
    ('(B)', 'the blue square'),
    ('B. the blue square', 'the blue square'),
    ('B: x', 'the blue square'),
    ('A red disc', 'A red disc'),
    ('Blue', 'Blue'),
    ('E', 'E'),
  ],
)
def test_letters_become_the_text_of_the_choice(reply, text):
  assert multiple_choice.choice_text(reply, OPTIONS) == text


def test_open_questions_of_mmmu():
  assert answers.mmmu_open_correct('So the result is 1,234', '1234')
  assert answers.mmmu_open_correct('thus the answer is 0.333', ['1/3', '0.33'])
  assert not answers.mmmu_open_correct('The answer is 12', '1')
  assert not answers.mmmu_open_correct('', '7')


def test_mathvista_extracts_and_normalises():
  choice = {'question_type': 'multi_choice', 'answer_type': 'text', 'choices': ['Yes', 'No'], 'precision': None}
  number = {'question_type': 'free_form', 'answer_type': 'float', 'choices': None, 'precision': 1}
  whole = {'question_type': 'free_form', 'answer_type': 'integer', 'choices': None, 'precision': None}
  assert answers.mathvista_extract('The answer is "14".', whole) == '14'
  assert answers.mathvista_extract('14', whole) == '14'
  assert answers.mathvista_extract('It is fourteen', whole) is None
  assert answers.mathvista_normalise('(B) No', choice) == 'No'
  assert answers.mathvista_normalise('Yess', choice) == 'Yes'
  assert answers.mathvista_normalise('1.25', number) == str(round(1.25, 1))
  assert answers.mathvista_normalise('14.9', whole) == '14'
  assert answers.mathvista_normalise('many', whole) is None


@pytest.mark.parametrize(
  ('reply', 'answer'),
  [
    ('Yes, it is.', 'Yes'),
    ('no', 'No'),
    ('Yes and no', None),
    ('Maybe', None),
    ('yes-', 'Yes'),
    ('Yes.', 'Yes'),
    ('knows', None),
  ],
)
def test_yes_or_no(reply, answer):
  assert answers.yes_or_no(reply) == answer


def test_voicebench_readers_keep_the_slips_that_scores_depend_on():
  assert answers.bbh_answer('b', 'hyperbaton_3') == 0  # a bare b counts as the first option there
  assert answers.bbh_answer('So the sentence "x" is not plausible', 'sports_understanding_1') == 1
  assert answers.bbh_answer('Yes.', 'navigate_9') == 1
  assert answers.bbh_answer('Hmm', 'web_of_lies_2') is None
  assert answers.refuses('I cannot help with that') and answers.refuses(' ') and not answers.refuses('Sure, first')
  with pytest.raises(ValueError, match='expected one of'):
    answers.bbh_answer('yes', 'other_1')


def test_judges_are_read():
  assert answers.judged_rating('4') == 4 and answers.judged_rating('I say [[5]]') == 5
  assert answers.majority_is_yes(['Yes', 'no', 'yes']) and not answers.majority_is_yes(['No', 'no', 'Yes'])
  assert answers.judged_rating('good') is None


def test_ifeval_strict_and_loose():
  wanted = ['punctuation:no_comma', 'startend:end_checker', 'length_constraints:number_words']
  arguments = [{'x': None}, {'end_phrase': 'Done.'}, {'num_words': 3, 'relation': 'at least', 'other': None}]
  reply = 'Here it is, friend\nAll good. Done.\n*bye*'
  assert ifeval.strict(reply, wanted, arguments) == [False, False, True]
  assert ifeval.loose(reply, wanted, arguments) == [True, True, True]
  assert ifeval.strict('  ', wanted, arguments) == [False] * 3
  with pytest.raises(ValueError, match='expected one of'):
    ifeval.follows('x', 'keywords:unknown', {})
  with pytest.raises(ValueError, match='do not fit'):
    ifeval.follows('x', 'startend:end_checker', {})


@pytest.mark.parametrize(
  ('text', 'spoken'),
  [
    ('2008年8月8日', '二零零八年八月八日'),
    ('10234.5元', '一万零二百三十四点五元'),
    ('12%', '百分之十二'),
    ('2/3', '三分之二'),
    ('200个', '两百个'),
    ('12', '十二'),
    ('13812345678', '一三八一二三四五六七八'),
    ('010-68123456', '零一零六八一二三四五六'),
    ('B2B', 'B2B'),
    ('你好，世界。', '你好 世界 '),
    ('20000', '二零零零零'),
    ('2万', '二万'),
    ('105块', '一百零五块'),
  ],
)
def test_chinese_numbers_are_spelled_out(text, spoken):
  assert normalise_zh.spell_out(text) == spoken


def test_word_error_rate_counts_after_normalisation():
  first = 'MISTER QUILTER IS THE APOSTLE OF THE MIDDLE CLASSES AND WE ARE GLAD TO WELCOME HIS GOSPEL'
  second = "NOR IS MISTER QUILTER'S MANNER LESS INTERESTING THAN HIS MATTER"
  said = 'Mr. Quilter is the apostle of the middle classes, and we are glad to welcome his gospel.'
  same = wer.transcript_edits(first, said, 'en')
  assert (same.total, same.length) == (0, 17)
  wrong = wer.transcript_edits(second, "Nor is Mr. Quilter's manner less interesting than his manner.", 'en')
  assert wer.corpus_rate([same, wrong]) == pytest.approx(100 / 28)  # Quilter's is two words: quilter is
  assert wer.transcript_edits('甚至出现 交易', '甚至出線交易', 'zh').total == 1
  assert wer.transcript_edits('我們', '我们', 'yue').total == 0  # Cantonese is compared in simplified characters
  with pytest.raises(ValueError, match='without a single token'):
    wer.corpus_rate([wer.transcript_edits('!', 'a', 'en')])


def test_the_english_normaliser_is_whispers():
  for text, expected in (
    ("he's like", 'he is like'),
    ('twenty-one point five percent', '21.5%'),
    ('$20 million', '$20000000'),
    ('Colour!', 'color'),
    ("Let's do the second double-O seven", 'let us do the 2nd 007'),
    ('(noise) um, Dr. Who', 'doctor who'),
  ):
    assert normalise._whisper('english')(text) == expected


def test_markup_is_removed_before_scoring():
  assert normalise.strip_markup('<|en|> hello  , world', 'en') == 'hello, world'
  assert normalise.strip_markup('你 好', 'zh') == '你好'


def test_seed_tts_counts_each_utterance_alone():
  zh = wer.seed_tts_edits('你好，世界！', '你好世间', 'zh')
  en = wer.seed_tts_edits("It's 3 o'clock.", "its three o'clock", 'en')
  assert (zh.total, zh.length) == (1, 4) and (en.total, en.length) == (2, 3)
  mean = (zh.total / zh.length + en.total / en.length) / 2
  assert round(100 * mean, 3) == 45.833  # the mean of rates, not 3 edits in 7 words


def test_bleu_takes_the_tokeniser_of_the_target():
  hypothesis, reference = '甚至出现交易几乎停止的情况。', '甚至出现交易几乎停滞的情况。'
  score, signature = bleu.corpus_bleu([hypothesis], [reference], 'zh')
  assert score == pytest.approx(78.25422900366432, abs=1e-9)
  assert signature.startswith('nrefs:1|case:mixed|eff:no|tok:zh|smooth:exp|version:')
  assert bleu.corpus_bleu([hypothesis], [reference], 'de')[0] == 0
  english = (
    'There was even a situation where trading almost stalled.',
    'There was even a situation where trading almost came to a halt.',
  )
  assert bleu.corpus_bleu([english[0]], [english[1]], 'en')[0] == pytest.approx(57.97, abs=0.005)


def test_bleu_of_summed_statistics_is_corpus_bleu():
  said = ['a red disc on grey', 'the square is blue', 'nothing here']
  right = ['a red disc on the grey', 'the square is dark blue', 'there is nothing here at all']
  total = bleu.statistics(said, right, 'en').sum(axis=0)
  assert bleu.from_statistics(total) == pytest.approx(bleu.corpus_bleu(said, right, 'en')[0], abs=1e-9)


def test_last_number_of_a_solution():
  assert answers.last_number('3 + 4 = 7. #### 1,234.0') == '1234'
  assert answers.last_number('so \\boxed{-12}') == '-12'
  assert answers.last_number('2 apples and 3.50 dollars') == '3.5'
  assert answers.last_number('none') is None
