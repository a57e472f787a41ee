"""Damaged and hostile media: every one ends in a ValueError that names it, or in bounded arrays; none crashes or takes over.

The inputs are made from sample files: cut at many places, with flipped bits, overwritten with noise, with headers that promise
far more than there is. They are read in one process of their own, so that a crash inside a decoder would be seen as one, and
memory and time can be bounded from outside.
"""

import base64
import json
import pathlib
import random
import resource
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest

MEMORY = 6 * 2**30  # address space of the reading process: libraries and thread stacks take most of it
PEAK_MB = 700  # resident
SECONDS = 60


def damaged(data: bytes, rng: random.Random, cuts: int, flips: int, noises: int) -> dict[str, bytes]:
  """Variants of a file: cut short, with a few bits flipped (half of them in the header), with a stretch of noise."""
  out = {}
  for i in range(cuts):
    out[f'cut{i}'] = data[: len(data) * i // cuts if i > cuts // 3 else rng.randrange(1, 200)]
  for i in range(flips):
    broken = bytearray(data)
    for _ in range(rng.choice([1, 3, 30])):
      broken[rng.randrange(min(len(data), 120 if i % 2 else len(data)))] ^= 1 << rng.randrange(8)
    out[f'flip{i}'] = bytes(broken)
  for i in range(noises):
    start = rng.randrange(len(data))
    length = min(rng.choice([16, 400, 4000]), len(data) - start)
    out[f'noise{i}'] = data[:start] + rng.randbytes(length) + data[start + length :]
  return out


def png(width: int, height: int, rows: bytes) -> bytes:
  """An 8-bit grey PNG whose header says width × height, whatever `rows` holds."""

  def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))

  header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
  return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')


def wav(samples: bytes, *, riff: int, data: int, rate_hz: int = 16_000, channels: int = 1, bits: int = 16) -> bytes:
  """A PCM wav with sizes as told, true or not."""
  block = channels * bits // 8
  form = struct.pack('<HHIIHH', 1, channels, rate_hz, min(rate_hz * block, 2**32 - 1), block % 2**16, bits)
  return b'RIFF' + struct.pack('<I', riff) + b'WAVEfmt \x10\0\0\0' + form + b'data' + struct.pack('<I', data) + samples


def lies() -> dict[str, bytes]:
  """Headers that promise what is not there, or what nobody should decode."""
  some, ftyp = bytes(3200), b'\0\0\0\x14ftypisom\0\0\0\0isom'
  return {
    'wav_4gb.wav': wav(some, riff=2**32 - 1, data=2**32 - 1),
    'wav_2gb.wav': wav(some, riff=2**31, data=2**31 - 36),
    'wav_no_data.wav': wav(b'', riff=36, data=0),
    'wav_rate_0.wav': wav(some, riff=3236, data=3200, rate_hz=0),
    'wav_rate_4g.wav': wav(some, riff=3236, data=3200, rate_hz=2**32 - 1),
    'wav_channels_0.wav': wav(some, riff=3236, data=3200, channels=0),
    'wav_channels_65535.wav': wav(some, riff=3236, data=3200, channels=65_535, bits=8),
    'wav_bits_0.wav': wav(some, riff=3236, data=3200, bits=0),
    'wav_rate_1.wav': wav(some, riff=3236, data=3200, rate_hz=1),
    'png_60000.png': png(60_000, 60_000, bytes(100)),
    'png_2g.png': png(2**31 - 1, 2**31 - 1, bytes(100)),
    'png_0.png': png(0, 10, bytes(100)),
    'png_short.png': png(4000, 4000, bytes(100)),
    'png_bomb.png': png(30_000, 30_000, bytes(900_000)),
    'ppm_huge.ppm': b'P6\n100000 100000\n255\n' + bytes(100),
    'bmp_huge.bmp': b'BM' + struct.pack('<IHHIIiiHH', 154, 0, 0, 54, 40, 50_000, 50_000, 1, 24) + bytes(124),
    'gif_huge.gif': b'GIF89a' + struct.pack('<HHBBB', 65_535, 65_535, 0, 0, 0) + b',' + bytes(20),
    'flac_long.flac': b'fLaC\x80\x00\x00\x22'
    + struct.pack('>HH', 4096, 4096)
    + bytes(6)
    + (((16_000 << 44) | (0 << 41) | (15 << 36) | (2**36 - 1)).to_bytes(8, 'big'))
    + bytes(16),
    'mp4_atom_4gb.mp4': ftyp + b'\xff\xff\xff\xffmoov' + bytes(50),
    'mp4_atom_64.mp4': ftyp + b'\x00\x00\x00\x01moov' + b'\x7f' + b'\xff' * 7 + bytes(9),
    'mp4_nested.mp4': ftyp + b''.join(struct.pack('>I', 8 * (5000 - i)) + (b'moov' if i == 0 else b'trak') for i in range(5000)),
    'text.mp4': b'not a video at all\n' * 50,
    'script.mp4': b'ffconcat version 1.0\nfile /etc/hostname\n',
    'playlist.wav': b'#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n',
    'page.png': b'<!DOCTYPE html><html>404</html>',
    'one_byte.wav': b'R',
    'empty.wav': b'',
    'empty.png': b'',
    'empty.mp4': b'',
  }


