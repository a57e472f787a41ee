"""AuT, the audio encoder: log-mel windows of up to 8 s to 13 features a second.

Convolutions shrink each 1 s chunk eightfold in time, then a transformer attends within a window of 8 chunks. Clips are
cut into windows beforehand (windows never see one another, and positions restart in every chunk), so time and memory
grow with a clip's length, not with its square, and any number of clips make one batch of windows. Short windows may share a
row of the batch, separated by segments.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import PartitionSpec

from ..config import AudioConfig
from ..nn.attention import attention
from ..nn.layers import add, gelu, layer_norm, layer_norm_spec, linear, linear_spec
from ..nn.params import Param, Spec, declare, stack
from ..nn.remat import rematerialised
from ..shapes import Array, Float, Int, Params
from ..sharding import current_mesh, item_axes, shard_items

NORM_EPS = 1e-5  # of every layer norm; fixed in the reference
SHRINK = 8  # mel frames per token and mel bins per convolved bin: three convolutions of stride 2


def audio_spec(cfg: AudioConfig) -> Spec:
  """Parameters. Convolution kernels are 'mel time in out' (published: out in mel time)."""
  D, N, H, F = cfg.d_model, cfg.encoder_attention_heads, cfg.head_dim, cfg.encoder_ffn_dim
  C, M = cfg.downsample_hidden_size, cfg.num_mel_bins // SHRINK
  project: Spec = {
    'kernel': Param((D, N, H), ('embed', 'heads', 'head_dim'), fan_in=D),
    'bias': Param((N, H), ('heads', 'head_dim'), 'zeros'),
  }
  layer: Spec = {
    'attn_norm': layer_norm_spec(D),
    'attn': {
      **{name: dict(project) for name in 'qkv'},
      'o': {
        'kernel': Param((N, H, D), ('heads', 'head_dim', 'embed'), fan_in=D),
        'bias': Param((D,), ('embed',), 'zeros'),
      },
    },
    'mlp_norm': layer_norm_spec(D),
    'mlp': {'up': linear_spec(D, F, ('embed', 'mlp')), 'down': linear_spec(F, D, ('mlp', 'embed'))},
  }
  return {
    'conv1': _conv_spec(1, C),
    'conv2': _conv_spec(C, C),
    'conv3': _conv_spec(C, C),
    'conv_out': {'kernel': Param((C, M, D), ('conv_in', 'mel', 'embed'), fan_in=C * M)},
    'layers': stack(cfg.encoder_layers, layer),
    'norm': layer_norm_spec(D),
    'proj1': linear_spec(D, D, ('embed', 'mlp')),
    'proj2': linear_spec(D, cfg.output_dim, ('mlp', 'embed')),
  }


def _conv_spec(inputs: int, outputs: int) -> Spec:
  axes = ('conv_taps', 'conv_taps', 'conv_in', 'conv_out')
  return {
    'kernel': Param((3, 3, inputs, outputs), axes, fan_in=9 * inputs),
    'bias': Param((outputs,), ('conv_out',), 'zeros'),
  }


def encode_audio(
  params: Params,
  cfg: AudioConfig,
  mel: Float[Array, 'R F M'],
  frames: Int[Array, ' R'] | Int[Array, 'R X'],
  conv_frames: Int[Array, ' R'] | Int[Array, 'R X'],
  segment: Int[Array, 'R X'] | None = None,
  *,
  remat: bool | str = False,
  windows_at_once: int | None = None,
) -> Float[Array, 'R S D']:
  """Features of R windows; the first tokens(frames) of a window's S = 13 F/100 rows are valid, the rest is padding.

  mel: log-mel, zeros after each window's valid frames; F a multiple of 100, at most 800. A clip is cut into windows of
  800 frames, the last one shorter. frames: valid frames, 0 for an unused row. conv_frames: 100, except for a clip below
  1 s: frames of the longest clip it is convolved with, at most 100. The reference pads chunks to the longest one of a
  call and does not mask between convolutions, so the end of a short clip is encoded differently beside a longer clip.

  segment: where windows share a row, the number of the window that each of the X = F/100 chunks belongs to, from 1 (0 =
  unused); a window begins with a chunk. frames and conv_frames are then given for each chunk, and every chunk has 13 rows.

  windows_at_once: how many windows are convolved together; bounds the memory of the convolutions (12 MB a chunk at full
  size), on each device of a mesh. Default 1 on CPU, where it is also fastest, else 8.
  """
  R, F, _ = mel.shape
  chunks = F // cfg.chunk_frames
  if F % cfg.chunk_frames or not 1 <= chunks <= cfg.chunks_per_window:
    raise ValueError(
      f'mel windows of {F} frames: expected a multiple of {cfg.chunk_frames} of at most {cfg.n_window_infer}; '
      'pad the last chunk and cut longer clips into windows'
    )
  if windows_at_once is None:
    windows_at_once = 1 if jax.default_backend() == 'cpu' else 8
  convolve = functools.partial(_convolve, cfg=cfg, at_once=windows_at_once, remat=remat)
  mesh = current_mesh()
  if mesh is not None and (axes := item_axes(R, mesh)):  # each device its own windows, one block after the other
    rows = PartitionSpec(axes)
    convolve = jax.shard_map(convolve, in_specs=(PartitionSpec(), rows, rows), out_specs=rows, check_vma=False)
  x = shard_items(convolve({name: params[name] for name in CONVOLUTIONS}, mel, conv_frames))
  tokens = x.shape[1]
  per_chunk = tokens // chunks
  if segment is None:
    valid = frames // cfg.chunk_frames * per_chunk + -(-(frames % cfg.chunk_frames) // SHRINK)
    segment = (jnp.arange(tokens) < valid[:, None]).astype(jnp.int32)
  else:
    said = jnp.arange(per_chunk) < -(-frames[..., None] // SHRINK)
    segment = jnp.where(said, segment[..., None], 0).reshape(R, tokens)

  def layer(x, p):
    a, normed = p['attn'], layer_norm(x, p['attn_norm'], NORM_EPS)
    q, k, v = (_project(normed, a[name]) for name in 'qkv')
    out = attention(q, k, v, q_segment=segment, k_segment=segment)
    x = add(x, jnp.einsum('RSNH,NHD->RSD', out, a['o']['kernel'].astype(x.dtype)), a['o']['bias'])
    y = linear(gelu(linear(layer_norm(x, p['mlp_norm'], NORM_EPS), p['mlp']['up'])), p['mlp']['down'])
    return shard_items(add(x, y)), None

  x, _ = jax.lax.scan(rematerialised(layer, remat), x, params['layers'])
  x = shard_items(gelu(linear(layer_norm(x, params['norm'], NORM_EPS), params['proj1'])))
  return shard_items(linear(x, params['proj2']))


def _project(x: Float[Array, 'R S D'], p: Params) -> Float[Array, 'R S N H']:
  D, N, H = p['kernel'].shape
  y = linear(x, {'kernel': p['kernel'].astype(x.dtype).reshape(D, -1), 'bias': p['bias'].reshape(-1)})
  return y.reshape(*x.shape[:-1], N, H)


CONVOLUTIONS = ('conv1', 'conv2', 'conv3', 'conv_out')


def _convolve(
  params: Params,
  mel: Float[Array, 'R F M'],
  conv_frames: Int[Array, ' R'] | Int[Array, 'R X'],
  *,
  cfg: AudioConfig,
  at_once: int,
  remat: bool | str,
) -> Float[Array, 'R S D']:
  """Mel windows to transformer inputs, a block of windows after the other."""
  R, F, M = mel.shape
  positions = jnp.asarray(sinusoids(-(-cfg.chunk_frames // SHRINK), cfg.d_model))
  kernel = params['conv_out']['kernel'].astype(mel.dtype).reshape(-1, cfg.d_model)

  def block(inputs):
    mel, conv_frames = inputs
    chunks = F // cfg.chunk_frames
    x = jnp.einsum('nTM->nMT', mel.reshape(-1, cfg.chunk_frames, M))[..., None]
    width = conv_frames.reshape(-1) if conv_frames.ndim == 2 else jnp.repeat(conv_frames, chunks)
    for name in ('conv1', 'conv2', 'conv3'):
      x, width = gelu(_conv(x, params[name])), -(-width // 2)
      # What lies past the reference's padded width must be zero, as its own border is, for the next convolution.
      x = jnp.where((jnp.arange(x.shape[2]) < width[:, None])[:, None, :, None], x, 0)
    x = jnp.einsum('nMTC->nTCM', x)  # one plain matmul: XLA on CPU is ten times slower on two contracted axes
    x = add(x.reshape(*x.shape[:2], -1) @ kernel, positions)
    return x.reshape(mel.shape[0], -1, cfg.d_model)

  block = block if remat in (False, 'none') else jax.checkpoint(block)  # its convolutions are large beside what they are given
  at_once = max(n for n in range(1, min(at_once, R) + 1) if R % n == 0)
  split = lambda x: x.reshape(R // at_once, at_once, *x.shape[1:])
  x = jax.lax.map(block, (split(mel), split(conv_frames)))
  return x.reshape(R, *x.shape[2:])


def _conv(x: Float[Array, 'n M T I'], p: Params) -> Float[Array, 'n M2 T2 O']:
  """3 x 3 convolution of stride 2, one zero around; kernel 'mel time in out'."""
  kernel = p['kernel'].astype(x.dtype)
  y = jax.lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  return add(y, p['bias'])


def sinusoids(length: int, width: int) -> np.ndarray:
  """Fixed position embedding 'length width', float32: sines of frequencies 1 .. 1/10000, then cosines."""
  step = np.log(10000) / (width // 2 - 1)
  frequency = np.exp(-step * np.arange(width // 2, dtype=np.float32)).astype(np.float32)
  angle = np.arange(length, dtype=np.float32)[:, None] * frequency
  return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


class AudioEncoder(nn.Module):
  """AuT as a Flax module: `apply({'params': …}, mel, frames, conv_frames)`; see encode_audio."""

  cfg: AudioConfig
  dtype: jnp.dtype = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, mel: Float[Array, 'R F M'], frames, conv_frames, segment=None):
    params = declare(self, audio_spec(self.cfg))
    return encode_audio(params, self.cfg, mel.astype(self.dtype), frames, conv_frames, segment, remat=self.remat)
