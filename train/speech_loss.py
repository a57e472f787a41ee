"""What the Talker's and the code predictor's training sums over a batch of packed utterances.

The rows are those of `generate`: a text side and a code side, added up (models.talker). The frame that a position predicts is
fed to the one after it; `code_side` is the only place where anything is shifted. The code predictor is conditioned on the hidden
state of the very position that predicts the frame.
"""

import functools
import math

import jax
import jax.numpy as jnp

from qwen3_omni_jax.config import OmniConfig, TalkerConfig
from qwen3_omni_jax.models.code_predictor import code_predictor_forward
from qwen3_omni_jax.models.talker import embed_codes, project, talker_forward
from qwen3_omni_jax.models.thinker import embed_tokens, thinker_tap
from qwen3_omni_jax.nn.expert_parallel import Dispatch
from qwen3_omni_jax.nn.pick_rows import pick_rows
from qwen3_omni_jax.shapes import Array, Bool, Float, Int, Params
from qwen3_omni_jax.sharding import BATCH_AXES, batch_axes, current_mesh, everywhere, shard_rows

from .batch import SpeechRows, TrainBatch
from .config import Recipe
from .losses import router_sums, sums_by, token_scores
from .thinker_loss import Metrics, encode_media, router_losses, thinker_sums

FRAMES = 256  # whose codes a device predicts at once, 16 positions each: 0.5 GB of activations at the released size


def total_weights(batch: TrainBatch, cfg: OmniConfig) -> Metrics:
  """By which the losses of a step are divided: the weights of its targets. batch: with microbatches in front, or without."""
  speech = batch.speech
  assert speech is not None and cfg.talker is not None
  frames = jnp.where(is_frame(speech.codes[..., 0], cfg.talker), speech.weights, 0)
  totals = {'text': batch.weights.sum(), 'codes': speech.weights.sum(), 'frames': frames.sum()}
  return {name: jnp.where(total > 0, total, 1) for name, total in totals.items()}


def is_frame(code0: Int[Array, '*b'], cfg: TalkerConfig) -> Bool[Array, '*b']:
  """Whether a target is a frame: neither nothing nor the end of speech."""
  return (code0 >= 0) & (code0 != cfg.codec_eos_token_id)


def joint_sums(
  params: Params, batch: TrainBatch, totals: Metrics, key: Array | None, *, cfg: OmniConfig, recipe: Recipe, thinker_learns: bool
) -> tuple[Array, Metrics]:
  """(this batch's part of the step's loss, sums for the metrics): weighted means of code 0, of the predictor, of the Thinker.

  totals: of the whole step. key: of the choice of frames; None: all of them. thinker_learns: whether anything in the Thinker or
  its encoders is trained. Otherwise, and without a loss of its own, no layer of it is run but those that media are tapped from.
  """
  weights, talker, total, metrics = recipe.speech, cfg.talker, jnp.float32(0), {}
  assert weights is not None and talker is not None
  tap = None
  if thinker_learns or weights.text:
    text, metrics, tap = thinker_sums(params, batch, cfg=cfg, recipe=recipe, tap_layer=talker.accept_hidden_layer)
    total = weights.text * text / totals['text']
  elif batch.media.audio or batch.media.visual:
    tap = jax.lax.stop_gradient(frozen_tap(params, batch, cfg, recipe))
  speech, metrics['speech'] = speech_sums(params, batch, tap, totals, key, cfg=cfg, recipe=recipe)
  return total + speech, metrics


def frozen_tap(params: Params, batch: TrainBatch, cfg: OmniConfig, recipe: Recipe) -> Float[Array, 'B T I']:
  """As `generate` computes it: routers in the dtype of the activations."""
  dtype, dispatch = jnp.dtype(recipe.step.dtype), Dispatch(buffer=recipe.step.buffer)
  assert cfg.talker is not None
  features = encode_media(params, cfg, batch.media, dtype, 'none')
  thinker, layer = params['thinker'], cfg.talker.accept_hidden_layer
  return thinker_tap(thinker, cfg.thinker, batch.tokens, features, tap_layer=layer, dtype=dtype, dispatch=dispatch)


