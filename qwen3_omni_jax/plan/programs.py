"""The programs of a plan: the functions that run, with their arguments as shapes on a mesh."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from qwen3_omni_jax.config import OmniConfig
from qwen3_omni_jax.infer import decode, speech
from qwen3_omni_jax.infer.collate import Batch, Media
from qwen3_omni_jax.infer.sampling import Sampling, sampling_rows
from qwen3_omni_jax.infer.voice import Voice
from qwen3_omni_jax.models.code_predictor import code_predictor_spec, prepare_predictor
from qwen3_omni_jax.models.talker import TextTrack, talker_spec
from qwen3_omni_jax.models.thinker import Features, ThinkerTokens, thinker_spec
from qwen3_omni_jax.nn.cache import init_cache
from qwen3_omni_jax.nn.params import is_param
from qwen3_omni_jax.sharding import batch_axes, jitted, param_shardings

from .job import Job
from .train_program import train_program


def placed(spec, mesh, dtype):
  """Shapes of parameters with where they lie."""
  place = lambda p, cut: jax.ShapeDtypeStruct(p.shape, dtype, sharding=cut)
  return jax.tree.map(place, spec, param_shardings(spec, mesh), is_leaf=is_param)


def program(cfg: OmniConfig, job: Job, mesh) -> tuple[Any, tuple, dict[str, Any]]:
  """(jitted function, its arguments as shapes on the mesh, the arguments by what they are: weights, optimiser, activations)."""
  return {'train': train_program, 'prefill': _prefill, 'decode': _decode, 'speech': _speech}[job.kind](cfg, job, mesh)


def _rows(tree, batch: int, mesh, axis: int = 0):
  """Arrays (or shapes) with the rows of a batch shared out along `axis` as inference does."""
  cut = NamedSharding(mesh, PartitionSpec(*(None,) * axis, batch_axes(batch, mesh) or None))
  whole = NamedSharding(mesh, PartitionSpec())
  by_row = lambda x: len(x.shape) > axis and x.shape[axis] == batch
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=cut if by_row(x) else whole), tree)


def _cache(text, job: Job, mesh):
  return _rows(jax.eval_shape(lambda: init_cache(text, job.batch, job.length, jnp.bfloat16)), job.batch, mesh, axis=1)


def _thinker_call(cfg: OmniConfig, job: Job, mesh):
  """(parameters, greedy sampling, limits) of the Thinker's programs."""
  sampling = sampling_rows([Sampling()] * job.batch, cfg.thinker.text.vocab_size)
  limits = decode.Limits(np.zeros(4, np.int32), np.zeros(job.batch, np.int32))
  params = placed(thinker_spec(cfg.thinker), mesh, jnp.bfloat16)
  return params, *_rows((sampling, limits), job.batch, mesh)


def _prefill(cfg: OmniConfig, job: Job, mesh):
  B, T = job.batch, job.length
  params, sampling, limits = _thinker_call(cfg, job, mesh)
  zeros = lambda *shape, dtype=np.int32: np.broadcast_to(np.zeros((), dtype), shape)
  tokens = ThinkerTokens(
    _rows(zeros(B, T), B, mesh),
    _rows(zeros(3, B, T, dtype=np.float32), B, mesh, 1),
    _rows(zeros(B, T), B, mesh),
  )
  batch = Batch(tokens, Media(), _rows(zeros(B), B, mesh), _rows(zeros(B, dtype=np.float32), B, mesh))
  tap = cfg.talker.accept_hidden_layer if cfg.talker else None
  call = _Static(jitted(decode.prefill), slots=T, outputs=16, penalised=False, dtype=jnp.bfloat16, tap_layer=tap)
  return call, (params, cfg.thinker, batch, Features(), sampling, limits), {'weights': params, 'activations': batch}


def _decode(cfg: OmniConfig, job: Job, mesh):
  B = job.batch
  params, sampling, limits = _thinker_call(cfg, job, mesh)
  cache = _cache(cfg.thinker.text, job, mesh)
  ints = np.zeros(B, np.int32)
  small = (ints, np.zeros(B, np.float32), ints, np.zeros(B, bool), np.zeros((B, 1024), np.int32), ints)
  state = decode.State(cache, *_rows(small, B, mesh), seen=None)
  steps = _rows(jax.ShapeDtypeStruct((), jnp.int32), B, mesh)
  return (
    _Static(jitted(decode.decode), dtype=jnp.bfloat16),
    (params, cfg.thinker, state, sampling, limits, steps),
    {'weights': params, 'activations': state},
  )


class _Static:
  """A jitted function with its keyword arguments given."""

  def __init__(self, function, **given):
    self.function, self.given = function, given

  def lower(self, *args):
    return self.function.lower(*args, **self.given)


def _speech(cfg: OmniConfig, job: Job, mesh):
  if cfg.talker is None:
    raise ValueError('this model has no Talker (Thinking and Captioner variants write only): plan another job')
  B, talker = job.batch, cfg.talker
  D, V = talker.text.hidden_size, talker.text.vocab_size
  of = lambda *shape, dtype=jnp.int32: jax.ShapeDtypeStruct(shape, dtype)
  bf16 = functools.partial(of, dtype=jnp.bfloat16)
  params = {'talker': placed(talker_spec(talker), mesh, jnp.bfloat16)}
  plain = placed(code_predictor_spec(talker), mesh, jnp.bfloat16)
  predictor = _rows(jax.eval_shape(lambda p: prepare_predictor(p, jnp.bfloat16), plain), 0, mesh)
  fields = (
    of(B),
    of(B, dtype=jnp.float32),
    bf16(B, D),
    of(B),
    of(B),
    of(B, 1024, talker.num_code_groups),
    of(B),
    of(B, V, dtype=jnp.bool_),
    of(B, speech.PERIODS),
  )
  state = speech.SpeechState(_cache(talker.text, job, mesh), *_rows(fields, B, mesh))
  text = _rows(TextTrack(bf16(B, 256, D), of(B), bf16(D), bf16(D), bf16(D)), B, mesh)
  voice = Voice()
  others = _rows((of(B, dtype=jnp.bool_), voice.draws(cfg, [0] * B), voice.limits([1024] * B), np.int32(0)), B, mesh)
  args = (params, cfg, predictor, state, text, *others)
  return jitted(speech.speak), args, {'weights': (params, predictor), 'activations': (state, text)}
