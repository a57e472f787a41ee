"""What a file's first bytes say it is: for errors, since names and types often lie."""

import re

# (offset, first bytes, what it is, what to do)
_MAGIC = (
  (0, b'\x89PNG\r\n\x1a\n', 'a PNG picture', ''),
  (0, b'\xff\xd8\xff', 'a JPEG picture', ''),
  (0, b'GIF8', 'a GIF picture', ''),
  (0, b'BM', 'a BMP picture', ''),
  (0, b'II*\0', 'a TIFF picture', ''),
  (0, b'MM\0*', 'a TIFF picture', ''),
  (8, b'WEBP', 'a WebP picture', ''),
  (8, b'WAVE', 'WAV sound', ''),
  (8, b'AVI ', 'an AVI video', ''),
  (0, b'fLaC', 'FLAC sound', ''),
  (0, b'OggS', 'an Ogg file', ''),
  (0, b'ID3', 'MP3 sound', ''),
  (0, b'\xff\xfb', 'MP3 sound', ''),
  (0, b'\xff\xf1', 'AAC sound', ''),
  (0, b'\x1a\x45\xdf\xa3', 'a Matroska or WebM file', ''),
  (0, b'FLV\x01', 'a Flash video', ''),
  (0, b'\xff\x0a', 'a JPEG XL picture', 'convert it to PNG or JPEG'),
  (4, b'JXL ', 'a JPEG XL picture', 'convert it to PNG or JPEG'),
  (0, b'%PDF', 'a PDF document', 'render its pages to PNG'),
  (0, b'%!PS', 'a PostScript document', 'render its pages to PNG'),
  (0, b'PK\x03\x04', 'a ZIP archive (or an Office document)', 'unpack it'),
  (0, b'\x1f\x8b', 'gzip data', 'unpack it'),
  (0, b'BZh', 'bzip2 data', 'unpack it'),
  (0, b'\xfd7zXZ\0', 'xz data', 'unpack it'),
  (0, b'(\xb5/\xfd', 'Zstandard data', 'unpack it'),
  (0, b'7z\xbc\xaf\x27\x1c', 'a 7z archive', 'unpack it'),
  (257, b'ustar', 'a tar archive', 'unpack it'),
  (0, b'\x93NUMPY', 'a numpy array', 'load it and give the array'),
  (0, b'SQLite format 3', 'a database', ''),
  (0, b'PAR1', 'a Parquet file', ''),
  (0, b'version https://git-lfs', 'a Git LFS pointer, not the file itself', 'fetch it with git lfs pull'),
)
_BRANDS = {
  b'heic': 'HEIC',
  b'heix': 'HEIC',
  b'heim': 'HEIC',
  b'hevc': 'HEIC',
  b'mif1': 'HEIF',
  b'msf1': 'HEIF',
  b'avif': 'AVIF',
  b'avis': 'AVIF',
}
_TEXTS = (
  (rb'<svg[\s>]', 'an SVG drawing', 'render it to PNG'),
  (rb'<!doctype html|<html[\s>]|<head[\s>]|<body[\s>]', 'a web page (HTML)', 'did a download fail?'),
  (rb'^\s*<\?xml|^\s*<[a-z]+[\s>]', 'XML text', ''),
  (rb'^\s*[{\[]', 'JSON text', 'did a download fail?'),
  (rb'^#EXTM3U', 'a playlist', 'give the media file itself'),
  (rb'^data:[a-z]+/', 'a data: URL kept in a file', 'give the URL as a text, or decode it'),
)


def content_of(data: bytes) -> str:
  """What the data seem to be, with what to do about it: 'a HEIC picture; convert it to PNG or JPEG'. '' if nothing is known."""
  if data.count(0) == len(data):
    return 'nothing but zero bytes'
  if data[4:8] == b'ftyp':
    picture = _BRANDS.get(data[8:12])
    return f'a {picture} picture; convert it to PNG or JPEG' if picture else 'an MP4 or QuickTime file'
  for offset, first, what, advice in _MAGIC:
    if data[offset : offset + len(first)] == first:
      return f'{what}; {advice}' if advice else what
  start = data[:1024].removeprefix(b'\xef\xbb\xbf')
  if start[:2] in (b'\xff\xfe', b'\xfe\xff'):  # text of 16 bits
    start = start.replace(b'\0', b'')[2:]
  for pattern, what, advice in _TEXTS:
    if re.search(pattern, start, re.IGNORECASE):
      return f'{what}; {advice}' if advice else what
  return 'text' if _is_text(start) else ''


def _is_text(start: bytes) -> bool:
  try:
    text = start.decode('utf-8', 'strict' if len(start) < 1024 else 'ignore')
  except UnicodeDecodeError:
    return False
  return all(c.isprintable() or c in '\r\n\t' for c in text)
