"""JPEGs, decoded by libjpeg-turbo (simplejpeg) and no further than needed.

Most photographs are JPEGs, and decoding them is most of what the host does.
"""

import dataclasses
import io
import struct
import threading

import numpy as np
from PIL import Image
import simplejpeg

# What Pillow may take a file for. It knows many more, whose readers are little
# used; that of EPS starts Ghostscript, which runs the program in the file.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")


class ImageError(ValueError):
  """A file that is no image, or a broken one."""


@dataclasses.dataclass(frozen=True)
class Jpeg:
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
  def find(cls, data: bytes) -> "Jpeg | None":
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

  def pixels(self) -> np.ndarray | None:
    """Returns all of them; None if anything in the file is odd."""
    try:
      return simplejpeg.decode_jpeg(self.data)
    except ValueError:
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
    picture = Image.open(io.BytesIO(jpeg), formats=FORMATS)
    return picture.getexif().get(orientation, 1) != 1
  except Exception:  # Whatever Pillow meets in a broken header: it may say so.
    return True


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
