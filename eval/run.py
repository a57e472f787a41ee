"""Runs benchmarks and scores them.

`evaluate` is a function of a predictor and data that keeps nothing on disk. `run_suite` does the same for the command line and
writes every reply to disk as soon as it is there, so that a run that was killed goes on where it stopped.
"""

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from . import seed_tts, spoken, voicebench
from .benchmark import Benchmark, Item, Scores, Scoring, Settings, Variant
from .bootstrap import interval
from .data_check import Check, check
from .predict import Answer, OmniPredictor
from .published import published
from .read import with_media
from .recognise import Recogniser, own_ear
from .spoken import Ear

LIBRARIES = 'jiwer rapidfuzz whisper-normalizer sacrebleu zhconv grain pyarrow pocketsphinx jax qwen3-omni-jax'.split()
Log = Callable[[str], None]
NO_JUDGE = Scoring()


@dataclasses.dataclass(frozen=True)
class Result:
  """One benchmark after a run. scores None: skipped, and `skipped` says why. waves: of the spoken items, in their order."""

  benchmark: Benchmark
  settings: Settings | None
  items: list[Item]
  answers: list[Answer]
  scores: Scores | None
  check: Check
  skipped: str | None = None
  waves: Sequence[pathlib.Path] = ()

  def to_json(self, variant: str) -> dict[str, Any]:
    """What results.json holds of it."""
    head = {'benchmark': self.benchmark.name, 'title': self.benchmark.title, 'suite': self.benchmark.suite}
    if self.scores is None:
      return {**head, 'skipped': self.skipped}
    low, high = interval(self.scores)
    return {
      **head,
      'metrics': {k: round(v, 4) for k, v in self.scores.metrics.items()},
      'interval_95': [round(low, 4), round(high, 4)],
      'published': published(self.benchmark.name, variant),
      'lower_is_better': self.scores.lower_is_better,
      'items': len(self.items),
      'expected_items': self.check.expected,
      'items_without_media': len(self.check.lost),
      'unreadable': self.scores.unreadable,
      'errors': sum(a.text is None for a in self.answers),
      'cut_off': sum(a.finish_reason == 'length' for a in self.answers),
      'signature': self.scores.signature,
      'settings': dataclasses.asdict(self.settings) if self.settings else 'predictions from a file',
    }


def evaluate(
  predict: Any,
  benchmarks: Sequence[Benchmark],
  root: pathlib.Path,
  *,
  variant: Variant = 'instruct',
  limit: int | None = None,
  scoring: Scoring = NO_JUDGE,
  changes: Mapping[str, Any] | None = None,
  batch: int = 16,
  recognisers: Sequence[Recogniser] = (),
) -> dict[str, Scores]:
  """Scores by benchmark name. predict: an `Omni`, or a predictor. limit: items, evenly spread. changes: settings to replace.
  recognisers: who writes down what was spoken; default the model itself.

  Raises ValueError for missing files, for a set that needs a judge without one, and for a spoken one without a recogniser.
  """
  predict = OmniPredictor(predict) if hasattr(predict, 'generate') else predict
  if not recognisers and isinstance(predict, OmniPredictor):
    recognisers = [own_ear(predict.omni, batch)]
  scores = {}
  for benchmark in benchmarks:
    every = benchmark.read(pathlib.Path(root) / benchmark.folder)
    items = spread(every, limit)
    settings = dataclasses.replace(benchmark.settings(variant), **(changes or {}))
    with tempfile.TemporaryDirectory() as folder:  # of the waves
      made = {item.id: answer for item, answer in answered(predict, benchmark, items, settings, pathlib.Path(folder), batch)}
      answers = [made[item.id] for item in items]
      if benchmark.answer == 'speak':
        ears = [Ear(r.name, r.prepare(benchmark, every)) for r in recognisers]
        waves = [wave_path(pathlib.Path(folder), item) for item in items]
        _, scores[benchmark.name] = spoken.score(benchmark, items, answers, waves, ears, scoring, batch=batch)
      else:
        scores[benchmark.name] = benchmark.score(items, [a.text for a in answers], scoring)
  return scores


