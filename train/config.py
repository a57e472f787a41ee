"""The configuration of a run, as in the files of configs/train: every option, its default and what it means.

`config_file` reads it. What is made of it is elsewhere: sizes of a batch in `geometry`, trainable parameters in `stages`,
schedules in `optimiser`.
"""

import dataclasses
from typing import Literal

from qwen3_omni_jax.media.processor import Media

from .vocoder.config import Vocoder

Form = Literal['chat', 'document', 'speech']


@dataclasses.dataclass(frozen=True)
class Part:
  """A group of parameters. lr: highest learning rate; 0 freezes. weight_decay: of matrices (norms and biases have none), per
  unit of learning rate, as in AdamW. rows: 'speakers' trains those rows of talker/embed alone that are of the run's `speakers`.
  schedule, warmup, final, decay: of this part; None takes the optimiser's."""

  pattern: str
  lr: float
  weight_decay: float = 0.0
  rows: Literal['all', 'speakers'] = 'all'
  schedule: Literal['cosine', 'linear', 'constant', 'wsd'] | None = None
  warmup: int | None = None
  final: float | None = None
  decay: float | None = None


@dataclasses.dataclass(frozen=True)
class LoraPart:
  """Matrices that get a low-rank change B A * alpha / rank, itself trained in place of them."""

  pattern: str
  rank: int = 16
  alpha: float = 32.0
  lr: float = 1e-4


@dataclasses.dataclass(frozen=True)
class Optimiser:
  """name: adamw, adafactor or muon. schedule: constant, cosine, linear or wsd, from the end of `warmup` steps to `final` times
  the highest rate at the last step; wsd (warm-up, stable, decay) keeps the highest until the share `decay` of all steps is left
  and then falls linearly. clip: largest norm of the whole gradient; 0 for no clipping. dtype: of the first moment.
  restart: when going on from a checkpoint, moments that it does not have begin anew; otherwise that is an error."""

  name: Literal['adamw', 'adafactor', 'muon'] = 'adamw'
  schedule: Literal['cosine', 'linear', 'constant', 'wsd'] = 'cosine'
  warmup: int = 100
  final: float = 0.1
  decay: float = 0.2
  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  clip: float = 1.0
  dtype: Literal['float32', 'bfloat16'] = 'float32'
  restart: bool = False


@dataclasses.dataclass(frozen=True)
class Loss:
  """balance: weight of the load-balance loss; None takes the checkpoint's own. balance_form: see losses.balance_loss. z: of the
  router's z-loss. chunk: positions whose logits a device holds at once. bias_update: rate of the bias by which experts are
  selected (train.router_bias), in units of the router's probabilities; 0: none. bias_until: share of the steps after which the
  bias is taken back."""

  balance: float | None = None
  balance_form: Literal['per_layer', 'reference'] = 'per_layer'
  z: float = 0.0
  chunk: int = 1024
  bias_update: float = 0.0
  bias_until: float = 0.9


@dataclasses.dataclass(frozen=True)
class Step:
  """How a step is computed. dtype: of the computation; masters are float32. accumulate: microbatches a step. remat,
  encoder_remat: of nn.remat. buffer: room for tokens of experts on a mesh (None: as much as can be needed; see
  nn.expert_parallel.Dispatch). ema: decay of averaged weights, 0 for none. skip_nonfinite: leave everything as it is when loss
  or gradient is not finite. spike: also when the gradient's norm is more than so many times its running mean; 0: never. xla:
  options of the compiler for the step, each `name=value`; it refuses those that it does not know."""

  dtype: Literal['float32', 'bfloat16'] = 'bfloat16'
  accumulate: int = 1
  remat: Literal['none', 'full', 'attention', 'experts', 'dots', 'offload'] = 'full'
  encoder_remat: Literal['none', 'full', 'attention', 'experts', 'dots', 'offload'] = 'full'
  buffer: float | None = None
  ema: float = 0.0
  skip_nonfinite: bool = True
  spike: float = 0.0
  xla: tuple[str, ...] = ()

  @property
  def compiler_options(self) -> dict[str, str | bool]:
    """xla as jax.jit takes it."""
    pairs = (text.partition('=') for text in self.xla)
    return {name.strip(): {'true': True, 'false': False}.get(value.strip(), value.strip()) for name, _, value in pairs}


