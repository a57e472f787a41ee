"""Speech of a model that is being trained: what `evaluate.speech` keeps of it."""

import dataclasses
import io
import json
from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

from qwen3_omni_jax.infer.omni import Omni
from qwen3_omni_jax.shapes import Float


@dataclasses.dataclass(frozen=True)
class Sample:
  """A text as the model said it. sound: 'W', in [-1, 1] at rate_hz. finish_reason: of the speech. heard: by the model itself."""

  text: str
  sound: Float[np.ndarray, ' W']
  rate_hz: int
  finish_reason: str
  heard: str


Speak = Callable[[Omni], tuple[Sequence[Sample], dict[str, float]]]  # the samples of a step, and what is measured of them


def write_samples(folder: epath.Path, samples: Sequence[Sample]) -> None:
  """A wave file for each sample, 0.wav and so on, and heard.jsonl with the texts; what was there is replaced."""
  import soundfile

  folder.mkdir(parents=True, exist_ok=True)
  lines = []
  for i, sample in enumerate(samples):
    wave = io.BytesIO()
    soundfile.write(wave, sample.sound, sample.rate_hz, 'PCM_16', format='WAV')
    (folder / f'{i}.wav').write_bytes(wave.getvalue())
    lines.append({'file': f'{i}.wav', 'text': sample.text, 'heard': sample.heard, 'finish_reason': sample.finish_reason})
  (folder / 'heard.jsonl').write_text(''.join(json.dumps(line, ensure_ascii=False) + '\n' for line in lines))
