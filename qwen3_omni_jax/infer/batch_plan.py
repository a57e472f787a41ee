"""Sizes of the batch engine: slots, prompt pieces, the number of programs that may be compiled, and the memory."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ..config import OmniConfig
from ..models.code2wav import init_state
from ..models.omni import omni_spec
from ..models.talker import OPENING
from ..nn.params import Param
from ..sharding import MESH_AXES, RULES, Shape
from .slots import empty_slots
from .speech_slots import empty_speech

PROMPT_CLASSES = (32, 128, 512, 2048, 8192, 32768)  # sizes to which Talker prompts and replies are padded
CALL_TOKENS = 16384  # most of a call of whole sequences (Talker prompts, conversations to be scored), padding included


@dataclasses.dataclass(frozen=True)
class EngineConfig:
  """Shapes and limits of the engine. They decide speed and memory, never an answer (but for rounding, see docs/batch.md).

  slots: rows that decode together, in slots of up to 2048 tokens; longer ones get fewer, so that memory stays the same.
  speech_slots: likewise of the Talker; None: as many. lengths: tokens (and for the Talker frames) a slot may hold; a row begins
  in the least that holds its prompt and `room` tokens of its reply (or all, of a lower limit), and moves on to the next when it
  is full: a limit of thousands of tokens costs nothing until they are written. pieces: (small, large) sizes in which prompts are
  fed. lanes: pieces a call, fed together. steps, frames: decode steps and speech frames between two looks from the host. ahead:
  rows prepared in advance. workers: threads that prepare them. wave_frames, wave_lanes: of a vocoder call; None: a lane for every
  eight speech slots.
  """

  slots: int = 32
  speech_slots: int | None = None
  lengths: tuple[int, ...] = (256, 1024, 4096, 16384)
  room: int = 512
  pieces: tuple[int, int] = (64, 256)
  lanes: int = 8
  encoder_lanes: int = 8
  steps: int = 16
  frames: int = 16
  ahead: int | None = None
  workers: int = 2
  prefix_bytes: int = 512 * 2**20
  feature_bytes: int = 1024 * 2**20
  wave_frames: int = 50
  wave_lanes: int | None = None

  def __post_init__(self):
    problems = []
    counts = (
      'slots',
      'speech_slots',
      'room',
      'lanes',
      'encoder_lanes',
      'steps',
      'frames',
      'ahead',
      'workers',
      'wave_frames',
      'wave_lanes',
    )
    for name in counts:
      value = getattr(self, name)
      if value is not None and value < 1:
        problems.append(f'{name} {value}: expected 1 or more')
    if not self.lengths or list(self.lengths) != sorted(set(self.lengths)) or self.lengths[0] < self.pieces[1]:
      problems.append(f'lengths {self.lengths}: expected ascending numbers, the first at least a large piece ({self.pieces[1]})')
    if len(self.pieces) != 2 or not 0 < self.pieces[0] <= self.pieces[1]:
      problems.append(f'pieces {self.pieces}: expected a small and a large size')
    if problems:
      raise ValueError('; '.join(problems))

  def slots_of(self, length: int, *, speech: bool = False) -> int:
    slots = self.speech_slots or self.slots if speech else self.slots
    return max(1, slots // max(1, length // 2048))

  @property
  def vocoder_lanes(self) -> int:
    return self.wave_lanes or max(1, (self.speech_slots or self.slots) // 8)

  def min_free_slots(self, slots: int) -> int:
    """Free slots that are worth a call of prompts while other rows go on: the call costs about the same for one as for all."""
    return max(1, min(self.lanes, slots // 4))

  def lanes_of(self, size: int) -> int:
    """Whole sequences a call, of that padded size: fewer of long ones, so that memory stays the same."""
    return max(1, min(self.lanes, CALL_TOKENS // size))

  def halved(self) -> 'EngineConfig':
    speech = None if self.speech_slots is None else max(1, self.speech_slots // 2)
    return dataclasses.replace(self, slots=max(1, self.slots // 2), speech_slots=speech)

  def length_class(self, needed: int) -> int:
    """The least length that holds that many; the caller has checked that there is one."""
    return next(n for n in self.lengths if n >= needed)

  def speech_class(self, needed: int) -> int:
    """Likewise of the Talker; what is longer than all lengths (a long prompt, padded, and many frames) gets a multiple."""
    length = next((n for n in self.lengths if n >= needed), self.lengths[-1])
    while length < needed:
      length *= 2
    return length


def prompt_class(needed: int) -> int:
  return next(n for n in PROMPT_CLASSES if n >= needed)


def program_bound(config: EngineConfig, cfg: OmniConfig, speech: bool, lengths: Sequence[int] | None = None) -> dict[str, int]:
  """The most programs of each kind that a run can compile, whatever its rows are. lengths: of the slots in use, default all.

  `widths` of drawing are settled by the first rows that draw (see Engine), so that each program may be compiled once without
  and once with them.
  """
  number = len(config.lengths if lengths is None else lengths)
  audio = cfg.thinker.audio.chunks_per_window
  merge2 = cfg.thinker.vision.spatial_merge_size**2
  widths = 4  # none, the narrow one, the whole vocabulary, both
  bound = {
    'feed_pieces': 2 * 2 * widths * number,
    'decode_slots': widths * number,
    'take_piece': 2 * number,
    'put_piece': 2 * number,
    'move_slot': number - 1,
    'encode_audio': sum(1 for n in (1, 2, 3, 4, 6, 8, 12, 16) if n <= audio) or 1,
    'encode_visual': 2 * int(math.log2(max(2, 65536 // (16 * merge2)))),
  }
  if speech:
    lengths = (*config.lengths, 2 * config.lengths[-1], 4 * config.lengths[-1])
    classes = lambda length: sum(1 for n in PROMPT_CLASSES if n + OPENING < length)
    bound |= {'begin_talk': sum(map(classes, lengths)), 'speak_slots': len(lengths), 'vocode_lanes': 1}
  return bound


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
  """Bytes on each device, by what they are for."""

  parts: dict[str, int]
  devices: int

  @property
  def total(self) -> int:
    return sum(self.parts.values())

  def lines(self) -> list[str]:
    width = max(map(len, self.parts))
    rows = [f'{name:{width}s}  {size / 2**30:10.3f} GiB' for name, size in self.parts.items()]
    many = f'each of {self.devices} devices' if self.devices > 1 else 'one device'
    return [*rows, f'{"total":{width}s}  {self.total / 2**30:10.3f} GiB on {many}']


def memory_plan(cfg: OmniConfig, config: EngineConfig, dtype: str, speech: bool, mesh: Shape | None = None) -> MemoryPlan:
  """What a run holds on each device of a mesh of that shape (None: one device), every length of slots in use; workspace of the
  programs not counted."""
  shape = {axis: 1 for axis in MESH_AXES} | (mesh or {})
  item = jnp.dtype(dtype).itemsize
  batch = shape['data'] * shape['fsdp'] * shape['expert']

  def bytes_of(node) -> int:
    if isinstance(node, Param):
      cuts = math.prod(shape[axis] for axis in {RULES[name] for name in node.axes} if axis is not None)
      return math.prod(node.shape) * item // cuts
    return sum(bytes_of(child) for child in node.values())

  def rows_of(tree, slots: int) -> int:
    whole = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
    return whole // math.gcd(slots, batch)

  spec = omni_spec(cfg)
  names = [n for n in spec if speech or n in ('audio', 'vision', 'thinker')]
  parts = {f'weights: {name}': bytes_of(spec[name]) for name in names}
  for length in config.lengths:
    slots = config.slots_of(length)
    tree = jax.eval_shape(lambda: empty_slots(cfg.thinker, slots, length, dtype))
    parts[f'Thinker: {slots} slots of {length} tokens'] = rows_of(tree, slots)
  if speech and cfg.talker is not None and cfg.code2wav is not None:
    for length in config.lengths:
      slots = config.slots_of(length, speech=True)
      tree = jax.eval_shape(lambda: empty_speech(cfg, slots, length, dtype))
      parts[f'Talker: {slots} slots of {length} tokens and frames'] = rows_of(tree, slots)
    tree = jax.eval_shape(lambda: init_state(cfg.code2wav, config.vocoder_lanes, jnp.dtype(dtype)))
    parts[f'vocoder: {config.vocoder_lanes} lanes'] = rows_of(tree, 1)
  parts['prefix cache'] = config.prefix_bytes
  return MemoryPlan(parts, math.prod(shape.values()))
