"""A batch job: answers every row of its input once, into a folder, and resumes when it is run again.

    summary = run_job(JobConfig(model='ckpt', input=('in.jsonl',), output='out', speech=True))

Any number of processes may run the same job on one folder at once, on one machine or on many that share it: each takes free
blocks (`shard` limits which). The answers do not depend on it.
"""

import concurrent.futures
import dataclasses
import json
import logging
import os
import pathlib
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from .batch import Engine, Result, compiled_programs
from .batch_plan import EngineConfig
from .job_report import summarise, write_report
from .job_rows import Index, input_files, parse_row
from .job_store import Store
from .omni import Omni
from .prepare import Row, RowError, row_seed
from .score_batch import BulkScorer
from .voice import RATE_HZ

log = logging.getLogger(__name__)
MANIFEST_LOCK = 0  # byte of the claims file


@dataclasses.dataclass(frozen=True)
class JobConfig:
  """A job. What changes answers is kept in the manifest, and a second run must agree with it; the rest may differ.

  input: paths and glob patterns. speech: rows that do not say otherwise are spoken. audio: 'flac' or 'wav'; tar: the sound of a
  block in one archive. seed: of rows that name none is that of their id, plus this. shard: (i, n): only every n-th block from
  the i-th. top_logprobs: with score, of so many most probable tokens at each place.
  """

  model: str
  input: tuple[str, ...]
  output: str
  speech: bool = False
  score: bool = False
  top_logprobs: int = 0
  speaker: str | None = None
  max_new_tokens: int | None = None
  max_frames: int | None = None
  temperature: float | None = None
  top_k: int | None = None
  top_p: float | None = None
  repetition_penalty: float | None = None
  talker_temperature: float | None = None
  seed: int | None = None
  fps: float | None = None
  media: str | None = None
  audio_in_video: bool | None = None
  enable_thinking: bool | None = None
  audio: str = 'flac'
  tar: bool = False
  token_ids: bool = False
  media_root: str | None = None
  dtype: str = 'bfloat16'
  mesh: str | None = None
  block_rows: int = 64
  shard: tuple[int, int] | None = None
  retry_failed: bool = False
  engine: EngineConfig = EngineConfig()

  def __post_init__(self):
    if self.audio not in ('flac', 'wav'):
      raise ValueError(f"audio '{self.audio}': expected flac or wav")
    if self.block_rows < 1 or self.top_logprobs < 0:
      raise ValueError('block_rows: expected 1 or more; top_logprobs: 0 or more')
    if self.shard is not None and not 0 <= self.shard[0] < self.shard[1]:
      raise ValueError(f'shard {self.shard[0]}/{self.shard[1]}: expected I/N with 0 <= I < N')
    if self.score and self.speech:
      raise ValueError('score goes without speech: given answers are read, none are made')

  def defaults(self) -> dict[str, Any]:
    """Settings of rows that do not name their own."""
    names = (
      'speaker',
      'max_new_tokens',
      'max_frames',
      'temperature',
      'top_k',
      'top_p',
      'repetition_penalty',
      'fps',
      'media',
      'audio_in_video',
      'enable_thinking',
    )
    return {name: getattr(self, name) for name in names}

  def identity(self) -> dict[str, Any]:
    """All that changes answers or where they are written."""
    apart = ('model', 'input', 'output', 'shard', 'retry_failed', 'engine', 'media_root', 'mesh')
    return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in apart}


