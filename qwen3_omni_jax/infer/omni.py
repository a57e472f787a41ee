"""`Omni`: a loaded checkpoint that answers conversations; the main interface of the package."""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ..config import OmniConfig
from ..config_json import load_config
from ..media.inputs import ModelInputs
from ..media.processor import Processor
from ..media.text import StreamDecoder
from ..models.omni import omni_spec
from ..shapes import Params
from ..sharding import make_mesh, mesh_shape, param_shardings
from ..weights.load import load_params
from ..weights.remote import located
from . import decode
from . import speech as device
from .collate import Batch, bucket, collate
from .reply import Finished, Reply, Score, TextDelta
from .sampling import Sampling, sampling_rows
from .settings import GenerationDefaults, merge_sampling, per_row
from .speaking import Speaker, TalkerContext, WaveStream, speak_replies, spoken_tokens
from .voice import DEFAULT_SCHEDULE, DEFAULT_SPEAKER, AudioChunk, Speech, Voice

Conversation = Sequence[dict[str, Any]]

STEPS_PER_CALL = 32  # decode steps between two looks at the batch from the host, when nothing is streamed


@dataclasses.dataclass(frozen=True)
class _Row:
  """One conversation ready to be answered."""

  inputs: ModelInputs
  sampling: Sampling
  max_new_tokens: int
  speaker: str = DEFAULT_SPEAKER
  max_frames: int = 1


@dataclasses.dataclass(frozen=True)
class _Run:
  """A batch being answered: the state after each call of the decode loop, and what each stage took."""

  state: decode.State
  timings: dict[str, float]
  talker_context: TalkerContext | None = None


