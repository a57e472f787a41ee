"""Is a file whole, and is it one? What sound files and containers say about their own size.

Decoders do not tell: they read as far as they can, and stop where the first recording ends.
"""

import dataclasses
import re
import struct
import zlib

# How files begin that hold one recording: found where the first recording ends, a second one was appended.
_BEGINNINGS = (b'RIFF', b'RIFX', b'RF64', b'FORM', b'riff', b'caff', b'.snd', b'fLaC', b'OggS')
_OPEN = 2**31 - 2**16  # sizes from here on stand for "not known yet" in files of less
_CHUNKS = 10_000  # looked at
_MP3_REST = 2048  # bytes: the length an MP3 states may be wrong by its own frame, which has at most 1,441


@dataclasses.dataclass(frozen=True)
class _Form:
  """A file of chunks. first: its first letters; begin: of the first chunk; name: bytes of a chunk's name, of which four count;
  size: of a chunk, as struct writes it; around: bytes of name and size that the size counts; sound: the chunk of samples."""

  first: bytes
  begin: int
  name: int
  size: str
  around: int
  align: int
  sound: bytes


_FORMS = (
  _Form(b'RIFF', 12, 4, '<I', 0, 2, b'data'),
  _Form(b'RF64', 12, 4, '<I', 0, 2, b'data'),
  _Form(b'RIFX', 12, 4, '>I', 0, 2, b'data'),
  _Form(b'FORM', 12, 4, '>I', 0, 2, b'SSND'),  # AIFF
  _Form(b'riff', 40, 16, '<q', 24, 8, b'data'),  # W64
  _Form(b'caff', 8, 4, '>q', 0, 1, b'data'),
)


def stated_sound(data: bytes) -> tuple[int, int] | None:
  """(bytes of sound that the header states, bytes that are there); None if it states none, or the format has no such header."""
  return _sound_and_next(data)[0]


def second_recording(data: bytes) -> int | None:
  """The byte where a second recording begins in one file, None if there is one only."""
  if data[:4] == b'RIFF' and data[8:12] == b'AVI ':
    at = 8 + int.from_bytes(data[4:8], 'little')
    return at if data[at : at + 4] == b'RIFF' and data[at + 8 : at + 12] == b'AVI ' else None
  if data[:4] == b'fLaC':
    found = re.compile(rb'fLaC[\x00\x80]\x00\x00\x22').search(data, 4)
    return None if found is None else found.start()
  if data[:4] == b'OggS':  # a first page after pages of sound
    later = re.search(rb'OggS\x00[\x00\x01\x04\x05]', data)
    found = later and re.compile(rb'OggS\x00[\x02\x03\x06\x07]').search(data, later.start())
    return None if not found else found.start()
  if data[4:8] in (b'ftyp', b'moov', b'mdat', b'free', b'skip', b'wide'):
    return _second_movie(data)
  if data[:4] == b'\x1a\x45\xdf\xa3':
    return _second_matroska(data)
  if (tag := mp3_tag(data)) and tag.bytes:
    end = tag.start + tag.bytes
    end += 128 if data[end : end + 3] == b'TAG' else 0
    again = mp3_tag(data[end : end + 2**20]) or (len(data) - end > _MP3_REST and _is_mp3_frame(data, end))
    return end if again else None
  return _sound_and_next(data)[1]


