"""`Omni`: a loaded checkpoint that answers conversations. The front door of the package."""

import dataclasses
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..config import OmniConfig, load_config
from ..media.inputs import ModelInputs
from ..media.processor import Processor
from ..media.text import StreamDecoder
from ..shapes import Params
from ..weights.load import load_params
from . import decode
from .collate import Batch, bucket, collate
from .reply import Finished, Reply, Score, TextDelta, split_reasoning
from .sampling import Sampling, sampling_rows
from .settings import GenerationDefaults, merge_sampling

Conversation = Sequence[dict[str, Any]]

STEPS_PER_CALL = 32  # decode steps between two looks at the batch from the host, when nothing is streamed


@dataclasses.dataclass(frozen=True)
class _Run:
  """A batch being answered: the state after each call of the decode loop, and what each stage took."""

  state: decode.State
  timings: dict[str, float]


class Omni:
  """A checkpoint in memory: config, processor, parameters. Make one with `Omni.load`.

  Its methods do not change it, so one instance may serve several threads.
  """

  def __init__(self, cfg: OmniConfig, params: Params, processor: Processor, defaults: GenerationDefaults, dtype):
    self.cfg = cfg
    self.params = params
    self.processor = processor
    self.defaults = defaults
    self.dtype = jnp.dtype(dtype)

  @classmethod
  def load(
    cls, folder: str | pathlib.Path, *, dtype: str = 'bfloat16', media_root: str | pathlib.Path | None = None
  ) -> 'Omni':
    """Loads a checkpoint folder: published Hugging Face layout or converted.

    dtype: of weights and activations, 'bfloat16' or 'float32'. media_root: if given, media paths in conversations must lie
    inside it. Raises ValueError listing everything missing, unknown or mis-shaped.
    """
    if dtype not in ('bfloat16', 'float32'):
      raise ValueError(f"dtype '{dtype}': expected 'bfloat16' or 'float32'")
    cfg = load_config(folder)
    processor = Processor.from_folder(folder, media_root=media_root)
    defaults = GenerationDefaults.from_folder(folder, cfg.im_end_token_id)
    params = load_params(folder, cfg, dtype=dtype, parts=('audio', 'vision', 'thinker'))
    return cls(cfg, jax.tree.map(jnp.asarray, params), processor, defaults, dtype)

  def generate(
    self,
    conversations: Sequence[Conversation],
    *,
    max_new_tokens: int | Sequence[int] | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float | None = None,
    seed: int | Sequence[int] | None = None,
    stop_token_ids: Sequence[int] | None = None,
    batch_size: int = 64,
    on_error: str = 'raise',
    **prompt: Any,
  ) -> list[Reply]:
    """Answers every conversation; unlike ones (text, audio, images, video) may share a batch.

    A row's reply depends only on the row: its own seed (given, or its place in `conversations`), never its neighbours.
    on_error: 'raise' names every bad conversation before anything is computed; 'return' answers the others and gives the bad
    ones a Reply with finish_reason 'error'. prompt: passed to the processor (fps, audio_in_video, tools, enable_thinking).
    Unset values: see infer.settings.
    """
    if on_error not in ('raise', 'return'):
      raise ValueError(f"on_error '{on_error}': expected 'raise' or 'return'")
    if batch_size < 1:
      raise ValueError(f'batch_size {batch_size}: expected 1 or more')
    given = {'temperature': temperature, 'top_k': top_k, 'top_p': top_p, 'repetition_penalty': repetition_penalty}
    seeds = _per_row(seed, len(conversations), 'seed') or list(range(len(conversations)))
    limits = _per_row(max_new_tokens, len(conversations), 'max_new_tokens')
    limits = limits or [self.defaults.max_new_tokens] * len(conversations)
    samplings = [merge_sampling(self.defaults.sampling, seed=s, **given) for s in seeds]

    inputs: list[ModelInputs | str] = []
    for conversation in conversations:
      try:
        inputs.append(self._prompt(conversation, **prompt))
      except ValueError as e:
        inputs.append(str(e))
    bad = {i: e for i, e in enumerate(inputs) if isinstance(e, str)}
    if bad and on_error == 'raise':
      if len(conversations) == 1:
        raise ValueError(bad[0])
      raise ValueError('\n'.join(f'conversation {i}: {e}' for i, e in bad.items()))

    replies: dict[int, Reply] = {i: Reply('', [], 0, 'error', error=e) for i, e in bad.items()}
    good = [i for i in range(len(inputs)) if i not in bad]
    for start in range(0, len(good), batch_size):
      members = good[start : start + batch_size]
      rows: list[ModelInputs] = [inputs[i] for i in members]  # type: ignore[misc]
      *_, last = self._run(rows, [samplings[i] for i in members], [limits[i] for i in members], stop_token_ids)
      replies.update(zip(members, self._replies(last, rows, stop_token_ids), strict=True))
    return [replies[i] for i in range(len(inputs))]

  def stream(
    self,
    conversation: Conversation,
    *,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float | None = None,
    seed: int = 0,
    stop_token_ids: Sequence[int] | None = None,
    **prompt: Any,
  ) -> Iterator[TextDelta | Finished]:
    """The reply to one conversation as it is written: TextDelta events, then Finished. Same tokens as `generate`."""
    given = {'temperature': temperature, 'top_k': top_k, 'top_p': top_p, 'repetition_penalty': repetition_penalty}
    rows = [self._prompt(conversation, **prompt)]
    sampling = merge_sampling(self.defaults.sampling, seed=seed, **given)
    limit = self.defaults.max_new_tokens if max_new_tokens is None else max_new_tokens
    decoder, sent, run = StreamDecoder(self.processor.tokenizer), 0, None
    for run in self._run(rows, [sampling], [limit], stop_token_ids, steps_per_call=1):
      count = int(run.state.count[0])
      text = decoder.push([int(t) for t in np.asarray(run.state.output[0, sent:count])])
      sent = count
      if text:
        yield TextDelta(text)
    assert run is not None
    if text := decoder.flush():
      yield TextDelta(text)
    yield Finished(self._replies(run, rows, stop_token_ids)[0])

  def score(self, conversations: Sequence[Conversation], *, batch_size: int = 16, **prompt: Any) -> list[Score]:
    """Log-probability of every token of each conversation's last assistant turn, given all before it."""
    scores = []
    for start in range(0, len(conversations), batch_size):
      pairs = [self.processor.for_scoring(c, **prompt) for c in conversations[start : start + batch_size]]
      rows, first = [row for row, _ in pairs], [begin for _, begin in pairs]
      batch = collate(rows, self.cfg.thinker)
      features = decode.encode_media(self.params, self.cfg.thinker, batch.media, self.dtype)
      logprobs = np.asarray(
        decode.score(self.params['thinker'], self.cfg.thinker, batch.tokens, features, dtype=self.dtype)
      )
      for b, (row, begin) in enumerate(zip(rows, first, strict=True)):
        ids = [int(t) for t in row.ids[begin:]]
        tokens = [self.processor.tokenizer.decode([t], skip_special_tokens=False) for t in ids]
        scores.append(Score(ids, tokens, [float(p) for p in logprobs[b, begin : len(row.ids)]], begin))
    return scores

  def _prompt(self, conversation: Conversation, **prompt: Any) -> ModelInputs:
    inputs = self.processor(conversation, **prompt)
    limit = self.cfg.thinker.text.max_position_embeddings
    if len(inputs.ids) >= limit:
      raise ValueError(
        f'the prompt has {len(inputs.ids)} tokens but the model was made for {limit}: shorten the text, cut the audio or '
        'lower the video fps'
      )
    return inputs

  def _run(
    self,
    rows: list[ModelInputs],
    samplings: list[Sampling],
    max_new_tokens: list[int],
    stop_token_ids: Sequence[int] | None,
    steps_per_call: int = STEPS_PER_CALL,
  ) -> Iterator[_Run]:
    """Prefills, then decodes; yields after the first token and after every call of the decode loop."""
    if any(n < 1 for n in max_new_tokens):
      raise ValueError(f'max_new_tokens {min(max_new_tokens)}: expected 1 or more')
    started = time.perf_counter()
    timings: dict[str, float] = {}
    padded = bucket(len(rows))
    batch: Batch = collate(rows, self.cfg.thinker, padded)
    extra = padded - len(rows)
    sampling = sampling_rows(samplings + [Sampling()] * extra, self.cfg.thinker.text.vocab_size)
    penalised = any(s.repetition_penalty != 1 for s in samplings)
    limits = self._limits(max_new_tokens + [0] * extra, stop_token_ids)
    outputs = bucket(max(max_new_tokens), 16)
    slots = bucket(int(batch.length.max()) + max(max_new_tokens), batch.tokens.ids.shape[1])
    features = decode.encode_media(self.params, self.cfg.thinker, batch.media, self.dtype)
    jax.block_until_ready(features)
    timings['encode_s'] = time.perf_counter() - started
    state, _ = decode.prefill(
      self.params['thinker'], self.cfg.thinker, batch.replace(media=()), features, sampling, limits,
      slots=slots, outputs=outputs, penalised=penalised, dtype=self.dtype,
    )  # fmt: skip
    state.token.block_until_ready()
    timings['first_token_s'] = time.perf_counter() - started
    yield _Run(state, timings)
    decoding = time.perf_counter()
    steps = jnp.int32(steps_per_call)
    while not bool(state.done.all()):
      state = decode.decode(self.params['thinker'], self.cfg.thinker, state, sampling, limits, steps, dtype=self.dtype)
      timings['decode_s'] = time.perf_counter() - decoding
      timings['total_s'] = time.perf_counter() - started
      yield _Run(state, timings)

  def _limits(self, max_new_tokens: list[int], stop_token_ids: Sequence[int] | None) -> decode.Limits:
    stop = self._stop_ids(stop_token_ids)
    padded = np.full(bucket(len(stop), 4), -1, np.int32)
    padded[: len(stop)] = stop
    return decode.Limits(stop=padded, tokens=np.array(max_new_tokens, np.int32))

  def _stop_ids(self, given: Sequence[int] | None) -> tuple[int, ...]:
    return self.defaults.stop_token_ids if given is None else tuple(given)

  def _replies(self, run: _Run, rows: list[ModelInputs], stop_token_ids: Sequence[int] | None) -> list[Reply]:
    stop = set(self._stop_ids(stop_token_ids))
    output, count = np.asarray(run.state.output), np.asarray(run.state.count)
    tokenizer = self.processor.tokenizer
    timings = {'total_s': run.timings['first_token_s'], **run.timings}
    replies = []
    for b, row in enumerate(rows):
      ids = [int(t) for t in output[b, : count[b]]]
      stopped = bool(ids) and ids[-1] in stop
      opened = tokenizer.decode([int(t) for t in row.ids[-4:]], skip_special_tokens=False).rstrip().endswith('<think>')
      text, reasoning = split_reasoning(tokenizer.decode(ids[:-1] if stopped else ids), opened)
      replies.append(
        Reply(text, ids, len(row.ids), 'stop' if stopped else 'length', reasoning, {k: round(v, 6) for k, v in timings.items()})
      )
    return replies


def _per_row(value: int | Sequence[int] | None, rows: int, name: str) -> list[int] | None:
  """One value per row from a single value or a sequence of them."""
  if value is None:
    return None
  if isinstance(value, int):
    return [value] * rows
  if len(value) != rows:
    raise ValueError(f'{name}: {len(value)} values for {rows} conversations; give one, or one for each')
  return list(value)
