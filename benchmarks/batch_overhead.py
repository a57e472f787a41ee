"""Host overhead of the batch engine: 10,000 text rows through a model of one tiny layer, whole job, files included.

    python benchmarks/batch_overhead.py [--rows 10000]

With so small a model nearly all time is the host's: reading, template, tokens, bookkeeping, dispatch, writing.
"""

import argparse
import dataclasses
import json
import shutil
import time

import common

WORK = common.ROOT / '.cache' / 'overhead'


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rows', type=int, default=10_000)
  args = parser.parse_args()
  circumstances = common.circumstances()
  import jax

  from qwen3_omni_jax import Omni
  from qwen3_omni_jax.infer.batch_plan import EngineConfig
  from qwen3_omni_jax.infer.job import JobConfig, run_job

  whole = Omni.load(common.small_checkpoint(common.ROOT / '.cache' / 'tiny', 'tiny'), dtype='float32', speech=False)
  text = dataclasses.replace(whole.cfg.thinker.text, num_hidden_layers=1)
  vision = dataclasses.replace(whole.cfg.thinker.vision, deepstack_visual_indexes=())
  cfg = dataclasses.replace(whole.cfg, thinker=dataclasses.replace(whole.cfg.thinker, text=text, vision=vision))
  thinker = whole.params['thinker'] | {'layers': jax.tree.map(lambda x: x[:1], whole.params['thinker']['layers'])}
  omni = Omni(cfg, whole.params | {'thinker': thinker}, whole.processor, whole.defaults, 'float32')
  WORK.mkdir(parents=True, exist_ok=True)
  engine = EngineConfig(slots=64, lengths=(64,), pieces=(32, 32), lanes=32, steps=8)

  def job(rows: int, name: str) -> tuple[dict[str, float], float]:
    source = WORK / f'{name}.jsonl'
    ask = lambda i: {'messages': [{'role': 'user', 'content': f'Question {i}?'}], 'max_tokens': 8}
    source.write_text(''.join(json.dumps({'custom_id': f'r{i}', 'body': ask(i)}) + '\n' for i in range(rows)))
    shutil.rmtree(WORK / name, ignore_errors=True)
    config = JobConfig('stub', (str(source),), str(WORK / name), dtype='float32', engine=engine, block_rows=256)
    clock, used = common.Clock(), time.process_time()
    assert run_job(config, omni)['answered'] == rows
    return clock.read(), time.process_time() - used

  job(200, 'warm')
  clock, processor = job(args.rows, 'rows')
  seconds = clock['seconds']
  print(
    f'{args.rows} rows in {seconds:.1f} s: {seconds / args.rows * 1e3:.2f} ms a row, {processor / args.rows * 1e3:.2f} ms '
    f'of processor time, model included; others had {clock["others"]:.0%} of the processors'
  )
  result = {'rows': args.rows, 'new_tokens_per_row': 8, 'seconds': seconds, 'processors_that_others_had': clock['others']}
  result |= {'ms_per_row': round(seconds / args.rows * 1e3, 3)}
  common.save('batch_overhead', circumstances | result | {'processor_ms_per_row': round(processor / args.rows * 1e3, 3)})


if __name__ == '__main__':
  main()