def _sound_and_next(data: bytes) -> tuple[tuple[int, int] | None, int | None]:
  """(stated and present bytes of sound, where the next recording begins) of a file of chunks."""
  if data[:4] == b'.snd' and len(data) >= 24:
    start, size = struct.unpack('>II', data[4:12])
    if not 0 < size < _OPEN:
      return None, None
    return (size, min(size, len(data) - start)), (start + size if data[start + size :][:4] in _BEGINNINGS else None)
  form = next((form for form in _FORMS if data[:4] == form.first), None)
  if form is None:
    return None, None
  at, sound, large, width = form.begin, None, None, form.name + struct.calcsize(form.size)
  for _ in range(_CHUNKS):
    if at + width > len(data):
      break
    name = data[at : at + 4]
    if name in _BEGINNINGS:
      return sound, at
    (size,) = struct.unpack_from(form.size, data, at + form.name)
    size -= form.around
    body = at + width
    if name == b'ds64' and len(data) >= body + 16:
      (large,) = struct.unpack_from('<Q', data, body + 8)
    if name == form.sound:
      size = large if size == 2**32 - 1 and large is not None else size
      if size <= 0 or (size >= _OPEN and size > len(data) and large is None):
        break
      sound = (size, min(size, len(data) - body))
    if size < 0:
      break
    at = -(-(body + size) // form.align) * form.align
  return sound, None


@dataclasses.dataclass(frozen=True)
class Mp3Tag:
  """Of a Xing or Info header: where the first frame begins, and how many frames and bytes there are (None: not said)."""

  start: int
  frames: int | None
  bytes: int | None


def mp3_tag(data: bytes) -> Mp3Tag | None:
  """The length an MP3 file states. Without it readers guess from the bit rate of the first frame."""
  start = 0
  if data[:3] == b'ID3' and len(data) > 10:
    start = 10 + sum((byte & 127) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
  if not _is_mp3_frame(data, start):
    return None
  found = re.compile(b'Xing|Info').search(data, start, start + 44)  # behind the frame's header and side information
  if found is None or len(data) < found.end() + 12:
    return None
  flags, *numbers = struct.unpack_from('>III', data, found.end())
  frames = numbers[0] if flags & 1 else None
  size = numbers[1 if flags & 1 else 0] if flags & 2 else None
  return Mp3Tag(start, frames, size)


def _is_mp3_frame(data: bytes, at: int) -> bool:
  """Does an MPEG audio frame begin here: its sync word, and no reserved layer, bit rate or sample rate."""
  head = data[at : at + 4]
  return (
    len(head) == 4 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 6 > 0 and head[2] >> 4 < 15 and head[2] & 12 < 12
  )


_MIRRORED = bytes(int(f'{byte:08b}'[::-1], 2) for byte in range(256))


def damaged_ogg(data: bytes) -> int | None:
  """The byte where a page of an Ogg file is damaged or missing, None if there is none. Every page has a number and a checksum."""
  at, numbers = 0, {}
  while at + 27 <= len(data):
    if data[at : at + 4] != b'OggS':
      return None if data.find(b'OggS\0', at) < 0 else at  # padding at the end is no damage
    body = at + 27 + data[at + 26]
    page = data[at : body + sum(data[at + 27 : body])]
    _, serial, number, checksum = struct.unpack_from('<QIII', page, 6)
    if number != numbers.get(serial, number) or checksum != _ogg_checksum(page):
      return at
    numbers[serial] = number + 1
    at += len(page)
  return None


def _ogg_checksum(page: bytes) -> int:
  """CRC-32 with the highest bit first and nothing inverted, its own field taken for zero: zlib's of the mirrored bytes."""
  mirrored = (page[:22] + bytes(4) + page[26:]).translate(_MIRRORED)
  return int(f'{zlib.crc32(mirrored, 2**32 - 1) ^ (2**32 - 1):032b}'[::-1], 2)


def _second_movie(data: bytes) -> int | None:
  """Where a second movie header is among the boxes of an MP4 file."""
  at, seen = 0, False
  for _ in range(2**20):
    if at + 16 > len(data):
      break
    size, name = struct.unpack_from('>I4s', data, at)
    if size == 1:
      (size,) = struct.unpack_from('>Q', data, at + 8)
    if name == b'moov':
      if seen:
        return at
      seen = True
    if size < 8:  # to the end of the file, or no box
      break
    at += size
  return None


def _second_matroska(data: bytes) -> int | None:
  """Where a second EBML header is, right after the first segment. A segment of unknown size (live) is not looked into."""
  at = 0
  for identity in (b'\x1a\x45\xdf\xa3', b'\x18\x53\x80\x67'):
    if data[at : at + 4] != identity or len(data) < at + 12:
      return None
    width = 9 - data[at + 4].bit_length()  # of the size: leading zero bits, then a one
    if not 1 <= width <= 8:
      return None
    size = int.from_bytes(data[at + 4 : at + 4 + width], 'big') & ((1 << 7 * width) - 1)
    if size == (1 << 7 * width) - 1:
      return None
    at += 4 + width + size
  return at if data[at : at + 4] == b'\x1a\x45\xdf\xa3' else None
