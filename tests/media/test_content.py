"""Names lie: an error says what a file really is."""

import gzip
import io

import numpy as np
import pytest
from PIL import Image

from qwen3_omni_jax.media.audio import load_audio
from qwen3_omni_jax.media.content import content_of
from qwen3_omni_jax.media.image import load_image
from qwen3_omni_jax.media.video import load_video
from tests.media.made import picture, tone, video

SVG = b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
HTML = b'\n<!DOCTYPE HTML>\n<html><head><title>404</title></head><body>Not found</body></html>'
THINGS = {
  'HEIC picture; convert it': b'\0\0\0\x18ftypheic\0\0\0\0mif1heic' + bytes(200),
  'HEIF picture; convert it': b'\0\0\0\x18ftypmif1\0\0\0\0mif1heic' + bytes(200),
  'an SVG drawing; render it to PNG': SVG,
  r'a web page \(HTML\); did a download fail': HTML,
  'XML text': b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
  'JSON text; did a download fail': b'{"error": "quota"}',
  'a PDF document; render its pages': b'%PDF-1.7\n' + bytes(100),
  'a PostScript document': b'%!PS-Adobe-3.0 EPSF-3.0\n',
  'a ZIP archive': b'PK\x03\x04' + bytes(60),
  'gzip data; unpack it': gzip.compress(SVG),
  'a Git LFS pointer, not the file itself; fetch it': b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n',
  'a playlist; give the media file itself': b'#EXTM3U\n#EXTINF:1,\na.ts\n',
  'a data: URL kept in a file': b'data:image/png;base64,iVBORw0KGgo=',
  'nothing but zero bytes': bytes(5000),
  'text': b'not a medium at all\n' * 50,
  'a numpy array; load it': b'\x93NUMPY\x01\0' + bytes(100),
  'a JPEG XL picture; convert it': b'\xff\x0a' + bytes(99),
}


@pytest.mark.parametrize('what', THINGS)
def test_what_is_no_medium_is_told_by_its_content(what, tmp_path):
  for name, read in (('x.png', load_image), ('x.wav', load_audio), ('x.mp4', lambda path: load_video(path, fps=2))):
    (tmp_path / name).write_bytes(THINGS[what])
    with pytest.raises(ValueError, match=rf'{name}: not readable as .*; its content is .*{what}') as error:
      read(tmp_path / name)
    assert len(str(error.value)) < 600


def test_a_medium_of_another_kind_is_told_too():
  png = io.BytesIO()
  Image.fromarray(picture(1)).save(png, 'PNG')
  wave = (tone(0.1) * 32767).astype(np.int16)
  film = video([picture(i) for i in range(4)], kind='mp4')
  with pytest.raises(ValueError, match='not readable as audio .*; its content is a PNG picture'):
    load_audio(png.getvalue())
  with pytest.raises(ValueError, match='not readable as an image .*; its content is an MP4'):
    load_image(film)
  assert content_of(b'RIFF\0\0\0\0WAVE' + wave.tobytes()) == 'WAV sound'


def test_contents_that_nobody_knows_are_not_guessed():
  rng = np.random.default_rng(0)
  assert [content_of(b'\x03\xfe' + rng.bytes(500)) for _ in range(20)] == [''] * 20
  assert content_of(b'\xff\xfe' + '<html>'.encode('utf-16-le')) == 'a web page (HTML); did a download fail?'
