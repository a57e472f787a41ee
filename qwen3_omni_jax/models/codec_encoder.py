"""Codec encoder (Mimi): a 24 kHz wave to latents at 12.5 frames a second, whole or as a stream.

Convolutions shrink the wave 960-fold (SEANet), a small transformer attends to the last 250 of these steps, and a last
convolution makes one latent of two steps; quantizer.py gives it codes. Everything is causal and every convolution can be
continued, so one function, `encode_step`, serves both a stream and a whole clip.

Clips of unlike length share a batch: what lies past a row's end is zero in front of every convolution (and its last step is
repeated in front of the last one), which is what the reference pads a clip with that it is given alone. In a batch of its own the
reference lets clips see the convolved padding.
Source: transformers 5.23, models/mimi/modeling_mimi.py.
"""

import flax.struct
import jax
import jax.numpy as jnp

from ..codec_config import CodecConfig
from ..nn.conv import causal_conv, causal_conv_spec
from ..nn.layers import gelu, layer_norm, layer_norm_spec, linear, linear_spec
from ..nn.params import Param, Spec, stack
from ..nn.windowed_attention import windowed_attention
from ..shapes import Array, Bool, Float, Int, Params
from .quantizer import quantise, quantizer_spec


def codec_spec(cfg: CodecConfig) -> Spec:
  """Parameters of encoder and quantiser. Lists of modules are dicts '0', '1', …"""
  D, N, K, H = cfg.hidden_size, cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim
  layer: Spec = {
    'attn_norm': layer_norm_spec(D),
    'attn': {
      'q': Param((D, N, H), ('embed', 'heads', 'head_dim'), fan_in=D),
      'k': Param((D, K, H), ('embed', 'kv_heads', 'head_dim'), fan_in=D),
      'v': Param((D, K, H), ('embed', 'kv_heads', 'head_dim'), fan_in=D),
      'o': Param((N, H, D), ('heads', 'head_dim', 'embed'), fan_in=N * H),
    },
    'attn_scale': Param((D,), ('embed',), 'ones'),
    'mlp_norm': layer_norm_spec(D),
    'mlp': {
      'up': linear_spec(D, cfg.intermediate_size, ('embed', 'mlp'), bias=False),
      'down': linear_spec(cfg.intermediate_size, D, ('mlp', 'embed'), bias=False),
    },
    'mlp_scale': Param((D,), ('embed',), 'ones'),
  }
  stages: Spec = {}
  for i, stride in enumerate(cfg.strides):
    width = cfg.num_filters << i
    unit = {
      'conv1': causal_conv_spec(cfg.residual_kernel_size, width, width // cfg.compress),
      'conv2': causal_conv_spec(1, width // cfg.compress, width),
    }
    stages[str(i)] = {
      'units': {str(j): unit for j in range(cfg.num_residual_layers)},
      'down': causal_conv_spec(2 * stride, width, 2 * width),
    }
  return {
    'conv_in': causal_conv_spec(cfg.kernel_size, 1, cfg.num_filters),
    'stages': stages,
    'conv_out': causal_conv_spec(cfg.last_kernel_size, cfg.num_filters << len(cfg.strides), D),
    'layers': stack(cfg.num_hidden_layers, layer),
    'downsample': causal_conv_spec(2 * cfg.latent_stride, D, D, bias=False),
    'quantizer': quantizer_spec(cfg),
  }


class EncoderState(flax.struct.PyTreeNode):
  """What a stream must remember: the attention window, and the last inputs of every convolution ('B P C' each).

  A new stream is all zeros; `restart_rows` gives a row to another one.
  """

  frames: Int[Array, ' B']  # encoded so far
  k: Float[Array, 'L B S K H']  # of the last S = sliding_window - 1 steps, rotated
  v: Float[Array, 'L B S K H']
  tails: Params  # by convolution, in the nesting of the parameters


def init_encoder_state(cfg: CodecConfig, batch: int, dtype=jnp.float32) -> EncoderState:
  def tail(width: int, channels: int) -> Array:
    return jnp.zeros((batch, width, channels), dtype)

  stages = {}
  for i, stride in enumerate(cfg.strides):
    width = cfg.num_filters << i
    past = {str(j): (cfg.residual_kernel_size - 1) * cfg.dilation_growth_rate**j for j in range(cfg.num_residual_layers)}
    stages[str(i)] = {'units': {j: tail(n, width) for j, n in past.items()}, 'down': tail(stride, width)}
  tails = {
    'conv_in': tail(cfg.kernel_size - 1, 1),
    'stages': stages,
    'conv_out': tail(cfg.last_kernel_size - 1, cfg.num_filters << len(cfg.strides)),
    'downsample': tail(cfg.latent_stride, cfg.hidden_size),
  }
  kv = (cfg.num_hidden_layers, batch, cfg.sliding_window - 1, cfg.num_key_value_heads, cfg.head_dim)
  return EncoderState(jnp.zeros(batch, jnp.int32), jnp.zeros(kv, dtype), jnp.zeros(kv, dtype), tails)


def restart_rows(state: EncoderState, rows: Bool[Array, ' B']) -> EncoderState:
  """state with the given rows at the beginning of a new stream."""
  zero = lambda x, axis: jnp.where(rows.reshape((1,) * axis + (-1,) + (1,) * (x.ndim - axis - 1)), 0, x)
  return EncoderState(zero(state.frames, 0), zero(state.k, 1), zero(state.v, 1), jax.tree.map(lambda x: zero(x, 0), state.tails))


def encode_step(
  params: Params, cfg: CodecConfig, wave: Float[Array, 'B W'], samples: Int[Array, ' B'], state: EncoderState
) -> tuple[Float[Array, 'B F D'], EncoderState]:
  """Latents of the next F = W / samples_per_frame frames of each row's stream, in the wave's dtype.

  wave: in [-1, 1] at 24 kHz; W a multiple of samples_per_frame. samples: how many of W belong to the row: all of them but in the
  row's last chunk. Its first ceil(samples / samples_per_frame) frames are then valid, the others mean nothing, and its stream has
  ended. Rows may be at different frames.
  """
  if wave.shape[1] % cfg.samples_per_frame:
    raise ValueError(f'a wave of {wave.shape[1]} samples: expected whole frames of {cfg.samples_per_frame}; pad it with zeros')
  x, tails = shrink(params, cfg, wave, samples, state.tails)
  x, k, v = transform(params, cfg, x, state)
  latents, last = downsample(params, cfg, x, -(-samples // cfg.hop_samples), state)
  return latents, EncoderState(state.frames + latents.shape[1], k, v, {**tails, 'downsample': last})


def shrink(
  params: Params, cfg: CodecConfig, wave: Float[Array, 'B W'], samples: Int[Array, ' B'], before: Params
) -> tuple[Float[Array, 'B T D'], Params]:
  """SEANet: T = W / hop_samples steps, and the tails of its convolutions. before: those tails of what came before."""

  def valid(x: Float[Array, 'B T C'], stride: int) -> Float[Array, 'B T C']:
    return jnp.where(jnp.arange(x.shape[1])[:, None] < -(-samples // stride)[:, None, None], x, 0)

  past = 1  # samples of one position
  x, first = causal_conv(valid(wave[:, :, None], past), params['conv_in'], before['conv_in'])
  tails: Params = {'conv_in': first, 'stages': {}}
  for i, stride in enumerate(cfg.strides):
    p, units = params['stages'][str(i)], {}
    for j in range(cfg.num_residual_layers):
      name, dilation = str(j), cfg.dilation_growth_rate**j
      unit, tail = p['units'][name], before['stages'][str(i)]['units'][name]
      y, units[name] = causal_conv(valid(_elu(x), past), unit['conv1'], tail, dilation)
      y, _ = causal_conv(_elu(y), unit['conv2'], y[:, :0])
      x = x + y
    x, down = causal_conv(valid(_elu(x), past), p['down'], before['stages'][str(i)]['down'], stride=stride)
    tails['stages'][str(i)] = {'units': units, 'down': down}
    past *= stride
  x, tails['conv_out'] = causal_conv(valid(_elu(x), past), params['conv_out'], before['conv_out'])
  return x, tails


def transform(params: Params, cfg: CodecConfig, x: Float[Array, 'B T D'], state: EncoderState):
  """(output 'B T D', k, v): causal attention over the last `sliding_window` steps, those of earlier chunks from the state."""
  begin = state.frames * cfg.latent_stride

  def layer(x, inputs):
    p, k, v = inputs
    out, k, v = windowed_attention(layer_norm(x, p['attn_norm'], cfg.norm_eps), p['attn'], begin, k, v, cfg.rope_theta)
    x = x + p['attn_scale'].astype(x.dtype) * out
    y = linear(gelu(linear(layer_norm(x, p['mlp_norm'], cfg.norm_eps), p['mlp']['up'])), p['mlp']['down'])
    return x + p['mlp_scale'].astype(x.dtype) * y, (k, v)

  x, (k, v) = jax.lax.scan(layer, x, (params['layers'], state.k, state.v))
  return x, k, v


def downsample(
  params: Params, cfg: CodecConfig, x: Float[Array, 'B T D'], steps: Int[Array, ' B'], state: EncoderState
) -> tuple[Float[Array, 'B F D'], Float[Array, 'B P D']]:
  """F = T / latent_stride latents, and the tail. A clip's first and last step are repeated where others are padded with zeros.

  steps: of T that belong to the row.
  """
  at = jnp.minimum(jnp.arange(x.shape[1], dtype=jnp.int32), jnp.maximum(steps - 1, 0)[:, None])
  x = jnp.take_along_axis(x, at[:, :, None], axis=1)
  tail = jnp.where((state.frames == 0)[:, None, None], x[:, :1], state.tails['downsample'].astype(x.dtype))
  return causal_conv(x, params['downsample'], tail, stride=cfg.latent_stride)


def _elu(x: Array) -> Array:
  return jax.nn.elu(x.astype(jnp.float32)).astype(x.dtype)


def encode_latents(
  params: Params, cfg: CodecConfig, wave: Float[Array, 'B W'], length: Int[Array, ' B'] | None = None, *, chunk: int | None = None
) -> tuple[Float[Array, 'B F D'], Int[Array, ' B']]:
  """Latents of whole clips before quantisation, and how many of the F = ceil(W / samples_per_frame) are each row's own.

  length: samples of each row (default: all of W). chunk: encode this many frames at a time: the same result, in memory that does
  not grow with the clip, and time that grows with its length alone.
  """
  B, W = wave.shape
  length = jnp.full(B, W, jnp.int32) if length is None else length
  frames = cfg.frames(W)
  step = frames if chunk is None else min(chunk, frames)
  rounds = -(-frames // step) if frames else 0
  hop = step * cfg.samples_per_frame
  state = init_encoder_state(cfg, B, wave.dtype)
  if rounds == 0:
    return jnp.zeros((B, 0, cfg.hidden_size), wave.dtype), jnp.zeros(B, jnp.int32)
  padded = jnp.pad(wave, [(0, 0), (0, rounds * hop - W)])
  if rounds == 1:
    latents, _ = encode_step(params, cfg, padded, length, state)
  else:
    chunks = jnp.moveaxis(padded.reshape(B, rounds, hop), 1, 0)

    def one(state, inputs):
      i, wave = inputs
      latents, state = encode_step(params, cfg, wave, jnp.clip(length - i * hop, 0, hop), state)
      return state, latents

    _, latents = jax.lax.scan(one, state, (jnp.arange(rounds, dtype=jnp.int32), chunks))
    latents = jnp.moveaxis(latents, 0, 1).reshape(B, -1, cfg.hidden_size)[:, :frames]
  return latents, -(-length // cfg.samples_per_frame)


def encode(
  params: Params, cfg: CodecConfig, wave: Float[Array, 'B W'], length: Int[Array, ' B'] | None = None, *, chunk: int | None = None
) -> tuple[Int[Array, 'B F Q'], Int[Array, ' B']]:
  """Codes of whole clips, and how many of the F frames are each row's own; see encode_latents."""
  latents, frames = encode_latents(params, cfg, wave, length, chunk=chunk)
  return quantise(params['quantizer'], cfg, latents), frames