def run_job(config: JobConfig, omni: Omni | None = None, on_progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
  """Answers what is left of the job and returns its summary, also written to OUT/summary.json once every row is there.

  omni: the loaded model, else config.model is loaded. on_progress: called with (rows of this run, rows of the job). Raises
  ValueError if OUT holds another job. Interrupted (Ctrl-C, SIGTERM), it loses at most the rows in flight.
  """
  files = input_files(config.input)
  out = pathlib.Path(config.output)
  out.mkdir(parents=True, exist_ok=True)
  index, manifest = _open(config, files, out)
  store = Store(out, index.total, manifest['identity']['block_rows'], manifest['identity']['tar'])
  try:
    mine = range(store.blocks) if config.shard is None else range(config.shard[0], store.blocks, config.shard[1])
    blocks = [b for b in mine if config.retry_failed or not store.complete(b)]
    run = _Run(config, index, store, on_progress)
    started = time.time()
    if blocks:
      omni = omni or load_omni(config)
      run.go(omni, blocks)
    own = run.summary(started)
    return merge(out, own)
  finally:
    store.close()


def load_omni(config: JobConfig) -> Omni:
  """The model a job asks for. media_root: default the first input file's folder."""
  root = media_root(config, input_files(config.input))
  return Omni.load(config.model, dtype=config.dtype, speech=config.speech, media_root=root, mesh=config.mesh)


def media_root(config: JobConfig, files: list[pathlib.Path]) -> pathlib.Path:
  return pathlib.Path(config.media_root) if config.media_root else files[0].parent


def _open(config: JobConfig, files: list[pathlib.Path], out: pathlib.Path) -> tuple[Index, dict[str, Any]]:
  """The index and manifest of the job in OUT, made by whoever comes first."""
  facts = [{'path': str(f), 'bytes': f.stat().st_size} for f in files]
  path = out / 'manifest.json'
  claims = Store(out, 0, 1)
  try:
    claims.lock(MANIFEST_LOCK, wait=True)
    if not path.exists():
      index = Index.of(files)
      index.save(out / 'index.npz')
      manifest = {'input': facts, 'rows': index.total, 'identity': config.identity(), 'model': str(config.model)}
      manifest['media_root'] = str(media_root(config, files).absolute())  # for the report: a later run may name another
      partial = path.with_suffix('.partial')
      partial.write_text(json.dumps(manifest, indent=1) + '\n')
      partial.rename(path)
      return index, manifest
    manifest = json.loads(path.read_text())
  finally:
    claims.close()
  before, now = manifest['identity'], json.loads(json.dumps(config.identity()))
  problems = [f'{k}: was {before.get(k)!r}, now {v!r}' for k, v in now.items() if before.get(k) != v]
  if [f['bytes'] for f in manifest['input']] != [f['bytes'] for f in facts]:
    problems.append('the input files have changed')
  if manifest['model'] != str(config.model):
    problems.append(f'model: was {manifest["model"]!r}, now {config.model!r}')
  if problems:
    raise ValueError(f'{out} holds another job: ' + '; '.join(problems) + '. Give another --output, or the same settings')
  return Index.load(out / 'index.npz', files), manifest


class _Run:
  """One process at work on a job: rows of claimed blocks to the engine, results to a thread that writes them."""

  def __init__(self, config: JobConfig, index: Index, store: Store, on_progress):
    self.config, self.index, self.store, self.on_progress = config, index, store, on_progress
    self.rows = 0
    self.stats: dict[str, Any] = {}
    self.programs: dict[str, int] = {}
    self.early: deque[tuple[int, dict[str, Any]]] = deque()  # rows that never reached the engine
    self.numbers: dict[int, int] = {}  # of rows in the engine, by identity

  def go(self, omni: Omni, blocks: list[int]) -> None:
    config = self.config
    with concurrent.futures.ThreadPoolExecutor(1, 'write') as writer:
      writes: deque[concurrent.futures.Future] = deque()

      def write(job: Callable[[], None]) -> None:
        writes.append(writer.submit(job))
        while len(writes) > 64 or (writes and writes[0].done()):
          writes.popleft().result()  # an error of the disk ends the run
        while self.early:
          number, line = self.early.popleft()
          writes.append(writer.submit(self._write, number, line, {}))

      rows = self._rows(blocks)
      if config.score:
        scorer = BulkScorer(omni, config.engine, config.top_logprobs)
        for row, scored in scorer.score(rows):
          write(lambda row=row, scored=scored: self._write(self.numbers.pop(id(row)), {'custom_id': row.id, **scored}, {}))
      else:
        voice = omni.voice_for(temperature=config.talker_temperature) if config.speech else None
        engine = Engine(omni, config.engine, voice)
        for result in engine.answer(rows):
          write(lambda result=result: self._write_result(result))
        self.stats = dataclasses.asdict(engine.stats)
        self.programs = compiled_programs()
      write(lambda: None)
      for future in writes:
        future.result()

  def _rows(self, blocks: list[int]) -> Iterator[Row]:
    """Rows of blocks nobody else has, claimed when they are needed."""
    config, defaults = self.config, self.config.defaults()
    for block in blocks:
      done = self.store.claim(block, config.retry_failed)
      if done is None:
        continue
      rows = self.store.rows_of(block)
      for number, contents in self.index.read(rows.start, rows.stop):
        if number in done:
          continue
        name = f'row-{number:08d}'
        try:
          row = parse_row(contents, number, name, defaults, config.speech)
          if number in self.index.twice:
            raise RowError('duplicate_id', f'custom_id {row.id!r}: an earlier row has it too')
          if config.seed is not None and row.seed is None:
            row = dataclasses.replace(row, seed=(row_seed(row.id) + config.seed) % 2**32)
        except RowError as e:
          self.early.append((number, _error_line(_name_of(contents, name), e.kind, str(e))))
          continue
        self.numbers[id(row)] = number
        yield row

  def _write_result(self, result: Result) -> None:
    number = self.numbers.pop(id(result.row))
    timing = {**result.timings, 'finished': round(time.time(), 3), 'process': os.getpid()}
    if result.reply is None:
      self._write(number, _error_line(result.row.id, result.kind or 'internal', result.error or ''), timing)
      return
    reply, line = result.reply, {'custom_id': result.row.id, 'row': number}
    text, calls = tool_calls(reply.text) if result.row.prompt.get('tools') else (reply.text, [])
    line['text'] = text
    if reply.reasoning is not None:
      line['reasoning'] = reply.reasoning
    if calls:
      line['tool_calls'] = calls
    frames = 0 if reply.speech is None else len(reply.speech.codes)
    line['usage'] = {
      'prompt_tokens': reply.prompt_tokens,
      'completion_tokens': len(reply.token_ids),
      'audio_frames': frames,
    }
    line |= {'finish_reason': reply.finish_reason, 'seed': result.seed}
    if self.config.token_ids:
      line['token_ids'] = reply.token_ids
    if reply.speech is not None:
      line['audio'] = {'seconds': round(reply.speech.duration_s, 4), 'finish_reason': reply.speech.finish_reason}
      if len(reply.speech.samples):
        line['audio'] |= self.store.put_audio(number, reply.speech.samples, RATE_HZ, self.config.audio)
    self._write(number, line, timing)

  def _write(self, number: int, line: dict[str, Any], timing: dict[str, Any]) -> None:
    line = {'custom_id': line.pop('custom_id'), 'row': number, **{k: v for k, v in line.items() if k != 'row'}}
    timing = timing or {'finished': round(time.time(), 3), 'process': os.getpid()}
    self.store.append(number, line, timing)
    self.rows += 1
    if self.on_progress is not None:
      self.on_progress(self.rows, self.store.total)

  def summary(self, started: float) -> dict[str, Any]:
    seconds = round(time.time() - started, 3)
    return {'rows': self.rows, 'seconds': seconds, 'process': os.getpid(), 'engine': self.stats, 'programs': self.programs}


def _error_line(name: str, kind: str, message: str) -> dict[str, Any]:
  return {'custom_id': name, 'error': {'kind': kind, 'message': message}}


def _name_of(contents: Any, otherwise: str) -> str:
  """The custom_id of a row that could not be parsed as far as that, if it can be seen."""
  try:
    data = json.loads(contents) if isinstance(contents, (bytes, str)) else contents
    name = data.get('custom_id', data.get('id'))
    return name if isinstance(name, str) and name else otherwise
  except (ValueError, AttributeError, RecursionError):
    return otherwise


_CALL = re.compile(r'\n?<tool_call>\s*(\{.*?\})\s*</tool_call>', re.DOTALL)


def tool_calls(text: str) -> tuple[str, list[dict[str, Any]]]:
  """(text without its calls, the calls {'name', 'arguments'}); a call that is not valid JSON stays in the text."""
  calls = []

  def take(match: re.Match) -> str:
    try:
      call = json.loads(match[1])
    except (ValueError, RecursionError):
      return match[0]
    if not isinstance(call, dict) or not isinstance(call.get('name'), str):
      return match[0]
    calls.append({'name': call['name'], 'arguments': call.get('arguments', {})})
    return ''

  return _CALL.sub(take, text), calls


def merge(out: str | pathlib.Path, own: dict[str, Any] | None = None) -> dict[str, Any]:
  """Checks that every row of a job is there once, with its sound, and writes summary.json and report.html.

  While rows are missing it only says how many: 'complete' is then False. own: what this process did. Raises ValueError for an
  output that contradicts its manifest.
  """
  out = pathlib.Path(out)
  if not (out / 'manifest.json').is_file():
    raise ValueError(f'{out}: no manifest.json; expected the output folder of a batch job')
  manifest = json.loads((out / 'manifest.json').read_text())
  store = Store(out, manifest['rows'], manifest['identity']['block_rows'], manifest['identity']['tar'])
  try:
    waiting = store.incomplete()
    if waiting:
      left = sum(len(store.rows_of(b)) for b in waiting)
      return {'complete': False, 'rows': manifest['rows'], 'rows_in_open_blocks': left, 'open_blocks': len(waiting), 'own': own}
    store.lock(MANIFEST_LOCK, wait=True)
    store.tidy()
    summary = summarise(store, manifest, own)
    partial = out / f'summary.{os.getpid()}.partial'
    partial.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + '\n')
    partial.rename(out / 'summary.json')
    write_report(out / 'report.html', store, manifest, summary)
    return summary
  finally:
    store.close()
