"""Batch inference on CPU beside transformers, in one run: 64 conversations of unequal lengths, `small`, float32, greedy.

    python benchmarks/batch_vs_reference.py [--rows 64] [--parts text,speech] [--batch-sizes 8,16,32,64] [--again]

Three ways: our continuous batching (`infer/batch.py`), our static batches (`Omni.generate`), and transformers' own batched
`generate`, the last two at the best of the batch sizes. Continuous batching and transformers also in one process for each core
(`one_process_a_core.py`), as the processes of a batch job share its rows. All do the same work: a row has a number of tokens
and, spoken, three frames for each, at which it ends (a stopping criterion of each row in transformers); nothing else ends a row,
the Talker's end token is made impossible on both sides. A static batch goes on until its longest row has ended. The lengths
stand for ends that nobody knows beforehand; what it would give transformers to know them (rows sorted by length) is measured too.

Each measurement is kept in .cache as it comes, so that a run that was stopped goes on; `--again` forgets them.
"""

import argparse
import datetime
import gc
import json
import os
import pathlib
import random
import subprocess

import common
from one_process_a_core import ProcessPerCore

TOKENS = (8, 16, 32, 64, 96)  # of replies, drawn at random
FRAMES_PER_TOKEN = 3  # speech takes 3 to 4
WORDS = 'The quick brown fox jumps over the lazy dog while children sing near the water and someone listens'.split()


class Work:
  """The conversations and how long each answer is."""

  def __init__(self, rows: int):
    rng = random.Random(0)
    self.conversations = [[{'role': 'user', 'content': ' '.join(rng.choices(WORDS, k=rng.randint(4, 80)))}] for _ in range(rows)]
    self.tokens = [rng.choice(TOKENS) for _ in range(rows)]
    self.frames = [FRAMES_PER_TOKEN * n for n in self.tokens]
    self.rows = range(rows)


class Ours:
  """Continuous and static batches; their speech settings are the published ones, greedy, without guards."""

  def __init__(self, folder: pathlib.Path, work: Work):
    import jax

    from qwen3_omni_jax import Omni

    jax.config.update('jax_compilation_cache_dir', str(common.ROOT / '.cache' / 'jax'))
    self.work, self.omni = work, Omni.load(folder, dtype='float32')
    talker, end = self.omni.params['talker'], self.omni.cfg.talker.codec_eos_token_id
    talker['head'] = talker['head'].at[:, end].set(0)  # a logit of 0 is never the largest
    self.voice = self.omni.voice.changed(temperature=0).without_guards()
    self.engines: dict = {}

  def continuous(self, speech: bool, slots: int, mine=None) -> dict:
    """One engine for all runs: what it has compiled is there, what it has computed is forgotten. mine: numbers of the rows to
    answer, taken from it as slots become free; default all."""
    from qwen3_omni_jax.infer.batch import Engine, Stats
    from qwen3_omni_jax.infer.batch_plan import EngineConfig
    from qwen3_omni_jax.infer.prepare import Row

    work, key = self.work, (speech, slots)
    if key not in self.engines:
      config = EngineConfig(slots=slots, lengths=(256, 512))
      self.engines = {key: Engine(self.omni, config, self.voice if speech else None, stop_token_ids=())}
    engine = self.engines[key]
    engine.stats = Stats()
    for store in (engine.prefix_store, engine.features):
      store.clear()
    rows = (
      Row(str(i), work.conversations[i], max_new_tokens=work.tokens[i], max_frames=work.frames[i], speech=speech)
      for i in (work.rows if mine is None else mine)
    )
    replies = {}
    for result in engine.answer(rows):
      assert not result.error, result.error
      replies[int(result.row.id)] = result.reply
    stats = engine.stats
    share = lambda part, whole: round(part / max(whole, 1), 3)  # a process may have come too late for any row
    use = {'slot_use': share(stats.thinker_live, stats.thinker_steps)}
    use['prompt_padding'] = share(stats.padded_tokens, stats.padded_tokens + stats.prompt_tokens)
    if speech:
      use['talker_slot_use'] = share(stats.talker_live, stats.talker_steps)
    return done(replies, speech) | use

  def static(self, speech: bool, size: int) -> dict:
    spoken = {'speech': True, 'voice': self.voice, 'max_frames': self.work.frames} if speech else {}
    replies = self.omni.generate(
      self.work.conversations, max_new_tokens=self.work.tokens, stop_token_ids=(), batch_size=size, **spoken
    )
    return done(dict(enumerate(replies)), speech)


