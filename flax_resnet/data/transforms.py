"""From a record to uint8 pixels on the host: step 2 of the way of a batch."""

from collections.abc import Callable
import io
import math

import numpy as np
from PIL import Image

# A record's image, and the generator of its place in the run, to [h, w, c].
Transform = Callable[[bytes | np.ndarray, np.random.Generator], np.ndarray]


def decode(image: bytes | np.ndarray, channels: int) -> np.ndarray:
  """Returns uint8 [h, w, channels] of an encoded file; an array as it is.

  Args:
    image: The bytes of an image file, or uint8 [h, w, c].
    channels: 1 for grey, 3 for RGB.

  Raises:
    ValueError: When the bytes are not an image.
  """
  if isinstance(image, np.ndarray):
    return image
  try:
    picture = Image.open(io.BytesIO(image))
    pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
  except OSError as error:
    raise ValueError(
      f"{len(image)} bytes that start with {image[:8]!r} are not an image: "
      f"{error}"
    ) from error
  return pixels.reshape(*pixels.shape[:2], channels)


def center_crop(channels: int, size: int, fraction: float = 1.0) -> Transform:
  """The central `size` x `size` of an image, seen at a fixed scale.

  The short side is resized to `size / fraction`; antialiased, as in Pillow.

  Args:
    channels: 1 for grey, 3 for RGB.
    size: Height and width of the result.
    fraction: The share of the short side that is kept: 1 for all of it, 0.875
      (224 of 256) for ImageNet.
  """

  def transform(image, rng):
    del rng
    pixels = decode(image, channels)
    height, width = pixels.shape[:2]
    side = min(height, width) * fraction
    if height == width == size == side:
      return pixels
    top, left = (height - side) / 2, (width - side) / 2
    return _resize(pixels, (left, top, left + side, top + side), size)

  return transform


def random_resized_crop(
  channels: int,
  size: int,
  scale: tuple[float, float] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Transform:
  """A random part of the image, resized (Szegedy et al. 2014, section 6).

  Args:
    channels: 1 for grey, 3 for RGB.
    size: Height and width of the result.
    scale: Range of the part's share of the area; drawn uniformly.
    ratio: Range of its width over its height; drawn log-uniformly.
  """

  def transform(image, rng):
    pixels = decode(image, channels)
    height, width = pixels.shape[:2]
    for _ in range(10):
      area = height * width * rng.uniform(*scale)
      aspect = math.exp(rng.uniform(*np.log(ratio)))
      w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
      if 0 < w <= width and 0 < h <= height:
        left = rng.integers(width - w + 1)
        top = rng.integers(height - h + 1)
        return _resize(pixels, (left, top, left + w, top + h), size)
    return center_crop(channels, size)(pixels, rng)

  return transform


def _resize(pixels: np.ndarray, box: tuple, size: int) -> np.ndarray:
  """Resizes `box` (left, top, right, bottom) of an image, bilinearly."""
  mode = "L" if pixels.shape[-1] == 1 else "RGB"
  picture = Image.fromarray(pixels.squeeze(-1) if mode == "L" else pixels)
  resized = picture.resize((size, size), Image.Resampling.BILINEAR, box=box)
  return np.asarray(resized).reshape(size, size, -1)