def speech_sums(
  params: Params,
  batch: TrainBatch,
  tap: Float[Array, 'B T I'] | None,
  totals: Metrics,
  key: Array | None,
  *,
  cfg: OmniConfig,
  recipe: Recipe,
) -> tuple[Array, Metrics]:
  """As joint_sums, of Talker and code predictor. tap: of the batch's tokens; None where no utterance takes any of it."""
  speech, talker, step_cfg, dtype = batch.speech, cfg.talker, recipe.step, jnp.dtype(recipe.step.dtype)
  how = recipe.speech
  assert speech is not None and talker is not None and how is not None
  eos, valid = talker.codec_eos_token_id, speech.segment != 0
  hidden, routed = talker_forward(
    params['talker'],
    talker,
    talker_rows(params, batch, tap, talker, dtype),
    speech.positions,
    speech.segment,
    remat=step_cfg.remat,
    dispatch=Dispatch(buffer=step_cfg.buffer),
    router_dtype=jnp.float32,
    observe=functools.partial(router_sums, valid),
  )
  target, head = speech.codes[..., 0], params['talker']['head'].astype(dtype)
  scores = token_scores(hidden, head, jnp.maximum(target, 0), recipe.loss.chunk, other=eos)
  assert scores.other is not None
  code0, ends = scores.loss * speech.weights, (target == eos) & (speech.weights > 0)
  frames = is_frame(target, talker) & (speech.weights > 0)
  index, weight = choose_frames(frames, speech.weights, how.frames, key)
  loss, right = predictor_scores(params, talker, pick(hidden, index), pick(speech.codes, index))
  rest, right = (jnp.einsum('RKq,RK->q', x.astype(jnp.float32), weight) for x in (loss, right))
  total = how.codes * code0.sum() / totals['codes'] + how.predictor * rest.mean() / totals['frames']
  first = lambda x: (x.astype(jnp.float32) * speech.weights).sum()[None]
  chance = jnp.exp(-scores.other)
  metrics = {
    'loss': jnp.concatenate([first(scores.loss), rest]),
    'right': jnp.concatenate([first(scores.right), right]),
    'weight': jnp.concatenate([speech.weights.sum()[None], jnp.broadcast_to(weight.sum(), rest.shape)]),
    'frames': frames.sum(),
    'positions': valid.sum(),
    'ends': ends.sum(),
    'end_loss': jnp.where(ends, scores.other, 0).sum(),
    'end_probability': jnp.where(ends, chance, 0).sum(),
    'end_elsewhere': jnp.where(frames, chance, 0).sum(),
  }
  if speech.source is not None:
    of = {'speech_loss': code0, 'speech_weight': speech.weights, 'frames': frames}
    by_source = {name: sums_by(x, speech.source, len(batch.sources)) for name, x in of.items()}
    metrics['sources'] = {name: {key: x[i] for key, x in by_source.items()} for i, name in enumerate(batch.sources)}
  if routed is not None:
    text = talker.text
    router, sums = router_losses(routed, speech.weights.sum(), recipe.loss, text.router_aux_loss_coef, text.num_experts_per_tok)
    total = total + how.codes * router / totals['codes']
    metrics |= sums | {'routed': valid.sum().astype(jnp.float32) * (routed.lost.size * text.num_experts_per_tok)}
  return total, metrics


def talker_rows(
  params: Params, batch: TrainBatch, tap: Float[Array, 'B T I'] | None, cfg: TalkerConfig, dtype
) -> Float[Array, 'R S D']:
  """The Talker's input embeddings: text side plus code side."""
  speech, talker = batch.speech, params['talker']
  assert speech is not None
  text = project(talker['text_projection'], embed_tokens(params['thinker'], speech.text, dtype))
  if tap is not None:
    states = pick_rows(tap.reshape(-1, tap.shape[-1]), speech.tap, batch.media.lanes)
    text = jnp.where(speech.tap[..., None] >= 0, project(talker['hidden_projection'], states), text)
  return text + code_side(params, speech, cfg, dtype)


