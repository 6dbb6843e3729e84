"""RandAugment and its kin: random operations on an image on the host.

They come after the crop, on uint8 pixels. Each operation is done with Pillow
and gives the pixels of torchvision's function on a Pillow image.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from flax_resnet.schema import NotNegative, Range

# From uint8 [h, w, c], and the generator of its position in the run, to such.
Policy = Callable[[np.ndarray, np.random.Generator], np.ndarray]
PolicyName = Literal[
  "randaugment", "randaugment_increasing", "trivialaugment", "augmix"
]
Interpolation = Literal["nearest", "bilinear", "bicubic", "random"]
# The color of what comes from outside of an image, as Pillow takes it.
Fill = int | tuple[int, ...]
# From an image, an amount in a unit of the operation's own, and how an image is
# sampled where it is moved, to an image.
Operation = Callable[[Image.Image, float, Image.Resampling, Fill], Image.Image]


def _affine(inverse: Callable[[float], Sequence[float]]) -> Operation:
  """Returns the operation that moves (ax + by + c, dx + ey + f) to (x, y).

  Args:
    inverse: function of the amount that returns (a, b, c, d, e, f).
  """
  return lambda image, amount, method, fill: image.transform(
    image.size,
    Image.Transform.AFFINE,
    inverse(amount),
    method,
    fillcolor=fill,
  )


def _enhance(enhancer: Callable) -> Operation:
  """Returns the operation that makes the distance from another image larger.

  Args:
    enhancer: one of Pillow's, which defines the other image; the factor is
      1 + the amount.
  """
  return lambda image, change, *_: enhancer(image).enhance(1 + change)


def _by_value(change: Callable[[int, float], int]) -> Operation:
  """Returns the operation that changes each value of 0 to 255 alike."""

  def replace(image, amount, *_):
    table = [change(value, amount) for value in range(256)]
    return image.point(table * len(image.getbands()))

  return replace


def _plain(function: Callable[[Image.Image], Image.Image]) -> Operation:
  """Returns the operation that has no amount."""
  return lambda image, *_: function(image)


def rotate(
  image: Image.Image, degrees: float, method: Image.Resampling, fill: Fill
) -> Image.Image:
  """Rotates about the center, counterclockwise."""
  return image.rotate(degrees, method, fillcolor=fill)


# The amount is the slope: rows go to the left, and columns up, by so many times
# their distance from the first.
shear_x = _affine(lambda slope: (1, slope, 0, 0, 1, 0))
shear_y = _affine(lambda slope: (1, 0, 0, slope, 1, 0))
# In pixels, to the right and down.
translate_x = _affine(lambda pixels: (1, 0, -pixels, 0, 1, 0))
translate_y = _affine(lambda pixels: (1, 0, 0, 0, 1, -pixels))
# The other image is black, gray, of the mean gray, and smoothed.
brightness = _enhance(ImageEnhance.Brightness)
color = _enhance(ImageEnhance.Color)
contrast = _enhance(ImageEnhance.Contrast)
sharpness = _enhance(ImageEnhance.Sharpness)
# Bits that are kept; none gives black. Not ImageOps.posterize: newer Pillows
# refuse 0 bits, which timm's policies reach at their highest magnitude.
posterize = _by_value(lambda value, bits: value & (256 - 2 ** (8 - int(bits))))
# A threshold, from which on values are inverted.
solarize = _by_value(
  lambda value, limit: value if value < limit else 255 - value
)
# An addition to the darker half of the values.
solarize_add = _by_value(
  lambda value, more: min(255, value + int(more)) if value < 128 else value
)
identity = _plain(lambda image: image)
autocontrast = _plain(ImageOps.autocontrast)
equalize = _plain(ImageOps.equalize)
invert = _plain(ImageOps.invert)


class Choice(NamedTuple):
  """An operation that a policy may draw.

  Attributes:
    operation: function of the image.
    amount: function of the level, 0 to 1, and the image's (width, height) that
      returns the amount.
    signed: whether the amount gets a minus with equal chance.
  """

  operation: Operation
  amount: Callable[[float, tuple[int, int]], float] = lambda level, size: 0.0
  signed: bool = False


def _linear(operation: Operation, most: float) -> Choice:
  return Choice(operation, lambda level, size: level * most, True)


def _choices_of_torchvision(
  *,
  shear: float,
  degrees: float,
  change: float,
  bits: int,
  shift: Callable[[float, int], float],
) -> tuple[Choice, ...]:
  """Returns the 14 choices of both papers; they differ in how far they go."""
  return (
    Choice(identity),
    _linear(shear_x, shear),
    _linear(shear_y, shear),
    Choice(translate_x, lambda x, size: int(shift(x, size[0])), True),
    Choice(translate_y, lambda x, size: int(shift(x, size[1])), True),
    _linear(rotate, degrees),
    _linear(brightness, change),
    _linear(color, change),
    _linear(contrast, change),
    _linear(sharpness, change),
    Choice(posterize, lambda x, size: 8 - round(x * bits)),
    Choice(solarize, lambda x, size: 255 - x * 255),
    Choice(autocontrast),
    Choice(equalize),
  )


RANDAUGMENT = _choices_of_torchvision(
  shear=0.3,
  degrees=30.0,
  change=0.9,
  bits=4,
  shift=lambda level, side: level * side * 150 / 331,
)
TRIVIALAUGMENT = _choices_of_torchvision(
  shear=0.99,
  degrees=135.0,
  change=0.99,
  bits=6,
  shift=lambda level, side: level * 32,
)
# As torchvision has it, all operations included.
AUGMIX = (
  _linear(shear_x, 0.3),
  _linear(shear_y, 0.3),
  Choice(translate_x, lambda x, size: int(x * size[0] / 3), True),
  Choice(translate_y, lambda x, size: int(x * size[1] / 3), True),
  _linear(rotate, 30.0),
  Choice(posterize, lambda x, size: 4 - round(x * 4)),
  Choice(solarize, lambda x, size: 255 - x * 255),
  Choice(autocontrast),
  Choice(equalize),
  _linear(brightness, 0.9),
  _linear(color, 0.9),
  _linear(contrast, 0.9),
  _linear(sharpness, 0.9),
)
AUGMIX_CHAINS = 3
# "inc1" of timm: all get stronger with the level.
INCREASING = (
  Choice(autocontrast),
  Choice(equalize),
  Choice(invert),
  _linear(rotate, 30.0),
  Choice(posterize, lambda x, size: 4 - int(x * 4)),
  Choice(solarize, lambda x, size: 256 - int(x * 256)),
  Choice(solarize_add, lambda x, size: int(x * 110)),
  _linear(color, 0.9),
  _linear(contrast, 0.9),
  _linear(brightness, 0.9),
  _linear(sharpness, 0.9),
  _linear(shear_x, 0.3),
  _linear(shear_y, 0.3),
  Choice(translate_x, lambda x, size: x * 0.45 * size[0], True),
  Choice(translate_y, lambda x, size: x * 0.45 * size[1], True),
)


class Preset(NamedTuple):
  """A policy as its authors run it.

  Attributes:
    choices: operations to draw from, with equal chance.
    highest: magnitude of level 1; magnitudes count from 0.
    num_ops: operations on an image.
    probability: probability of an operation, once drawn, to be done.
    interpolation: interpolation where an image is moved.
    fill: color outside of the image, in all channels.
  """

  choices: tuple[Choice, ...]
  highest: int
  num_ops: int
  probability: float
  interpolation: Interpolation
  fill: int


PRESETS: dict[PolicyName, Preset] = {
  "randaugment": Preset(RANDAUGMENT, 30, 2, 1.0, "nearest", 0),
  "randaugment_increasing": Preset(INCREASING, 10, 2, 0.5, "random", 128),
  "trivialaugment": Preset(TRIVIALAUGMENT, 30, 1, 1.0, "nearest", 0),
  # Up to 3 operations, of each of its chains.
  "augmix": Preset(AUGMIX, 9, 3, 1.0, "bilinear", 0),
}


def make_policy(
  policy: PolicyName | None = None,
  *,
  num_channels: int,
  policy_magnitude: NotNegative | None = None,
  policy_magnitude_std: NotNegative = 0.0,
  policy_num_ops: Annotated[int, Range(minimum=1, maximum=100)] | None = None,
  interpolation: Interpolation | None = None,
  fill: Sequence[int] | None = None,
) -> Policy | None:
  """Returns random operations on a training image; None for no policy.

  "randaugment" is Cubuk et al. 2019 (https://arxiv.org/abs/1909.13719), and
  "trivialaugment" is Müller & Hutter 2021 (https://arxiv.org/abs/2103.10158),
  the wide one, both as torchvision has them. "randaugment_increasing" is
  timm's, with which Wightman et al. 2021 (https://arxiv.org/abs/2110.00476)
  train: each operation gets stronger with the magnitude, and is left out half
  of the time. Their "rand-m7-mstd0.5-inc1" has the magnitude 7 and its standard
  deviation 0.5. "augmix" (Hendrycks et al. 2020,
  https://arxiv.org/abs/1912.02781), as torchvision has it, mixes an image with
  three chains of one to three operations on it; its consistency loss is not
  part of it.

  Args:
    policy: name of the policy; default None.
    num_channels: channels of the images, 1 for gray or 3 for RGB.
    policy_magnitude: strength: 0 to 30 for "randaugment", 0 to 10 for
      "randaugment_increasing", 9 if None (default). "trivialaugment" draws its
      own. Of "augmix" the severity, a whole number of 1 to 10, 3 if None.
    policy_magnitude_std: standard deviation of normal noise on the magnitude,
      which stays in its range; default 0.
    policy_num_ops: operations on an image, 1 to 100; None (default) for 2, for
      1 with "trivialaugment", for 1 to 3 at random in each chain of "augmix".
    interpolation: interpolation where an image is moved; "random" is bilinear
      or bicubic. None (default) for "nearest", for "random" with
      "randaugment_increasing" and for "bilinear" with "augmix".
    fill: color of what comes from outside of the image, 0 to 255: a number for
      each channel. None (default) for black, and for 128 with
      "randaugment_increasing".

  Raises:
    ValueError: for a magnitude or fill that the policy cannot have.
  """
  if policy is None:
    return None
  preset = PRESETS[policy]
  fill = (preset.fill,) * num_channels if fill is None else tuple(fill)
  if len(fill) != num_channels or not all(0 <= value <= 255 for value in fill):
    raise ValueError(
      f"fill is {fill}: use {num_channels} of 0 to 255, one a channel"
    )
  methods = [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC]
  if (interpolation := interpolation or preset.interpolation) != "random":
    methods = [Image.Resampling[interpolation.upper()]]
  level = _make_level(policy, policy_magnitude, policy_magnitude_std)
  choices, num_ops = preset.choices, policy_num_ops or preset.num_ops
  fillcolor = fill[0] if num_channels == 1 else fill

  def operate(pixels, rng, count):
    image = Image.fromarray(pixels.squeeze(-1) if num_channels == 1 else pixels)
    for _ in range(count):
      choice = choices[int(rng.integers(len(choices)))]
      if rng.random() < preset.probability:
        amount = choice.amount(level(rng), image.size)
        if choice.signed and rng.random() < 0.5:
          amount = -amount
        method = methods[int(rng.integers(len(methods)))]
        image = choice.operation(image, amount, method, fillcolor)
    return np.asarray(image).reshape(pixels.shape)

  def augmix(pixels, rng):
    # Of both Beta(1, 1) and Dirichlet(1, 1, 1), as in the paper.
    kept, others = rng.dirichlet((1.0, 1.0))
    weights = others * rng.dirichlet((1.0,) * AUGMIX_CHAINS)
    mixed = np.float32(kept) * pixels
    for weight in weights.astype(np.float32):
      count = policy_num_ops or int(rng.integers(1, num_ops + 1))
      mixed += weight * operate(pixels, rng, count)
    # Not above 255 by rounding; cut off below the point, as in torchvision.
    return np.minimum(mixed, 255).astype(np.uint8)

  if policy == "augmix":
    return augmix
  return lambda pixels, rng: operate(pixels, rng, num_ops)


def _make_level(
  policy: PolicyName, magnitude: float | None, std: float
) -> Callable[[np.random.Generator], float]:
  """Returns a function that draws the level of an operation, 0 to 1."""
  highest = PRESETS[policy].highest
  if policy == "trivialaugment":
    if magnitude is not None or std:
      raise ValueError(
        "trivialaugment draws its magnitude: leave out policy_magnitude and "
        "policy_magnitude_std"
      )
    return lambda rng: rng.integers(highest + 1) / highest
  if policy == "augmix":
    severity = 3 if magnitude is None else magnitude
    if severity not in range(1, 11) or std:
      raise ValueError(
        f"augmix has severity {severity} and deviation {std}: use a whole "
        "policy_magnitude of 1 to 10, and policy_magnitude_std=0.0"
      )
    return lambda rng: rng.integers(int(severity)) / highest
  mean = 9 if magnitude is None else magnitude
  if mean > highest:
    raise ValueError(f"policy_magnitude is {mean}: use 0 to {highest}")
  return lambda rng: min(max(rng.normal(mean, std), 0), highest) / highest
