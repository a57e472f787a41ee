"""Breaks train/ in one place after another, and sees that a test fails: `python -m tests.train.mutants [NAME ...] [--save]`.

Each mutant is a copy of the tree with one line changed. The tests named with it must pass on the copy before the change and fail
after it; a mutant that they pass survives, and the run exits with 1. With --save the outcome is kept in
benchmarks/results/train_mutants.json.
"""

import argparse
import dataclasses
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent.parent
FOLDERS = ('qwen3_omni_jax', 'train', 'eval', 'tools', 'configs', 'examples', 'tests', 'benchmarks')
INSIDE = ('train', 'eval', 'tools', 'configs', 'examples')  # of the installed package; beside it in the tree


@dataclasses.dataclass(frozen=True)
class Mutant:
  """old, new: a piece of text in `file` that occurs once, and what replaces it. tests: arguments of pytest."""

  name: str
  file: str
  old: str
  new: str
  tests: str


OPTIMISER, LOSSES, STEP = 'tests/train/test_optimiser.py', 'tests/train/test_losses.py', 'tests/train/test_step.py'
SPEECH_ROWS, SPEECH_RECORDS = 'tests/train/test_speech_rows.py', 'tests/train/test_speech_records.py'
SPEECH_DATA = 'tests/train/test_speech_data.py'
MUTANTS = (
  Mutant(
    'no warm-up', 'train/optimiser.py', 'optax.linear_schedule(1 / warmup, 1.0', 'optax.linear_schedule(1.0, 1.0', OPTIMISER
  ),
  Mutant('cosine ends at 0', 'train/optimiser.py', 'left, alpha=final', 'left, alpha=0.0', OPTIMISER),
  Mutant('decay begins too soon', 'train/optimiser.py', 'transition_begin=left - decay', 'transition_begin=0', OPTIMISER),
  Mutant('no clipping', 'train/optimiser.py', 'if cfg.clip else', 'if cfg.clip < 0 else', OPTIMISER),
  Mutant("a part's own schedule is not used", 'train/optimiser.py', 'part is None or getattr', 'True or getattr', OPTIMISER),
  Mutant('norms decay', 'train/optimiser.py', "specs[path].init == 'normal' and ", '', OPTIMISER),
  Mutant('pooled balance loss', 'train/losses.py', "if form == 'reference'", "if form != 'reference'", LOSSES),
  Mutant('z-loss of another sign', 'train/losses.py', 'return sums.log_z2.mean()', 'return -3 * sums.log_z2.mean()', LOSSES),
  Mutant(
    'padding counts in the balance',
    'train/losses.py',
    'number = jnp.maximum(valid.sum(), 1)',
    'number = jnp.maximum(valid.size, 1)',
    LOSSES,
  ),
  Mutant('the head loses the last chunk', 'train/losses.py', 'log_z = jnp.log(total) + top', 'log_z = jnp.log(total)', LOSSES),
  Mutant('the table of embeddings in bfloat16', 'train/step.py', 'path in EMBEDDINGS or ', '', f'{STEP} -k frequent'),
  Mutant(
    'microbatches are not all counted',
    'train/step.py',
    'lambda x: x.sum(axis=0), sums',
    'lambda x: x[0], sums',
    f'{STEP} -k accumulated',
  ),
  Mutant('targets are not shifted', 'train/packing.py', '= inputs.ids[1:]', '= inputs.ids[:-1]', 'tests/train/test_packing.py'),
  Mutant(
    'documents of a row see one another',
    'train/packing.py',
    'documents[item.row] += 1',
    'documents[item.row] = 1',
    'tests/train/test_packing.py',
  ),
  Mutant('the best bin is the emptiest', 'train/room.py', 'best = min(', 'best = max(', 'tests/train/test_packing.py'),
  Mutant(
    'the end of a turn is not learnt',
    'train/mask.py',
    'mask[begin : end + 1] = True',
    'mask[begin:end] = True',
    'tests/train/test_mask.py',
  ),
  Mutant(
    'the best that a process met',
    'train/agreement.py',
    'return max(outcomes)',
    'return min(outcomes)',
    'tests/train/test_checkpoint.py',
  ),
  Mutant(
    'weights are shares of records',
    'train/mixing.py',
    'accounts[source] -= tokens',
    'accounts[source] -= total',
    'tests/train/test_data.py -k "weight or mixture"',
  ),
  Mutant(
    'bad records judged without a bound',
    'train/bad_records.py',
    '> math.log(1 / FALSE_ALARM)',
    '> 0',
    'tests/train/test_data.py -k bad',
  ),
  Mutant(
    'a state of other data is taken',
    'train/data_state.py',
    'if saved == now:',
    'if True:',
    'tests/train/test_data.py -k "other_data"',
  ),
  Mutant(
    'one process speaks for all',
    'train/data_state.py',
    'for state in states for lane',
    'for state in states[:1] for lane',
    'tests/train/test_data.py -k processes',
  ),
  Mutant(
    'frames are predicted a row too early',
    'train/utterances.py',
    'target[first : first + frames] = codes',
    'target[first - 1 : first - 1 + frames] = codes',
    SPEECH_ROWS,
  ),
  Mutant(
    'the end of speech is not learnt',
    'train/utterances.py',
    'target[first + frames, 0] = talker.codec_eos_token_id',
    'target[first + frames, 0] = -1',
    SPEECH_ROWS,
  ),
  Mutant(
    'speaker and pad in the wrong order',
    'train/utterances.py',
    '[speaker, talker.codec_pad_id,',
    '[talker.codec_pad_id, speaker,',
    SPEECH_ROWS,
  ),
  Mutant(
    'the text runs two tokens ahead',
    'train/utterances.py',
    'spoken = said[: 1 + frames]',
    'spoken = said[1 : 2 + frames]',
    SPEECH_ROWS,
  ),
  Mutant('no mark where the text ends', 'train/utterances.py', '= cfg.tts_eos_token_id', '= cfg.tts_pad_token_id', SPEECH_ROWS),
  Mutant("taps of the Talker's own rows", 'train/utterances.py', '= user[pads]', '= np.flatnonzero(pads)', SPEECH_ROWS),
  Mutant(
    'the answer begins a position late', 'train/utterances.py', 'at[:, U - 1].max() + 1', 'at[:, U - 1].max() + 2', SPEECH_ROWS
  ),
  Mutant(
    'taps count the lanes that are here',
    'train/packing.py',
    '(lane * R + item.row) * T + begin',
    '(here * R + item.row) * T + begin',
    SPEECH_RECORDS,
  ),
  Mutant(
    'utterances of a row see one another', 'train/packing.py', 'self.utterances[at] += 1', 'self.utterances[at] = 1', SPEECH_ROWS
  ),
  Mutant('what is not predicted has weight', 'train/packing.py', '= utterance.codes[:, 0] >= 0', '= 1', SPEECH_ROWS),
  Mutant(
    'the Talker is given system turns',
    'qwen3_omni_jax/media/turns.py',
    'ids[s + 1] == cfg.user_token_id',
    'ids[s + 1] != cfg.assistant_token_id',
    'tests/infer/test_talker_inputs.py',
  ),
  Mutant(
    'positions are not closed up',
    'qwen3_omni_jax/media/turns.py',
    'following - out[0, run[0]]',
    '0',
    'tests/infer/test_talker_inputs.py',
  ),
  Mutant(
    'the Thinker hears the answer',
    'train/records.py',
    'if assistant and isinstance(content, list):',
    'if not assistant:',
    SPEECH_RECORDS,
  ),
  Mutant(
    'an answer that is not learnt is spoken',
    'train/records.py',
    'if speech is not None and learns:',
    'if speech is not None:',
    SPEECH_RECORDS,
  ),
  Mutant('one frame is silence', 'train/spoken.py', 'if len(codes) > 1 and ', 'if ', SPEECH_RECORDS),
  Mutant('other codes are not noticed', 'train/data_state.py', 'own.fingerprint()', "''", SPEECH_DATA),
  Mutant('speech costs a mixture nothing', 'train/lanes.py', 'item.size.cost for', 'item.size.tokens for', SPEECH_DATA),
  Mutant(
    'pictures are not shrunk for the Talker',
    'train/fitting.py',
    'max(size.speech, default=0) - shape.speech_length',
    '0',
    SPEECH_RECORDS,
  ),
  Mutant('utterances take no room', 'train/room.py', '(self.speech, size.speech),', '(self.speech, ()),', SPEECH_RECORDS),
)

