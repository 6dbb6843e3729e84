"""From the bytes of an image file to uint8 pixels, no more of them than needed.

Most photographs are JPEGs, and decoding them is most of what the host does.
libjpeg-turbo (by simplejpeg) decodes these, at half, a quarter or an eighth of
their size where that is enough, and down to the last row that is asked for.
Pillow decodes everything else, and whatever libjpeg-turbo complains about.
"""

import dataclasses
import io
import struct
import threading

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
import simplejpeg

# Of an image, beyond which it is taken for a decompression bomb: Pillow's own
# bound, a quarter of a gigabyte of RGB.
MAX_PIXELS = 89_478_485

# Rows that libjpeg-turbo decodes beyond those asked for: one row of blocks, as
# chroma is interpolated across their border.
_MARGIN = 16

# Threads of the pipeline read whole records; more within one get in their way.
cv2.setNumThreads(1)


class _Scratch(threading.local):
  """Memory of a thread that is used again: fresh memory would cost a fifth."""

  def __init__(self):
    self._arrays: dict[str, np.ndarray] = {}

  def array(self, use: str, size: int) -> np.ndarray:
    """Returns uint8 [size] with anything in it, for one use at a time."""
    if use not in self._arrays or self._arrays[use].size < size:
      self._arrays[use] = np.empty(size, np.uint8)
    return self._arrays[use][:size]


_scratch = _Scratch()


class ImageError(ValueError):
  """A file that is no image, or a broken one."""


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
      self._jpeg = _Jpeg.find(image)
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
    try:
      return simplejpeg.decode_jpeg(self._jpeg.data)
    except ValueError:  # Also where only a warning is due: Pillow decides.
      return _by_pillow(self._jpeg.data, self._channels)

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


@dataclasses.dataclass(frozen=True)
class _Jpeg:
  """A JPEG that needs nothing but decoding.

  Attributes:
    data: The file.
    frame: Where the marker of its frame is.
    height: In pixels.
    width: Likewise.
    by_rows: Whether it is written row by row: baseline, and complete.
  """

  data: bytes
  frame: int
  height: int
  width: int
  by_rows: bool

  @classmethod
  def find(cls, data: bytes) -> "_Jpeg | None":
    """Returns what a file is; None if it is for Pillow.

    Reads the segments up to the frame (ITU-T T.81, annex B).
    """
    at = 2
    while data.startswith(b"\xff", at) and at + 10 <= len(data):
      marker, length = struct.unpack_from(">BH", data, at + 1)
      if marker == 0xE1 and data.startswith(b"Exif", at + 4) and _turned(data):
        return None
      if marker in (0xC0, 0xC1, 0xC2):  # Baseline, extended, progressive.
        bits, height, width, components = struct.unpack_from(
          ">BHHB", data, at + 4
        )
        if bits != 8 or components not in (1, 3) or 0 in (height, width):
          return None
        by_rows = marker != 0xC2 and data.endswith(b"\xff\xd9")
        return cls(data, at, height, width, by_rows)
      at += 2 + length
    return None

  def upper(self, rows: int, factor: int) -> np.ndarray:
    """Returns the pixels down to a row, until the thread's next call.

    A decoder stops at the last row that the header promises.

    Args:
      rows: How many.
      factor: 1, 2, 4 or 8: what the size is divided by.
    """
    short = _scratch.array("file", len(self.data))
    short[:] = np.frombuffer(self.data, np.uint8)
    short[self.frame + 5 : self.frame + 7] = divmod(rows, 256)
    try:
      return simplejpeg.decode_jpeg(
        short,
        min_height=-(-rows // factor),
        min_width=-(-self.width // factor),
        min_factor=factor,
        buffer=_scratch.array("pixels", 3 * rows * self.width),
        fastdct=True,
        strict=False,  # There is data beyond the last row.
      )
    except ValueError as error:
      raise ImageError(f"the image is broken: {error}") from error


def _turned(jpeg: bytes) -> bool:
  """Whether EXIF says that the rows of a file are not those of the picture."""
  orientation = 0x0112
  try:
    return Image.open(io.BytesIO(jpeg)).getexif().get(orientation, 1) != 1
  except Exception:  # Whatever Pillow meets in a broken header: it may say so.
    return True


def _by_pillow(image: bytes, channels: int) -> np.ndarray:
  try:
    with Image.open(io.BytesIO(image)) as picture:
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