class Omni:
  """A checkpoint in memory: config, processor, parameters. Make one with `Omni.load`.

  Its methods do not change it, so one instance may serve several threads.
  """

  def __init__(
    self, cfg: OmniConfig, params: Params, processor: Processor, defaults: GenerationDefaults, dtype, voice: Voice | None = None
  ):
    self.cfg = cfg
    self.params = params
    self.processor = processor
    self.defaults = defaults
    self.dtype = jnp.dtype(dtype)
    self.voice = voice or Voice()

  @classmethod
  def load(
    cls,
    folder: str | pathlib.Path,
    *,
    dtype: str = 'bfloat16',
    speech: bool = True,
    media_root: str | pathlib.Path | None = None,
    mesh: Mesh | str | None = None,
  ) -> 'Omni':
    """Loads a checkpoint: a folder in the published layout or converted, a hub id, or a converted folder at a gs:// or s3:// URL.

    dtype: of weights and activations, 'bfloat16' or 'float32'. speech: load the Talker, code predictor and Code2Wav too, if the
    checkpoint has them. media_root: if given, media paths in conversations must lie inside it. mesh: of the devices to load
    onto, or how to make one of all there are: a strategy ('serve') or sizes ('data=2,expert=4'); None: one device. Raises
    ValueError listing everything missing, unknown or mis-shaped, or that the mesh cannot cut.
    """
    if dtype not in ('bfloat16', 'float32'):
      raise ValueError(f"dtype '{dtype}': expected 'bfloat16' or 'float32'")
    with located(folder) as place:
      cfg = load_config(place.folder)
      processor = Processor.from_folder(place.folder, media_root=media_root)
      defaults = GenerationDefaults.from_folder(place.folder, cfg.im_end_token_id)
      voice = Voice.from_folder(place.folder)
    parts = ('audio', 'vision', 'thinker')
    if speech and cfg.talker is not None:
      parts += ('talker', 'code_predictor', 'code2wav')
    mesh = make_mesh(mesh_shape(mesh, jax.device_count())) if isinstance(mesh, str) else mesh
    spec = {part: omni_spec(cfg)[part] for part in parts}
    shardings = None if mesh is None else param_shardings(spec, mesh)
    params = load_params(folder, cfg, dtype=dtype, parts=parts, shardings=shardings)
    return cls(cfg, jax.tree.map(jnp.asarray, params), processor, defaults, dtype, voice)

  @functools.cached_property
  def predictor(self):
    """The code predictor's weights as the speech loop reads them."""
    return device.ready_predictor(self.params['code_predictor'], self.dtype)

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
    speech: bool = False,
    speaker: str | Sequence[str] = DEFAULT_SPEAKER,
    max_frames: int | Sequence[int] | None = None,
    talker_temperature: float | None = None,
    voice: Voice | None = None,
    reference_exact: bool = False,
    batch_size: int = 64,
    on_error: str = 'raise',
    **prompt: Any,
  ) -> list[Reply]:
    """Answers every conversation; unlike ones (text, audio, images, video) may share a batch.

    A row's reply depends only on the row: its own seed (given, or its place in `conversations`), never its neighbours, but for
    rounding, which the shapes of a batch decide: a draw on a tie may then fall otherwise.
    speech: speak the replies too, in each row's speaker's voice, at most max_frames (80 ms each) long; talker_temperature 0
    speaks greedily; voice: all other speech settings. reference_exact: do as transformers does where we know better
    (docs/departures.md). on_error: 'raise' names every bad conversation before anything is computed; 'return' answers the
    others and gives the bad ones a Reply with finish_reason 'error'. prompt: passed to the processor (fps, audio_in_video,
    tools, enable_thinking). Unset values: see infer.settings.
    """
    if on_error not in ('raise', 'return'):
      raise ValueError(f"on_error '{on_error}': expected 'raise' or 'return'")
    if batch_size < 1:
      raise ValueError(f'batch_size {batch_size}: expected 1 or more')
    number = len(conversations)
    given = {'temperature': temperature, 'top_k': top_k, 'top_p': top_p, 'repetition_penalty': repetition_penalty}
    chosen = self.voice_for(voice, talker_temperature, reference_exact) if speech else None
    seeds = per_row(range(number) if seed is None else seed, number, 'seed')
    limits = per_row(self.defaults.max_new_tokens if max_new_tokens is None else max_new_tokens, number, 'max_new_tokens')
    speakers = per_row(speaker, number, 'speaker')
    frames = per_row((chosen or self.voice).max_frames if max_frames is None else max_frames, number, 'max_frames')

    rows: dict[int, _Row] = {}
    bad: dict[int, str] = {}
    for i, inputs in enumerate(self._prompts(conversations, reference_exact, prompt)):
      if isinstance(inputs, str):
        bad[i] = inputs
      else:
        sampling = merge_sampling(self.defaults.sampling, seed=seeds[i], **given)
        rows[i] = _Row(inputs, sampling, limits[i], speakers[i], frames[i])
    if bad and on_error == 'raise':
      raise ValueError(bad[0] if number == 1 else '\n'.join(f'conversation {i}: {e}' for i, e in bad.items()))

    replies: dict[int, Reply] = {i: Reply('', [], 0, 'error', error=e) for i, e in bad.items()}
    good = list(rows)
    for start in range(0, len(good), batch_size):
      members = good[start : start + batch_size]
      batch = [rows[i] for i in members]
      answers = self._answer(batch, stop_token_ids, chosen, reference_exact)
      replies.update(zip(members, answers, strict=True))
    return [replies[i] for i in range(number)]

  def _answer(
    self, rows: list[_Row], stop_token_ids: Sequence[int] | None, voice: Voice | None, reference_exact: bool
  ) -> list[Reply]:
    """One batch, text and (with a voice) speech."""
    last = talker_context = None
    for last in self._run(rows, stop_token_ids, speech=voice is not None):  # noqa: B007
      talker_context = talker_context or last.talker_context
    assert last is not None
    replies = self._replies(last, rows, stop_token_ids)
    if voice is None or talker_context is None:
      return replies
    started = time.perf_counter()
    speaker = self._speaker(rows, talker_context, voice, reference_exact)
    reply_length = self._reply_length(last.state, rows, stop_token_ids, reference_exact)
    spoken = speak_replies(speaker, last.state.output, reply_length)
    seconds = round(time.perf_counter() - started, 6)
    return [
      dataclasses.replace(reply, speech=speech, timings=reply.timings | {'speech_s': seconds})
      for reply, speech in zip(replies, spoken, strict=True)
    ]

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
    speech: bool = False,
    speaker: str = DEFAULT_SPEAKER,
    max_frames: int | None = None,
    talker_temperature: float | None = None,
    voice: Voice | None = None,
    chunk_schedule: Sequence[int] = DEFAULT_SCHEDULE,
    **prompt: Any,
  ) -> Iterator[TextDelta | AudioChunk | Finished]:
    """The reply to one conversation as it is made: TextDelta and AudioChunk events, then Finished.

    The Talker starts after the Thinker's first token and runs a frame for every further one. chunk_schedule: frames per
    AudioChunk, the last number repeating. Same tokens and codes as `generate` for the same seed; the samples are the same to
    float rounding (1e-5).
    """
    given = {'temperature': temperature, 'top_k': top_k, 'top_p': top_p, 'repetition_penalty': repetition_penalty}
    chosen = self.voice_for(voice, talker_temperature) if speech else None
    limit = self.defaults.max_new_tokens if max_new_tokens is None else max_new_tokens
    frames = (chosen or self.voice).max_frames if max_frames is None else max_frames
    (inputs,) = self._prompts([conversation], False, prompt)
    if isinstance(inputs, str):
      raise ValueError(inputs)
    row = _Row(inputs, merge_sampling(self.defaults.sampling, seed=seed, **given), limit, speaker, frames)
    runs = self._run([row], stop_token_ids, steps_per_call=1, speech=speech)
    return self._stream([row], runs, stop_token_ids, chosen, chunk_schedule)

  def _stream(
    self,
    rows: list[_Row],
    runs: Iterator[_Run],
    stop_token_ids: Sequence[int] | None,
    voice: Voice | None,
    schedule: Sequence[int],
  ) -> Iterator[TextDelta | AudioChunk | Finished]:
    """Events of a single row whose tokens come from `runs`, one at a time."""
    started = time.perf_counter()
    decoder, sent = StreamDecoder(self.processor.tokenizer), 0
    speaker = wave = text = run = None
    pieces: list[np.ndarray] = []
    timings: dict[str, float] = {}

    def timed(chunks: Iterator[AudioChunk]) -> Iterator[AudioChunk]:
      for chunk in chunks:
        timings.setdefault('first_audio_s', round(time.perf_counter() - started, 6))
        pieces.append(chunk.samples)
        yield chunk

    for run in runs:
      count, done = int(run.state.count[0]), bool(run.state.done[0])
      if piece := decoder.push([int(t) for t in np.asarray(run.state.output[0, sent:count])]):
        yield TextDelta(piece)
      sent = count
      if voice is None:
        continue
      reply_length = self._reply_length(run.state, rows, stop_token_ids, False)
      if speaker is None:
        speaker = self._speaker(rows, run.talker_context, voice, False)
        wave = WaveStream(speaker, schedule)
        text = device.whole_text(self.params, self.cfg, run.state.output, jnp.asarray(reply_length), dtype=self.dtype)
        speaker.begin(text, reply_length > 0)
      else:
        text = device.add_text(self.params, text, run.state.token, jnp.asarray(reply_length))
      assert wave is not None and text is not None
      if not done:
        speaker.run(text, False, 1)
        yield from timed(wave.ready())
    assert run is not None
    if piece := decoder.flush():
      yield TextDelta(piece)
    (reply,) = self._replies(run, rows, stop_token_ids)
    if speaker is not None and wave is not None and text is not None:
      while not speaker.ended:
        speaker.run(text, True, wave.next_size)
        yield from timed(wave.ready())
      yield from timed(wave.ready(last=True))
      timings['total_s'] = round(time.perf_counter() - started, 6)
      samples = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
      reply = dataclasses.replace(reply, speech=speaker.spoken(samples), timings=reply.timings | timings)
    yield Finished(reply)

  def speak(
    self,
    text: str | Sequence[str],
    speaker: str | Sequence[str] = DEFAULT_SPEAKER,
    *,
    seed: int | Sequence[int] = 0,
    max_frames: int | Sequence[int] | None = None,
    talker_temperature: float | None = None,
    voice: Voice | None = None,
  ) -> Speech | list[Speech]:
    """Speaks given text; the Thinker only lends its embeddings. One Speech for a string, a list for several."""
    texts = [text] if isinstance(text, str) else list(text)
    tokens = [self.processor.tokenizer.encode(t) for t in texts]
    if empty := [i for i, ids in enumerate(tokens) if not ids]:
      raise ValueError(f'nothing to say in text {empty}')
    number = len(texts)
    chosen = self.voice_for(voice, talker_temperature)
    frames = per_row(chosen.max_frames if max_frames is None else max_frames, number, 'max_frames')
    speakers, seeds = per_row(speaker, number, 'speaker'), per_row(seed, number, 'seed')
    tokenizer = self.processor.tokenizer
    header = np.array(tokenizer.encode_prompt(tokenizer.split('<|im_start|>assistant\n')), np.int32)
    prompt = ModelInputs(header, np.broadcast_to(np.arange(len(header), dtype=np.float32), (3, len(header))))
    rows = [
      _Row(prompt, Sampling(seed=seed), len(ids), name, limit)
      for ids, seed, name, limit in zip(tokens, seeds, speakers, frames, strict=True)
    ]
    batch = collate([prompt] * number, self.cfg.thinker, bucket(number))
    nothing = jnp.zeros((*batch.tokens.ids.shape, self.cfg.thinker.text.hidden_size), self.dtype)  # no media: never looked at
    output = np.zeros((bucket(number), bucket(max(map(len, tokens)), 16)), np.int32)
    reply_length = np.zeros(bucket(number), np.int32)
    for b, ids in enumerate(tokens):
      output[b, : len(ids)], reply_length[b] = ids, len(ids)
    speech_run = self._speaker(rows, TalkerContext(jnp.asarray(batch.tokens.ids), nothing), chosen, False)
    spoken = speak_replies(speech_run, jnp.asarray(output), reply_length)
    return spoken[0] if isinstance(text, str) else spoken

  def score(self, conversations: Sequence[Conversation], *, batch_size: int = 16, **prompt: Any) -> list[Score]:
    """Log-probability of every token of each conversation's last assistant turn, given all before it."""
    scores = []
    for start in range(0, len(conversations), batch_size):
      pairs = [self.processor.for_scoring(c, **prompt) for c in conversations[start : start + batch_size]]
      rows, first = [row for row, _ in pairs], [begin for _, begin in pairs]
      batch = collate(rows, self.cfg.thinker)
      features = decode.encode_media(self.params, self.cfg.thinker, batch.media, self.dtype)
      logprobs = np.asarray(decode.score(self.params['thinker'], self.cfg.thinker, batch.tokens, features, dtype=self.dtype))
      for b, (row, begin) in enumerate(zip(rows, first, strict=True)):
        ids = [int(t) for t in row.ids[begin:]]
        tokens = [self.processor.tokenizer.decode([t], skip_special_tokens=False) for t in ids]
        scores.append(Score(ids, tokens, [float(p) for p in logprobs[b, begin : len(row.ids)]], begin))
    return scores

  def voice_for(self, voice: Voice | None = None, temperature: float | None = None, reference_exact: bool = False) -> Voice:
    """The speech settings of a call: those given, else the checkpoint's. Raises ValueError where the checkpoint cannot speak."""
    if self.cfg.talker is None:
      raise ValueError('this checkpoint has no Talker (Thinking and Captioner variants write only): ask for text')
    if 'talker' not in self.params:
      raise ValueError('the Talker was not loaded: use Omni.load(…, speech=True)')
    chosen = (voice or self.voice).changed(temperature=temperature)
    return chosen.without_guards() if reference_exact else chosen

  def _speaker(self, rows: list[_Row], talker_context: TalkerContext | None, voice: Voice, reference_exact: bool) -> Speaker:
    assert talker_context is not None
    return Speaker(
      self,
      [row.inputs for row in rows],
      talker_context,
      [row.speaker for row in rows],
      [row.sampling.seed for row in rows],
      [row.max_frames for row in rows],
      [row.max_new_tokens for row in rows],
      voice,
      reference_exact,
    )

  def _reply_length(self, state: decode.State, rows: list[_Row], stop_token_ids, reference_exact: bool) -> np.ndarray:
    """How many tokens of each row's output so far are to be spoken."""
    count, token = np.asarray(state.count), np.asarray(state.token)
    stopped = np.isin(token, self.defaults.stop_ids(stop_token_ids)) & (count > 0)
    return spoken_tokens(count, stopped, reference_exact)

  def _prompts(self, conversations: Sequence[Conversation], reference_exact: bool, prompt: dict) -> list[ModelInputs | str]:
    """ModelInputs of each conversation, or what is wrong with it."""
    if reference_exact:  # the reference pads the sounds of a call together, so that one cannot fail alone
      return list(self.processor.batch(conversations, reference_exact=True, **prompt))
    out: list[ModelInputs | str] = []
    limit = self.cfg.thinker.text.max_position_embeddings
    for conversation in conversations:
      try:
        inputs = self.processor(conversation, **prompt)
        if len(inputs.ids) >= limit:
          raise ValueError(
            f'the prompt has {len(inputs.ids)} tokens but the model was made for {limit}: shorten the text, cut the audio '
            'or lower the video fps'
          )
        out.append(inputs)
      except ValueError as e:
        out.append(str(e))
    return out

  def _run(
    self,
    rows: list[_Row],
    stop_token_ids: Sequence[int] | None,
    steps_per_call: int = STEPS_PER_CALL,
    speech: bool = False,
  ) -> Iterator[_Run]:
    """Prefills, then decodes; yields after the first token (for speech, with the TalkerContext) and after every call
    of the decode loop."""
    max_new_tokens = [row.max_new_tokens for row in rows]
    if any(n < 1 for n in max_new_tokens):
      raise ValueError(f'max_new_tokens {min(max_new_tokens)}: expected 1 or more')
    started = time.perf_counter()
    timings: dict[str, float] = {}
    padded = bucket(len(rows))
    batch: Batch = collate([row.inputs for row in rows], self.cfg.thinker, padded)
    extra = padded - len(rows)
    sampling = sampling_rows([row.sampling for row in rows] + [Sampling()] * extra, self.cfg.thinker.text.vocab_size)
    penalised = any(row.sampling.repetition_penalty != 1 for row in rows)
    limits = self._limits(max_new_tokens + [0] * extra, stop_token_ids)
    outputs = bucket(max(max_new_tokens), 16)
    slots = bucket(int(batch.length.max()) + max(max_new_tokens), batch.tokens.ids.shape[1])
    features = decode.encode_media(self.params, self.cfg.thinker, batch.media, self.dtype)
    jax.block_until_ready(features)
    timings['encode_s'] = time.perf_counter() - started
    tap = self.cfg.talker.accept_hidden_layer if speech and self.cfg.talker is not None else None
    state, out = decode.prefill(
      self.params['thinker'],
      self.cfg.thinker,
      batch.replace(media=()),
      features,
      sampling,
      limits,
      slots=slots,
      outputs=outputs,
      penalised=penalised,
      dtype=self.dtype,
      tap_layer=tap,
    )
    state.token.block_until_ready()
    timings['first_token_s'] = time.perf_counter() - started
    talker_context = None if out.tap is None else TalkerContext(jnp.asarray(batch.tokens.ids), out.tap)
    yield from self._decode(state, sampling, limits, steps_per_call, talker_context, timings, started)

  def _decode(
    self,
    state: decode.State,
    sampling,
    limits: decode.Limits,
    steps_per_call: int,
    talker_context: TalkerContext | None,
    timings: dict[str, float],
    started: float,
  ) -> Iterator[_Run]:
    """The state after prefill, then after every call of the decode loop."""
    yield _Run(state, timings, talker_context)
    decoding = time.perf_counter()
    steps = jnp.int32(steps_per_call)
    while not bool(state.done.all()):
      state = decode.decode(self.params['thinker'], self.cfg.thinker, state, sampling, limits, steps, dtype=self.dtype)
      timings['decode_s'] = time.perf_counter() - decoding
      timings['total_s'] = time.perf_counter() - started
      yield _Run(state, timings)

  def _limits(self, max_new_tokens: list[int], stop_token_ids: Sequence[int] | None) -> decode.Limits:
    stop = self.defaults.stop_ids(stop_token_ids)
    padded = np.full(bucket(len(stop), 4), -1, np.int32)
    padded[: len(stop)] = stop
    return decode.Limits(stop=padded, tokens=np.array(max_new_tokens, np.int32))

  def _replies(self, run: _Run, rows: list[_Row], stop_token_ids: Sequence[int] | None) -> list[Reply]:
    stop, tokenizer = self.defaults.stop_ids(stop_token_ids), self.processor.tokenizer
    output, count = np.asarray(run.state.output), np.asarray(run.state.count)
    timings = {k: round(v, 6) for k, v in {'total_s': run.timings['first_token_s'], **run.timings}.items()}
    return [Reply.of(tokenizer, row.inputs.ids, output[b, : count[b]].tolist(), stop, timings) for b, row in enumerate(rows)]