SPEECH, TALKER = 'train/speech_loss.py', 'tests/train/test_speech_loss.py'
MUTANTS += (
  Mutant(
    'a frame is fed where it is predicted',
    SPEECH,
    'before = jnp.pad(speech.codes[:, :-1], ((0, 0), (1, 0), (0, 0)), constant_values=-1)',
    'before = speech.codes',
    f'{TALKER} -k forced',
  ),
  Mutant('the end of speech is a frame', SPEECH, ' & (code0 != cfg.codec_eos_token_id)', '', f'{TALKER} -k forced'),
  Mutant(
    'the predictor is given the next state',
    SPEECH,
    'pick(hidden, index)',
    'pick(jnp.roll(hidden, -1, axis=1), index)',
    f'{TALKER} -k forced',
  ),
  Mutant('media are read as text', SPEECH, 'speech.tap[..., None] >= 0', 'speech.tap[..., None] < -1', f'{TALKER} -k forced'),
  Mutant('an opening without codes', SPEECH, 'before[..., 0], speech.opening)', 'before[..., 0], -1)', f'{TALKER} -k forced'),
  Mutant(
    'a code is left out of the sum',
    SPEECH,
    "(params['code_predictor']['embed'], jnp.moveaxis(rest, -1, 0))",
    "(params['code_predictor']['embed'][1:], jnp.moveaxis(rest, -1, 0)[1:])",
    f'{TALKER} -k forced',
  ),
  Mutant(
    'a frame goes on into the next utterance',
    SPEECH,
    'is_frame(before[..., 0], cfg) & same',
    'is_frame(before[..., 0], cfg)',
    f'{TALKER} -k another',
  ),
  Mutant('chosen frames do not stand for the others', SPEECH, 'index, axis=1) * factor', 'index, axis=1)', f'{TALKER} -k choice'),
  Mutant(
    'the same frames in every step',
    'train/step.py',
    "zlib.crc32(b'frames')), step)",
    "zlib.crc32(b'frames')), 0)",
    f'{TALKER} -k anew',
  ),
  Mutant(
    'microbatches are divided by their own weights',
    'train/step.py',
    'total_weights(batch, cfg) if totals is None else totals',
    'total_weights(batch, cfg)',
    f'{TALKER} -k sum',
  ),
  Mutant(
    'the mean of frames is taken over the ends too',
    SPEECH,
    "rest.mean() / totals['frames']",
    "rest.mean() / totals['codes']",
    f'{TALKER} -k sum',
  ),
  Mutant(
    'no gradient reaches the tapped Thinker',
    SPEECH,
    'recipe=recipe, tap_layer=talker.accept_hidden_layer)',
    'recipe=recipe, tap_layer=talker.accept_hidden_layer); tap = jax.lax.stop_gradient(tap)',
    f'{TALKER} -k reach',
  ),
  Mutant(
    "other speakers' rows decay",
    'train/step.py',
    'updates = {path: roles.only_trained_rows(path, u, -0.0) for path, u in updates.items()}',
    'updates = dict(updates)',
    f'{TALKER} -k rows',
  ),
  Mutant(
    "other speakers' rows have moments",
    'train/step.py',
    'grads = {path: roles.only_trained_rows(path, g) for path, g in grads.items()}',
    'grads = dict(grads)',
    f'{TALKER} -k rows',
  ),
)


