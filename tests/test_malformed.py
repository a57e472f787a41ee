"""Malformed inputs by the hundred: each ends in an error naming it, or in bounded arrays; none crashes, hangs or eats memory."""

import base64
import json
import resource
import shutil
import struct
import time

import numpy as np
import pytest

from qwen3_omni_jax.config_json import load_config
from qwen3_omni_jax.media.audio import load_audio
from qwen3_omni_jax.media.image import load_image
from qwen3_omni_jax.media.processor import Processor
from qwen3_omni_jax.media.source import Limits
from qwen3_omni_jax.media.video import load_video, video_audio
from qwen3_omni_jax.weights.load import load_params

SECONDS = 10  # of processor time: none may take longer
MEMORY = 1.5 * 2**30  # nor make the process grow by more


class Careful:
  """Runs one input: it must end in ValueError naming it, or (harmless ones) in a bounded result, soon and in little memory."""

  def __init__(self):
    self.refused = self.accepted = 0
    self.before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

  def __call__(self, name: str, run, harmless: bool = False) -> None:
    started = time.process_time()
    try:
      result = run()
    except ValueError as e:
      assert name in str(e), f'the error does not name {name}: {e}'
      assert len(str(e)) < 4000
      self.refused += 1
    else:
      assert harmless, f'{name} was accepted'
      assert result is None or np.isfinite(getattr(result, 'nbytes', 0)) and getattr(result, 'nbytes', 0) < 64 * 2**20
      self.accepted += 1
    assert time.process_time() - started < SECONDS, f'{name} took too long'
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - self.before
    assert grown < MEMORY, f'{name}: memory grew by {grown / 2**20:.0f} MiB'


@pytest.fixture
def careful():
  return Careful()


READERS = {
  'audio': load_audio,
  'image': load_image,
  'video': lambda source: load_video(source, fps=2.0).frames,
}


def damaged(data: bytes, rng) -> list[bytes]:
  """Truncated at many points, with bits flipped, with blocks of noise, and noise behind the right first bytes."""
  out = [data[: int(len(data) * share)] for share in (0.0001, 0.001, 0.01, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95)]
  for flips in (1, 4, 16, 64, 256, 1024):
    for _ in range(2):
      noisy = bytearray(data)
      for at in rng.integers(0, len(data), flips):
        noisy[at] ^= 1 << int(rng.integers(8))
      out.append(bytes(noisy))
  for share in (0.02, 0.5):
    noisy = bytearray(data)
    begin, size = int(len(data) * share), min(2000, len(data) // 3)
    noisy[begin : begin + size] = rng.bytes(size)
    out.append(bytes(noisy))
  return [*out, data[:16] + rng.bytes(3000), data[:200] + rng.bytes(3000), rng.bytes(3000)]


@pytest.mark.parametrize('kind', ['audio', 'image', 'video'])
def test_damaged_files(careful, samples, tmp_path, kind):
  import soundfile

  rng = np.random.default_rng(0)
  files = [samples[kind]]
  if kind == 'audio':
    flac = tmp_path / 'x.flac'
    soundfile.write(flac, soundfile.read(samples['audio'])[0], 22_050)
    files.append(flac)
  for file in files:
    for i, data in enumerate(damaged(file.read_bytes(), rng)):
      path = tmp_path / f'damaged-{i}{file.suffix}'
      path.write_bytes(data)
      careful(path.name, lambda path=path: READERS[kind](path), harmless=True)
      if kind == 'video':
        careful(path.name, lambda path=path: video_audio(path), harmless=True)
  assert careful.refused + careful.accepted >= 26 and careful.refused >= 8


def lying_headers() -> dict[str, tuple[str, bytes]]:
  """Small files that claim to be huge."""
  wav = lambda size, channels=1, rate=16_000, bits=16: (
    b'RIFF'
    + struct.pack('<I', 0xFFFFFFFF)
    + b'WAVEfmt '
    + struct.pack('<IHHIIHH', 16, 1, channels, rate, rate * channels * 2 % 2**32, channels * 2 % 2**16, bits)
    + b'data'
    + struct.pack('<I', size)
  )

  def png(width, height):
    import zlib

    chunk = lambda name, body: struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))
    head = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(b'\0' * 100)) + chunk(b'IEND', b'')

  return {
    'wav of 4 GB': ('audio', wav(0xFFFFFFF0)),
    'wav of 0 Hz': ('audio', wav(1000, rate=0) + b'\0' * 1000),
    'wav of 2 GHz': ('audio', wav(1000, rate=2**31 - 1) + b'\0' * 1000),
    'wav of 60000 channels': ('audio', wav(2**20, channels=60_000) + b'\0' * 2000),
    'wav without data': ('audio', wav(0)),
    'png of 60000 x 60000': ('image', png(60_000, 60_000)),
    'png of 2 billion x 1': ('image', png(2**31 - 1, 1)),
    'png of 0 x 10': ('image', png(0, 10)),
    'png of 3000 x 3000 with no pixels': ('image', png(3000, 3000)),
    'bmp of 2 billion': (
      'image',
      b'BM' + struct.pack('<IHHIIiiHHIIiiII', 100, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, *(0,) * 6),
    ),
    'gif of 65535 x 65535': ('image', b'GIF89a\xff\xff\xff\xff\x80\0\0' + b'\0' * 20),
    'mp4 with a huge box': ('video', b'\0\0\0\x18ftypmp42\0\0\0\0mp42isom\xff\xff\xff\xffmoov' + b'\0' * 100),
    'mp4 that is only a name': ('video', b'\0\0\0\x18ftypmp42\0\0\0\0mp42isom'),
    'avi of nothing': ('video', b'RIFF\xff\xff\xff\xffAVI LIST' + b'\0' * 64),
  }


