"""From a record to uint8 pixels on the host: step 2 of the way of a batch."""

from collections.abc import Callable
import math

import numpy as np
from PIL import Image

from flax_resnet.data.decoding import decode, Picture
from flax_resnet.data.policies import Policy

# A record's image, and the generator of its place in the run, to [h, w, c].
Transform = Callable[[bytes | np.ndarray, np.random.Generator], np.ndarray]


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


def _resize(
  pixels: np.ndarray, box: tuple, size: int, interpolation: str
) -> np.ndarray:
  """Resizes `box` (left, top, right, bottom) of an image, antialiased."""
  mode = "L" if pixels.shape[-1] == 1 else "RGB"
  picture = Image.fromarray(pixels.squeeze(-1) if mode == "L" else pixels)
  method = Image.Resampling[interpolation.upper()]
  resized = picture.resize((size, size), method, box=box)
  return np.asarray(resized).reshape(size, size, -1)


def random_resized_crop(
  channels: int,
  size: int,
  scale: tuple[float, float] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Transform:
  """A random part of the image, resized (Szegedy et al. 2014, section 6).

  Halved as often as fits, and then bilinear: see `Picture.resized`.

  Args:
    channels: 1 for grey, 3 for RGB.
    size: Height and width of the result.
    scale: Range of the part's share of the area; drawn uniformly.
    ratio: Range of its width over its height; drawn log-uniformly.
  """

  def transform(image, rng):
    picture = Picture(image, channels)
    box = random_box(picture.height, picture.width, scale, ratio, rng)
    return picture.resized(*box, size=size)

  return transform


def random_box(
  height: int,
  width: int,
  scale: tuple[float, float],
  ratio: tuple[float, float],
  rng: np.random.Generator,
) -> tuple[int, int, int, int]:
  """Returns (top, left, height, width) of a part, as torchvision draws it.

  After ten misses it is the central part of the nearest ratio in range.
  """
  for _ in range(10):
    area = height * width * rng.uniform(*scale)
    aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
    w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if 0 < w <= width and 0 < h <= height:
      top = int(rng.integers(height - h + 1))
      return top, int(rng.integers(width - w + 1)), h, w
  h = min(height, max(1, round(width / ratio[0])))
  w = min(width, max(1, round(height * ratio[1])))
  return (height - h) // 2, (width - w) // 2, h, w


def then(transform: Transform, policy: Policy) -> Transform:
  """Returns the transform, and after it the policy."""
  return lambda image, rng: policy(transform(image, rng), rng)
