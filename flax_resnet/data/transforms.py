"""From a record to uint8 pixels on the host: step 2 of the way of a batch."""

from collections.abc import Callable
import io
import math

import numpy as np
from PIL import Image, UnidentifiedImageError

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
  except UnidentifiedImageError as error:
    raise ValueError(
      f"{len(image)} bytes that start with {image[:8]!r} are not an image"
    ) from error
  except OSError as error:
    raise ValueError(f"the image is broken: {error}") from error
  return pixels.reshape(*pixels.shape[:2], channels)


def center_crop(
  channels: int,
  size: int,
  fraction: float = 1.0,
  interpolation: str = "bilinear",
) -> Transform:
  """The central `size` x `size` of an image, seen at a fixed scale.

  The short side is resized to `size / fraction`, then the middle is cut out:
  the pixels of torchvision's `Resize` and `CenterCrop` on a Pillow image,
  antialiased as these are. Only what is kept is computed.

  Args:
    channels: 1 for grey, 3 for RGB.
    size: Height and width of the result.
    fraction: The share of the short side that is kept: 1 for all of it, 0.875
      (224 of 256) for ImageNet.
    interpolation: Of the resize: one of Pillow's, "bilinear" or "bicubic".
  """

  def transform(image, rng):
    del rng
    pixels = decode(image, channels)
    height, width = pixels.shape[:2]
    short = round(size / fraction)
    if height == width == size == short:
      return pixels
    left, right = _middle(width, short * width // min(height, width), size)
    top, bottom = _middle(height, short * height // min(height, width), size)
    return _resize(pixels, (left, top, right, bottom), size, interpolation)

  return transform


def _middle(length: int, resized: int, size: int) -> tuple[float, float]:
  """Returns where `size` central pixels begin and end before a resize.

  Args:
    length: Of the image, along one axis.
    resized: Its length after the resize.
    size: Pixels kept of these.
  """
  start = round((resized - size) / 2)
  return start * length / resized, (start + size) * length / resized


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


def _resize(
  pixels: np.ndarray, box: tuple, size: int, interpolation: str = "bilinear"
) -> np.ndarray:
  """Resizes `box` (left, top, right, bottom) of an image."""
  mode = "L" if pixels.shape[-1] == 1 else "RGB"
  picture = Image.fromarray(pixels.squeeze(-1) if mode == "L" else pixels)
  method = Image.Resampling[interpolation.upper()]
  resized = picture.resize((size, size), method, box=box)
  return np.asarray(resized).reshape(size, size, -1)
