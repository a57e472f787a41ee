"""Conversations through Ray Data: `Predictor` in one actor that keeps the model.

pip install 'ray[data]'
python examples/ray_batch.py CHECKPOINT IN.jsonl OUT
"""

import json
import sys

import ray

from qwen3_omni_jax.infer.batch_plan import EngineConfig
from qwen3_omni_jax.infer.predict import Predictor


def main(checkpoint: str, source: str, out: str) -> None:
  # messages as JSON text: a column of one type, whatever is in the conversations
  with open(source, encoding='utf-8') as lines:
    rows = [json.loads(line) for line in lines if line.strip()]
  items = [{'custom_id': row['custom_id'], 'body': json.dumps(row['body'])} for row in rows]
  options = {'model': checkpoint, 'dtype': 'float32', 'engine': EngineConfig(slots=8, lengths=(256,)), 'max_new_tokens': 8}
  answers = ray.data.from_items(items).map_batches(Predictor, fn_constructor_kwargs=options, batch_size=16, concurrency=1)
  answers.write_json(out)


if __name__ == '__main__':
  main(*sys.argv[1:])
