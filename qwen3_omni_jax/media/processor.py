"""The processor: a conversation with media in it to `ModelInputs`."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ..config import OmniConfig
from ..config_json import load_config
from . import omni_utils
from .audio import CHUNK_FRAMES, audio_tokens, load_audio, log_mel
from .chat_template import ChatTemplate
from .image import ImageSettings, image_patches, load_image
from .inputs import Audio, ModelInputs, Visual
from .layout import VideoSpan, lay_out
from .messages import MediaItem, parse_messages, plain_json
from .sizes import image_size
from .source import Limits
from .text import SpecialToken, Tokenizer, read_json
from .video import load_video, video_audio, video_patches

# What the checkpoint's feature extractor must be for media.audio to be right.
_AUDIO = {'feature_size': 128, 'sampling_rate': 16_000, 'hop_length': 160, 'n_fft': 400}

# How a medium is written in a document.
PLACEHOLDERS = {
  'audio': ('<|audio_start|>', '<|audio_pad|>', '<|audio_end|>'),
  'image': ('<|vision_start|>', '<|image_pad|>', '<|vision_end|>'),
  'video': ('<|vision_start|>', '<|video_pad|>', '<|vision_end|>'),
}


Media = Literal['processor', 'utils']
MEDIA: tuple[Media, ...] = ('processor', 'utils')


def check_media(value: Any) -> Media:
  if value not in MEDIA:
    raise ValueError(f'media {str(value)[:40]!r}: expected {" or ".join(MEDIA)}')
  return value


@dataclasses.dataclass(frozen=True)
class _Settings:
  """What holds for all media of a call."""

  fps: float
  utils: bool
  hear: bool
  reference_exact: bool


class _Prepared:
  """One conversation read and decoded, its sounds not yet turned into mel frames."""

  def __init__(self, prompt_ids: list[int]):
    self.prompt_ids = prompt_ids
    self.waves: list[np.ndarray] = []  # clips and heard sound tracks, in reading order
    self.clips: list[int] = []  # index into waves of each audio item
    self.images: list[Visual] = []
    self.videos: list[tuple[Visual, float, float, int | None]] = []  # (video, seconds per grid and late, index into waves)
    self.visuals: list[Visual] = []


class Processor:
  """Tokenizer, chat template and media settings of one checkpoint.

  fps: frames a second taken from videos, and the clock their positions run by: one number for both (default 2.0, as the
  published examples sample; the reference's own default clock of 1.0 applies whatever the sampling was). It can be set for a
  call, or for one video in its message part.

  media: 'processor' resizes pictures and frames once, as the checkpoint's processor does with media it is given; 'utils' chooses
  frames and sizes as the published utilities do, which run before the processor (omni_utils). It can be set for a call.

  raw_patches: leave patches as bytes where they are, to be normalised by media.image.normalise_rows.
  """

  def __init__(
    self,
    cfg: OmniConfig,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    images: ImageSettings,
    *,
    fps: float = 2.0,
    media: Media = 'processor',
    limits: Limits | None = None,
    media_root: str | pathlib.Path | None = None,
  ):
    self.cfg = cfg
    self.tokenizer = tokenizer
    self.template = template
    self.images = images
    self.fps = fps
    self.raw_patches = False
    self.media: Media = check_media(media)
    self.limits = limits or Limits()
    self.media_root = None if media_root is None else pathlib.Path(media_root)

  @classmethod
  def from_folder(cls, folder: str | pathlib.Path, **options: Any) -> 'Processor':
    """From a checkpoint folder of either kind. options: fps, media, limits, media_root."""
    folder = pathlib.Path(folder)
    cfg = load_config(folder)
    tokenizer = Tokenizer.from_folder(folder)
    tokenizer.check(cfg, str(folder))
    where = folder / 'preprocessor_config.json'
    data = read_json(where)
    if not isinstance(data, dict):
      raise ValueError(f'{where}: expected a JSON object, found {type(data).__name__}')
    wrong = [f'{key} {data[key]}, only {value} is implemented' for key, value in _AUDIO.items() if data.get(key, value) != value]
    if wrong:
      raise ValueError(f'{where}: ' + '; '.join(wrong))
    images = ImageSettings.from_dict(data, str(where))
    vision = cfg.thinker.vision
    if (images.patch, images.merge, images.temporal_patch) != (
      vision.patch_size,
      vision.spatial_merge_size,
      vision.temporal_patch_size,
    ):
      raise ValueError(f'{where}: patch, merge or temporal patch size differs from config.json')
    return cls(cfg, tokenizer, ChatTemplate.from_folder(folder, tokenizer.special), images, **options)

  def __call__(self, messages: Any, **options: Any) -> ModelInputs:
    """ModelInputs of one conversation. options: those of `batch`."""
    return self.batch([messages], **options)[0]

  def batch(
    self,
    conversations: Sequence[Any],
    *,
    fps: float | None = None,
    media: Media | None = None,
    audio_in_video: bool = False,
    tools: list[dict[str, Any]] | None = None,
    enable_thinking: bool | None = None,
    add_generation_prompt: bool = True,
    reference_exact: bool = False,
  ) -> list[ModelInputs]:
    """ModelInputs of each conversation.

    media: see the class. audio_in_video: hear the sound of videos (a silent one is then just a video). tools, enable_thinking:
    for the chat template. reference_exact: pad all sounds of the call together, keep the asked fps when a frame limit binds,
    begin pictures with their sound, and read special tokens in contents as such, as the reference does; otherwise no conversation
    depends on another and contents are only text. Raises ValueError naming what is wrong and where.
    """
    variables = {'add_generation_prompt': add_generation_prompt}
    if tools is not None:
      variables['tools'] = plain_json(tools, 'tools')
    if enable_thinking is not None:
      variables['enable_thinking'] = plain_json(enable_thinking, 'enable_thinking')
    settings = self._settings(fps, media, audio_in_video, reference_exact)
    prepared = []
    for messages in conversations:
      ids, items = self.prompt_ids(messages, reference_exact, **variables)
      prepared.append(self._load_all(ids, items, settings))
    waves = [wave for row in prepared for wave in row.waves]
    sounds = iter(_featurise(waves, together=reference_exact))
    return [self._assemble(row, [next(sounds) for _ in row.waves]) for row in prepared]

  def for_scoring(self, messages: Any, **options: Any) -> tuple[ModelInputs, int]:
    """(the whole conversation, number of its tokens before the last assistant turn's own words).

    The scored tokens are the turn's content and its closing <|im_end|>, as they would be generated.
    """
    if not isinstance(messages, (list, tuple)) or len(messages) < 2 or not isinstance(messages[-1], dict):
      raise ValueError('messages: expected a conversation that ends with the assistant turn to score')
    if messages[-1].get('role') != 'assistant':
      raise ValueError(f'messages[{len(messages) - 1}].role: expected assistant, found {messages[-1].get("role")!r}')
    whole = self(messages, add_generation_prompt=False, **options)
    prompt = self(messages[:-1], add_generation_prompt=True, **options)
    begin = len(prompt.ids)
    if not np.array_equal(whole.ids[:begin], prompt.ids):
      raise ValueError('the chat template writes the history differently once the last turn is there: it cannot be scored')
    end = np.flatnonzero(whole.ids[begin:] == self.cfg.im_end_token_id)
    stop = begin + int(end[0]) + 1 if len(end) else len(whole.ids)  # without the line break after <|im_end|>
    return ModelInputs(whole.ids[:stop], whole.positions[:, :stop], whole.audios, whole.visuals), begin

  def document(
    self, content: list[Any], *, fps: float | None = None, media: Media | None = None, audio_in_video: bool = False
  ) -> ModelInputs:
    """ModelInputs of text and media one after the other, without a chat template, closed by <|endoftext|>: for pretraining.

    content: parts as in a message. Media stand between their start and end tokens, as the chat template writes them; special
    tokens spelled in texts are only text.
    """
    plain, items = parse_messages([{'role': 'user', 'content': content}])
    pieces: list[str] = []
    for part in plain[0]['content']:
      pieces += [part['text']] if part['type'] == 'text' else map(SpecialToken, PLACEHOLDERS[part['type']])
    ids = self.tokenizer.encode_prompt([*pieces, SpecialToken('<|endoftext|>')])
    row = self._load_all(ids, items, self._settings(fps, media, audio_in_video))
    return self._assemble(row, _featurise(row.waves, together=False))

  def prompt_ids(self, messages: Any, reference_exact: bool = False, **variables: Any) -> tuple[list[int], list[MediaItem]]:
    """(token ids of a conversation with one pad token for each medium, the media). variables: plain JSON for the template.

    Special tokens spelled in contents are text; with reference_exact they are special tokens, as in the reference.
    """
    plain, media = parse_messages(messages)
    if reference_exact:
      prompt = self.tokenizer.split(self.template.render(plain, **variables))
    else:
      prompt = self.template.prompt(plain, **variables)
    return self.tokenizer.encode_prompt(prompt), media

  def _settings(self, fps: float | None, media: Media | None, hear: bool, reference_exact: bool = False) -> _Settings:
    media = self.media if media is None else check_media(media)
    return _Settings(self.fps if fps is None else fps, media == 'utils', hear, reference_exact)

  def _load_all(self, ids: list[int], media: list[MediaItem], settings: _Settings) -> _Prepared:
    row = _Prepared(ids)
    for item in media:
      try:
        self._load(row, item, settings)
      except ValueError as e:
        raise ValueError(f'{item.where}: {e}') from e
    return row

  def _load(self, row: _Prepared, item: MediaItem, settings: _Settings) -> None:
    source, keys, access = item.source, item.keys, {'limits': self.limits, 'root': self.media_root}
    stretch = {'start_s': keys.start_s, 'end_s': keys.end_s}
    if item.kind == 'audio':
      row.clips.append(len(row.waves))
      row.waves.append(load_audio(source, **access, **stretch))
    elif item.kind == 'image':
      pixels, size = load_image(source, **access), None
      if settings.utils:
        pixels = omni_utils.resized_image(pixels, keys, self.limits)
      else:
        height, width, _ = pixels.shape
        size = image_size(height, width, self.images, keys)
      patches, grid = image_patches(pixels, self.images, size, self.raw_patches)
      row.images.append(Visual(patches, grid, 'image'))
      row.visuals.append(row.images[-1])
    else:
      clip = load_video(source, fps=settings.fps, keys=keys, **access, fit=self.images, utils=settings.utils)
      patches, grid = video_patches(clip.frames, self.images, settings.utils, self.raw_patches)
      video = Visual(patches, grid, 'video')
      hear = settings.hear if keys.audio_in_video is None else keys.audio_in_video
      wave = video_audio(source, **access, **stretch) if hear else None
      clock = clip.fps if settings.reference_exact else clip.sampled_fps
      late_s = 0.0 if wave is None or settings.reference_exact else clip.late_s
      row.videos.append((video, self.images.temporal_patch / clock, late_s, None if wave is None else len(row.waves)))
      row.visuals.append(video)
      if wave is not None:
        row.waves.append(wave)

  def _assemble(self, row: _Prepared, sounds: list[Audio]) -> ModelInputs:
    tokens = [audio_tokens(len(sound.mel)) for sound in sounds]
    videos = [
      VideoSpan(video.grid, seconds, None if wave is None else tokens[wave], late_s)
      for video, seconds, late_s, wave in row.videos
    ]
    ids, positions = lay_out(
      row.prompt_ids, [tokens[i] for i in row.clips], [image.grid for image in row.images], videos, self.cfg.thinker
    )
    return ModelInputs(ids, positions, tuple(sounds), tuple(row.visuals))


def _featurise(waves: list[np.ndarray], together: bool) -> list[Audio]:
  """Mel frames of each clip: alone, or zero-padded to the longest one as in a call of the reference."""
  longest = max((len(wave) for wave in waves), default=0)
  mels = [log_mel(wave, longest if together else None) for wave in waves]
  widest = max((len(mel) for mel in mels), default=0)
  return [Audio(mel, min(CHUNK_FRAMES, widest if together else len(mel))) for mel in mels]
