"""An independent recogniser: PocketSphinx with its English acoustic model and a grammar of the words that may occur.

    hear = Sphinx(['one', 'two', 'three'])
    hear(pathlib.Path('spoken.wav'))  # 'two one'

It knows nothing of the models of this project, and comes in a package (`pip install pocketsphinx`). It is a weak judge of
synthetic voices: compare its error rate with the one that it has on the recordings that a voice was learnt from.
"""

import pathlib
from collections.abc import Iterable

import numpy as np

from qwen3_omni_jax.media.audio import RATE_HZ, load_audio

# Faint noise of always the same seed, as any microphone adds it: digital silence has no logarithm, and disturbs the mean that is
# taken from the cepstra.
NOISE = 1e-3
_NAMED = 10  # words that an error lists


class Sphinx:
  """Wave file -> any sequence of the given words, in lower case. What it hears does not depend on what it has heard before.

  Raises ValueError without the package, and for words that its dictionary lacks.
  """

  def __init__(self, words: Iterable[str]):
    try:
      import pocketsphinx
    except ImportError as e:
      raise ValueError("the recogniser sphinx needs pocketsphinx: pip install 'qwen3-omni-jax[eval]'") from e
    self.words = sorted({word.lower() for word in words})
    if not self.words:
      raise ValueError('the recogniser sphinx needs words to listen for; none are given')
    # cmn='batch': the mean of this utterance, not one that runs on from those before it
    self._decoder = pocketsphinx.Decoder(lm=None, samprate=RATE_HZ, cmn='batch', loglevel='FATAL')
    if unknown := [word for word in self.words if not word.strip() or self._decoder.lookup_word(word) is None]:
      more = f' and {len(unknown) - _NAMED} more' if len(unknown) > _NAMED else ''
      raise ValueError(
        f'the dictionary of pocketsphinx lacks {", ".join(map(repr, unknown[:_NAMED]))}{more}: it is for English words, '
        'one by one; use another recogniser (--asr self, or --transcripts)'
      )
    self._decoder.add_jsgf_string('words', f'#JSGF V1.0;\ngrammar words;\npublic <words> = ( {" | ".join(self.words)} )+;\n')
    self._decoder.activate_search('words')

  def __call__(self, wave: pathlib.Path) -> str:
    sound = load_audio(wave)
    sound = sound + np.random.default_rng(0).normal(0, NOISE, len(sound))
    self._decoder.start_utt()
    self._decoder.process_raw((np.clip(sound, -1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
    self._decoder.end_utt()
    found = self._decoder.hyp()
    return '' if found is None else found.hypstr
