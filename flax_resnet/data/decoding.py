"""From the bytes of an image file to uint8 pixels, no more of them than needed.

JPEGs are decoded by `data.jpeg`, at half, a quarter or an eighth of their size
where that is enough, and down to the last row that is asked for; Pillow decodes
everything else, and whatever libjpeg-turbo complains about.
"""

import io

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from flax_resnet.data.jpeg import FORMATS, ImageError, Jpeg

# Of an image, beyond which it is taken for a decompression bomb: Pillow's own
# bound, a quarter of a gigabyte of RGB.
MAX_PIXELS = 89_478_485

# Rows that are decoded beyond those asked for: chroma of half the height is
# interpolated with the row below.
_MARGIN = 1

# Threads of the pipeline read whole records; more within one get in their way.
cv2.setNumThreads(1)


class Picture:
  """An image that is decoded when and as far as it is looked at.

  Attributes:
    height: In pixels, upright.
    width: Likewise.

  Args:
    image: The bytes of an image file, or uint8 [h, w, c].
    channels: 1 for grey, 3 for RGB.

  Raises:
    ImageError: When the bytes are no image, or one of too many pixels.
  """

  def __init__(self, image: bytes | np.ndarray, channels: int):
    self._channels = channels
    self._jpeg = None
    if isinstance(image, np.ndarray):
      self._pixels = image
    elif channels == 3 and image.startswith(b"\xff\xd8"):
      self._jpeg = Jpeg.find(image)
    if self._jpeg:
      self.height, self.width = self._jpeg.height, self._jpeg.width
      _check_size(self.height, self.width)
      return
    if not isinstance(image, np.ndarray):
      self._pixels = _by_pillow(image, channels)
    self.height, self.width = self._pixels.shape[:2]

  def pixels(self) -> np.ndarray:
    """Returns uint8 [height, width, channels].

    Raises:
      ImageError: When the image is broken.
    """
    if self._jpeg is None:
      return self._pixels
    pixels = self._jpeg.pixels()
    # Pillow says whether the picture is broken, or the file merely odd.
    return _by_pillow(self._jpeg.data, 3) if pixels is None else pixels

  def resized(
    self, top: int, left: int, height: int, width: int, size: int
  ) -> np.ndarray:
    """Returns a part of the image, resized to uint8 [size, size, channels].

    First the part is shrunk by the largest of 1, 2, 4 and 8 that leaves both
    its sides `size` pixels, each the mean of those it stands for (libjpeg does
    so in the frequency domain); what is left to do is bilinear.

    Args:
      top: First row of the part.
      left: First column.
      height: Of the part.
      width: Of the part.
      size: Height and width of the result.

    Raises:
      ImageError: When the image is broken.
    """
    enough = max(1, min(height, width) // size)
    factor = next(k for k in (8, 4, 2, 1) if k <= enough)
    bottom, right = top + height, left + width
    if self._jpeg and self._jpeg.by_rows:
      last_row = min(self.height, bottom + _MARGIN * factor)
      shrunk = self._jpeg.upper(last_row, factor)
      rows = slice(round(top / factor), round(bottom / factor))
      columns = slice(round(left / factor), round(right / factor))
      part = shrunk[rows, columns]
    else:
      part = self.pixels()[top:bottom, left:right]
      if factor > 1:
        shape = (round(width / factor), round(height / factor))
        part = cv2.resize(part, shape, interpolation=cv2.INTER_AREA)
    resized = cv2.resize(part, (size, size), interpolation=cv2.INTER_LINEAR)
    return resized.reshape(size, size, self._channels)


def decode(image: bytes | np.ndarray, channels: int) -> np.ndarray:
  """Returns uint8 [h, w, channels] of an encoded file; an array as it is.

  What is grey, has a palette, alpha (dropped, as torchvision's loader does),
  CMYK or 16 bits becomes uint8 grey or RGB, and what EXIF says is turned
  becomes upright.

  Args:
    image: The bytes of an image file, or uint8 [h, w, c].
    channels: 1 for grey, 3 for RGB.

  Raises:
    ImageError: When the bytes are no image, a broken one, or one of more than
      `MAX_PIXELS`.
  """
  return Picture(image, channels).pixels()


def _by_pillow(image: bytes, channels: int) -> np.ndarray:
  try:
    with Image.open(io.BytesIO(image), formats=FORMATS) as picture:
      _check_size(picture.height, picture.width)
      pixels = _convert(ImageOps.exif_transpose(picture), channels)
  except UnidentifiedImageError as error:
    raise ImageError(
      f"{len(image)} bytes that start with {image[:8]!r} are not an image"
    ) from error
  except ImageError:
    raise
  except Exception as error:  # Pillow's readers raise whatever they meet.
    raise ImageError(f"the image is broken: {error}") from error
  return pixels.reshape(*pixels.shape[:2], channels)


def _convert(picture: Image.Image, channels: int) -> np.ndarray:
  if picture.mode == "F":
    raise ImageError("the image has floating-point pixels: save it with 8 bits")
  if picture.mode.startswith("I"):  # 16 bits of grey, whatever their order.
    bits = np.asarray(picture).astype(np.uint32)
    picture = Image.fromarray((bits >> 8).clip(0, 255).astype(np.uint8))
  if "transparency" in picture.info:
    picture = picture.convert("RGBA")
  return np.asarray(picture.convert("L" if channels == 1 else "RGB"))


def _check_size(height: int, width: int) -> None:
  if height * width > MAX_PIXELS:
    raise ImageError(
      f"the image has {height} x {width} pixels, more than {MAX_PIXELS:,}: "
      "a file that fills the memory"
    )
