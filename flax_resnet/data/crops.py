"""From a record to uint8 pixels on the host: step 2 of the way of a batch."""

from collections.abc import Callable
import math

import numpy as np
from PIL import Image

from flax_resnet.data.decoding import decode, LazyImage, MAX_PIXELS
from flax_resnet.schema import height_and_width, ImageSize, Interpolation

# From a record's image, and the generator of its position in the run, to uint8
# [h, w, c].
Transform = Callable[[bytes | np.ndarray, np.random.Generator], np.ndarray]


def center_crop(
  channels: int,
  size: ImageSize,
  fraction: float = 1.0,
  interpolation: Interpolation = "bilinear",
  max_pixels: int = MAX_PIXELS,
  *,
  resize_first: bool = False,
) -> Transform:
  """Returns a transform that cuts the center out of an image.

  The short side is resized to `size / fraction`, then the middle is cut out:
  the pixels of torchvision's `Resize` and `CenterCrop` on a Pillow image,
  antialiased as these are. Only what is kept is computed. Where height and
  width are not equal, the image is resized until it just covers both of them
  over `fraction`, each rounded down, as timm has it.

  Pillow 13 chooses by the sizes whether it resizes rows or columns first, and
  rounds in between: for a part of an image some pixels may differ by a few
  levels of 255 from those of the whole.

  Args:
    channels: 1 for gray, 3 for RGB.
    size: height and width of the result in pixels, one number or both.
    fraction: share of the short side that is kept: 1 (default) for all of it,
      0.875 (224 of 256) for ImageNet.
    interpolation: name of one of Pillow's: "bilinear" (default), "bicubic".
    max_pixels: largest number of pixels of an image; default `MAX_PIXELS`.
    resize_first: whether to compute the whole image, and so the very pixels of
      torchvision with any Pillow; default False.
  """
  rows, columns = height_and_width(size)

  def transform(image, rng):
    del rng
    pixels = decode(image, channels, max_pixels)
    height, width = pixels.shape[:2]
    resized = _covering(height, width, (rows, columns), fraction)
    if (height, width) == (rows, columns) == (resized[1], resized[0]):
      return pixels
    # A narrow strip would become a large image.
    if resize_first and math.prod(resized) <= max_pixels:
      pixels = _resize(pixels, None, resized, interpolation)
      left = round((resized[0] - columns) / 2)
      top = round((resized[1] - rows) / 2)
      return pixels[top : top + rows, left : left + columns]
    left, right = _middle(width, resized[0], columns)
    top, bottom = _middle(height, resized[1], rows)
    box = left, top, right, bottom
    return _resize(pixels, box, [columns, rows], interpolation)

  return transform


def _covering(
  height: int, width: int, size: tuple[int, int], fraction: float
) -> list[int]:
  """Returns width and height of an image before the crop of its center.

  Args:
    height: height of the image in pixels.
    width: width of the image in pixels.
    size: height and width of the crop.
    fraction: share of the image that is kept, where it has the crop's shape.
  """
  rows, columns = size
  if rows == columns:
    short = round(rows / fraction)
    return [short * side // min(height, width) for side in (width, height)]
  ratio = min(
    height / math.floor(rows / fraction), width / math.floor(columns / fraction)
  )
  return [round(width / ratio), round(height / ratio)]


def _middle(length: int, resized: int, size: int) -> tuple[float, float]:
  """Returns where `size` central pixels begin and end before a resize.

  Args:
    length: length of the image along an axis, in pixels.
    resized: its length after the resize.
    size: number of these pixels that are kept.
  """
  start = round((resized - size) / 2)
  return start * length / resized, (start + size) * length / resized


def _resize(
  pixels: np.ndarray, box: tuple | None, size: list[int], interpolation: str
) -> np.ndarray:
  """Resizes an image, or `box` (left, top, right, bottom) of it, antialiased.

  Args:
    pixels: the image.
    box: part of it; None for all.
    size: width and height of the result.
    interpolation: name of the filter.
  """
  gray = pixels.shape[-1] == 1
  image = Image.fromarray(pixels.squeeze(-1) if gray else pixels)
  method = Image.Resampling[interpolation.upper()]
  resized = image.resize((size[0], size[1]), method, box=box)
  return np.asarray(resized).reshape(size[1], size[0], -1)


def random_resized_crop(
  channels: int,
  size: ImageSize,
  scale: tuple[float, float] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
  max_pixels: int = MAX_PIXELS,
) -> Transform:
  """Returns a transform that cuts a random part out of an image.

  Szegedy et al. 2014 (arXiv:1409.4842), section 6. The part is resized by
  `LazyImage.resized_crop`.

  Args:
    channels: 1 for gray, 3 for RGB.
    size: height and width of the result in pixels, one number or both.
    scale: range of the part's share of the area, drawn uniformly; default
      (0.08, 1).
    ratio: range of its width over its height, drawn log-uniformly; default
      (3/4, 4/3).
    max_pixels: largest number of pixels of an image; default `MAX_PIXELS`.
  """

  def transform(image, rng):
    lazy = LazyImage(image, channels, max_pixels)
    box = random_box(lazy.height, lazy.width, scale, ratio, rng)
    return lazy.resized_crop(*box, size=size)

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
