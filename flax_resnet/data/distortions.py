"""What a policy of random operations can do to a picture, with Pillow.

Each is given the picture, how much in a unit of its own, and how to sample; it
computes the pixels that torchvision's function computes on a Pillow image.
"""

from collections.abc import Callable, Sequence
import dataclasses

from PIL import Image, ImageEnhance, ImageOps

Picture = Image.Image


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How a picture is read where it is moved.

  Attributes:
    method: Between pixels.
    fill: The colour outside of it: a number for each channel.
  """

  method: Image.Resampling
  fill: tuple[int, ...]


Distortion = Callable[[Picture, float, Sampling], Picture]


def identity(picture: Picture, amount: float, sampling: Sampling) -> Picture:
  """Returns the picture."""
  del amount, sampling
  return picture


def shear_x(picture: Picture, slope: float, sampling: Sampling) -> Picture:
  """Shifts each row to the left by `slope` times its distance from the top."""
  return _move(picture, (1, slope, 0, 0, 1, 0), sampling)


def shear_y(picture: Picture, slope: float, sampling: Sampling) -> Picture:
  """Shifts each column up by `slope` times its distance from the left."""
  return _move(picture, (1, 0, 0, slope, 1, 0), sampling)


def translate_x(picture: Picture, pixels: float, sampling: Sampling) -> Picture:
  """Shifts to the right."""
  return _move(picture, (1, 0, -pixels, 0, 1, 0), sampling)


def translate_y(picture: Picture, pixels: float, sampling: Sampling) -> Picture:
  """Shifts down."""
  return _move(picture, (1, 0, 0, 0, 1, -pixels), sampling)


def rotate(picture: Picture, degrees: float, sampling: Sampling) -> Picture:
  """Turns about the centre, against the clock."""
  return picture.rotate(
    degrees, sampling.method, fillcolor=_colour(picture, sampling)
  )


def brightness(picture: Picture, change: float, sampling: Sampling) -> Picture:
  """Multiplies by `1 + change`."""
  del sampling
  return ImageEnhance.Brightness(picture).enhance(1 + change)


def color(picture: Picture, change: float, sampling: Sampling) -> Picture:
  """Multiplies the distance from the grey picture by `1 + change`."""
  del sampling
  return ImageEnhance.Color(picture).enhance(1 + change)


def contrast(picture: Picture, change: float, sampling: Sampling) -> Picture:
  """Multiplies the distance from the mean grey by `1 + change`."""
  del sampling
  return ImageEnhance.Contrast(picture).enhance(1 + change)


def sharpness(picture: Picture, change: float, sampling: Sampling) -> Picture:
  """Multiplies the distance from the smoothed picture by `1 + change`."""
  del sampling
  return ImageEnhance.Sharpness(picture).enhance(1 + change)


def posterize(picture: Picture, bits: float, sampling: Sampling) -> Picture:
  """Keeps the highest bits of each pixel; none gives black."""
  del sampling
  # Not ImageOps.posterize: newer Pillows refuse 0 bits, which timm's policies
  # reach at their highest magnitude.
  kept = 256 - 2 ** (8 - int(bits))
  return _look_up(picture, [value & kept for value in range(256)])


def solarize(picture: Picture, threshold: float, sampling: Sampling) -> Picture:
  """Inverts what is not below the threshold."""
  del sampling
  return _look_up(
    picture, [x if x < threshold else 255 - x for x in range(256)]
  )


def solarize_add(
  picture: Picture, addition: float, sampling: Sampling
) -> Picture:
  """Brightens the darker half of the values by the addition."""
  del sampling
  return _look_up(
    picture,
    [min(255, x + int(addition)) if x < 128 else x for x in range(256)],
  )


def autocontrast(
  picture: Picture, amount: float, sampling: Sampling
) -> Picture:
  """Stretches each channel to 0 ... 255."""
  del amount, sampling
  return ImageOps.autocontrast(picture)


def equalize(picture: Picture, amount: float, sampling: Sampling) -> Picture:
  """Makes the histogram of each channel flat."""
  del amount, sampling
  return ImageOps.equalize(picture)


def invert(picture: Picture, amount: float, sampling: Sampling) -> Picture:
  """Makes the negative."""
  del amount, sampling
  return ImageOps.invert(picture)


def _move(
  picture: Picture, inverse: Sequence[float], sampling: Sampling
) -> Picture:
  """Pixel (x, y) comes from (ax + by + c, dx + ey + f)."""
  return picture.transform(
    picture.size,
    Image.Transform.AFFINE,
    inverse,
    sampling.method,
    fillcolor=_colour(picture, sampling),
  )


def _colour(picture: Picture, sampling: Sampling) -> int | tuple[int, ...]:
  return sampling.fill[0] if picture.mode == "L" else sampling.fill


def _look_up(picture: Picture, table: list[int]) -> Picture:
  return picture.point(table * len(picture.getbands()))