def compressed_sounds(folder: pathlib.Path) -> dict[str, bytes]:
  import soundfile

  wave = (0.3 * np.sin(np.arange(16_000) / 10)).astype(np.float32)
  soundfile.write(folder / 'base.flac', wave, 16_000)
  paths = [folder / f'base.{kind}' for kind in ('flac', 'mp3', 'ogg')]
  for path in paths:
    soundfile.write(path, wave, 16_000)
  return {path.suffix[1:]: path.read_bytes() for path in paths}


@pytest.fixture(scope='module')
def verdicts(samples, tmp_path_factory) -> dict[str, dict]:
  """What became of every malformed file: {'error': text} or {'shape': …}, by file name; and what the process took."""
  folder = tmp_path_factory.mktemp('malformed')
  rng = random.Random(0)
  bases = {
    'wav': (wav(bytes(range(250)) * 160, riff=40_036, data=40_000), (8, 20, 8)),
    'png': (samples['image'].read_bytes(), (15, 40, 15)),
    'mp4': (samples['video'].read_bytes(), (15, 50, 20)),
  } | {kind: (data, (8, 20, 8)) for kind, data in compressed_sounds(folder).items()}
  files = lies()
  for kind, (data, (cuts, flips, noises)) in bases.items():
    files |= {f'{name}.{kind}': broken for name, broken in damaged(data, rng, cuts, flips, noises).items()}
    files[f'noise_only.{kind}'] = rng.randbytes(5000)
  assert len(files) >= 250
  for path in folder.glob('base.*'):
    path.unlink()
  for name, data in files.items():
    (folder / name).write_bytes(data)

  def bound():
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

  done = subprocess.run(
    [sys.executable, '-c', READER, str(folder)], capture_output=True, text=True, timeout=SECONDS, preexec_fn=bound
  )
  assert done.returncode == 0, f'the reader died: {done.returncode} {done.stderr[-2000:]}'
  # Decoders keep quiet; only the MP3 reader inside soundfile cannot be silenced.
  loud = [line for line in done.stderr.splitlines() if not line.startswith(('[src/libmpg123', 'Warning: Xing', 'Note: '))]
  assert not ''.join(loud)
  out = {row.pop('name'): row for row in map(json.loads, done.stdout.splitlines())}
  assert set(out) == set(files) | {'the process'}
  return out


READER = """
import json, os, pathlib, resource, sys, time
os.environ['OMP_NUM_THREADS'] = '2'
from qwen3_omni_jax.media.audio import load_audio
from qwen3_omni_jax.media.image import load_image
from qwen3_omni_jax.media.video import load_video, video_audio
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
  start = time.process_time()
  row = {'name': path.name}
  try:
    if path.suffix in ('.png', '.ppm', '.bmp', '.gif'):
      row['shape'] = load_image(path).shape
    elif path.suffix == '.mp4':
      try:
        sound = video_audio(path)
        row['sound'] = None if sound is None else len(sound)
      except ValueError as e:
        row['sound_error'] = str(e)
      row['shape'] = load_video(path, fps=2).frames.shape
    else:
      row['shape'] = load_audio(path).shape
  except ValueError as e:
    row['error'] = str(e)
  print(json.dumps(row | {'seconds': time.process_time() - start}), flush=True)
peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))  # ru_maxrss is inherited
print(json.dumps({'name': 'the process', 'peak_mb': int(peak.split()[1]) / 1024}))
"""


