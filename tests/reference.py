"""The oracle: transformers' Qwen3-Omni with torch on CPU, float32. Used by tests and benchmarks only."""

import dataclasses
import functools
import pathlib

import numpy as np

from qwen3_omni_jax.media.audio import load_audio
from qwen3_omni_jax.media.image import load_image
from qwen3_omni_jax.media.messages import parse_messages
from qwen3_omni_jax.media.video import load_video, video_audio

FPS = 2.0


@functools.cache
def prepare_torchvision() -> None:
  """Lets the registry's torchvision load beside a CPU torch: it only misses the schemas of two operators nobody calls."""
  import torch

  library = torch.library.Library('torchvision', 'FRAGMENT')
  for operator in ('nms', 'qnms'):
    try:
      library.define(f'{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    except RuntimeError:
      pass  # another test's reference module has defined it
  prepare_torchvision.library = library  # type: ignore[attr-defined]  # must stay alive


def load_model(folder: pathlib.Path, dtype=None):
  """transformers' model of a folder with the Talker, with its plain loop over experts; every tensor of the folder is used, and
  no other needed. dtype: default float32."""
  prepare_torchvision()
  import torch
  import transformers

  torch.set_num_threads(2)
  transformers.logging.set_verbosity_error()
  model, info = transformers.Qwen3OmniMoeForConditionalGeneration.from_pretrained(
    folder, dtype=dtype or torch.float32, experts_implementation='eager', output_loading_info=True
  )
  assert not info['missing_keys'] and not info['unexpected_keys'] and not info['mismatched_keys'], info
  return model.eval()


@dataclasses.dataclass
class Reference:
  """A checkpoint folder loaded by transformers."""

  model: object
  processor: object

  @classmethod
  def load(cls, folder: pathlib.Path) -> 'Reference':
    model = load_model(folder)
    import transformers

    return cls(model, transformers.Qwen3OmniMoeProcessor.from_pretrained(folder))

  def inputs(self, conversations: list, audio_in_video: bool = False):
    """The reference processor's batch for conversations as users write them, from the same decoded media as ours."""
    texts, images, videos, audio, slots = [], [], [], [], []
    for messages in conversations:
      plain, media = parse_messages(messages)
      texts.append(self.processor.apply_chat_template(plain, tokenize=False, add_generation_prompt=True))
      for item in media:
        if item.kind == 'audio':
          audio.append(load_audio(item.source))
          slots.append(None)
        elif item.kind == 'image':
          images.append(load_image(item.source))
        else:
          if audio_in_video and (sound := video_audio(item.source)) is not None:
            audio.append(sound)
            slots.append(len(videos))
          videos.append(load_video(item.source, fps=FPS).frames)
    options = {}
    if videos:
      options['videos_kwargs'] = {'fps': FPS, 'do_sample_frames': False}
    if audio_in_video and videos:
      options |= {'load_audio_from_video': True, 'audio_from_video_indices': slots}
    return self.processor(
      text=texts, images=images or None, videos=videos or None, audio=audio or None, return_tensors='pt', padding=True, **options
    )


def split_rows(padded, mask) -> list[np.ndarray]:
  """The rows of a left-padded batch, without their padding."""
  return [np.asarray(row)[np.asarray(keep) != 0] for row, keep in zip(padded, mask, strict=True)]
