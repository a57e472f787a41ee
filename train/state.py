"""The training state, and which parameters are trainable.

Parameters are kept in two flat dictionaries by path: trainable ones in float32 with optimiser state, frozen ones as they were
loaded, without. The low-rank matrices of LoRA are trainable parameters named `lora/PATH/a` and `lora/PATH/b`.
"""

import dataclasses
import functools
import zlib
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from qwen3_omni_jax.config import OmniConfig
from qwen3_omni_jax.models.omni import omni_spec
from qwen3_omni_jax.nn.lora import Lora, lora_spec
from qwen3_omni_jax.nn.params import Param, leaves
from qwen3_omni_jax.shapes import Array, Float, Int, Params
from qwen3_omni_jax.sharding import param_shardings, partition

from . import router_bias
from .config import LoraPart, Part, Recipe
from .optimiser import make_optimiser
from .speakers import trained_rows
from .stages import match_lora, match_parts

PARTS = ('audio', 'vision', 'thinker')  # what every training reads and writes
SPEECH_PARTS = ('talker', 'code_predictor')  # with recipe.speech; otherwise they stay where they are, as Code2Wav always does
LORA = 'lora/'


class TrainState(flax.struct.PyTreeNode):
  """step: of the run, skipped ones included. ema: averaged copies of the trainable parameters, or None. skipped: steps in all,
  and in a row up to now. usual_norm: running mean of the gradient's norm over steps that were taken; 0 before the first.
  router_bias: see there; None without loss.bias_update."""

  step: Int[Array, '']
  trainable: dict[str, Float[Array, '...']]
  frozen: dict[str, Array]
  optimiser: Any
  ema: dict[str, Float[Array, '...']] | None
  skipped: Int[Array, '']
  skipped_in_a_row: Int[Array, '']
  usual_norm: Float[Array, '']
  router_bias: Float[Array, 'L E'] | None = None

  @property
  def fixed(self) -> dict[str, Array]:
    """What the networks take and no gradient changes: frozen parameters and the bias of expert selection."""
    return self.frozen if self.router_bias is None else {**self.frozen, router_bias.PATH: self.router_bias}


@dataclasses.dataclass(frozen=True)
class Roles:
  """Which parameters are trainable, frozen or adapted by LoRA.

  specs: of all parameters by path, LoRA's matrices included. trainable: the configured part that each trainable parameter belongs
  to. lora: the configured part of each adapted matrix. rows: the rows of a parameter that are trained, where the others are not.
  router_bias: shape of the bias of the experts' selection, if there is one (train.router_bias).
  """

  specs: dict[str, Param]
  trainable: dict[str, Part]
  lora: dict[str, LoraPart]
  rows: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
  router_bias: tuple[int, int] | None = None

  @property
  def trainable_specs(self) -> dict[str, Param]:
    return {path: self.specs[path] for path in self.trainable}

  @property
  def frozen(self) -> tuple[str, ...]:
    return tuple(path for path in self.specs if path not in self.trainable)

  @property
  def trainable_parts(self) -> tuple[str, ...]:
    """Top-level parts with a trainable parameter: those a checkpoint holds."""
    return tuple(part for part in self.parts if any(path.startswith(f'{part}/') for path in self.trainable))

  @property
  def parts(self) -> tuple[str, ...]:
    """All top-level parts, trained or not."""
    return tuple(dict.fromkeys(part for path in self.specs if (part := path.split('/')[0]) != LORA[:-1]))

  def learns(self, *parts: str) -> bool:
    """Whether anything in these parts is trained, low-rank changes included."""
    return any(path.removeprefix(LORA).split('/')[0] in parts for path in self.trainable)

  def only_trained_rows(self, path: str, x: Array, other: float = 0.0) -> Array:
    """x, of that parameter's shape, with `other` in the rows that are not trained."""
    if path not in self.rows:
      return x
    trained = jnp.isin(jnp.arange(x.shape[0]), jnp.array(self.rows[path]))
    return jnp.where(trained.reshape(-1, *(1,) * (x.ndim - 1)), x, jnp.asarray(other, x.dtype))


def parts_of(recipe: Recipe) -> tuple[str, ...]:
  """The parts that a run reads; those of them that it trains are written."""
  return PARTS + (SPEECH_PARTS if recipe.speech is not None else ())