def copy_tree(folder: pathlib.Path) -> None:
  """The code without what is installed, with the package whole in itself, so that the copy is what runs."""
  skip = shutil.ignore_patterns('__pycache__', '*.egg-info')
  for name in FOLDERS:
    shutil.copytree(ROOT / name, folder / name, ignore=skip, symlinks=True)
  shutil.copy(ROOT / 'pyproject.toml', folder)
  for name in INSIDE:
    (folder / 'qwen3_omni_jax' / name).symlink_to(folder / name)


def passes(folder: pathlib.Path, tests: str) -> bool:
  """Whether the tests pass there. Raises RuntimeError if they cannot be run."""
  command = [sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', '-m', 'not slow', *shlex.split(tests)]
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(folder)}
  done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
  if done.returncode not in (0, 1):
    raise RuntimeError(f'{tests}: {done.stdout[-2000:]}{done.stderr[-2000:]}')
  return done.returncode == 0


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('names', nargs='*', help='of mutants; default all')
  parser.add_argument('--save', action='store_true')
  args = parser.parse_args()
  chosen = [mutant for mutant in MUTANTS if not args.names or mutant.name in args.names]
  outcome: dict[str, str] = {}
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    copy_tree(folder)
    broken = [tests for tests in dict.fromkeys(mutant.tests for mutant in chosen) if not passes(folder, tests)]
    if broken:
      raise SystemExit(f'these fail without any mutant: {"; ".join(broken)}')
    for mutant in chosen:
      file = folder / mutant.file
      text = file.read_text()
      if text.count(mutant.old) != 1:
        raise SystemExit(f'{mutant.name}: {mutant.old!r} occurs {text.count(mutant.old)} times in {mutant.file}')
      file.write_text(text.replace(mutant.old, mutant.new))
      outcome[mutant.name] = 'SURVIVED' if passes(folder, mutant.tests) else 'killed'
      file.write_text(text)
      print(f'{outcome[mutant.name]:9} {mutant.name} ({mutant.file}; {mutant.tests})', flush=True)
  survived = [name for name, how in outcome.items() if how != 'killed']
  print(f'{len(outcome) - len(survived)} of {len(outcome)} killed')
  if args.save:
    from benchmarks import common

    common.save('train_mutants', common.circumstances() | {'mutants': outcome})
  return 1 if survived else 0


if __name__ == '__main__':
  sys.exit(main())
