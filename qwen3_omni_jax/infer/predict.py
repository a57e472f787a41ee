"""Stateless predictor for data pipelines: maps a batch of columns to columns (Ray Data, Beam, or your own loop).

    predictor = Predictor('ckpt', speech=True)                       # once a worker: loads the model
    ds.map_batches(Predictor, fn_constructor_kwargs={'model': 'ckpt'}, batch_size=256, concurrency=1)     # Ray Data

The result of a row depends on the row alone, so a pipeline may retry, reorder and split batches.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .batch import Engine, Result
from .batch_plan import EngineConfig
from .job_rows import parse_row
from .omni import Omni
from .prepare import Row, RowError


class Predictor:
  """Answers batches. model: a checkpoint folder, or a loaded Omni. settings: for rows that do not name their own (speaker,
  max_new_tokens, temperature, …, as in a batch job)."""

  def __init__(
    self,
    model: str | Omni,
    *,
    speech: bool = False,
    engine: EngineConfig | None = None,
    dtype: str = 'bfloat16',
    media_root: str | None = None,
    **settings: Any,
  ):
    self.omni = model if isinstance(model, Omni) else Omni.load(model, dtype=dtype, speech=speech, media_root=media_root)
    self.speech, self.settings = speech, settings
    self.engine = Engine(self.omni, engine, self.omni.voice if speech else None)

  def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Columns of a batch (`custom_id`, and `messages` or `body`; values as in a job's input, JSON text included) to columns
    `custom_id`, `text`, `finish_reason`, `error`, and with speech `samples` (float32, 24 kHz), in the batch's order."""
    columns = {name: list(values) for name, values in batch.items()}
    number = len(next(iter(columns.values()), []))
    out: list[dict[str, Any]] = [{} for _ in range(number)]
    rows: list[Row] = []
    place: dict[int, int] = {}
    for i in range(number):
      data = {name: _plain(values[i]) for name, values in columns.items() if values[i] is not None}
      name = str(data.get('custom_id', f'row-{i:08d}'))
      try:
        row = parse_row(data, i, name, self.settings, self.speech)
      except RowError as e:
        out[i] = _columns(name, None, f'{e.kind}: {e}', self.speech)
        continue
      place[id(row)] = i
      rows.append(row)
    for result in self.engine.answer(rows):
      error = None if result.error is None else f'{result.kind}: {result.error}'
      out[place[id(result.row)]] = _columns(result.row.id, result, error, self.speech)
    return {name: [row[name] for row in out] for name in (out[0] if out else ())}


def _columns(name: str, result: Result | None, error: str | None, speech: bool) -> dict[str, Any]:
  reply = result.reply if result is not None else None
  row = {
    'custom_id': name,
    'text': reply.text if reply else '',
    'finish_reason': reply.finish_reason if reply else 'error',
    'error': error or '',
  }
  if speech:
    samples = reply.speech.samples if reply is not None and reply.speech is not None else np.zeros(0, np.float32)
    row['samples'] = samples
  return row


def _plain(value: Any) -> Any:
  """numpy scalars and arrays, as pipelines hand them over, as Python values."""
  if isinstance(value, np.generic):
    return value.item()
  return [_plain(v) for v in value.tolist()] if isinstance(value, np.ndarray) and value.dtype == object else value