def assign_roles(cfg: OmniConfig, recipe: Recipe) -> Roles:
  """The role of every parameter. Raises ValueError for patterns that match nothing, for a matrix both trained and adapted, and
  for speech settings that do not go with the model or with what is trained. cfg: with the run's new speakers (train.speakers)."""
  whole = omni_spec(cfg)
  if recipe.speech is not None and 'talker' not in whole:
    raise ValueError('speech: this checkpoint has no Talker (Thinking and Captioner variants write only)')
  specs = dict(leaves({part: whole[part] for part in parts_of(recipe)}))
  trainable = match_parts(specs, recipe.parts)
  matrices = [path for path, param in specs.items() if lora_spec(path, param, 1)]
  lora = match_lora(matrices, recipe.lora)
  if both := sorted(set(lora) & set(trainable)):
    raise ValueError(f'both trained and adapted by LoRA: {", ".join(both[:5])}; freeze them with a part of lr 0')
  for path, part in lora.items():
    for name, param in (lora_spec(path, specs[path], part.rank) or {}).items():
      specs[f'{LORA}{path}/{name}'] = param
      trainable[f'{LORA}{path}/{name}'] = Part(part.pattern, part.lr)
  if not trainable:
    raise ValueError('nothing is trained: give parts or lora with a learning rate above 0')
  roles = Roles(specs, trainable, lora, trained_rows(cfg, recipe, trainable), router_bias.bias_shape(cfg, recipe))
  if recipe.speech is not None and recipe.speech.text and not roles.learns(*PARTS):
    raise ValueError(
      f'speech.text {recipe.speech.text}: the Thinker and its encoders are frozen, so its loss teaches nothing; leave it out'
    )
  return roles


def merge_params(trainable: Mapping[str, Array], frozen: Mapping[str, Array], roles: Roles) -> Params:
  """The parameter tree that the networks take."""
  by_path: dict[str, Any] = {**frozen, **{path: p for path, p in trainable.items() if not path.startswith(LORA)}}
  for path, part in roles.lora.items():
    by_path[path] = Lora(by_path[path], trainable[f'{LORA}{path}/a'], trainable[f'{LORA}{path}/b'], part.alpha / part.rank)
  return unflatten(by_path)


def unflatten(by_path: Mapping[str, Any]) -> Params:
  """The nested dictionary of a flat one by path."""
  tree: dict = {}
  for path, value in by_path.items():
    *parents, name = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = value
  return tree


def flatten(tree: Params, prefix: str = '') -> dict[str, Any]:
  """The flat dictionary by path of a nested one."""
  found = {}
  for name, value in tree.items():
    path = f'{prefix}{name}'
    found |= flatten(value, f'{path}/') if isinstance(value, Mapping) else {path: value}
  return found


def init_state(params: Params | None, cfg: OmniConfig, recipe: Recipe, mesh, seed: int = 0) -> TrainState:
  """The state before the first step, laid out on the mesh.

  params: loaded ones (of parts_of(recipe)), by the shardings of `load_shardings`; given away: trainable ones become float32.
  None: random values, in float32. LoRA begins as no change at all.
  """
  return state_of(assign_roles(cfg, recipe), params, recipe, mesh, seed)


def state_of(roles: Roles, params: Params | None, recipe: Recipe, mesh, seed: int = 0) -> TrainState:
  """init_state of any parameters. params: those that are not random."""
  cuts = shardings_of(roles, recipe, mesh)
  cut_of = {**cuts.trainable, **cuts.frozen}
  given = {} if params is None else flatten(params)
  loaded = {path: jax.device_put(p, cut_of[path]) for path, p in given.items() if path in roles.specs}
  new = {path: param for path, param in roles.specs.items() if path not in loaded}

  def create():
    key = jax.random.key(seed)
    return {path: param.create(jax.random.fold_in(key, zlib.crc32(path.encode()))) for path, param in new.items()}

  with jax.set_mesh(mesh):
    everything = loaded | jax.jit(create, out_shardings={path: cut_of[path] for path in new})()
    widen = jax.jit(lambda x: x.astype(jnp.float32), donate_argnums=0)
    trainable = {path: widen(everything.pop(path)) for path in roles.trainable}
    # optax is not written for strict promotion
    with jax.numpy_dtype_promotion('standard'):
      optimiser = jax.jit(build_optimiser(recipe, roles).init, out_shardings=cuts.optimiser)(trainable)
    copy = jax.jit(lambda x: jax.tree.map(jnp.copy, x), out_shardings=cuts.trainable)
    zero = jax.device_put(jnp.int32(0), cuts.step)
    ema = copy(trainable) if recipe.step.ema else None
    norm = jax.device_put(jnp.float32(0), cuts.step)
    shape = roles.router_bias
    bias = None if shape is None else jax.device_put(jnp.zeros(shape, jnp.float32), cuts.step)
    return TrainState(zero, trainable, everything, optimiser, ema, jnp.copy(zero), jnp.copy(zero), norm, bias)


