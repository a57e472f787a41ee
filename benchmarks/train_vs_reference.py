"""Forward and backward of a training step beside transformers, in one run: `small`, 1 x 512 tokens, float32, two threads each.

    python benchmarks/train_vs_reference.py [--checkpoint DIR] [--repeats N]

Loss and the gradient of every parameter of the Thinker, with its load-balance loss, medians of runs taken in turns. Then a real
run of `qwen3-omni train` on rows of the same length, for the share of its time that steps wait for data.
"""

import argparse
import functools
import json
import pathlib
import tempfile

import common
import numpy as np

TOKENS, STEPS = 512, 12


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--checkpoint', default=str(common.ROOT / '.cache' / 'small'))
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--remat', default='none')
  parser.add_argument('--only', choices=('step', 'input'))
  args = parser.parse_args()
  result = common.circumstances() | {'what': f'small preset, 1 x {TOKENS} tokens, float32, 2 threads each; medians'}
  folder = common.small_checkpoint(args.checkpoint)
  if args.only != 'input':
    result['forward_and_backward'] = beside(folder, args.remat, args.repeats)
    print(json.dumps(result['forward_and_backward']), flush=True)
  if args.only != 'step':
    result['input'] = idle(folder)
    print(json.dumps(result['input']), flush=True)
  if args.only is None:
    common.save('train_vs_reference', result)


def beside(folder: pathlib.Path, remat: str, repeats: int) -> dict:
  """Seconds of both sides; ValueError where their losses differ."""
  import jax
  import torch
  from qwen3_omni_jax.train.batch import TrainBatch
  from qwen3_omni_jax.train.config import Loss, Part, Recipe, Step
  from qwen3_omni_jax.train.state import assign_roles, flatten
  from qwen3_omni_jax.train.step import loss_sums

  from qwen3_omni_jax.config_json import load_config
  from qwen3_omni_jax.infer.collate import Media
  from qwen3_omni_jax.models.thinker import ThinkerTokens
  from qwen3_omni_jax.weights.load import load_params
  from tests.reference import Reference

  cfg, reference = load_config(folder), Reference.load(folder)
  loss = Loss(balance_form='reference')  # of all layers together, as transformers has it
  recipe = Recipe(parts=(Part('thinker', 1e-3),), loss=loss, step=Step(dtype='float32', remat=remat))
  params = flatten(load_params(folder, cfg, dtype='float32', parts=('thinker',)))
  trainable = {path: jax.numpy.asarray(p) for path, p in params.items()}
  ids = np.random.default_rng(0).integers(0, 1000, (1, TOKENS)).astype(np.int32)
  place = np.broadcast_to(np.arange(TOKENS, dtype=np.float32), (3, 1, TOKENS))
  none = np.full_like(ids, -1)
  tokens = ThinkerTokens(ids=ids, positions=place, segment=np.ones_like(ids), audio_index=none, visual_index=none)
  weights = np.ones(ids.shape, np.float32)
  weights[:, -1] = 0
  batch = jax.tree.map(jax.numpy.asarray, TrainBatch(tokens, Media(), np.roll(ids, -1, 1), weights, np.zeros_like(ids)))
  sums_fn = functools.partial(loss_sums, cfg=cfg, recipe=recipe, roles=assign_roles(cfg, recipe))
  gradient = jax.jit(jax.value_and_grad(sums_fn, has_aux=True))
  theirs_ids = torch.tensor(ids, dtype=torch.long)
  thinker = reference.model.thinker

  def ours():
    (loss, sums), grads = jax.block_until_ready(gradient(trainable, {}, batch))
    del grads
    return float(loss / sums['weight'])

  def theirs():
    thinker.zero_grad(set_to_none=True)
    mask = torch.ones_like(theirs_ids)
    out = thinker(input_ids=theirs_ids, attention_mask=mask, labels=theirs_ids, output_router_logits=True)
    out.loss.backward()
    return out.loss.item()

  a, b = ours(), theirs()
  if abs(a - b) > 1e-4 * abs(b):
    raise ValueError(f'losses differ: {a} here, {b} there')
  seconds = common.side_by_side(ours, theirs, repeats)
  return {
    'remat': remat,
    'loss': round(a, 5),
    'ours_ms': round(seconds[0] * 1e3, 1),
    'reference_ms': round(seconds[1] * 1e3, 1),
    'times_faster': round(seconds[1] / seconds[0], 2),
  }


def idle(folder: pathlib.Path) -> dict:
  """What steps of a run waited for data, of all their time; the first two steps, which compile, left out."""
  from qwen3_omni_jax.train.config import Run
  from qwen3_omni_jax.train.config_file import read
  from qwen3_omni_jax.train.run import train

  from tests.train.records import write_records

  with tempfile.TemporaryDirectory() as place:
    records, out = write_records(pathlib.Path(place) / 'data'), pathlib.Path(place) / 'run'
    train(
      read(
        Run,
        None,
        [
          f'model={folder}',
          f'out={out}',
          'mesh=single',
          f'steps={STEPS}',
          f'save.every={STEPS}',
          'log.tensorboard=false',
          'step={dtype: float32, remat: none, encoder_remat: none}',
          'parts=[{pattern: thinker/, lr: 1e-4}]',
          'data='
          + json.dumps(
            {
              'rows': 1,
              'length': TOKENS,
              'audio_s': 16,
              'visual_patches': 256,
              'visual_row': 256,
              'buffer': 32,
              'max_image_pixels': 4096,
              'sources': [{'path': str(records)}],
            }
          ),
        ],
      )
    )
    lines = [json.loads(line) for line in (out / 'metrics.jsonl').read_text().splitlines()][2:-1]  # the last one also saves
  total = lambda name: sum(line[name] for line in lines)
  return {
    'steps': len(lines),
    'records_a_step': round(total('records') / len(lines), 1),
    'padding': round(total('padding') / len(lines), 3),
    'step_ms': round(1e3 * total('step_s') / len(lines), 1),
    'waited_for_data_ms': round(1e3 * total('input_s') / len(lines), 3),
    'idle_share': round(total('input_s') / total('step_s'), 5),
  }


if __name__ == '__main__':
  main()