def spread(items: list[Item], limit: int | None) -> list[Item]:
  """At most `limit` items at even distances: benchmarks are sorted by task, and the first ones would be all of one kind."""
  if limit is None or limit >= len(items):
    return items
  return [items[i * len(items) // limit] for i in range(limit)]


def batches(items: Sequence[Item], size: int) -> Iterator[list[tuple[Item, Any]]]:
  """Items with their media read, some batches ahead of the model. An item whose media cannot be read comes with the error."""
  import grain

  def read(item: Item) -> tuple[Item, Any]:
    try:
      return item, with_media(item)
    except (ValueError, OSError, RuntimeError) as e:
      return item, e

  options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=2 * size)
  part: list[tuple[Item, Any]] = []
  for pair in grain.MapDataset.source(list(items)).map(read).to_iter_dataset(options):
    part.append(pair)
    if len(part) == size:
      yield part
      part = []
  if part:
    yield part


def answered(
  predict: Any, benchmark: Benchmark, items: Sequence[Item], settings: Settings, folder: pathlib.Path, batch: int
) -> Iterator[tuple[Item, Answer]]:
  """Every item with its answer: as they are finished by a predictor with `stream`, else batch by batch in order."""
  if benchmark.answer != 'generate' or not hasattr(predict, 'stream'):
    for part in batches(items, batch):
      yield from zip((item for item, _ in part), predict_items(predict, benchmark, part, settings, folder), strict=True)
    return
  failed: list[tuple[Item, Answer]] = []

  def rows() -> Iterator[tuple[str, Any]]:
    for item, messages in (pair for part in batches(items, batch) for pair in part):
      if isinstance(messages, Exception):
        failed.append((item, Answer(None, 'error', error=str(messages))))
      else:
        yield item.id, messages

  by_id = {item.id: item for item in items}
  for key, answer in predict.stream(rows(), settings):
    yield by_id[key], answer
  yield from failed


def predict_items(
  predict: Any, benchmark: Benchmark, part: Sequence[tuple[Item, Any]], settings: Settings, folder: pathlib.Path
) -> list[Answer]:
  """Answers to a batch, in order; what cannot be read fails alone."""
  good = [(item, messages) for item, messages in part if not isinstance(messages, Exception)]
  if benchmark.answer == 'speak':
    waves = [wave_path(folder, item) for item, _ in good]
    texts, speakers = [item.reference for item, _ in good], [item.fields.get('speaker') for item, _ in good]
    made = predict.speak(texts, speakers, waves, settings) if good else []
  elif benchmark.answer == 'choose' and hasattr(predict, 'choose'):
    letters = [list(item.fields['options']) for item, _ in good]
    made = predict.choose([messages for _, messages in good], letters, settings) if good else []
  else:
    made = predict([messages for _, messages in good], settings) if good else []
  answers = dict(zip((item.id for item, _ in good), made, strict=True))
  return [answers[item.id] if item.id in answers else Answer(None, 'error', error=str(messages)) for item, messages in part]


def wave_path(folder: pathlib.Path, item: Item) -> pathlib.Path:
  """Where the speech of an item goes: ids come from files, so they do not name paths."""
  safe = ''.join(c if c.isalnum() or c in '-_' else '_' for c in item.id)[:80]
  return folder / 'waves' / f'{safe}-{hashlib.sha256(item.id.encode()).hexdigest()[:8]}.wav'


def run_suite(
  predict: Any,
  benchmarks: Sequence[Benchmark],
  root: pathlib.Path,
  out: pathlib.Path,
  *,
  variant: Variant,
  model: str,
  limit: int | None = None,
  scoring: Scoring = NO_JUDGE,
  changes: Mapping[str, Any] | None = None,
  batch: int = 16,
  allow_missing: bool = False,
  recognisers: Sequence[Recogniser] = (),
  transcripts: Mapping[str, str] | None = None,
  log: Log = print,
) -> list[Result]:
  """Checks all data, then answers and scores benchmark by benchmark; replies in OUT/<benchmark>/replies.jsonl.

  recognisers: who writes down what was spoken; the first one makes the score, the others are given beside it. transcripts: texts
  of another recogniser by item id, in the first place.

  Raises ValueError before anything is answered if media are missing (unless allow_missing leaves those items out, counted),
  or if the replies in `out` were made otherwise.
  """
  plans, incomplete = [], []
  ears: dict[str, list[Ear]] = {}
  for benchmark in benchmarks:
    try:
      every = benchmark.read(root / benchmark.folder)
      items = spread(every, limit)
      found = check(benchmark, items)
      if benchmark.answer == 'speak':
        kept = out / benchmark.name
        ears[benchmark.name] = [Ear(r.name, r.prepare(benchmark, every), kept / f'heard_{r.name}.jsonl') for r in recognisers]
    except ValueError as e:
      if len(benchmarks) == 1:
        raise
      plans.append((benchmark, [], Check(0, benchmark.expected, {}), str(e)))
      continue
    for line in found.describe(benchmark.name, counts=limit is None):
      log(line)
    if found.lost and not allow_missing:
      incomplete.append(benchmark.name)
    reason = None
    if benchmark.needs_judge and scoring.judge is None and not all(item.fields.get('score') for item in items):
      reason = 'graded by a judge, and none is given (--judge-url, --judge-model)'
    plans.append((benchmark, [item for item in items if item.id not in found.lost], found, reason))
  if incomplete:
    names = ', '.join(incomplete)
    raise ValueError(f'media are missing for {names} (listed above). Complete them, or leave those items out: --allow-missing')
  if not any(items and not reason for _, items, _, reason in plans):
    raise ValueError('nothing to run: ' + '; '.join(f'{b.name}: {reason or "no items"}' for b, _, _, reason in plans))
  results = []
  for benchmark, items, found, reason in plans:
    if reason or not items:
      log(f'{benchmark.name}: skipped: {reason or "no items"}')
      results.append(Result(benchmark, None, [], [], None, found, reason or 'no items'))
      continue
    settings = dataclasses.replace(benchmark.settings(variant), **(changes or {}))
    answers = _answers(predict, benchmark, items, settings, out / benchmark.name, model, batch, log)
    score = lambda: (answers, benchmark.score(items, [a.text for a in answers], scoring))
    waves = []
    if benchmark.answer == 'speak':
      waves = [wave_path(out / benchmark.name, item) for item in items]
      (out / benchmark.name / 'manifest.lst').write_text(seed_tts.manifest(items, waves), encoding='utf-8')
      given = {} if transcripts is None else {'transcripts': [transcripts.get(item.id) for item in items]}
      listening = {'given': given, 'batch': batch, 'log': log}
      score = lambda: spoken.score(benchmark, items, answers, waves, ears[benchmark.name], scoring, **listening)
    scores, reason = None, None
    try:
      answers, scores = score()
      log(f'{benchmark.name}: {next(iter(scores.metrics))} {scores.headline:.2f} on {len(items)} items')
    except spoken.NotWrittenDown as e:
      reason = str(e)
    except ValueError as e:  # a judge that is gone, a tokeniser that is not installed: the replies are kept, the others go on
      reason = f'answered, not scored: {e}'
    if reason:
      log(f'{benchmark.name}: {reason}')
    results.append(Result(benchmark, settings, items, answers, scores, found, reason, waves))
  return results


def _answers(predict, benchmark, items, settings, folder, model, batch, log) -> list[Answer]:
  """Answers to all items; those already on disk are not asked again."""
  folder.mkdir(parents=True, exist_ok=True)
  made_with = {'model': model, 'settings': dataclasses.asdict(settings)}
  if benchmark.answer == 'speak':
    made_with['voice'] = getattr(predict, 'voice', None)
  settings_file = folder / 'settings.json'
  if settings_file.is_file() and json.loads(settings_file.read_text()) != json.loads(json.dumps(made_with)):
    raise ValueError(
      f'{folder}: its replies were made with another model or other settings ({settings_file.name}). Use another --out'
    )
  settings_file.write_text(json.dumps(made_with, indent=1) + '\n')
  path = folder / 'replies.jsonl'
  known = read_replies(path, repair=True)
  remaining = [item for item in items if item.id not in known]
  if known:
    log(f'{benchmark.name}: {len(items) - len(remaining)} of {len(items)} replies are there already')
  with path.open('a', encoding='utf-8') as file:
    for number, (item, answer) in enumerate(answered(predict, benchmark, remaining, settings, folder, batch), 1):
      answer = Answer(answer.text, answer.finish_reason, getattr(answer, 'reasoning', None), getattr(answer, 'error', None))
      known[item.id] = answer
      file.write(json.dumps({'id': item.id, **dataclasses.asdict(answer)}, ensure_ascii=False) + '\n')
      file.flush()
      if number % max(batch, 1) == 0 or number == len(remaining):
        log(f'{benchmark.name}: {len(items) - len(remaining) + number} of {len(items)}')
  return [known[item.id] for item in items]


def read_replies(path: pathlib.Path, *, repair: bool = False) -> dict[str, Answer]:
  """Replies by item id of a file of {'id', 'text', …} lines. repair: drop a last line that was cut by a kill, in the file too."""
  if not path.is_file():
    return {}
  data = path.read_bytes()
  if repair and not data.endswith(b'\n'):
    data = data[: data.rfind(b'\n') + 1]
    path.write_bytes(data)
  replies = {}
  for number, line in enumerate(data.decode('utf-8').split('\n'), 1):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
      key, text = str(record['id']), record['text']
    except (ValueError, KeyError, TypeError) as e:
      raise ValueError(f"{path}: line {number}: expected {{'id', 'text'}} ({e})") from e
    if not isinstance(text, str | None):
      raise ValueError(f'{path}: line {number}: text: expected a string or null, found {type(text).__name__}')
    replies[key] = Answer(text, record.get('finish_reason') or 'stop', record.get('reasoning'), record.get('error'))
  return replies


def score_predictions(
  benchmark: Benchmark, replies: Mapping[str, str | None], root: pathlib.Path, scoring: Scoring, log: Log = print
) -> Result:
  """Scores someone's replies by item id, without a model. An item without a reply counts as failed, and is said."""
  items = benchmark.read(root / benchmark.folder)
  if unknown := sorted(set(replies) - {item.id for item in items}):
    raise ValueError(f'{benchmark.name}: {len(unknown)} ids are not in the data: {", ".join(unknown[:5])}')
  if missing := [item.id for item in items if item.id not in replies]:
    log(f'{benchmark.name}: {len(missing)} of {len(items)} items have no reply and count as wrong: {", ".join(missing[:5])}')
  answers = [Answer(replies.get(item.id), 'stop' if item.id in replies else 'error') for item in items]
  scores = benchmark.score(items, [a.text for a in answers], scoring)
  return Result(benchmark, None, items, answers, scores, Check(len(items), benchmark.expected, {}))


def summary(results: Sequence[Result], variant: str, model: str) -> dict[str, Any]:
  """results.json: every benchmark, VoiceBench's Overall where all nine are there, versions of what scored them."""
  versions = {}
  for name in LIBRARIES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = 'not installed'
  done = {r.benchmark.name: r.scores.headline for r in results if r.scores is not None}
  out: dict[str, Any] = {
    'model': model,
    'variant': variant,
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'versions': versions,
    'results': [r.to_json(variant) for r in results],
  }
  if all(f'voicebench-{name}' in done for name in voicebench.SUBSETS):
    ours = round(voicebench.overall(done), 2)
    out['voicebench_overall'] = {'ours': ours, 'published': published('voicebench-overall', variant)}
  return out
