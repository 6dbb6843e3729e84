"""From the bytes of an image file to uint8 pixels, no more of them than needed.

Most photographs are JPEGs, and decoding them is most of what the host does.
libjpeg-turbo (simplejpeg) decodes them at half, a quarter or an eighth of their
size where that is enough, and down to the last row that is asked for; Pillow
decodes everything else, and whatever libjpeg-turbo complains about.
"""

import dataclasses
import io
import struct
import threading

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
import simplejpeg

from flax_resnet.errors import ImageError

# What Pillow may take a file for. It knows many more, whose readers are little
# used; that of EPS starts Ghostscript, which runs the program in the file.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

# An image of more is taken for a decompression bomb: Pillow's own bound, a
# quarter of a gigabyte of RGB.
MAX_PIXELS = 89_478_485

# Rows that are decoded beyond those asked for: chroma of half the height is
# interpolated with the row below.
_MARGIN = 1

# Threads of the pipeline read whole records; more within one get in their way.
cv2.setNumThreads(1)


@dataclasses.dataclass(frozen=True)
class Jpeg:
  """A JPEG that needs nothing but decoding.

  Attributes:
    data: content of the file.
    frame: offset of the marker of its frame, in bytes.
    height: height in pixels.
    width: width in pixels.
    sequential: whether it is written row by row, and complete.
  """

  data: bytes
  frame: int
  height: int
  width: int
  sequential: bool

  @classmethod
  def parse(cls, data: bytes) -> "Jpeg | None":
    """Returns what the header says; None if the file is for Pillow.

    Reads the segments up to the frame (ITU-T T.81, annex B).
    """
    start = 2
    while data.startswith(b"\xff", start) and start + 10 <= len(data):
      marker, length = struct.unpack_from(">BH", data, start + 1)
      exif = marker == 0xE1 and data.startswith(b"Exif", start + 4)
      if exif and _is_rotated(data):
        return None
      if marker in (0xC0, 0xC1, 0xC2):  # Baseline, extended, progressive.
        bits, height, width, components = struct.unpack_from(
          ">BHHB", data, start + 4
        )
        if bits != 8 or components not in (1, 3) or 0 in (height, width):
          return None
        sequential = marker != 0xC2 and data.endswith(b"\xff\xd9")
        return cls(data, start, height, width, sequential)
      start += 2 + length
    return None

  def decode(self) -> np.ndarray | None:
    """Returns uint8 [height, width, 3]; None if anything in the file is odd."""
    try:
      return simplejpeg.decode_jpeg(self.data)
    except ValueError:
      return None

  def decode_rows(self, rows: int, factor: int) -> np.ndarray:
    """Returns the pixels down to a row; the thread's next call replaces them.

    A decoder stops at the last row that the header promises.

    Args:
      rows: number of rows, of the whole size.
      factor: divisor of height and width: 1, 2, 4 or 8.
    """
    shortened = _scratch.array("file", len(self.data))
    shortened[:] = np.frombuffer(self.data, np.uint8)
    shortened[self.frame + 5 : self.frame + 7] = divmod(rows, 256)
    try:
      return simplejpeg.decode_jpeg(
        shortened,
        min_height=-(-rows // factor),
        min_width=-(-self.width // factor),
        min_factor=factor,
        buffer=_scratch.array("pixels", 3 * rows * self.width),
        fastdct=True,
        strict=False,  # There is data beyond the last row.
      )
    except ValueError as error:
      raise ImageError(f"the image is broken: {error}") from error


def _is_rotated(jpeg: bytes) -> bool:
  """Returns whether EXIF says that the pixels are not upright."""
  orientation = 0x0112
  try:
    image = Image.open(io.BytesIO(jpeg), formats=FORMATS)
    return image.getexif().get(orientation, 1) != 1
  except Exception:  # Whatever Pillow meets in a broken header: it may say so.
    return True


class _Scratch(threading.local):
  """Memory of a thread that is used again: fresh memory would cost a fifth."""

  def __init__(self):
    self._arrays: dict[str, np.ndarray] = {}

  def array(self, use: str, size: int) -> np.ndarray:
    """Returns uint8 [size], not initialized, for one use at a time."""
    if use not in self._arrays or self._arrays[use].size < size:
      self._arrays[use] = np.empty(size, np.uint8)
    return self._arrays[use][:size]


_scratch = _Scratch()


class LazyImage:
  """An image that is decoded when, and as far as, its pixels are asked for.

  Attributes:
    height: height in pixels, upright.
    width: width in pixels, upright.

  Args:
    image: content of an image file, or uint8 [h, w, c].
    channels: 1 for gray, 3 for RGB.

  Raises:
    ImageError: if the bytes are no image, or one of too many pixels.
  """

  def __init__(self, image: bytes | np.ndarray, channels: int):
    self._channels = channels
    self._jpeg = None
    if isinstance(image, np.ndarray):
      self._pixels = image
    elif channels == 3 and image.startswith(b"\xff\xd8"):
      self._jpeg = Jpeg.parse(image)
    if self._jpeg:
      self.height, self.width = self._jpeg.height, self._jpeg.width
      _check_size(self.height, self.width)
      return
    if not isinstance(image, np.ndarray):
      self._pixels = _decode_with_pillow(image, channels)
    self.height, self.width = self._pixels.shape[:2]

  def pixels(self) -> np.ndarray:
    """Returns uint8 [height, width, channels].

    Raises:
      ImageError: if the image is broken.
    """
    if self._jpeg is None:
      return self._pixels
    if (pixels := self._jpeg.decode()) is not None:
      return pixels
    # Pillow says whether the image is broken, or the file merely odd.
    return _decode_with_pillow(self._jpeg.data, 3)

  def resized_crop(
    self, top: int, left: int, height: int, width: int, size: int
  ) -> np.ndarray:
    """Returns a part of the image, resized to uint8 [size, size, channels].

    First the part is shrunk by the largest of 1, 2, 4 and 8 that leaves both
    its sides `size` pixels, each the mean of those it stands for (libjpeg does
    so in the frequency domain); the rest of the way is bilinear.

    Args:
      top: first row of the part.
      left: first column of the part.
      height: height of the part in pixels.
      width: width of the part in pixels.
      size: height and width of the result in pixels.

    Raises:
      ImageError: if the image is broken.
    """
    fitting = max(1, min(height, width) // size)
    factor = next(k for k in (8, 4, 2, 1) if k <= fitting)
    bottom, right = top + height, left + width
    if self._jpeg and self._jpeg.sequential:
      last_row = min(self.height, bottom + _MARGIN * factor)
      shrunk = self._jpeg.decode_rows(last_row, factor)
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

  Gray, a palette, alpha (dropped, as torchvision's loader does), CMYK and 16
  bits become uint8 gray or RGB, and EXIF's rotation is undone.

  Args:
    image: content of an image file, or uint8 [h, w, c].
    channels: 1 for gray, 3 for RGB.

  Raises:
    ImageError: if the bytes are no image, a broken one, or one of more than
      `MAX_PIXELS`.
  """
  return LazyImage(image, channels).pixels()


def _decode_with_pillow(data: bytes, channels: int) -> np.ndarray:
  try:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
      _check_size(image.height, image.width)
      pixels = _convert(ImageOps.exif_transpose(image), channels)
  except UnidentifiedImageError as error:
    raise ImageError(
      f"{len(data)} bytes that start with {data[:8]!r} are not an image"
    ) from error
  except ImageError:
    raise
  except Exception as error:  # Pillow's readers raise whatever they meet.
    raise ImageError(f"the image is broken: {error}") from error
  return pixels.reshape(*pixels.shape[:2], channels)


def _convert(image: Image.Image, channels: int) -> np.ndarray:
  if image.mode == "F":
    raise ImageError("the image has floating-point pixels: save it with 8 bits")
  if image.mode.startswith("I"):  # 16 bits of gray, whatever their order.
    bits = np.asarray(image).astype(np.uint32)
    image = Image.fromarray((bits >> 8).clip(0, 255).astype(np.uint8))
  if "transparency" in image.info:
    image = image.convert("RGBA")
  return np.asarray(image.convert("L" if channels == 1 else "RGB"))


def _check_size(height: int, width: int) -> None:
  if height * width > MAX_PIXELS:
    raise ImageError(
      f"the image has {height} x {width} pixels, more than {MAX_PIXELS:,}: "
      "a file that fills the memory"
    )
