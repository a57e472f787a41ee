"""One step of a vocoder's training: the generator (Code2Wav, with a codec also encoder and quantiser), then the discriminators.

A pure function, as train.step's. What is not trained by gradients but changes with a step lies among the frozen parameters:
codebooks, the embeddings of Code2Wav that are made of them, and the latest latents before there are codebooks (`buffers`).
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from qwen3_omni_jax.codec_config import CodecConfig
from qwen3_omni_jax.config import Code2WavConfig
from qwen3_omni_jax.models.code2wav import decode_frames, embed_codes, init_state, lead_samples
from qwen3_omni_jax.models.codec_encoder import encode_latents
from qwen3_omni_jax.models.quantizer import BRANCHES
from qwen3_omni_jax.shapes import Array
from qwen3_omni_jax.sharding import batch_axes, current_mesh

from ..config import Run
from ..optimiser import DISCRIMINATORS, make_schedule, moment_name
from ..state import Roles, TrainState, build_optimiser, flatten, unflatten
from ..step import take_unless_bad, update_ema
from .codebooks import export_table, first_books, move_books, quantise_through
from .crops import Crops
from .discriminators import discriminator_loss, generator_losses, judge
from .spectral import spectral_losses

Metrics = dict[str, Array]
TABLE = 'code2wav/embed'
RECENT = 'codec/recent'
START_LATENTS = 8192  # about, of which k-means makes codebooks, if so many came by


@dataclasses.dataclass(frozen=True)
class Networks:
  """What is trained. codec: None where codes are given."""

  code2wav: Code2WavConfig
  codec: CodecConfig | None

  def books(self) -> tuple[str, ...]:
    """Paths of the codebooks."""
    names = ('embed_sum', 'cluster_usage')
    return tuple(f'codec/quantizer/{branch}/books/{name}' for branch in BRANCHES for name in names)

  def buffers(self) -> tuple[str, ...]:
    """Paths of the parameters that no gradient changes."""
    return () if self.codec is None else (TABLE, RECENT, *self.books())


def recent_latents(run: Run) -> int:
  """Frames whose latents are kept for k-means: of whole batches before it begins."""
  vocoder = run.vocoder
  assert vocoder is not None and vocoder.codec is not None
  batch = run.data.rows * (vocoder.context + vocoder.frames)
  return batch * max(1, min(vocoder.codec.begin, -(-START_LATENTS // batch)))


def generate(params: dict, networks: Networks, run: Run, batch: Crops, step: Array, key: Array | None):
  """(waves of the crops, those of the recordings, what the quantiser did, latents; None without a codec). params: nested.

  key: of what is left out in this step; None: nothing is.
  """
  vocoder, cfg = run.vocoder, networks.code2wav
  assert vocoder is not None
  quantised = latents = None
  if networks.codec is None:
    x = embed_codes(params['code2wav'], cfg, batch.codes)
  else:
    latents, _ = encode_latents(params['codec'], networks.codec, batch.wave)
    quantiser = params['codec']['quantizer']
    keep, use = _left_out(networks.codec, run, len(batch.wave), step, key)
    quantised = quantise_through(quantiser, {b: quantiser[b]['books'] for b in BRANCHES}, networks.codec, latents, keep, use)
    x = quantised.latents
  wave, _ = decode_frames(params['code2wav'], cfg, x, init_state(cfg, len(x)))
  size, lead = cfg.samples_per_frame, lead_samples(cfg)
  target = jnp.pad(batch.wave, [(0, 0), (lead, 0)])  # sample i of what Code2Wav makes is sample i - lead of the wave
  crop = jax.vmap(lambda wave, begin: jax.lax.dynamic_slice_in_dim(wave, begin * size, vocoder.frames * size))
  return crop(wave, batch.begin), crop(target, batch.begin), quantised, latents


def _left_out(cfg: CodecConfig, run: Run, rows: int, step: Array, key: Array | None):
  """(how many codebooks each row sees, whether it is quantised at all)."""
  vocoder = run.vocoder
  assert vocoder is not None and (codec := vocoder.codec) is not None
  whole, begun = jnp.full(rows, cfg.num_quantizers), jnp.broadcast_to(step >= codec.begin, rows)
  if key is None:
    return whole, begun
  fewer, number, free = jax.random.split(key, 3)
  early = step < int(codec.settled * run.steps)
  some = early & jax.random.bernoulli(fewer, codec.dropout, (rows,))
  keep = jnp.where(some, jax.random.randint(number, (rows,), 1, cfg.num_quantizers + 1), whole)
  return keep, begun & ~(early & jax.random.bernoulli(free, codec.free, (rows,)))


def make_step(networks: Networks, run: Run, roles: Roles) -> Callable[[TrainState, Crops], tuple[TrainState, Metrics]]:
  """Metrics are scalars: loss (of the generator), log_mel, linear, grad_norm (of the generator, before clipping), rate, tokens
  (frames judged), skipped, skipped_in_a_row; with a codec commitment, perplexity and revived; with adversaries adversarial,
  features, discriminator and discriminator_norm."""
  vocoder = run.vocoder
  assert vocoder is not None
  weights, adversaries = vocoder.weights, vocoder.adversaries
  optimiser, schedule = build_optimiser(run, roles), make_schedule(run.optimiser, run.steps)

  def loss(generator: dict, others: dict, batch: Crops, step: Array, key: Array):
    made, real, quantised, latents = generate(unflatten({**others, **generator}), networks, run, batch, step, key)
    log_mel, linear = spectral_losses(made, real)
    total = weights.log_mel * log_mel + weights.linear * linear
    metrics = {'log_mel': log_mel, 'linear': linear}
    if quantised is not None:
      assert vocoder.codec is not None
      total += weights.commitment * jnp.where(step >= vocoder.codec.begin, quantised.commitment, 0)
      metrics['commitment'] = quantised.commitment
    if adversaries is not None:
      judges = jax.lax.stop_gradient(unflatten(others)['discriminators'])

      def heeded():
        return generator_losses(judge(judges, adversaries, real), judge(judges, adversaries, made))

      none = lambda: (jnp.float32(0), jnp.float32(0))
      adversarial, features = jax.lax.cond(step >= adversaries.begin, heeded, none)
      total += weights.adversarial * adversarial + weights.features * features
      metrics |= {'adversarial': adversarial, 'features': features}
    return total, (metrics, made, real, quantised, latents)

  def judges_gradient(judges: dict, made: Array, real: Array, step: Array):
    assert adversaries is not None
    made = jax.lax.stop_gradient(made)

    def of(judges):
      judges = unflatten(judges)['discriminators']
      return discriminator_loss(judge(judges, adversaries, real), judge(judges, adversaries, made))

    none = lambda judges: (jnp.float32(0), jax.tree.map(jnp.zeros_like, judges))
    return jax.lax.cond(step >= adversaries.begin, jax.value_and_grad(of), none, judges)

  def step_fn(state: TrainState, batch: Crops) -> tuple[TrainState, Metrics]:
    batch = shard_crops(batch)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(run.seed), zlib.crc32(b'vocoder')), state.step)
    left_out, of_books = jax.random.split(key)
    frozen = start_books(state, networks, run, of_books)
    generator = {path: p for path, p in state.trainable.items() if not path.startswith(DISCRIMINATORS)}
    judges = {path: p for path, p in state.trainable.items() if path.startswith(DISCRIMINATORS)}
    gradient = jax.value_and_grad(loss, has_aux=True)
    (total, (metrics, made, real, quantised, latents)), grads = gradient(
      generator, {**frozen, **judges}, batch, state.step, left_out
    )
    grad_norm = optax.tree.norm(grads)
    if judges:
      found, of_judges = judges_gradient(judges, made, real, state.step)
      grads |= of_judges
      metrics |= {'discriminator': found, 'discriminator_norm': optax.tree.norm(of_judges)}
    with jax.numpy_dtype_promotion('standard'):  # optax is not written for strict promotion
      updates, moments = optimiser.update(grads, state.optimiser, state.trainable, step=state.step)
      if judges:
        assert adversaries is not None
        updates, moments = _idle_before(adversaries.begin, state, updates, moments)
      trainable = optax.apply_updates(state.trainable, updates)
      rate = jnp.float32(schedule(state.step))
    new = state.replace(trainable=trainable, optimiser=moments, ema=update_ema(state.ema, trainable, run.step.ema))
    every = total + metrics.get('discriminator', 0.0)
    taken = take_unless_bad(state, new, grad_norm + metrics.get('discriminator_norm', 0.0), every, run.step)
    if networks.codec is not None:
      moved, of_codes = _move(frozen, trainable, quantised, latents, networks, run, state.step, of_books)
      bad = taken.skipped > state.skipped
      taken = taken.replace(frozen={path: jnp.where(bad, state.frozen[path], moved[path]) for path in moved})
      metrics |= of_codes
    taken = taken.replace(step=state.step + 1)
    metrics |= {'loss': total, 'grad_norm': grad_norm, 'rate': rate, 'tokens': jnp.int32(len(batch.begin) * vocoder.frames)}
    return taken, metrics | {'skipped': taken.skipped, 'skipped_in_a_row': taken.skipped_in_a_row}

  return step_fn


def _idle_before(begin: int, state: TrainState, updates: dict, moments: Any) -> tuple[dict, Any]:
  """Updates and moments of the discriminators as if those steps before `begin` had not been."""
  begun = state.step >= begin
  updates = {path: jnp.where(begun, u, -0.0) if path.startswith(DISCRIMINATORS) else u for path, u in updates.items()}
  choose = lambda at, old, new: jnp.where(begun, new, old) if moment_name(at).startswith(DISCRIMINATORS) else new
  return updates, jax.tree_util.tree_map_with_path(choose, state.optimiser, moments)


def start_books(state: TrainState, networks: Networks, run: Run, key: Array) -> dict[str, Array]:
  """The frozen parameters, in the step that begins to quantise with codebooks made of the latest latents."""
  if networks.codec is None:
    return state.frozen
  vocoder, codec = run.vocoder, networks.codec
  assert vocoder is not None and vocoder.codec is not None
  if not vocoder.codec.begin:
    return state.frozen
  projections = unflatten({**state.frozen, **state.trainable})['codec']['quantizer']
  count = run.data.rows * (vocoder.context + vocoder.frames) / codec.codebook_size

  def start(books):
    made = first_books(projections, codec, state.frozen[RECENT], count, key)
    return flatten({branch: {'books': book} for branch, book in made.items()}, 'codec/quantizer/')

  books = {path: state.frozen[path] for path in networks.books()}
  return {**state.frozen, **jax.lax.cond(state.step == vocoder.codec.begin, start, lambda books: books, books)}


def _move(frozen, trainable, quantised, latents, networks: Networks, run: Run, step: Array, key: Array):
  """(frozen parameters after a step, metrics): codebooks moved, or latents kept for them; Code2Wav's table made of them."""
  vocoder, codec = run.vocoder, networks.codec
  assert vocoder is not None and vocoder.codec is not None and codec is not None
  begun = step >= vocoder.codec.begin
  quantiser = unflatten({**frozen, **trainable})['codec']['quantizer']
  books = {branch: quantiser[branch]['books'] for branch in BRANCHES}
  own = jax.random.fold_in(key, 1)
  moved, revived, perplexity = move_books(books, quantised.codes, quantised.given, vocoder.codec.decay, vocoder.codec.dead, own)
  books = jax.tree.map(lambda new, old: jnp.where(begun, new, old), moved, books)
  flat = jax.lax.stop_gradient(latents.reshape(-1, latents.shape[-1]))
  place = (step % (frozen[RECENT].shape[0] // flat.shape[0])) * flat.shape[0]
  recent = jax.lax.dynamic_update_slice_in_dim(frozen[RECENT], flat, place, axis=0)
  moved = {
    **frozen,
    **flatten({branch: {'books': book} for branch, book in books.items()}, 'codec/quantizer/'),
    TABLE: export_table(quantiser, books, codec),
    RECENT: jnp.where(begun, frozen[RECENT], recent),
  }
  return moved, {'revived': jnp.where(begun, revived, 0), 'perplexity': perplexity}


def evaluate_sums(networks: Networks, run: Run) -> Callable[[TrainState, Crops], Metrics]:
  """Spectral losses of crops, as integer codes are decoded, of the averages where they are kept."""
  vocoder = run.vocoder
  assert vocoder is not None

  def evaluate(state: TrainState, batch: Crops) -> Metrics:
    trainable = state.trainable if state.ema is None else state.ema
    made, real, _, _ = generate(unflatten({**state.frozen, **trainable}), networks, run, shard_crops(batch), state.step, None)
    log_mel, linear = spectral_losses(made, real)
    weights = vocoder.weights
    return {'loss': weights.log_mel * log_mel + weights.linear * linear, 'log_mel': log_mel, 'linear': linear}

  return evaluate


def shard_crops(batch: Crops) -> Crops:
  mesh = current_mesh()
  if mesh is None:
    return batch
  return jax.lax.with_sharding_constraint(batch, PartitionSpec(batch_axes(len(batch.begin), mesh) or None))


def compiled(
  function: Callable, mesh, shardings: TrainState | None = None, options: dict[str, str | bool] | None = None
) -> Callable:
  """Jitted for a mesh, which is set around each call. shardings: of the state that a step gives, whose memory it reuses. options:
  of the compiler."""
  whole = NamedSharding(mesh, PartitionSpec())
  layout: dict[str, Any] = {} if shardings is None else {'donate_argnums': 0, 'out_shardings': (shardings, whole)}
  run = jax.jit(function, compiler_options=options, **layout)

  @functools.wraps(function)
  def call(state, batch):
    with jax.set_mesh(mesh):
      return run(state, batch)

  return call
