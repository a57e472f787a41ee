"""Code2Wav: codec frames to a 24 kHz wave, whole or as a stream.

A small transformer over frames (each sees the last 72), then convolutions that raise the rate step by step from 12.5
frames to 24,000 samples a second. Everything is causal and every convolution can be continued, so one function,
`code2wav_step`, serves both a stream and a whole sequence.
"""

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from ..config import Code2WavConfig
from ..nn.conv import (
  causal_conv,
  causal_conv_spec,
  depthwise_conv,
  depthwise_conv_spec,
  overlap_upsample_conv,
  upsample_conv,
  upsample_conv_spec,
)
from ..nn.layers import gelu, layer_norm, layer_norm_spec, linear, linear_spec, rms_norm, swiglu, swiglu_spec
from ..nn.params import Param, Spec, declare, stack
from ..nn.snake import snake_beta
from ..nn.windowed_attention import windowed_attention
from ..shapes import Array, Bool, Float, Int, Params

TAPS = 7  # of every causal convolution; fixed in the reference
DILATIONS = (1, 3, 9)  # of the residual units of a decoder block; fixed in the reference


def code2wav_spec(cfg: Code2WavConfig) -> Spec:
  """embed: the codebooks one below the other, row q * codebook_size + code. Lists of modules are dicts '0', '1', …"""
  D, N, K, H = cfg.hidden_size, cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim
  layer: Spec = {
    'attn_norm': Param((D,), ('embed',), 'ones'),
    'attn': {
      'q': Param((D, N, H), ('embed', 'heads', 'head_dim'), fan_in=D),
      'k': Param((D, K, H), ('embed', 'kv_heads', 'head_dim'), fan_in=D),
      'v': Param((D, K, H), ('embed', 'kv_heads', 'head_dim'), fan_in=D),
      'o': Param((N, H, D), ('heads', 'head_dim', 'embed'), fan_in=N * H),
    },
    'attn_scale': Param((D,), ('embed',), 'ones'),
    'mlp_norm': Param((D,), ('embed',), 'ones'),
    'mlp': swiglu_spec(D, cfg.intermediate_size),
    'mlp_scale': Param((D,), ('embed',), 'ones'),
  }
  blocks = range(len(cfg.upsample_rates))
  last = cfg.decoder_dim // 2 ** len(blocks)
  return {
    'embed': Param((cfg.num_quantizers * cfg.codebook_size, D), ('vocab', 'embed'), fan_in=D),
    'layers': stack(cfg.num_hidden_layers, layer),
    'norm': Param((D,), ('embed',), 'ones'),
    'upsample': {str(i): _upsample_spec(D, ratio) for i, ratio in enumerate(cfg.upsampling_ratios)},
    'conv_in': causal_conv_spec(TAPS, D, cfg.decoder_dim),
    'blocks': {str(i): _block_spec(cfg.decoder_dim // 2**i, cfg.upsample_rates[i]) for i in blocks},
    'act_out': _snake_spec(last),
    'conv_out': causal_conv_spec(TAPS, last, 1),
  }


def _upsample_spec(width: int, ratio: int) -> Spec:
  return {
    'up': upsample_conv_spec(ratio, width, width),
    'depthwise': depthwise_conv_spec(TAPS, width),
    'norm': layer_norm_spec(width),
    'fc1': linear_spec(width, 4 * width, ('embed', 'mlp')),
    'fc2': linear_spec(4 * width, width, ('mlp', 'embed')),
    'gamma': Param((width,), ('embed',), 'ones'),
  }


def _block_spec(inputs: int, rate: int) -> Spec:
  outputs = inputs // 2
  unit = {
    'act1': _snake_spec(outputs),
    'conv1': causal_conv_spec(TAPS, outputs, outputs),
    'act2': _snake_spec(outputs),
    'conv2': causal_conv_spec(1, outputs, outputs),
  }
  return {
    'act': _snake_spec(inputs),
    'up': upsample_conv_spec(2 * rate, inputs, outputs),
    'units': {str(i): unit for i in range(len(DILATIONS))},
  }


def _snake_spec(channels: int) -> Spec:
  return {'alpha': Param((channels,), ('conv_out',), 'zeros'), 'beta': Param((channels,), ('conv_out',), 'zeros')}


class Code2WavState(flax.struct.PyTreeNode):
  """What a stream must remember: the attention window, and the last inputs of every convolution ('B P C' each).

  A new stream is all zeros; so a row of a batch is given to another stream by writing zeros into it (`restart_rows`).
  """

  frames: Int[Array, ' B']  # decoded so far
  k: Float[Array, 'L B S K H']  # of the last S = sliding_window - 1 frames, rotated
  v: Float[Array, 'L B S K H']
  tails: Params  # by convolution, in the nesting of the parameters


def init_state(cfg: Code2WavConfig, batch: int, dtype=jnp.float32) -> Code2WavState:
  def tail(width: int, channels: int) -> Array:
    return jnp.zeros((batch, width, channels), dtype)

  kv = (cfg.num_hidden_layers, batch, cfg.sliding_window - 1, cfg.num_key_value_heads, cfg.head_dim)
  tails = {
    'upsample': {str(i): tail(TAPS - 1, cfg.hidden_size) for i in range(len(cfg.upsampling_ratios))},
    'conv_in': tail(TAPS - 1, cfg.hidden_size),
    'blocks': {},
    'conv_out': tail(TAPS - 1, cfg.decoder_dim >> len(cfg.upsample_rates)),
  }
  for i in range(len(cfg.upsample_rates)):
    width = cfg.decoder_dim >> (i + 1)
    units = {str(j): tail((TAPS - 1) * dilation, width) for j, dilation in enumerate(DILATIONS)}
    tails['blocks'][str(i)] = {'up': tail(1, 2 * width), 'units': units}
  return Code2WavState(jnp.zeros(batch, jnp.int32), jnp.zeros(kv, dtype), jnp.zeros(kv, dtype), tails)


def restart_rows(state: Code2WavState, rows: Bool[Array, ' B']) -> Code2WavState:
  """state with the given rows at the beginning of a new stream."""
  zero = lambda x, axis: jnp.where(rows.reshape((1,) * axis + (-1,) + (1,) * (x.ndim - axis - 1)), 0, x)
  return Code2WavState(zero(state.frames, 0), zero(state.k, 1), zero(state.v, 1), jax.tree.map(lambda x: zero(x, 0), state.tails))


def lead_samples(cfg: Code2WavConfig) -> int:
  """How many samples the wave is ahead of its frames (555, 23 ms): n frames give samples_per_frame * n - lead samples.

  The reference cuts the first group of outputs off each overlapping transposed convolution instead of the last, so
  frame f is heard from sample samples_per_frame * f - lead on.
  """
  lead = 0
  for rate in cfg.upsample_rates:
    lead = (lead + 1) * rate
  return lead


def code2wav_step(
  params: Params, cfg: Code2WavConfig, codes: Int[Array, 'B F Q'], state: Code2WavState, *, dtype=jnp.float32
) -> tuple[Float[Array, 'B W'], Code2WavState]:
  """The next F frames of each row's stream, W = F * samples_per_frame samples, float32 in [-1, 1].

  Sample i of a row is sample `state.frames * samples_per_frame - lead_samples + i` of its wave. Those with a negative
  number (the first `lead_samples` of a new stream) do not exist: they are zero here and must be dropped; nothing is
  missing at the end. The whole network is causal, so a row that ends inside the chunk (or before it) may carry any
  valid codes, such as 0, from there on: the samples below `frames * samples_per_frame - lead_samples` do not depend on
  them. Rows may be at different frames. Codes are in [0, codebook_size); special ids of the Talker must have been
  replaced.
  """
  wave, state = decode_frames(params, cfg, embed_codes(params, cfg, codes, dtype), state)
  return jnp.clip(wave, -1, 1).astype(jnp.float32), state


def embed_codes(params: Params, cfg: Code2WavConfig, codes: Int[Array, 'B F Q'], dtype=jnp.float32) -> Float[Array, 'B F D']:
  """What the network sees of a frame: the mean of its codes' embeddings."""
  offset = jnp.arange(cfg.num_quantizers, dtype=jnp.int32) * cfg.codebook_size
  return jnp.take(params['embed'], codes + offset, axis=0, mode='clip').astype(dtype).mean(axis=2)


def decode_frames(
  params: Params, cfg: Code2WavConfig, x: Float[Array, 'B F D'], state: Code2WavState
) -> tuple[Float[Array, 'B W'], Code2WavState]:
  """code2wav_step of embedded frames; the wave is of their type and not clipped, so that training has a gradient everywhere."""
  frames, chunk = state.frames, x.shape[1]
  x, k, v = _transformer(params, cfg, x, state)
  tails: Params = {'upsample': {}, 'blocks': {}}

  for i in range(len(cfg.upsampling_ratios)):
    name = str(i)
    p = params['upsample'][name]
    x = upsample_conv(x, p['up'])
    y, tails['upsample'][name] = depthwise_conv(x, p['depthwise'], state.tails['upsample'][name])
    y = linear(gelu(linear(layer_norm(y, p['norm'], 1e-6), p['fc1'])), p['fc2'])
    x = x + p['gamma'].astype(x.dtype) * y

  x, tails['conv_in'] = causal_conv(x, params['conv_in'], state.tails['conv_in'])
  lead = 0
  for i, rate in enumerate(cfg.upsample_rates):
    p, before = params['blocks'][str(i)], state.tails['blocks'][str(i)]
    x, up = overlap_upsample_conv(_snake(x, p['act']), p['up'], before['up'])
    lead = (lead + 1) * rate
    begun = _begun(x, frames, chunk, lead)
    units = {}
    for j, dilation in enumerate(DILATIONS):
      q, unit = p['units'][str(j)], str(j)
      y, units[unit] = causal_conv(_snake(x, q['act1']) * begun, q['conv1'], before['units'][unit], dilation)
      y, _ = causal_conv(_snake(y, q['act2']), q['conv2'], y[:, :0])
      x = x + y
    tails['blocks'][str(i)] = {'up': up, 'units': units}

  begun = _begun(x, frames, chunk, lead)
  wave, tails['conv_out'] = causal_conv(_snake(x, params['act_out']) * begun, params['conv_out'], state.tails['conv_out'])
  return (wave * begun)[:, :, 0], Code2WavState(frames + chunk, k, v, tails)


def _begun(x: Float[Array, 'B T C'], frames: Int[Array, ' B'], chunk: int, lead: int) -> Float[Array, 'B T 1']:
  """1 where a position belongs to the row's wave, 0 in the `lead` positions before its beginning.

  Convolutions must see zeros there (the reference has cut those positions off and pads with zeros).
  """
  position = frames[:, None] * (x.shape[1] // chunk) + jnp.arange(x.shape[1], dtype=jnp.int32)
  return (position >= lead)[:, :, None].astype(x.dtype)


def _transformer(params: Params, cfg: Code2WavConfig, x: Float[Array, 'B F D'], state: Code2WavState):
  """(output, k, v): causal attention over the last `sliding_window` frames, those of earlier chunks from the state."""

  def layer(x, inputs):
    p, k, v = inputs
    normed = rms_norm(x, p['attn_norm'], cfg.rms_norm_eps)
    out, k, v = windowed_attention(normed, p['attn'], state.frames, k, v, cfg.rope_theta)
    x = x + p['attn_scale'].astype(x.dtype) * out
    x = x + p['mlp_scale'].astype(x.dtype) * swiglu(rms_norm(x, p['mlp_norm'], cfg.rms_norm_eps), p['mlp'])
    return x, (k, v)

  x, (k, v) = jax.lax.scan(layer, x, (params['layers'], state.k, state.v))
  return rms_norm(x, params['norm'], cfg.rms_norm_eps), k, v


def _snake(x: Float[Array, 'B T C'], p: Params) -> Float[Array, 'B T C']:
  return snake_beta(x, p['alpha'], p['beta'])


def code2wav(
  params: Params, cfg: Code2WavConfig, codes: Int[Array, 'B F Q'], *, dtype=jnp.float32, chunk: int | None = None
) -> Float[Array, 'B W']:
  """The wave of whole code sequences: W = F * samples_per_frame - lead_samples samples, exact from the first to the
  last.

  chunk: decode this many frames at a time (same result, memory that does not grow with the sequence).
  """
  B, F, Q = codes.shape
  state = init_state(cfg, B, dtype)
  if chunk is None or chunk >= F:
    wave, _ = code2wav_step(params, cfg, codes, state, dtype=dtype)
  else:
    padded = jnp.pad(codes, [(0, 0), (0, -F % chunk), (0, 0)])
    chunks = jnp.moveaxis(padded.reshape(B, -1, chunk, Q), 1, 0)

    def step(state, codes):
      wave, state = code2wav_step(params, cfg, codes, state, dtype=dtype)
      return state, wave

    _, waves = jax.lax.scan(step, state, chunks)
    wave = jnp.moveaxis(waves, 0, 1).reshape(B, -1)
  return wave[:, lead_samples(cfg) : F * cfg.samples_per_frame]


def chunked_decode(
  params: Params,
  cfg: Code2WavConfig,
  codes: Int[Array, 'B F Q'],
  *,
  chunk: int = 300,
  context: int = 25,
  dtype=jnp.float32,
) -> Float[Array, 'B W']:
  """The reference's own way to decode long sequences, sample for sample: W = F * samples_per_frame - lead * ceil(F /
  chunk).

  Every chunk starts afresh from `context` frames before it and each loses the samples its lead cuts off, so at every
  seam 23 ms are missing and later frames are heard that much too early. For comparison with the reference only.
  """
  B, F, _ = codes.shape
  keep = cfg.samples_per_frame
  waves = [code2wav(params, cfg, codes[:, :chunk], dtype=dtype)]
  rest = -(-F // chunk) - 1
  if rest > 0:
    before = min(context, chunk)
    padded = jnp.pad(codes, [(0, 0), (0, (rest + 1) * chunk - F), (0, 0)])
    starts = (1 + jnp.arange(rest)) * chunk - before
    decode = lambda start: code2wav(
      params, cfg, jax.lax.dynamic_slice_in_dim(padded, start, before + chunk, axis=1), dtype=dtype
    )[:, before * keep :]
    later = jnp.moveaxis(jax.lax.map(decode, starts), 0, 1)
    waves.append(later.reshape(B, -1)[:, : (F - chunk) * keep - rest * lead_samples(cfg)])
  return jnp.concatenate(waves, axis=1)


def sample_count(cfg: Code2WavConfig, frames: int, chunk: int | None = None) -> int:
  """Samples of a wave of `frames` frames; chunk: as decoded by `chunked_decode`."""
  pieces = min(frames, 1) if chunk is None else -(-frames // chunk)
  return max(0, frames * cfg.samples_per_frame - pieces * lead_samples(cfg))


class Code2Wav(nn.Module):
  """Code2Wav as a Flax module: `apply({'params': …}, codes)` gives the wave."""

  cfg: Code2WavConfig
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, codes: Int[Array, 'B F Q']) -> Float[Array, 'B W']:
    return code2wav(declare(self, code2wav_spec(self.cfg)), self.cfg, codes, dtype=self.dtype)
