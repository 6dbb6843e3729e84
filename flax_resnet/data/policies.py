"""RandAugment and its kin: random operations on an image on the host.

They come after the crop, on uint8 pixels.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from flax_resnet.data import distortions
from flax_resnet.data.distortions import Distortion, Picture, Sampling

# Pixels uint8 [h, w, c], and the generator of their place in the run, to such.
Policy = Callable[[np.ndarray, np.random.Generator], np.ndarray]
PolicyName = Literal["randaugment", "randaugment_increasing", "trivialaugment"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "random"]


class Choice(NamedTuple):
  """A distortion, and how much of it a level is.

  Attributes:
    distortion: What is done.
    amount: From the level, 0 to 1, and the picture's (width, height).
    signed: Whether it goes either way, with equal chance.
  """

  distortion: Distortion
  amount: Callable[[float, tuple[int, int]], float] = lambda level, size: 0.0
  signed: bool = False


def _linear(distortion: Distortion, most: float) -> Choice:
  return Choice(distortion, lambda level, size: level * most, True)


def _as_in_torchvision(
  *,
  shear: float,
  degrees: float,
  change: float,
  bits: int,
  shift: Callable[[float, int], float],
) -> tuple[Choice, ...]:
  """The 14 choices of both papers; they differ in how far they go."""
  return (
    Choice(distortions.identity),
    _linear(distortions.shear_x, shear),
    _linear(distortions.shear_y, shear),
    Choice(
      distortions.translate_x, lambda x, size: int(shift(x, size[0])), True
    ),
    Choice(
      distortions.translate_y, lambda x, size: int(shift(x, size[1])), True
    ),
    _linear(distortions.rotate, degrees),
    _linear(distortions.brightness, change),
    _linear(distortions.color, change),
    _linear(distortions.contrast, change),
    _linear(distortions.sharpness, change),
    Choice(distortions.posterize, lambda x, size: 8 - round(x * bits)),
    Choice(distortions.solarize, lambda x, size: 255 - x * 255),
    Choice(distortions.autocontrast),
    Choice(distortions.equalize),
  )


RANDAUGMENT = _as_in_torchvision(
  shear=0.3,
  degrees=30.0,
  change=0.9,
  bits=4,
  shift=lambda level, side: level * side * 150 / 331,
)
TRIVIALAUGMENT = _as_in_torchvision(
  shear=0.99,
  degrees=135.0,
  change=0.99,
  bits=6,
  shift=lambda level, side: level * 32,
)
# "inc1" of timm: all get stronger with the level.
INCREASING = (
  Choice(distortions.autocontrast),
  Choice(distortions.equalize),
  Choice(distortions.invert),
  _linear(distortions.rotate, 30.0),
  Choice(distortions.posterize, lambda x, size: 4 - int(x * 4)),
  Choice(distortions.solarize, lambda x, size: 256 - int(x * 256)),
  Choice(distortions.solarize_add, lambda x, size: int(x * 110)),
  _linear(distortions.color, 0.9),
  _linear(distortions.contrast, 0.9),
  _linear(distortions.brightness, 0.9),
  _linear(distortions.sharpness, 0.9),
  _linear(distortions.shear_x, 0.3),
  _linear(distortions.shear_y, 0.3),
  Choice(distortions.translate_x, lambda x, size: x * 0.45 * size[0], True),
  Choice(distortions.translate_y, lambda x, size: x * 0.45 * size[1], True),
)


@dataclasses.dataclass(frozen=True)
class RandomDistortions:
  """A policy: some choices one after the other, drawn with replacement.

  Attributes:
    choices: What there is to draw from, with equal chance.
    level: Draws how much, 0 to 1.
    num_ops: How many are drawn for an image.
    probability: Of doing what was drawn.
    methods: Of interpolation; one is drawn each time.
    fill: The colour outside of the image, a number for each channel.
  """

  choices: Sequence[Choice]
  level: Callable[[np.random.Generator], float]
  num_ops: int
  probability: float
  methods: Sequence[Image.Resampling]
  fill: tuple[int, ...]

  def __call__(
    self, pixels: np.ndarray, rng: np.random.Generator
  ) -> np.ndarray:
    """Returns uint8 [h, w, c] of the same."""
    grey = pixels.shape[-1] == 1
    picture = Image.fromarray(pixels.squeeze(-1) if grey else pixels)
    for _ in range(self.num_ops):
      choice = self.choices[int(rng.integers(len(self.choices)))]
      if rng.random() < self.probability:
        picture = self._distort(picture, choice, rng)
    return np.asarray(picture).reshape(pixels.shape)

  def _distort(
    self, picture: Picture, choice: Choice, rng: np.random.Generator
  ) -> Picture:
    amount = choice.amount(self.level(rng), picture.size)
    if choice.signed and rng.random() < 0.5:
      amount = -amount
    method = self.methods[int(rng.integers(len(self.methods)))]
    return choice.distortion(picture, amount, Sampling(method, self.fill))


class _Published(NamedTuple):
  """A policy as its authors run it; magnitudes count from 0 to `highest`."""

  choices: tuple[Choice, ...]
  highest: int
  num_ops: int
  probability: float
  interpolation: Interpolation
  fill: int


_PUBLISHED = {
  "randaugment": _Published(RANDAUGMENT, 30, 2, 1.0, "nearest", 0),
  "randaugment_increasing": _Published(INCREASING, 10, 2, 0.5, "random", 128),
  "trivialaugment": _Published(TRIVIALAUGMENT, 30, 1, 1.0, "nearest", 0),
}


def make_policy(
  name: PolicyName | None,
  *,
  channels: int,
  magnitude: float | None = None,
  magnitude_std: float = 0.0,
  num_ops: int | None = None,
  interpolation: Interpolation | None = None,
  fill: Sequence[int] | None = None,
) -> Policy | None:
  """Returns what is done to each training image after the crop; None for None.

  "randaugment" is Cubuk et al. 2019 (https://arxiv.org/abs/1909.13719) as
  torchvision has it; "trivialaugment" is Müller & Hutter 2021
  (https://arxiv.org/abs/2103.10158), the wide one, likewise.
  "randaugment_increasing" is timm's, with which Wightman et al. 2021
  (https://arxiv.org/abs/2110.00476) train: each operation gets stronger with
  the magnitude, and is left out half of the time. Their "rand-m7-mstd0.5-inc1"
  is `magnitude=7, magnitude_std=0.5`.

  Args:
    name: Of the policy.
    channels: Of the images: 1 for grey, 3 for RGB.
    magnitude: How strong: 0 to 30 for "randaugment", 0 to 10 for
      "randaugment_increasing", 9 when None. "trivialaugment" draws its own.
    magnitude_std: Of normal noise on the magnitude, kept within its range.
    num_ops: Operations on an image; None for 2, for 1 with "trivialaugment".
    interpolation: Where an image is moved; "random" is bilinear or bicubic.
      None for "nearest", and for "random" with "randaugment_increasing".
    fill: The colour of what comes from outside of the image, of uint8: a
      number for each channel. None for black, and for 128 with
      "randaugment_increasing".

  Raises:
    ValueError: For a number out of its range.
  """
  if name is None:
    return None
  published = _PUBLISHED[name]
  if fill is None:
    fill = (published.fill,) * channels
  if len(fill) != channels or not all(0 <= value <= 255 for value in fill):
    raise ValueError(
      f"fill is {tuple(fill)}: use {channels} of 0 to 255, one a channel"
    )
  if num_ops is None:
    num_ops = published.num_ops
  if not 1 <= num_ops <= 100:
    raise ValueError(f"num_ops is {num_ops}: use 1 to 100")
  return RandomDistortions(
    choices=published.choices,
    level=_level(name, magnitude, magnitude_std),
    num_ops=num_ops,
    probability=published.probability,
    methods=_methods(interpolation or published.interpolation),
    fill=tuple(fill),
  )


def _level(
  name: PolicyName, magnitude: float | None, std: float
) -> Callable[[np.random.Generator], float]:
  highest = _PUBLISHED[name].highest
  if name == "trivialaugment":
    if magnitude is not None or std:
      raise ValueError(
        "trivialaugment draws its magnitude: leave out magnitude and its std"
      )
    return lambda rng: rng.integers(highest + 1) / highest
  mean = 9 if magnitude is None else magnitude
  if not 0 <= mean <= highest:
    raise ValueError(f"magnitude is {mean}: use 0 to {highest}")
  if not 0 <= std < math.inf:
    raise ValueError(f"magnitude_std is {std}: use 0 or more")
  return lambda rng: min(max(rng.normal(mean, std), 0), highest) / highest


def _methods(interpolation: Interpolation) -> Sequence[Image.Resampling]:
  if interpolation == "random":
    return (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
  return (Image.Resampling[interpolation.upper()],)
