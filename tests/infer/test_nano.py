"""The trained model that comes with the project hears and sees what it was never trained on."""

import pathlib

from qwen3_omni_jax import Omni

NANO = pathlib.Path(__file__).parents[2] / 'examples' / 'nano'


def asked(kind: str, file: str, text: str) -> list[dict]:
  return [{'role': 'user', 'content': [{'type': kind, kind: str(NANO / file)}, {'type': 'text', 'text': text}]}]


def test_the_trained_model_writes_down_held_out_speech_and_names_a_held_out_picture():
  omni = Omni.load(NANO / 'model', dtype='float32', speech=False)
  speech = asked('audio', 'stop_no_four_one_yes.wav', 'Write down the words.')
  picture = asked('image', 'three_red_triangles.png', 'What is there?')
  heard, seen = omni.generate([speech, picture], max_new_tokens=8)
  assert (heard.text, heard.finish_reason) == ('stop no four one yes', 'stop')
  assert (seen.text, seen.finish_reason) == ('three red triangles', 'stop')