def code_side(params: Params, speech: SpeechRows, cfg: TalkerConfig, dtype) -> Float[Array, 'R S D']:
  """The embeddings of the frame that the position before predicted, summed one codebook at a time in float32, as predict_codes
  does; where there is none, that of the opening's code, or zero."""
  before = jnp.pad(speech.codes[:, :-1], ((0, 0), (1, 0), (0, 0)), constant_values=-1)
  same = speech.segment == jnp.pad(speech.segment[:, :-1], ((0, 0), (1, 0)))
  follows = is_frame(before[..., 0], cfg) & same

  def add(x, codebook):
    table, ids = codebook
    rows = jnp.take(everywhere(table), jnp.maximum(ids, 0), axis=0).astype(dtype).astype(jnp.float32)
    return x + shard_rows(jnp.where(ids[..., None] >= 0, rows, 0)), None

  first = jnp.where(follows, before[..., 0], speech.opening)
  rest = jnp.where(follows[..., None], before[..., 1:], -1)
  x, _ = add(jnp.float32(0), (params['talker']['embed'], first))
  x, _ = jax.lax.scan(add, x, (params['code_predictor']['embed'], jnp.moveaxis(rest, -1, 0)))
  return x.astype(dtype)


def choose_frames(
  frames: Bool[Array, 'R S'], weights: Float[Array, 'R S'], share: float, key: Array | None
) -> tuple[Int[Array, 'R K'] | None, Float[Array, 'R K']]:
  """(positions of the chosen frames, their weights): K = ceil(share * S) of each row's, drawn without putting back.

  Where a row has more frames than K, its chosen ones stand for all: their weights are multiplied by frames / K, which makes the
  weighted sum over them that over all frames in the mean. Rows are chosen in alone, so that meshes change nothing. None for the
  positions: all, in order; so it is without a key, and with a share of 1.
  """
  S = frames.shape[1]
  K = max(math.ceil(share * S - 1e-6), 1)  # a tenth of 30 is 3, whatever floats make of it
  weights = jnp.where(frames, weights, 0)
  if key is None or K >= S:
    return None, weights
  order = jnp.where(frames, jax.random.uniform(key, frames.shape), 2.0)
  index = jnp.argsort(order, axis=1)[:, :K]
  factor = jnp.maximum(frames.sum(axis=1, keepdims=True) / K, 1.0)
  return index, jnp.take_along_axis(weights, index, axis=1) * factor


def pick(x: Array, index: Int[Array, 'R K'] | None) -> Array:
  """x 'R S ...' at each row's positions 'R K ...'."""
  if index is None:
    return x
  return jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), axis=1)


def predictor_scores(
  params: Params, cfg: TalkerConfig, hidden: Float[Array, 'R K D'], codes: Int[Array, 'R K Q'], chunk: int = FRAMES
) -> tuple[Float[Array, 'R K Q-1'], Bool[Array, 'R K Q-1']]:
  """(-log p of codes 1 .. Q-1 of every frame given those before, whether each is the likeliest). hidden: the Talker's, at the
  position that predicts the frame. chunk: frames at once on a device, whose logits are computed again in the backward pass."""
  R, K = hidden.shape[:2]
  mesh = current_mesh()
  local = R // (1 if mesh is None else _groups(R, mesh))
  count = -(-K // max(chunk // local, 1))  # chunks of equal size, with a little padding; each has frames of all rows
  n = -(-K // count)

  def split(x):
    x = jnp.pad(x, [(0, 0), (0, n * count - K)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(R, n, count, *x.shape[2:]), 2, 0)

  @jax.checkpoint
  def one_chunk(_, inputs):
    hidden, codes = inputs
    hidden, codes = hidden.reshape(R * n, -1), jnp.maximum(codes.reshape(R * n, -1), 0)
    first = embed_codes(params['talker'], codes[:, 0], hidden.dtype)
    logits = code_predictor_forward(params['code_predictor'], cfg, hidden, first, codes[:, 1:])
    here = codes[:, 1:, None] == jnp.arange(logits.shape[-1])
    chosen = jnp.where(here, logits, 0).sum(axis=-1)  # no gather, which a vocabulary that is cut would need
    loss = jax.nn.logsumexp(logits, axis=-1) - chosen
    return None, (loss.reshape(R, n, -1), (chosen >= logits.max(axis=-1)).reshape(R, n, -1))

  _, found = jax.lax.scan(one_chunk, None, (split(hidden), split(codes)))
  join = lambda x: jnp.moveaxis(x, 0, 2).reshape(R, n * count, -1)[:, :K]
  return join(found[0]), join(found[1])


def _groups(rows: int, mesh) -> int:
  """Parts that rows are cut into over a mesh."""
  groups = 1
  for axis in batch_axes(rows, mesh, BATCH_AXES):
    groups *= mesh.shape[axis]
  return groups
