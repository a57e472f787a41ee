"""Bulk scoring: log-probabilities of given answers, and the most probable tokens at each position.

Rows of one padded length share a call, in arrays of one shape in which no sum goes over rows: a score does not depend on its
neighbours.
"""

import concurrent.futures
import functools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ..config import ThinkerConfig
from ..media.messages import parse_messages
from ..models.thinker import Features, ThinkerTokens, logits, thinker_forward
from ..shapes import Array, Bool, Float, Int, Params
from ..sharding import follow_params
from . import media_batch
from .batch_plan import EngineConfig
from .collate import bucket
from .prefix_cache import LruStore
from .prepare import Row, RowError, items_of

if TYPE_CHECKING:
  from .omni import Omni

BLOCK = 128  # places whose logits over the whole vocabulary exist at once


class ScoreLanes(flax.struct.PyTreeNode):
  """Whole conversations, one a lane. features: [0] inputs of media tokens, [1:] deepstack; None: no media."""

  ids: Int[Array, 'P T']
  positions: Float[Array, 'P 3 T']
  segment: Int[Array, 'P T']
  media: Bool[Array, 'P T'] | None = None  # tokens whose input is a feature
  features: Float[Array, 'P J T D'] | None = None


@follow_params
@functools.partial(jax.jit, static_argnames=('cfg', 'dtype', 'top'))
def score_lanes(params: Params, cfg: ThinkerConfig, lanes: ScoreLanes, dtype, top: int):
  """(log p(token t | before), 'P T', 0 at t = 0; the `top` largest log-probabilities at each place 'P T k', their tokens)."""
  P, T = lanes.ids.shape
  index, features = None, Features()
  if lanes.features is not None and lanes.media is not None:
    together = jnp.moveaxis(lanes.features, 1, 0).reshape(lanes.features.shape[1], P * T, -1)
    features = Features(visual=together[0], deepstack=together[1:], lanes=P)
    index = jnp.where(lanes.media, jnp.arange(P * T, dtype=jnp.int32).reshape(P, T), -1)
  tokens = ThinkerTokens(lanes.ids, jnp.moveaxis(lanes.positions, 1, 0), lanes.segment, visual_index=index)
  out, _ = thinker_forward(params, cfg, tokens, features, dtype=dtype)
  blocks = lambda x: jnp.pad(x.reshape(P * T, *x.shape[2:]), [(0, -P * T % BLOCK)] + [(0, 0)] * (x.ndim - 2))
  hidden, target = blocks(out.hidden), blocks(jnp.roll(lanes.ids, -1, axis=1))

  def block(inputs):
    h, t = inputs
    scores = jax.nn.log_softmax(logits(params, h), axis=-1)
    top_values, top_ids = jax.lax.top_k(scores, max(top, 1))
    return jnp.take_along_axis(scores, t[:, None], axis=-1)[:, 0], top_values, top_ids

  by_block = jax.lax.map(block, (hidden.reshape(-1, BLOCK, hidden.shape[-1]), target.reshape(-1, BLOCK)))
  later = lambda x: jnp.roll(x.reshape(-1, *x.shape[2:])[: P * T].reshape(P, T, *x.shape[2:]), 1, axis=1)  # of the token foretold
  own, top_values, top_ids = map(later, by_block)
  return own.at[:, 0].set(0), top_values, top_ids


