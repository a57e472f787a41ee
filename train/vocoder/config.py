"""What a run that trains the vocoder has in its configuration beside what every run has (`vocoder`)."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Weights:
  """Of the parts of the generator's loss; spectral distances as in vocoder.spectral. commitment: distance of latents from their
  codebook entries, relative to the variance of the latents. adversarial, features: of vocoder.discriminators."""

  log_mel: float = 1.0
  linear: float = 0.5
  commitment: float = 0.25
  adversarial: float = 0.1
  features: float = 0.2


@dataclasses.dataclass(frozen=True)
class Adversaries:
  """Discriminators. begin: at which step they start to learn and to be heeded; before it they cost nothing. width: channels of
  their first layers (HiFi-GAN: 32). periods, windows: of each."""

  begin: int
  width: int = 32
  periods: tuple[int, ...] = (2, 3, 5, 7, 11)
  windows: tuple[int, ...] = (2048, 1024, 512)


@dataclasses.dataclass(frozen=True)
class Quantiser:
  """config: of the codec, the keys of a MimiConfig. begin: steps without quantisation before the codebooks are made, by k-means
  of the latest latents. decay: of the moving averages that entries are. dead: an entry chosen less often than this share of the
  mean is put on a latent of the batch. dropout, free: shares of rows that see only some of the codebooks, or none of them, up to
  the share `settled` of all steps."""

  config: dict[str, Any] = dataclasses.field(default_factory=dict)
  begin: int = 300
  decay: float = 0.98
  dead: float = 0.1
  dropout: float = 0.2
  free: float = 0.2
  settled: float = 0.6


@dataclasses.dataclass(frozen=True)
class Vocoder:
  """Training of Code2Wav on waves, in place of the model's other parts. codec: also of the encoder and the codebooks that it
  decodes, from scratch; None: of codes as they are (data.sources[].codes). frames: of a crop that is judged. context: frames of
  the same recording that are decoded before it and not judged, as far back as the network sees or as can be afforded."""

  frames: int = 12
  context: int = 4
  codec: Quantiser | None = None
  adversaries: Adversaries | None = None
  weights: Weights = Weights()

  def problems(self) -> list[str]:
    found = [] if self.frames >= 2 else [f'vocoder.frames {self.frames}: expected at least 2']
    found += [] if self.context >= 0 else [f'vocoder.context {self.context}: expected at least 0']
    if (codec := self.codec) is not None:
      shares = {name: getattr(codec, name) for name in ('decay', 'dropout', 'free', 'settled')}
      found += [f'vocoder.codec.{name} {x}: expected 0 to 1' for name, x in shares.items() if not 0 <= x <= 1]
      found += [] if codec.begin >= 0 else [f'vocoder.codec.begin {codec.begin}: expected at least 0']
    if (adversaries := self.adversaries) is not None:
      if adversaries.begin < 0 or adversaries.width < 1 or not (adversaries.periods or adversaries.windows):
        found.append('vocoder.adversaries: expected begin of at least 0, width of at least 1, and periods or windows')
      if wrong := [n for n in adversaries.windows if n % 4 or n < 64]:
        found.append(f'vocoder.adversaries.windows {wrong}: expected multiples of 4, at least 64')
    return found