def test_headers_that_lie(careful, tmp_path):
  for name, (kind, data) in lying_headers().items():
    path = tmp_path / f'{name}.bin'
    path.write_bytes(data)
    careful(name, lambda path=path, kind=kind: READERS[kind](path))


def test_sources_of_the_wrong_kind(careful, tmp_path):
  (tmp_path / 'folder').mkdir()
  (tmp_path / 'empty').write_bytes(b'')
  (tmp_path / 'text').write_text('no media here\n' * 40)
  (tmp_path / 'big').write_bytes(b'\0' * 4096)
  data_url = 'data:audio/wav;base64,'
  for kind, read in READERS.items():
    for name in ('folder', 'empty', 'text', 'missing'):
      careful(name, lambda read=read, name=name: read(tmp_path / name))
    careful('big', lambda kind=kind: _with_limit(kind, tmp_path / 'big', Limits(bytes=1000)))
    careful('http addresses are not fetched', lambda read=read: read('http://example.invalid/x'))
    careful('https addresses are not fetched', lambda read=read: read('https://example.invalid/x'))
    careful('s3 addresses', lambda read=read: read('s3://bucket/x'))
    careful('not a path', lambda read=read: read('a\0b'))
    for url in ('data:', 'data:audio/wav;base64', data_url, data_url + '!!!', data_url + 'AAA', 'data:,', 'data:,hello'):
      careful('data URL', lambda read=read, url=url: read(url))
    careful('data URL', lambda read=read: read(data_url + base64.b64encode(b'junk' * 99).decode()))
    for value in (None, 3, 2.5, True, {}, {'a': 1}, object()):
      careful(type(value).__name__, lambda read=read, value=value: read(value))
    careful('0 bytes', lambda read=read: read(b''))
    careful('300 bytes', lambda read=read: read(b'x' * 300))


def _with_limit(kind, source, limits):
  if kind == 'audio':
    return load_audio(source, limits)
  return load_image(source, limits) if kind == 'image' else load_video(source, fps=2.0, limits=limits)