def test_every_damaged_file_is_an_error_that_names_it_or_bounded(verdicts):
  wrong = {}
  for name, row in verdicts.items():
    if name == 'the process':
      continue
    for text in (row.get('error'), row.get('sound_error')):
      if text is not None and (name not in text or len(text) > 600 or '\n' in text):
        wrong[name] = text
    if 'error' not in row:
      values = int(np.prod(row['shape'])) if row['shape'] else 0
      if not 0 < values <= 30_000_000:
        wrong[name] = row
  assert not wrong


def test_no_file_takes_time_or_memory(verdicts):
  slow = {name: row['seconds'] for name, row in verdicts.items() if row.get('seconds', 0) > 10}
  assert not slow
  assert verdicts['the process']['peak_mb'] < PEAK_MB


def test_lies_and_noise_are_always_found(verdicts):
  """These can not be harmless. (A wav whose header leaves the length open is read as far as it goes.)"""
  harmless = {name: row for name, row in verdicts.items() if 'error' not in row}
  never = [n for n in lies() if n not in ('wav_4gb.wav', 'wav_2gb.wav', 'wav_rate_1.wav')]
  never += ['noise_only.wav', 'noise_only.png', 'noise_only.mp4', 'noise_only.flac', 'cut0.png', 'cut0.mp4', 'cut7.png']
  never += [f'cut{i}.{kind}' for kind in ('wav', 'flac', 'mp3') for i in range(1, 7)]
  assert not {n: harmless[n] for n in never if n in harmless}


def test_damage_was_of_both_kinds(verdicts):
  """The variants are not all hopeless and not all harmless: otherwise this file would test one path only."""
  for kind in ('wav', 'mp4', 'mp3'):  # a PNG or FLAC has checksums: nearly every change of it is found
    rows = [row for name, row in verdicts.items() if name.endswith(f'.{kind}') and name.startswith(('flip', 'noise', 'cut'))]
    assert 3 < sum('error' in row for row in rows) < len(rows) - 3, kind


def test_a_cut_or_flipped_data_url_is_named_without_its_contents(samples):
  from qwen3_omni_jax.media.audio import load_audio
  from qwen3_omni_jax.media.image import load_image
  from qwen3_omni_jax.media.video import load_video

  body = base64.b64encode(samples['image'].read_bytes()).decode()
  for url in (
    'data:image/png;base64,' + body[: len(body) // 2 // 4 * 4],
    'data:image/png;base64,' + body[:-3],
    'data:image/png;base64,' + body.swapcase(),
    'data:image/png,' + body,
    'data:image/png;base64',
  ):
    for load in (load_image, load_audio, lambda source: load_video(source, fps=2)):
      with pytest.raises(ValueError, match=f'data URL of {len(url)} characters') as error:
        load(url)
      assert body[:40] not in str(error.value)


@pytest.mark.parametrize(
  'source', ['missing.wav', 'http://host/a.png', '.', '../../etc/passwd', '', b'', 3.5, None, {}, object()]
)
def test_wrong_sources_are_refused_alike_by_every_reader(source, tmp_path):
  from qwen3_omni_jax.media.audio import load_audio
  from qwen3_omni_jax.media.image import load_image
  from qwen3_omni_jax.media.source import name_of
  from qwen3_omni_jax.media.video import load_video, video_audio

  for load in (load_audio, load_image, video_audio, lambda *args: load_video(args[0], fps=2, limits=args[1], root=args[2])):
    with pytest.raises(ValueError) as error:
      load(source, None, tmp_path)
    assert name_of(source) in str(error.value)


@pytest.mark.parametrize('size', [(1, 10_000), (10_000, 1), (1, 201), (1, 1000)])
def test_slivers_are_refused_by_size(size):
  from qwen3_omni_jax.media.image import ImageSettings, image_patches, load_image
  from qwen3_omni_jax.media.video import load_video

  pixels = load_image(np.zeros((*size, 3), np.uint8))
  settings = ImageSettings(patch=16)
  for make in (lambda: image_patches(pixels, settings), lambda: load_video([pixels], fps=2, fit=settings)):
    with pytest.raises(ValueError, match=f'{size[1]}×{size[0]} pixels'):
      make()
