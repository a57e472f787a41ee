"""The Thinker and its encoders on CPU beside transformers, in one run: the `small` random checkpoint, float32, two threads each.

    python benchmarks/cpu_vs_reference.py [--checkpoint DIR]

Prefill of 512 tokens, 64 decode steps after it, 30 s of audio, a 512×512 image; medians of runs taken in turns. Decoding is also
set against the machine's memory bandwidth: the bytes of the weights one token uses, over what a sum over memory reads.
"""

import argparse

import common
import numpy as np

PROMPT, STEPS = 512, 64


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--checkpoint', default=str(common.ROOT / '.cache' / 'small'))
  parser.add_argument('--repeats', type=int, default=5)
  args = parser.parse_args()
  circumstances = common.circumstances()
  folder = common.small_checkpoint(args.checkpoint)
  import jax

  from qwen3_omni_jax import Omni
  from tests.reference import Reference

  omni, reference = Omni.load(folder, dtype='float32', speech=False), Reference.load(folder)
  rows = {
    f'prefill, {PROMPT} tokens': common.side_by_side(*prefill(omni, reference), args.repeats),
    'decode, per token': tuple(s / STEPS for s in common.side_by_side(*decode(omni, reference), args.repeats)),
    'audio encoder, 30 s': common.side_by_side(*audio(omni, reference), args.repeats),
    'vision encoder, 512×512': common.side_by_side(*vision(omni, reference), args.repeats),
  }
  table = {
    name: {'ours_ms': round(a * 1e3, 2), 'reference_ms': round(b * 1e3, 2), 'times_faster': round(b / a, 2)}
    for name, (a, b) in rows.items()
  }
  for name, row in table.items():
    print(f'{name:26s} ours {row["ours_ms"]:8.2f} ms   reference {row["reference_ms"]:8.2f} ms   {row["times_faster"]:5.2f} ×')
  bandwidth = common.read_bandwidth()
  limit = active_bytes(omni) / bandwidth
  ratio = rows['decode, per token'][0] / limit
  print(
    f'memory: {bandwidth / 1e9:.1f} GB/s read, {active_bytes(omni) / 1e6:.0f} MB a token: at best {limit * 1e3:.2f} ms, '
    f'ours takes {ratio:.2f} times that'
  )
  result = circumstances | {
    'checkpoint': 'small preset, float32, 2 threads each; medians',
    'rows': table,
    'memory_limit': {
      'read_gb_per_s': round(bandwidth / 1e9, 2),
      'bytes_per_token': active_bytes(omni),
      'decode_floor_ms': round(limit * 1e3, 3),
      'decode_over_floor': round(ratio, 2),
    },
    'jax_devices': str(jax.devices()),
  }
  common.save('cpu_vs_reference', result)


def prompt(omni):
  """Our inputs of a text prompt of exactly PROMPT tokens."""
  from qwen3_omni_jax.media.inputs import ModelInputs

  ids = np.random.default_rng(0).integers(0, 1000, PROMPT).astype(np.int32)
  return ModelInputs(ids, np.broadcast_to(np.arange(PROMPT, dtype=np.float32), (3, PROMPT)))


def prefill(omni, reference):
  import torch

  from qwen3_omni_jax.infer.omni import _Row
  from qwen3_omni_jax.infer.sampling import Sampling

  inputs = prompt(omni)
  ids = torch.tensor(inputs.ids, dtype=torch.long)[None]

  def ours():
    list(omni._run([_Row(inputs, Sampling(), 1)], ()))

  def theirs():
    with torch.no_grad():
      reference.model.thinker(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)

  return ours, theirs


def decode(omni, reference):
  """Seconds of STEPS decode steps alone: both sides prefill first and only the steps are waited for."""
  import torch

  from qwen3_omni_jax.infer.omni import _Row
  from qwen3_omni_jax.infer.sampling import Sampling

  inputs = prompt(omni)
  ids = torch.tensor(inputs.ids, dtype=torch.long)[None]

  def ours():
    runs = omni._run([_Row(inputs, Sampling(), STEPS + 1)], (), steps_per_call=STEPS)
    next(runs)
    return lambda: list(runs)

  def theirs():
    thinker = reference.model.thinker
    with torch.no_grad():
      out = thinker(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)

    def steps():
      cache, token, mask = out.past_key_values, out.logits[:, -1:].argmax(-1), torch.ones_like(ids)
      with torch.no_grad():
        for i in range(STEPS):
          mask = torch.nn.functional.pad(mask, (0, 1), value=1)
          at = torch.full((3, 1, 1), PROMPT + i)
          step = thinker(input_ids=token, attention_mask=mask, position_ids=at, past_key_values=cache, use_cache=True)
          cache, token = step.past_key_values, step.logits[:, -1:].argmax(-1)

    return steps

  return ours, theirs


def audio(omni, reference):
  import jax
  import torch

  from qwen3_omni_jax.infer import decode as device
  from qwen3_omni_jax.infer.collate import _pack_audio
  from qwen3_omni_jax.media.audio import log_mel
  from qwen3_omni_jax.media.inputs import Audio

  mel = log_mel(np.random.default_rng(0).standard_normal(30 * 16_000).astype(np.float32))
  groups, _ = _pack_audio([Audio(mel, 100)], omni.cfg.thinker)
  features, lengths = torch.tensor(mel.T.copy()), torch.tensor([len(mel)])

  def ours():
    jax.block_until_ready([device.encode_audio_windows(omni.params['audio'], omni.cfg.thinker, g, omni.dtype) for g in groups])

  def theirs():
    with torch.no_grad():
      reference.model.thinker.model.audio_tower(features, feature_lens=lengths)

  return ours, theirs


def vision(omni, reference):
  import jax
  import torch

  from qwen3_omni_jax.infer import decode as device
  from qwen3_omni_jax.infer.collate import _pack_visual
  from qwen3_omni_jax.media.image import image_patches
  from qwen3_omni_jax.media.inputs import Visual

  pixels = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
  patches, grid = image_patches(pixels, omni.processor.images)
  groups, _ = _pack_visual([Visual(patches, grid, 'image')], omni.cfg.thinker)
  values, grids = torch.tensor(patches), torch.tensor([grid])

  def ours():
    jax.block_until_ready([device.encode_visual_frames(omni.params['vision'], omni.cfg.thinker, g, omni.dtype) for g in groups])

  def theirs():
    with torch.no_grad():
      reference.model.thinker.model.visual(values, grid_thw=grids)

  return ours, theirs


def active_bytes(omni) -> int:
  """Bytes of the weights one decoded token uses: everything but the embedding table and the experts not chosen."""
  import jax

  text, params = omni.cfg.thinker.text, omni.params['thinker']
  experts = sum(x.nbytes for x in jax.tree.leaves(params['layers']['moe']['experts']))
  rest = sum(x.nbytes for x in jax.tree.leaves(params)) - experts - params['embed'].nbytes
  return rest + experts * text.num_experts_per_tok // text.num_experts


if __name__ == '__main__':
  main()
