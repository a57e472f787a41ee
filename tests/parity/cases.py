"""The conversations every comparison with the reference uses."""

import numpy as np
import soundfile
from qwen3_omni_jax.tools.sample_media import melody, shapes


def make_media(folder, samples) -> dict[str, str]:
  """Paths of media beyond the demo's: a short and a long sound, a second picture."""
  from PIL import Image

  folder.mkdir(parents=True, exist_ok=True)
  soundfile.write(folder / 'short.wav', melody(1.37)[:, 0], 22_050)
  noise = np.random.default_rng(0).standard_normal(31 * 16_000) * 0.05
  soundfile.write(folder / 'long.wav', noise, 16_000)
  Image.fromarray(shapes(90, 170, 0.8)).save(folder / 'wide.png')
  paths = {name: str(path) for name, path in samples.items()}
  return paths | {name: str(folder / file) for name, file in (('short', 'short.wav'), ('long', 'long.wav'), ('wide', 'wide.png'))}


def conversations(media: dict[str, str]) -> dict[str, tuple[list, bool]]:
  """{name: (messages, audio_in_video)}"""
  kind_of = {'audio': 'audio', 'short': 'audio', 'long': 'audio', 'image': 'image', 'wide': 'image', 'video': 'video'}
  part = lambda name: {'type': kind_of[name], kind_of[name]: media[name]}
  text = lambda words: {'type': 'text', 'text': words}
  user = lambda *parts: {'role': 'user', 'content': list(parts)}
  return {
    'text': ([user(text('Say hello to the small dog.'))], False),
    'one audio': ([user(part('audio'), text('What do you hear?'))], False),
    'two audios, padded': ([user(part('audio'), text('and'), part('short'))], False),
    'audio over 30 s': ([user(part('long'), text('What is it?'))], False),
    'image': ([user(part('image'), text('What do you see?'))], False),
    'two images': ([user(part('image'), part('wide'), text('Compare.'))], False),
    'video': ([user(part('video'), text('What happens?'))], False),
    'audio in video': ([user(part('video'), text('What happens?'))], True),
    'image + video': ([user(part('image'), text('then'), part('video'))], False),
    'mixed, several turns': (
      [
        {'role': 'system', 'content': 'You are a helpful assistant.'},
        user(part('video'), text('What is it?')),
        {'role': 'assistant', 'content': 'A red disc.'},
        user(text('And here?'), part('audio'), part('wide'), text('Speak.')),
      ],
      False,
    ),
  }