class BulkScorer:
  """Scores the last assistant turn of many conversations."""

  def __init__(self, omni: 'Omni', config: EngineConfig | None = None, top: int = 0):
    self.omni, self.config, self.top = omni, config or EngineConfig(), top
    if not 0 <= top <= omni.cfg.thinker.text.vocab_size:
      raise ValueError(f'top_logprobs {top}: expected 0 to the vocabulary, {omni.cfg.thinker.text.vocab_size}')
    self.features = LruStore(self.config.feature_bytes, lambda value: value.nbytes)

  def score(self, rows: Iterable[Row]) -> Iterator[tuple[Row, dict[str, Any]]]:
    """(row, {'score': …} or {'error': …}) of each row, in no order."""
    groups: dict[tuple, list] = {}
    source, more = iter(rows), True
    with concurrent.futures.ThreadPoolExecutor(self.config.workers, 'prepare') as threads:
      pending: list[tuple[Row, concurrent.futures.Future]] = []
      while more or pending:
        while more and len(pending) < 4 * self.config.lanes:
          row = next(source, None)
          if row is None:
            more = False
          else:
            pending.append((row, threads.submit(self._prepare, row)))
        if not pending:
          break
        row, future = pending.pop(0)
        try:
          key, prepared = future.result()
        except RowError as e:
          yield row, {'error': {'kind': e.kind, 'message': str(e)}}
          continue
        members = groups.setdefault(key, [])
        members.append((row, prepared))
        if len(members) == self.config.lanes_of(key[0]):
          yield from self._run(key, groups.pop(key))
    for key, members in groups.items():
      yield from self._run(key, members)

  def _prepare(self, row: Row):
    try:
      parse_messages(row.messages)
    except ValueError as e:
      raise RowError('messages', str(e)) from e
    try:
      inputs, begin = self.omni.processor.for_scoring(row.messages, **row.prompt)
    except ValueError as e:
      text = str(e)
      kind = 'media' if text.startswith('messages[') and '.content[' in text.split(':')[0] else 'messages'
      raise RowError(kind, text) from e
    if len(inputs.ids) > self.omni.cfg.thinker.text.max_position_embeddings:
      raise RowError(
        'too_long', f'{len(inputs.ids)} tokens; the model was made for {self.omni.cfg.thinker.text.max_position_embeddings}'
      )
    items, item_of, feature_of = items_of(inputs, self.omni.cfg.thinker)
    return (bucket(len(inputs.ids), 64), bool(items)), (inputs, begin, items, item_of, feature_of)

  def _run(self, key: tuple, members: list) -> Iterator[tuple[Row, dict[str, Any]]]:
    T, media = key
    P = self.config.lanes_of(T)
    cfg, dtype = self.omni.cfg.thinker, self.omni.dtype
    levels = 1 + len(cfg.vision.deepstack_visual_indexes)
    lanes = ScoreLanes(
      np.zeros((P, T), np.int32),
      np.zeros((P, 3, T), np.float32),
      np.zeros((P, T), np.int32),
      np.zeros((P, T), bool) if media else None,
      np.zeros((P, levels, T, cfg.text.hidden_size), dtype) if media else None,
    )
    for lane, (_, (inputs, _, items, item_of, feature_of)) in enumerate(members):
      n = len(inputs.ids)
      lanes.ids[lane, :n], lanes.positions[lane, :, :n], lanes.segment[lane, :n] = inputs.ids, inputs.positions, 1
      for i, item in enumerate(items):
        assert lanes.features is not None and lanes.media is not None
        at = np.flatnonzero(item_of == i)
        values = self._feature(item, members)
        lanes.features[lane, : len(values), at] = np.moveaxis(values[:, feature_of[at]], 1, 0)
        lanes.media[lane, at] = True
    own, top_values, top_ids = (np.asarray(a) for a in score_lanes(self.omni.params['thinker'], cfg, lanes, dtype, self.top))
    for lane, (row, (inputs, begin, *_)) in enumerate(members):
      here = slice(begin, len(inputs.ids))
      logprobs = [round(float(p), 6) for p in own[lane, here]]
      score = {'token_ids': inputs.ids[here].tolist(), 'logprobs': logprobs, 'total_logprob': round(sum(logprobs), 6)}
      if self.top:
        score['top'] = [
          [[int(t), round(float(p), 6)] for t, p in zip(ids, values, strict=True)]
          for ids, values in zip(top_ids[lane, here], top_values[lane, here], strict=True)
        ]
      usage = {'prompt_tokens': begin, 'completion_tokens': len(logprobs)}
      yield row, {'score': score, 'usage': usage}

  def _feature(self, item, members) -> np.ndarray:
    """Features of an item; others of its shape in the same rows fill the call up."""
    if (value := self.features.get(item.key)) is not None:
      return value
    group = {item.key: item}
    for _, (_, _, items, _, _) in members:
      for other in items:
        if (other.kind, other.shape) == (item.kind, item.shape) and len(group) < self.config.encoder_lanes:
          if other.key not in self.features:
            group.setdefault(other.key, other)
    values = media_batch.encode_items(
      self.omni.params, self.omni.cfg.thinker, list(group.values()), self.config.encoder_lanes, self.omni.dtype
    )
    for key, value in values.items():
      self.features.put(key, value)
    return values[item.key]