def test_paths_outside_the_media_folder(careful, samples, tmp_path):
  inside = tmp_path / 'inside'
  inside.mkdir()
  secret = tmp_path / 'secret.wav'
  shutil.copy(samples['audio'], secret)
  (inside / 'link.wav').symlink_to(secret)
  shutil.copy(samples['audio'], inside / 'fine.wav')
  assert len(load_audio('fine.wav', root=inside))
  outside = ('../secret.wav', str(secret), 'link.wav', f'file://{secret}', 'x/../../secret.wav', f'{inside}/../secret.wav')
  for path in outside:
    careful('outside the media folder', lambda path=path: load_audio(path, root=inside))


def test_arrays_that_are_no_media(careful):
  bad = np.zeros(1000, np.float32)
  nan, inf = bad.copy(), bad.copy()
  nan[5], inf[7] = np.nan, np.inf
  waves = (
    (nan, 'NaN'),
    (inf, 'infinite'),
    (bad[:0], 'shape'),
    (bad[:100], '100 samples'),
    (bad.astype('c8'), 'complex'),
    (np.zeros((3, 4, 5)), 'shape'),
    (np.zeros((2, 1000)), '1000 channels'),
    (np.array(['a']), 'dtype'),
  )
  for wave, word in waves:
    careful(word, lambda wave=wave: load_audio(wave))
  for rate in (0, -1, 10, 1e9, float('nan'), '16000', None):
    careful('sample rate', lambda rate=rate: load_audio((bad, rate)))
  careful('the limit is', lambda: load_audio((bad, 1000), Limits(audio_s=0.5)))
  for picture in (np.zeros((4, 4)), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)):
    careful('image array', lambda picture=picture: load_image(picture))
  for frames in (np.zeros((2, 4, 4, 3)), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4, 4, 3), np.uint8)):
    careful('video array', lambda frames=frames: load_video((frames, 2.0), fps=2.0))
  for source_fps in (0, -2, float('inf'), 'fast', None):
    careful('source fps', lambda f=source_fps: load_video((np.zeros((4, 64, 64, 3), np.uint8), f), fps=2.0))
  for fps in (0, -1, float('nan'), 'two', None):
    careful('fps', lambda f=fps: load_video((np.zeros((4, 64, 64, 3), np.uint8), 2.0), fps=f))


BAD_MESSAGES = {
  'messages: expected a list': [None, 'hello', {}, 3],
  'messages: empty': [[], ()],
  'messages[0]: expected an object': [['hello'], [None], [[]]],
  'messages[0].role': [[{'content': 'x'}], [{'role': 'robot', 'content': 'x'}], [{'role': None, 'content': 'x'}]],
  'messages[0].content': [
    [{'role': 'user'}],
    [{'role': 'user', 'content': 3}],
    [{'role': 'user', 'content': []}],
    [{'role': 'user', 'content': None}],
    [{'role': 'user', 'content': {}}],
  ],
  'messages[0].content[0]': [
    [{'role': 'user', 'content': [part]}]
    for part in (
      None,
      3,
      {},
      {'type': 'smell'},
      {'type': 'text'},
      {'type': 'text', 'text': 3},
      {'type': 'audio'},
      {'type': 'audio', 'audio': ''},
      {'type': 'image', 'image': None},
      {'type': 'video', 'video': []},
      {'type': 'text', 'text': 'x', 'colour': 1},
      {'type': 'video', 'video': 'x', 'fps': -1},
      {'type': 'video', 'video': 'x', 'fps': 'two'},
      {'type': 'video', 'video': 'x', 'audio_in_video': 'yes'},
      {'type': 'input_audio', 'input_audio': {}},
      {'type': 'input_audio', 'input_audio': {'data': '!!'}},
      {'type': 'image_url', 'image_url': {}},
      {'type': 'image_url', 'image_url': {'url': 'http://example.invalid/x.png'}},
      {'type': 'audio', 'audio': '/missing.wav'},
      {'type': 'image', 'image': '/missing.png'},
      {'type': 'image', 'image': np.zeros((1, 10_000, 3), np.uint8)},
      {'type': 'image', 'image': np.zeros((10_000, 1, 3), np.uint8)},
    )
  ],
  'messages[1]': [[{'role': 'user', 'content': 'x'}, {'role': 'assistant', 'content': 'x', 'mood': 1}]],
  'lone surrogate': [
    [{'role': 'user', 'content': 'a\udc00'}],
    [{'role': 'user', 'content': [{'type': 'text', 'text': '\ud83d'}]}],
    [{'role': 'user', 'content': 'x'}, {'role': 'assistant', 'content': 'x', 'reasoning_content': '\udc01'}],
    [{'role': 'user', 'content': 'x'}, {'role': 'assistant', 'content': 'x', 'tool_calls': [{'\udc02': {}}]}],
  ],
}