@dataclasses.dataclass(frozen=True)
class Speech:
  """Weights of the losses of a run that trains the Talker or its code predictor: of code 0, of a frame's other codes (their
  mean), and of the Thinker on its own text. frames: the share of the Talker's positions for which the predictor has room in a
  step; of more frames than that, those of a random choice stand for all."""

  codes: float = 1.0
  predictor: float = 0.3
  frames: float = 1.0
  text: float = 0.0


@dataclasses.dataclass(frozen=True)
class Speaker:
  """A voice that the model gets besides its own. id: its row in the Talker's table of codes; None: the first one that is free
  after the other speakers'. like: the speaker whose row it begins with; None: the mean of all."""

  name: str
  id: int | None = None
  like: str | None = None


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Everything that decides what a step computes. steps: of the whole run, which the schedule spans. speech: for a run with the
  Talker; without, it and its code predictor stay where they are. speakers: new ones. seed: of random weights and choices."""

  parts: tuple[Part, ...] = ()
  lora: tuple[LoraPart, ...] = ()
  steps: int = 1000
  optimiser: Optimiser = Optimiser()
  loss: Loss = Loss()
  step: Step = Step()
  speech: Speech | None = None
  speakers: tuple[Speaker, ...] = ()
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class WeightAt:
  """A point of a schedule: the weight that a source has once the run has read so many tokens, all sources and lanes together."""

  tokens: float
  weight: float


@dataclasses.dataclass(frozen=True)
class SourceConfig:
  """Records of one kind. path: a file or a pattern with *; the ending says the format.

  weight: share of the tokens (those of media included, and positions of speech), relative to the other sources'. schedule:
  weights at points, linear between them and constant outside, in place of weight. All sources have one of the two or none has;
  without, every record counts alike. epochs: how often a source with a share may be read at most; then the others take its place.
  form: 'chat', 'document' or 'speech' (text read aloud). media_root: media paths are relative to it and must lie in it; default
  the file's folder. fps, audio_in_video: for videos, where a record says nothing. thinking: learn <think> … </think> too. ignore:
  keys of the records to pass over. codes: a folder of `qwen3-omni codes` with the recordings that are to be said. speaker: who
  says them, where a record names nobody.
  """

  path: str = ''
  name: str = ''
  weight: float | None = None
  schedule: tuple[WeightAt, ...] = ()
  epochs: int | None = None
  form: Form = 'chat'
  media_root: str | None = None
  fps: float | None = None
  audio_in_video: bool = False
  thinking: bool = True
  ignore: tuple[str, ...] = ()
  codes: str = ''
  speaker: str = ''

  @property
  def weighted(self) -> bool:
    return self.weight is not None or bool(self.schedule)

  def weight_at(self, tokens: float) -> float:
    """Once the run has read so many tokens."""
    if self.weight is not None:
      return self.weight
    points = self.schedule
    after = next((i for i, point in enumerate(points) if point.tokens > tokens), len(points))
    if after in (0, len(points)):
      return points[min(after, len(points) - 1)].weight
    a, b = points[after - 1], points[after]
    return a.weight + (b.weight - a.weight) * (tokens - a.tokens) / (b.tokens - a.tokens)

  def problems(self) -> list[str]:
    found = []
    if self.weight is not None and self.schedule:
      found.append(f'{self.path}: weight and schedule; give one of the two')
    if self.weight is not None and self.weight <= 0:
      found.append(f'weight {self.weight} of {self.path}: expected a number above 0')
    points = [point.tokens for point in self.schedule]
    if self.schedule and (points != sorted(points) or any(p.weight < 0 for p in self.schedule) or self.schedule[-1].weight == 0):
      found.append(f'schedule of {self.path}: expected rising tokens and weights of at least 0, the last one above 0')
    if self.epochs is not None and self.epochs < 1:
      found.append(f'epochs {self.epochs} of {self.path}: expected at least 1')
    if self.epochs is not None and not self.weighted:
      found.append(f'epochs of {self.path}: for a source with a weight')
    return found


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """What is read and the one shape of every batch, over all processes.

  rows × length: tokens of a batch. lanes: independent packers that the rows are dealt to, at least as many as processes; each
  process must own the same number. audio_s: seconds of audio in a batch; visual_patches: patches of images and video frames in
  a batch, in encoder rows of visual_row (no picture may have more). 0 for none of them. buffer: records a lane chooses from; a
  larger one packs tighter and holds more decoded media. split_documents: cut documents longer than a row. epochs: end after so
  many (one process; without weights); None: endless. max_bad: bad records at which the job stops, as a number or as a share
  (below 1), over all processes; a share must be exceeded for certain. workers: decoding processes of this process; 0: `threads`
  threads instead. restart: if the data are not those of the checkpoint, begin them; otherwise that is an error.
  max_image_pixels, max_video_pixels: larger pictures (frames) are shrunk to it, as the processor shrinks to its own limit.
  media: who chooses frames and sizes, 'processor' or 'utils' (docs/data.md).
  speech_rows, speech_length: rows of the Talker in a batch, and the positions of each; with 0 rows no speech is read, and an
  answer with audio is a bad record. per_device: rows, lanes, audio_s, visual_patches and speech_rows are for each device, or
  group of devices along the mesh axes context and tensor; a run multiplies them by their number (train.geometry).
  """

  sources: tuple[SourceConfig, ...] = ()
  rows: int = 1
  length: int = 8192
  lanes: int = 1
  audio_s: int = 0
  visual_patches: int = 0
  visual_row: int = 1024
  speech_rows: int = 0
  speech_length: int = 2048
  buffer: int = 64
  seed: int = 0
  shuffle: bool = True
  epochs: int | None = None
  split_documents: bool = True
  max_bad: float = 0.01
  workers: int = 0
  threads: int = 8
  prefetch_batches: int = 2
  restart: bool = False
  max_image_pixels: int | None = None
  max_video_pixels: int | None = None
  media: Media = 'processor'
  per_device: bool = False

  @property
  def weighted(self) -> bool:
    return any(source.weighted for source in self.sources)

  def check_sources(self) -> None:
    """Raises ValueError if nothing can be read with these sources, listing why."""
    if problems := self._source_problems():
      raise ValueError('data: ' + '; '.join(problems))

  def _source_problems(self) -> list[str]:
    if not self.sources:
      return ['sources: none; give at least one']
    problems = [problem for source in self.sources for problem in source.problems()]
    if len({source.weighted for source in self.sources}) > 1:
      problems.append('weights: some sources have one and some do not')
    if self.weighted and self.epochs is not None:
      problems.append('epochs: a mixture with weights has no end; give a number of steps, or epochs to its sources')
    endless = [source for source in self.sources if source.epochs is None and source.weighted]
    points = {0.0, *(point.tokens for source in self.sources for point in source.schedule)}
    if self.weighted and (nothing := [at for at in sorted(points) if not any(source.weight_at(at) for source in endless)]):
      problems.append(f'no source without epochs has a weight at {nothing[0]:g} tokens, so the mixture may end')
    names = [source.name or source.path for source in self.sources]
    if twice := sorted({name for name in names if names.count(name) > 1}):
      problems.append(f'sources: {", ".join(twice)} twice; give them names')
    return problems


@dataclasses.dataclass(frozen=True)
class Saving:
  """every: steps between checkpoints; one more is written at the end. minutes: besides, so long after the last one. keep: newest
  ones kept; keep_every: besides, those of steps that it divides; best: besides, so many of the lowest held-out loss (of those
  saved at a step with an evaluation). rollback: after so many skipped steps in a row (step.spike, step.skip_nonfinite) go on from
  the newest checkpoint with the data that follow; 0: never."""

  every: int = 500
  keep: int = 2
  keep_every: int | None = None
  minutes: float | None = None
  best: int = 0
  rollback: int = 0


@dataclasses.dataclass(frozen=True)
class Logging:
  """every: steps between lines on the terminal. wandb: the project to log to. records: write the ids of the records of every
  step. profile: after which step to trace three with jax's profiler, in all processes (SIGUSR1 to one does so at any time).
  hang_s: seconds in one phase of a step after which every process says where it is; None: never."""

  every: int = 10
  tensorboard: bool = True
  wandb: str | None = None
  records: bool = False
  profile: int | None = None
  hang_s: float | None = 1800.0


@dataclasses.dataclass(frozen=True)
class Benchmarks:
  """Benchmarks of eval/ by name, answered every so many steps and at the end by the weights of that step (their averages, where
  they are kept); one process. root: the folder with the released files. limit: items of each, evenly spread; None: all. batch:
  conversations answered together. max_new_tokens: of a reply, in place of the benchmark's own."""

  names: tuple[str, ...]
  root: str
  every: int = 1000
  limit: int | None = 100
  batch: int = 16
  max_new_tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class SpokenTexts:
  """Texts that a run with the Talker speaks every so many steps and at the end, by the weights of that step; one process. What
  was said is in OUT/samples and in TensorBoard; the model itself, asked `hear`, writes it down for a word error rate. speaker: of
  all texts. max_frames: of 80 ms, the longest speech; None: the checkpoint's limit. max_new_tokens: of what is heard."""

  texts: tuple[str, ...]
  speaker: str = 'ethan'
  every: int = 500
  hear: str = 'Transcribe the audio into text.'
  max_frames: int | None = 375
  max_new_tokens: int = 128


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Loss on held-out data every so many steps, over the first `batches` batches of them."""

  data: DataConfig
  every: int = 500
  batches: int = 8
  benchmarks: Benchmarks | None = None
  speech: SpokenTexts | None = None

  def problems(self) -> list[str]:
    sizes: dict[str, int | None] = {'every': self.every, 'batches': self.batches}
    found = []
    if (asked := self.benchmarks) is not None:
      found += [] if asked.names else ['evaluate.benchmarks.names: none; give at least one']
      limits = {'limit': asked.limit, 'max_new_tokens': asked.max_new_tokens}
      sizes |= {f'benchmarks.{name}': n for name, n in {'every': asked.every, 'batch': asked.batch, **limits}.items()}
    if (spoken := self.speech) is not None:
      found += [] if spoken.texts and all(map(str.strip, spoken.texts)) else ['evaluate.speech.texts: expected texts with words']
      limits = {'max_frames': spoken.max_frames, 'max_new_tokens': spoken.max_new_tokens}
      sizes |= {f'speech.{name}': n for name, n in {'every': spoken.every, **limits}.items()}
    return found + [f'evaluate.{name} {n}: expected at least 1' for name, n in sizes.items() if n is not None and n < 1]


@dataclasses.dataclass(frozen=True)
class Run(Recipe):
  """model: a folder (converted or as published), a hub id, or the gs:// or s3:// URL of a converted folder. init: 'model' starts
  from its weights, 'random' from random ones of its shape. out: the run's folder, or a gs:// URL; a run in it goes on. mesh: a
  strategy of sharding.py or sizes of mesh axes; slices: of TPUs. export: a folder to write the result to in the published layout,
  LoRA merged, with the model's other parts. export_weights: what is exported where averages are kept (step.ema): these, or the
  raw weights. vocoder: train Code2Wav on waves in place of the other parts (train.vocoder)."""

  model: str = ''
  out: str = ''
  init: Literal['model', 'random'] = 'model'
  mesh: str = 'fsdp'
  slices: int = 1
  data: DataConfig = DataConfig()
  evaluate: Evaluation | None = None
  save: Saving = Saving()
  log: Logging = Logging()
  export: str | None = None
  export_weights: Literal['averaged', 'raw'] = 'averaged'
  vocoder: Vocoder | None = None

  def check(self) -> None:
    """Raises ValueError for what no run can do."""
    problems = [f'{name}: missing' for name in ('model', 'out') if not getattr(self, name)]
    problems += [
      f'{name} {value}: expected at least 1'
      for name, value in (
        ('steps', self.steps),
        ('save.every', self.save.every),
        ('save.keep', self.save.keep),
        ('log.every', self.log.every),
        ('step.accumulate', self.step.accumulate),
      )
      if value < 1
    ]
    problems += [
      f'{name} {value}: expected more than 0'
      for name, value in (('save.minutes', self.save.minutes), ('log.hang_s', self.log.hang_s))
      if value is not None and value <= 0
    ]
    if self.loss.bias_update < 0 or not 0 < self.loss.bias_until < 1:
      found = f'{self.loss.bias_update}, loss.bias_until {self.loss.bias_until}'
      problems.append(f'loss.bias_update {found}: expected at least 0, and a share of the steps between 0 and 1')
    if self.log.profile is not None and not 0 <= self.log.profile < self.steps:
      problems.append(f'log.profile {self.log.profile}: expected a step that others follow, 0 to {self.steps - 1}')
    problems += [] if self.evaluate is None else self.evaluate.problems()
    if self.evaluate is not None and self.evaluate.speech is not None and self.speech is None:
      problems.append('evaluate.speech: for a run that trains the Talker (speech); leave it out')
    problems += self._speech_problems()
    problems += [] if self.vocoder is None else self._vocoder_problems(self.vocoder)
    problems += [f'step.xla {text!r}: expected name=value' for text in self.step.xla if not all(text.partition('=')[::2])]
    if self.save.best and self.evaluate is None:
      problems.append('save.best: there is no held-out loss; give evaluate, or leave it out')
    if self.data.epochs is not None:
      problems.append('data.epochs: a run has a number of steps; leave it out')
    if '://' in self.out and not self.out.startswith('gs://'):
      problems.append(f'out {self.out}: Orbax writes checkpoints to a file system or to gs://; mount the bucket, or use gs://')
    if self.export is not None and '://' in self.model:
      problems.append(
        f'export: needs model on a local disk, found {self.model}; leave it out and export the last checkpoint later'
      )
    if problems:
      raise ValueError('configuration: ' + '; '.join(problems))

  def _speech_problems(self) -> list[str]:
    places = {'data': self.data} | ({} if self.evaluate is None else {'evaluate.data': self.evaluate.data})
    found = [
      f'{name}.speech_rows {data.speech_rows}: '
      + ('the Talker has no rows' if self.speech else 'speech is read and not learnt; give speech')
      for name, data in places.items()
      if bool(data.speech_rows) != (self.speech is not None)
    ]
    if self.speakers and self.speech is None:
      found.append('speakers: only a run with speech can add any; give speech')
    if (speech := self.speech) is not None:
      if not 0 < speech.frames <= 1:
        found.append(f'speech.frames {speech.frames}: expected a share above 0, at most 1')
      found += [
        f'speech.{name} {weight}: expected at least 0'
        for name in ('codes', 'predictor', 'text')
        if (weight := getattr(speech, name)) < 0
      ]
    return found

  def _vocoder_problems(self, vocoder: Vocoder) -> list[str]:
    found = vocoder.problems()
    none = {'lora': self.lora, 'speech': self.speech, 'step.accumulate': self.step.accumulate > 1}
    none |= {'optimiser.name': self.optimiser.name != 'adamw', 'step.dtype': self.step.dtype != 'float32'}
    if wrong := [name for name, value in none.items() if value]:
      found.append(f'vocoder: trained by adamw in float32, whole batches, without {", ".join(wrong)} as given')
    if self.evaluate is not None and self.evaluate.benchmarks is not None:
      found.append('evaluate.benchmarks: a vocoder answers nothing; leave them out')
    named = [bool(source.codes) for source in self.data.sources]
    if vocoder.codec is None and not all(named):
      found.append('data.sources: without codes; a vocoder decodes those of `qwen3-omni codes`, unless vocoder.codec is given')
    if vocoder.codec is not None and any(named):
      found.append('data.sources: with codes; the codec that is trained makes its own')
    return found
