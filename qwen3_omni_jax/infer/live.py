"""Live audio: prefills the user's speech while it arrives, and answers when the user stops.

The encoder's windows are 8 s long and independent of one another, so a finished window is encoded and prefilled at once and is
final. When the user stops, at most one window (104 audio tokens) and the prompt's few closing tokens are left.

**When this equals the offline result.** Every mel value more than 8 decades below the loudest value *of the whole clip* is
raised to that floor. While the clip is running, only the loudest value so far is known. So live equals offline exactly if
nothing prefilled would have been raised further by what came later: in particular whenever the loudest moment lies in or
before the first window, and whenever later, louder sound leaves the floor below everything heard before. Otherwise
near-silent frames of early windows are encoded a little lower than offline. `LiveAudio.exact` says which case it was.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..media.audio import CHUNK_FRAMES, FLOOR, HOP, N_FFT, RATE_HZ, audio_tokens, clip_and_scale, log_power
from ..media.inputs import ModelInputs
from ..models.thinker import Features, ThinkerTokens
from ..nn.cache import init_cache
from . import decode
from .collate import AudioWindows, bucket
from .omni import Omni, _Row, _Run
from .reply import Finished, TextDelta
from .sampling import sampling_rows
from .settings import merge_sampling
from .speaking import TalkerContext
from .voice import DEFAULT_SCHEDULE, DEFAULT_SPEAKER, AudioChunk, Voice


class LiveAudio:
  """A spoken conversation with one user, on one KV cache.

      live = LiveAudio(omni, system='Be brief.')
      for block in microphone:
        live.push(block)                       # float32 mono at 16 kHz, any length
      for event in live.answer(speech=True):   # TextDelta, AudioChunk, …, Finished
        ...
      live.push(...)                           # the next turn goes on from the same cache

  Closing the iterator of `answer` early is a barge-in: generation stops, and what was said so far stays in the history.
  max_tokens: size of the cache in tokens (13 a second of audio).
  """

  def __init__(self, omni: Omni, *, system: str | None = None, max_tokens: int = 16384):
    self.omni = omni
    self.cfg = omni.cfg.thinker
    self.slots = bucket(max_tokens)
    self.cache = init_cache(self.cfg.text, 1, self.slots, omni.dtype)
    self.tap_layer = omni.cfg.talker.accept_hidden_layer if omni.cfg.talker is not None else None
    self.ids: list[int] = []  # every token in the cache
    self.taps: list[tuple[jax.Array, int]] = []  # tapped states of pieces of the prompt, with their true lengths
    self.history: list[dict[str, Any]] = [{'role': 'system', 'content': system}] if system else []
    self._busy = False
    self._last_exact = True
    self._state: decode.State | None = None
    self._pending: list[int] = []  # said, but not in the cache yet
    self._new_turn()

  # ---- listening

  def push(self, samples: np.ndarray) -> None:
    """Takes sound as it arrives; encodes and prefills every window it completes."""
    if self._busy:
      raise ValueError('the reply is still being made: finish or close its iterator first')
    samples = np.asarray(samples)
    if samples.ndim != 1 or samples.dtype.kind != 'f':
      raise ValueError(f'live audio of shape {samples.shape}, dtype {samples.dtype}: expected mono floats at {RATE_HZ} Hz')
    if not np.isfinite(samples).all():
      raise ValueError('live audio: NaN or infinite samples')
    self._samples = np.concatenate([self._samples, samples.astype(np.float32, copy=False)])
    self._received += len(samples)
    window = self.cfg.audio.chunks_per_window * CHUNK_FRAMES
    # The last frame of a window reads 200 samples past its centre; the first of the clip is mirrored 200 to the left.
    while self._received >= (self._frames + window - 1) * HOP + N_FFT // 2 + 1:
      self._feed_audio(window, end=False)

  def _feed_audio(self, frames: int, end: bool) -> None:
    """Mel frames of the next `frames` frames, through the encoder and the Thinker. end: the clip ends with them."""
    left = N_FFT // 2
    if self._frames == 0:
      padded = np.pad(self._samples, (left, 0), mode='reflect')
    else:  # self._samples begins `left` samples before the centre of the next frame
      padded = self._samples
    if end:
      padded = np.pad(padded, (0, left), mode='reflect')
    mel = log_power(padded, frames)
    self._loudest = max(self._loudest, float(mel.max()))
    self._lowest = min(self._lowest, max(float(mel.min()), self._loudest - FLOOR))
    self._frames += frames
    self._samples = padded[frames * HOP :]
    short = self._frames if end and self._frames < CHUNK_FRAMES else CHUNK_FRAMES
    chunks = min(bucket(-(-frames // CHUNK_FRAMES)), self.cfg.audio.chunks_per_window)
    group = AudioWindows(
      np.zeros((1, chunks * CHUNK_FRAMES, mel.shape[1]), np.float32), np.array([frames], np.int32), np.array([short], np.int32)
    )
    group.mel[0, :frames] = clip_and_scale(mel, self._loudest)
    features = decode.encode_audio_windows(self.omni.params['audio'], self.cfg, group, self.omni.dtype)[0]
    number = audio_tokens(frames)
    self._feed([self.cfg.audio_token_id] * number, features)
    self.audio_tokens += number

  @property
  def exact(self) -> bool:
    """Whether everything heard in this turn (after its answer: in the last one) was encoded as it would be offline."""
    return self._last_exact if self._received == 0 else self._is_exact()

  def _is_exact(self) -> bool:
    return self._lowest >= self._loudest - FLOOR - 1e-6

  # ---- answering

  def answer(
    self,
    text: str | None = None,
    *,
    speech: bool = False,
    speaker: str = DEFAULT_SPEAKER,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float | None = None,
    seed: int = 0,
    stop_token_ids: Sequence[int] | None = None,
    max_frames: int | None = None,
    talker_temperature: float | None = None,
    voice: Voice | None = None,
    chunk_schedule: Sequence[int] = DEFAULT_SCHEDULE,
  ) -> Iterator[TextDelta | AudioChunk | Finished]:
    """Ends the user's turn (with `text` after the sound, if any) and streams the reply. timings count from this call."""
    if self._busy:
      raise ValueError('the reply is still being made: finish or close its iterator first')
    omni = self.omni
    chosen = omni.voice_for(voice, talker_temperature) if speech else None
    limit = omni.defaults.max_new_tokens if max_new_tokens is None else max_new_tokens
    given = {'temperature': temperature, 'top_k': top_k, 'top_p': top_p, 'repetition_penalty': repetition_penalty}
    sampling = merge_sampling(omni.defaults.sampling, seed=seed, **given)
    frames = (chosen or omni.voice).max_frames if max_frames is None else max_frames
    rest = self._received // HOP - self._frames
    if self._received < HOP:
      raise ValueError(f'{self._received} samples heard: at least {HOP} (10 ms) are needed before an answer')
    closing = self._turn_tokens(text)[1]
    self._check_room(audio_tokens(max(rest, 0)) + len(closing) + limit)
    started = time.perf_counter()
    if rest > 0:
      self._feed_audio(rest, end=True)
    self.history.append({'role': 'user', 'content': [{'type': 'audio', 'audio': 'audio'}, *_text_parts(text)]})
    hidden = self._feed(closing)
    row = _Row(self._prompt(), sampling, limit, speaker, frames)
    runs = self._runs(row, hidden, stop_token_ids, speech, started)
    self._busy = True
    return self._finishing(omni._stream([row], runs, stop_token_ids, chosen, chunk_schedule))

  def _finishing(self, events: Iterator) -> Iterator:
    """The events; however they end, the session is ready for the next turn."""
    try:
      yield from events
    finally:
      self._busy = False
      self._last_exact = self._is_exact()
      self._remember_reply()
      self._new_turn()

  def _runs(self, row: _Row, hidden: jax.Array, stop_token_ids, speech: bool, started: float) -> Iterator[_Run]:
    omni = self.omni
    vocabulary = self.cfg.text.vocab_size
    rows = sampling_rows([row.sampling], vocabulary)
    seen = None
    if row.sampling.repetition_penalty != 1:
      seen = jnp.zeros((1, vocabulary), bool).at[0, jnp.array(self.ids)].set(True)
    limits = omni._limits([row.max_new_tokens], stop_token_ids)
    length = len(self.ids)
    state = self._state = decode.begin_decode(
      omni.params['thinker'],
      self.cache,
      jnp.array([length], jnp.int32),
      jnp.array([length], jnp.float32),
      hidden,
      seen,
      rows,
      limits,
      outputs=bucket(row.max_new_tokens, 16),
    )
    state.token.block_until_ready()
    timings = {'first_token_s': time.perf_counter() - started}
    for run in omni._decode(state, rows, limits, 1, self._talker_context() if speech else None, timings, started):
      self._state = run.state
      yield run

  def _remember_reply(self) -> None:
    """After a reply, whole or cut off: its tokens join the history; all but the last are in the cache already."""
    if self._state is None:  # closed before the first token: the prompt is in the cache, nothing was said
      reply_ids: list[int] = []
    else:
      count = int(self._state.count[0])
      reply_ids = [int(t) for t in np.asarray(self._state.output[0, :count])]
      fed = int(self._state.filled[0]) - len(self.ids)
      self.cache = self._state.cache
      self.ids += reply_ids[:fed]
      self._pending = reply_ids[fed:]
      self._state = None
    end = self.omni.cfg.im_end_token_id
    if not reply_ids or reply_ids[-1] != end:
      self._pending.append(end)
    self.history.append({'role': 'assistant', 'content': self.omni.processor.tokenizer.decode(reply_ids)})

  # ---- the prompt

  def _new_turn(self) -> None:
    """Feeds what stands before the user's sound: the rest of the last reply, and the opening of the turn."""
    self._samples = np.zeros(0, np.float32)
    self._received = self._frames = 0
    self._loudest, self._lowest = -np.inf, np.inf
    self.audio_tokens = 0
    pending, self._pending = self._pending, []
    self._feed([*pending, *self._turn_tokens(None)[0]])

  def _turn_tokens(self, text: str | None) -> tuple[list[int], list[int]]:
    """(tokens before, tokens after) the sound of a new user turn, by the checkpoint's own template."""
    turn = {'role': 'user', 'content': [{'type': 'audio', 'audio': 'audio'}, *_text_parts(text)]}
    ids, _ = self.omni.processor.prompt_ids([*self.history, turn], add_generation_prompt=True)
    sound = max(i for i, token in enumerate(ids) if token == self.cfg.audio_token_id)
    begin = 0
    if any(message['role'] == 'assistant' for message in self.history):  # what came before is in the cache
      ends = [i for i, token in enumerate(ids[:sound]) if token == self.omni.cfg.im_end_token_id]
      begin = ends[-1] + 1
    return ids[begin:sound], ids[sound + 1 :]

  def _check_room(self, tokens: int) -> None:
    if len(self.ids) + tokens > self.slots:
      raise ValueError(
        f'the conversation has {len(self.ids)} tokens and needs up to {tokens} more; the session holds {self.slots}. '
        'Start a new one, or give LiveAudio a larger max_tokens'
      )

  def _feed(self, ids: list[int], features: jax.Array | None = None) -> jax.Array:
    """Tokens into the cache; hidden state of the last one. features: audio rows for them, in order."""
    self._check_room(len(ids))
    length, T = len(ids), bucket(len(ids), 16)
    padded = np.zeros((1, T), np.int32)
    padded[0, :length] = ids
    at = np.arange(T)
    segment = (at < length).astype(np.int32)[None]
    positions = np.broadcast_to((len(self.ids) + at).astype(np.float32), (3, 1, T))
    index = None if features is None else np.where(at < length, at, -1).astype(np.int32)[None]
    hidden, tap, self.cache = decode.extend_prompt(
      self.omni.params['thinker'],
      self.cfg,
      ThinkerTokens(padded, positions, segment, index),
      Features(audio=features),
      np.array([len(self.ids)], np.int32),
      self.cache,
      dtype=self.omni.dtype,
      tap_layer=self.tap_layer,
    )
    if tap is not None:
      self.taps += [(jnp.zeros_like(tap[:, :1]), len(self.ids) - self._tapped), (tap[:, :length], length)]
    self.ids += ids
    return hidden

  @property
  def _tapped(self) -> int:
    """Tokens that have a place in self.taps."""
    return sum(length for _, length in self.taps)

  def _prompt(self) -> ModelInputs:
    ids = np.array(self.ids, np.int32)
    return ModelInputs(ids, np.broadcast_to(np.arange(len(ids), dtype=np.float32), (3, len(ids))))

  def _talker_context(self) -> TalkerContext:
    """Ids and tapped states of the whole conversation; replies of earlier turns have no states, and need none."""
    pieces = [tap if tap.shape[1] == n else jnp.repeat(tap, n, axis=1) for tap, n in self.taps if n]
    tap = jnp.concatenate(pieces, axis=1)
    pad = bucket(len(self.ids), 16) - len(self.ids)
    ids = jnp.pad(jnp.array([self.ids], jnp.int32), [(0, 0), (0, pad)])
    return TalkerContext(ids, jnp.pad(tap, [(0, 0), (0, pad), (0, 0)]))


def _text_parts(text: str | None) -> list[dict[str, str]]:
  return [{'type': 'text', 'text': text}] if text else []