def test_conversations(careful, tiny_folder):
  processor = Processor.from_folder(tiny_folder)
  for name, cases in BAD_MESSAGES.items():
    for messages in cases:
      careful(name, lambda messages=messages: processor(messages))
  careful('tools', lambda: processor([{'role': 'user', 'content': 'x'}], tools=[object()]))
  careful('tools[0].name: a lone surrogate', lambda: processor([{'role': 'user', 'content': 'x'}], tools=[{'name': '\udc00'}]))
  assert careful.refused >= 40


def test_checkpoint_folders(careful, tiny_folder, tmp_path):
  """Every file of a checkpoint missing, empty, cut, or not what it should be."""
  names = ['config.json', 'tokenizer_config.json', 'vocab.json', 'merges.txt', 'preprocessor_config.json', 'chat_template.json']
  for name in names:
    for i, content in enumerate((None, b'', b'{', b'[]', b'\xff\xfe\x00', b'"x"')):
      folder = tmp_path / f'{name}-{i}'
      folder.mkdir()
      for file in names:
        if file != name:
          shutil.copy(tiny_folder / file, folder / file)
      if content is not None:
        (folder / name).write_bytes(content)
      careful(str(folder), lambda folder=folder: Processor.from_folder(folder) and None)
  config = json.loads((tiny_folder / 'config.json').read_text())
  for key in ('thinker_config', 'talker_config', 'code2wav_config'):
    for value in (3, [], {}, 'x'):
      path = tmp_path / f'{key}-{type(value).__name__}.json'
      path.write_text(json.dumps(config | {key: value}))
      defaults_do = key == 'code2wav_config' and value == {}  # every field of it has the reference's default
      careful(str(path), lambda path=path: load_config(path) and None, harmless=defaults_do)


def test_weights(careful, tiny_folder, tmp_path):
  """A shard missing, cut, or with a header that lies; the many other ways are in tests/weights."""
  shard = sorted(tiny_folder.glob('*.safetensors'))[1].name
  data = (tiny_folder / shard).read_bytes()
  cases = [None, b'', data[:7], data[:100], data[:-1], data + b'\0', struct.pack('<Q', 2**62) + data[8:], b'\0' * 8 + data[8:]]
  for i, content in enumerate(cases):
    folder = tmp_path / f'weights-{i}'
    shutil.copytree(tiny_folder, folder)
    (folder / shard).unlink()
    if content is not None:
      (folder / shard).write_bytes(content)
    careful(shard, lambda folder=folder: load_params(folder) and None)


def test_there_are_enough_of_them():
  """Counted from the lists above, so that nobody thins them out unnoticed."""
  files = 4 * len(damaged(b'x' * 10_000, np.random.default_rng(0))) + len(damaged(b'x' * 10_000, np.random.default_rng(0)))
  messages = sum(map(len, BAD_MESSAGES.values()))
  sources = 3 * (4 + 1 + 3 + 1 + 7 + 1 + 7 + 2)
  assert files + messages + sources + len(lying_headers()) + 6 + 30 + 36 + 12 + 8 >= 300
