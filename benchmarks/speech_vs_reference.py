"""Speech on CPU beside transformers, in one run: the `small` random checkpoint, float32, two threads each.

    python benchmarks/speech_vs_reference.py [--checkpoint DIR]

Milliseconds per 80 ms frame of Talker + code predictor, of Code2Wav, and of both; then our own stream: real-time factor and time
to first audio with the share of each stage.
"""

import argparse
import time

import common
import numpy as np

FRAMES = 48


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--checkpoint', default=str(common.ROOT / '.cache' / 'small'))
  parser.add_argument('--repeats', type=int, default=3)
  args = parser.parse_args()
  circumstances = common.circumstances()
  folder = common.small_checkpoint(args.checkpoint)
  import jax.numpy as jnp
  import torch

  from qwen3_omni_jax import Omni
  from qwen3_omni_jax.infer import speech as device
  from tests.reference import Reference

  omni, reference = Omni.load(folder, dtype='float32'), Reference.load(folder)
  messages = [{'role': 'user', 'content': 'Please describe the image, the audio and the video in one short sentence.'}]
  batch = reference.inputs([messages])
  voice = omni.voice.without_guards()
  spoken = dict(max_new_tokens=8, stop_token_ids=(), speech=True, max_frames=FRAMES, talker_temperature=0, voice=voice)
  ours: dict[str, list[float]] = {'frames': [], 'wave': []}
  theirs: dict[str, list[float]] = {'frames': [], 'wave': []}

  def run_ours() -> None:
    reply = omni.generate([messages], **spoken)[0]
    codes = jnp.asarray(reply.speech.codes)[None]
    assert len(reply.speech.codes) == FRAMES
    ours['frames'].append(reply.timings['speech_s'])
    started = time.perf_counter()
    device.decode_wave(omni.params, omni.cfg, codes, dtype=omni.dtype).block_until_ready()
    ours['wave'].append(time.perf_counter() - started)

  def run_theirs() -> None:
    model, stamps = reference.model, {}
    decode, talk = model.code2wav.chunked_decode, model.talker.generate
    model.talker.generate = lambda *a, **k: _timed(lambda: talk(*a, **k), stamps, 'frames')
    model.code2wav.chunked_decode = lambda *a, **k: _timed(lambda: decode(*a, **k), stamps, 'wave')
    try:
      with torch.no_grad():
        model.generate(
          **batch, thinker_max_new_tokens=8, thinker_eos_token_id=-1, talker_max_new_tokens=FRAMES + 1, talker_do_sample=False
        )
    finally:
      model.code2wav.chunked_decode, model.talker.generate = decode, talk
    for name, seconds in stamps.items():
      theirs[name].append(seconds)

  common.side_by_side(run_ours, run_theirs, args.repeats)
  per_frame = lambda side, name: float(np.median(side[name][1:])) / FRAMES * 1e3  # the first run compiles
  # our speech_s counts the wave too: the reference's stages are apart
  our_wave, their_wave = per_frame(ours, 'wave'), per_frame(theirs, 'wave')
  our_frames, their_frames = per_frame(ours, 'frames') - our_wave, per_frame(theirs, 'frames')
  rows = {
    'Talker + code predictor, ms per frame': (our_frames, their_frames),
    'Code2Wav, ms per frame': (our_wave, their_wave),
    'both, ms per frame': (our_frames + our_wave, their_frames + their_wave),
  }
  for name, (a, b) in rows.items():
    print(f'{name:40s} ours {a:8.2f}   reference {b:8.2f}   {b / a:5.2f} times faster')

  stream = dict(spoken, stop_token_ids=())
  list(omni.stream(messages, **stream))  # compile
  *_, last = omni.stream(messages, **stream)
  seconds = last.timings
  rtf = seconds['total_s'] / last.reply.speech.duration_s
  print(
    f'stream: first token {seconds["first_token_s"] * 1e3:.0f} ms, first audio {seconds["first_audio_s"] * 1e3:.0f} ms, '
    f'real-time factor {rtf:.2f}'
  )
  share = our_wave / (our_wave + our_frames)
  table = {
    name: {'ours_ms': round(a, 3), 'reference_ms': round(b, 3), 'times_faster': round(b / a, 2)} for name, (a, b) in rows.items()
  }
  result = circumstances | {
    'checkpoint': 'small preset, float32, 2 threads each; medians',
    'frames': FRAMES,
    'rows': table,
    'stream': {
      'first_token_s': seconds['first_token_s'],
      'first_audio_s': seconds['first_audio_s'],
      'real_time_factor': round(rtf, 3),
    },
    'share_of_a_frame': {'Talker + code predictor': round(1 - share, 3), 'Code2Wav': round(share, 3)},
  }
  common.save('speech_vs_reference', result)


def _timed(run, stamps: dict[str, float], name: str):
  started = time.perf_counter()
  out = run()
  stamps[name] = time.perf_counter() - started
  return out


if __name__ == '__main__':
  main()