def done(replies: dict, speech: bool) -> dict:
  return {
    'rows': {i: [r.token_ids, *((len(r.speech.codes), len(r.speech.samples)) if speech else (0, 0))] for i, r in replies.items()}
  }


class Theirs:
  """transformers' own `generate`."""

  def __init__(self, folder: pathlib.Path, work: Work):
    import torch

    from tests.reference import Reference

    self.work, self.reference = work, Reference.load(folder)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    talker = self.reference.model.talker
    talker.codec_head.weight.data[self.reference.model.config.talker_config.codec_eos_token_id] = 0

  def batches(self, speech: bool, size: int, order: list[int] | None = None) -> dict:
    import torch
    from transformers import StoppingCriteria

    work, model = self.work, self.reference.model
    order = order or list(work.rows)

    class RowLimits(StoppingCriteria):
      """Ends each row of a batch at its own number of tokens. (generate hands Talker and Thinker only what is new or all.)"""

      def __init__(self, limits, before):
        self.limits, self.before = torch.tensor(limits), before

      def __call__(self, input_ids, scores, **_):
        return input_ids.shape[1] - self.before >= self.limits

    rows = {}
    with torch.no_grad():
      for start in range(0, len(order), size):
        members = order[start : start + size]
        batch = self.reference.inputs([work.conversations[i] for i in members])
        tokens, many = [work.tokens[i] for i in members], [work.frames[i] for i in members]
        prompt = batch['input_ids'].shape[1]
        spoken: dict = {'return_audio': False}
        if speech:
          # A row's last code is drawn and no frame; but of rows that end before the longest, it is counted as a frame.
          ends = [f if f < max(many) else f + 1 for f in many]
          spoken = {
            'return_audio': True,
            'talker_max_new_tokens': max(many) + 1,
            'talker_do_sample': False,
            'talker_stopping_criteria': [RowLimits(ends, 0)],
          }
        out = model.generate(
          **batch,
          thinker_max_new_tokens=max(tokens),
          thinker_eos_token_id=-1,
          thinker_pad_token_id=0,
          thinker_stopping_criteria=[RowLimits(tokens, prompt)],
          **spoken,
        )
        sequences, waves = out if speech else (out, [None] * len(members))
        for i, row, wave in zip(members, sequences, waves, strict=True):
          samples = 0 if wave is None else wave.numel()
          frames = -(-samples // int(model.code2wav.total_upsample))
          rows[i] = [row[prompt : prompt + work.tokens[i]].tolist(), frames, samples]
    return {'rows': rows}

  def sorted(self, speech: bool, size: int) -> dict:
    return self.batches(speech, size, sorted(self.work.rows, key=lambda i: self.work.tokens[i]))


class Measured:
  """What has been measured of this run, kept on disk."""

  def __init__(self, path: pathlib.Path, run: dict, again: bool):
    known = json.loads(path.read_text()) if path.exists() and not again else {}
    self.path, self.data = path, known if known.get('run') == run else {'run': run, 'seconds': {}}

  def __call__(self, name: str, run, warm: bool) -> dict:
    """Seconds of one call, after another one where programs must be compiled first."""
    if name not in self.data['seconds']:
      if warm:
        run()
      gc.collect()
      clock = common.Clock()
      done = run()
      done['rows'] = [done['rows'][i] for i in sorted(done['rows'])]
      at = {'commit': common.commit(), 'date': datetime.date.today().isoformat()}
      self.data['seconds'][name] = {**clock.read(done.pop('processor_s', 0)), **at, **done}
      self.path.write_text(json.dumps(self.data))
      shown = {k: v for k, v in self.data['seconds'][name].items() if k != 'rows'}
      print(f'{name}: {shown}', flush=True)
    return self.data['seconds'][name]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--preset', default='small')
  parser.add_argument('--rows', type=int, default=64)
  parser.add_argument('--batch-sizes', default='8,16,32,64')
  parser.add_argument('--slots', default='32')
  parser.add_argument('--slots-a-process', type=int, default=16)
  parser.add_argument('--parts', default='text,speech')
  parser.add_argument('--sides', default='ours,theirs')
  parser.add_argument('--again', action='store_true')
  args = parser.parse_args()
  circumstances = common.circumstances()
  folder = common.small_checkpoint(common.ROOT / '.cache' / args.preset, args.preset)
  work = Work(args.rows)
  sizes = [int(n) for n in args.batch_sizes.split(',')]
  slots = [int(n) for n in args.slots.split(',')]
  code = subprocess.run(
    ['git', 'rev-parse', 'HEAD:qwen3_omni_jax'], capture_output=True, text=True, cwd=common.ROOT
  ).stdout.strip()
  run = {'preset': args.preset, 'rows': args.rows, 'code': code}
  measured = Measured(common.ROOT / '.cache' / 'batch_vs_reference.json', run, args.again)
  parts = args.parts.split(',')
  if 'ours' in args.sides:
    ours = Ours(folder, work)
    for part in parts:
      for n in slots:
        measured(f'{part}/continuous/{n}', lambda n=n: ours.continuous(part == 'speech', n), warm=True)
      for n in sizes:
        measured(f'{part}/static/{n}', lambda n=n: ours.static(part == 'speech', n), warm=True)
    del ours
    with ProcessPerCore(Ours, folder, work) as processes:
      for part in parts:
        name = f'{part}/continuous, a process a core/{args.slots_a_process}'
        measured(name, lambda: processes.share('continuous', part == 'speech', args.slots_a_process), warm=True)
  if 'theirs' in args.sides:
    theirs = Theirs(folder, work)
    theirs.batches(False, 4, order=[0, 1, 2, 3])
    for part in parts:
      for n in sizes:
        measured(f'{part}/reference/{n}', lambda n=n: theirs.batches(part == 'speech', n), warm=False)
      best = min(sizes, key=lambda n: measured.data['seconds'][f'{part}/reference/{n}']['seconds'])
      measured(f'{part}/reference, sorted by length/{best}', lambda: theirs.sorted(part == 'speech', best), warm=False)
    del theirs
    with ProcessPerCore(Theirs, folder, work) as processes:
      processes.divide('batches', False, 4, rows=range(8))
      for part in parts:
        size = -(-args.rows // processes.number)
        measured(
          f'{part}/reference, a process a core/{size}', lambda: processes.divide('batches', part == 'speech', size), warm=False
        )
  result = {'preset': args.preset, 'rows': args.rows, 'tokens': sum(work.tokens), 'frames': sum(work.frames)}
  done = sorted({name.split('/')[0] for name in measured.data['seconds']}, reverse=True)
  result |= {part: compare(part, measured.data['seconds'], work) for part in done}
  print(json.dumps(result, indent=1))
  if args.preset == 'small' and args.sides == 'ours,theirs':
    common.save('batch_vs_reference', circumstances | result)


def compare(part: str, seconds: dict[str, dict], work: Work) -> dict:
  """Rows per second of every way, the ratios of the best, and the proof that the work was the same."""
  ways: dict[str, dict[str, dict]] = {}
  for name, found in seconds.items():
    of, way, size = name.split('/')
    if of == part:
      ways.setdefault(way, {})[size] = found
  rows = len(work.tokens)
  out: dict = {}
  best: dict[str, dict] = {}
  for way, found in ways.items():
    for one in found.values():
      assert [len(row[0]) for row in one['rows']] == work.tokens, f'{way}: other numbers of tokens'
      assert part == 'text' or [row[1] for row in one['rows']] == work.frames, f'{way}: other numbers of frames'
    out[f'{way}, rows per s'] = {size: round(rows / one['seconds'], 3) for size, one in found.items()}
    out.setdefault('measured at', {})[way] = {size: f'{one["commit"]}, {one["date"]}' for size, one in found.items()}
    best[way] = min(found.values(), key=lambda one: one['seconds'])
    out.setdefault('processors that others had', {})[way] = best[way]['others']
  mine = [way for way in best if way.startswith('continuous')]
  if mine:
    chosen = min(mine, key=lambda way: best[way]['seconds'])
    ours = best[chosen]
    out['best of ours'] = chosen
    apart = ('rows', 'others', 'commit', 'date')
    out['engine'] = {name: value for name, value in best['continuous'].items() if name not in apart}
    for way, other in best.items():
      out[f'times {way}'] = round(other['seconds'] / ours['seconds'], 2)
      out[f'rows with the same tokens as {way}'] = sum(a[0] == b[0] for a, b in zip(ours['rows'], other['rows'], strict=True))
      if part == 'speech':
        out[f'samples of {way}'] = sum(row[2] for row in other['rows'])
  return out


if __name__ == '__main__':
  main()