def abstract_state(cfg: OmniConfig, recipe: Recipe, mesh, frozen_dtype=jnp.bfloat16) -> TrainState:
  """Shapes, dtypes and shardings of the state, without its memory: to plan with, and to restore into."""
  return abstract_of(assign_roles(cfg, recipe), recipe, mesh, frozen_dtype)


def abstract_of(roles: Roles, recipe: Recipe, mesh, frozen_dtype=jnp.bfloat16) -> TrainState:
  """abstract_state of any parameters."""
  cuts = shardings_of(roles, recipe, mesh)
  place = lambda x, cut: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=cut)
  return jax.tree.map(place, _abstract(roles, recipe, frozen_dtype), cuts)


def _abstract(roles: Roles, recipe: Recipe, frozen_dtype) -> TrainState:
  trainable = {path: jax.ShapeDtypeStruct(param.shape, jnp.float32) for path, param in roles.trainable_specs.items()}
  frozen = {path: jax.ShapeDtypeStruct(roles.specs[path].shape, frozen_dtype) for path in roles.frozen}
  with jax.numpy_dtype_promotion('standard'):
    optimiser = jax.eval_shape(build_optimiser(recipe, roles).init, trainable)
  count = jax.ShapeDtypeStruct((), jnp.int32)
  norm = jax.ShapeDtypeStruct((), jnp.float32)
  shape = roles.router_bias
  bias = None if shape is None else jax.ShapeDtypeStruct(shape, jnp.float32)
  return TrainState(count, trainable, frozen, optimiser, dict(trainable) if recipe.step.ema else None, count, count, norm, bias)


def state_shardings(cfg: OmniConfig, recipe: Recipe, mesh) -> TrainState:
  """A TrainState of NamedShardings: optimiser state and averages lie as their parameters do."""
  return shardings_of(assign_roles(cfg, recipe), recipe, mesh)


def shardings_of(roles: Roles, recipe: Recipe, mesh) -> TrainState:
  """state_shardings of any parameters."""
  cut = flatten(param_shardings(unflatten(roles.specs), mesh))
  whole = NamedSharding(mesh, PartitionSpec())
  shapes = _abstract(roles, recipe, jnp.bfloat16)
  of_moment = functools.partial(_moment_sharding, specs=roles.specs, mesh=mesh)
  optimiser = jax.tree_util.tree_map_with_path(of_moment, shapes.optimiser)
  trainable = {path: cut[path] for path in roles.trainable}
  ema = trainable if recipe.step.ema else None
  frozen, bias = {path: cut[path] for path in roles.frozen}, None if shapes.router_bias is None else whole
  return TrainState(whole, trainable, frozen, optimiser, ema, whole, whole, whole, bias)


def _moment_sharding(at, leaf, *, specs: Mapping[str, Param], mesh) -> NamedSharding:
  """As the parameter it belongs to lies; a factored moment has that parameter's axes but one; a count is everywhere."""
  path = next((key.key for key in at if isinstance(key, jax.tree_util.DictKey) and key.key in specs), None)
  if path is not None:
    param, cut = specs[path], partition(specs[path].axes, mesh)
    if leaf.shape == param.shape:
      return NamedSharding(mesh, cut)
    for axis in range(len(param.shape)):
      if leaf.shape == param.shape[:axis] + param.shape[axis + 1 :]:
        return NamedSharding(mesh, PartitionSpec(*cut[:axis], *cut[axis + 1 :]))
  return NamedSharding(mesh, PartitionSpec())


def load_shardings(cfg: OmniConfig, recipe: Recipe, mesh) -> Params:
  """Where the loaded parameters (of parts_of(recipe)) go."""
  whole = omni_spec(cfg)
  return param_shardings({part: whole[part] for part in parts_of(recipe)}, mesh)


def build_optimiser(recipe: Recipe, roles: Roles) -> optax.GradientTransformationExtraArgs:
  return make_optimiser(recipe.optimiser, recipe.steps, roles.trainable_specs, roles.trainable)
