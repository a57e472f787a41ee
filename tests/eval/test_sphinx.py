"""The independent recogniser hears the words of its grammar, and nothing else."""

import pathlib
import sys

import pytest
from qwen3_omni_jax.eval import recognise
from qwen3_omni_jax.eval.benchmark import Item
from qwen3_omni_jax.eval.sphinx import Sphinx

pytest.importorskip('pocketsphinx', reason='NOT CHECKED: pocketsphinx is not installed')
PHRASE = pathlib.Path(__file__).parents[2] / 'examples' / 'nano' / 'stop_no_four_one_yes.wav'
WORDS = PHRASE.stem.split('_')


def test_it_hears_the_words_of_its_grammar_whatever_it_heard_before(samples):
  hear = Sphinx([*WORDS, 'left', 'Right'])
  assert hear(PHRASE).split() == WORDS
  hear(samples['audio'])
  assert hear(PHRASE).split() == WORDS and hear.words == sorted([*WORDS, 'left', 'right'])
  assert set(Sphinx(['left', 'close'])(PHRASE).split()) <= {'left', 'close'}


def test_words_that_its_dictionary_lacks_are_named():
  with pytest.raises(ValueError, match=r"lacks 'blorx', 'zwölf': .*--asr self"):
    Sphinx(['zwölf', 'one', 'blorx'])
  with pytest.raises(ValueError, match='2 more'):
    Sphinx(f'{letter}xqz' for letter in 'abcdefghijkl')
  with pytest.raises(ValueError, match='none are given'):
    Sphinx([])


def test_the_words_of_a_benchmark_are_those_of_all_its_texts():
  items = [Item('a', [], 'Stop, no!'), Item('b', [], 'four one yes.')]
  assert recognise.sphinx().prepare(None, items)([PHRASE]) == ['stop no four one yes']


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'pocketsphinx', None)
  with pytest.raises(ValueError, match=r'pip install .*\[eval\]'):
    Sphinx(['one'])
